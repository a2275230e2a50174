"""Published CLIP models as files: weights of OpenAI, open_clip and transformers, read into our towers and written back.

Nothing is read that could run code: safetensors, and PyTorch files by `torch.load(weights_only=True)` alone. Anything
else is a `CheckpointError` that names the file and what is wrong with it.

The weights must have been trained with QuickGELU, as all of OpenAI's were: see `hiclip.model.clip_names`. If the
configuration beside them says otherwise they are refused; if there is none, whoever names the file vouches for it.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiclip.model.clip_names import from_published, names_of, to_published
from hiclip.model.clip_relations import Names
from hiclip.model.clip_sizes import settings_of
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import CheckpointError, load_towers, local_files
from hiclip.training.published_config import CONFIG_NAME, Heads, make_config, read_config
from pipeline.storage import Folder, folder

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""What a file of published weights may end in."""

WEIGHTS_NAME: dict[Names, str] = {"open_clip": "open_clip_model.safetensors", "transformers": "model.safetensors"}
"""Name of the weights in a folder that the other library reads as a model."""

_DAMAGED = (
    SafetensorError, zipfile.BadZipFile, struct.error, UnicodeError, OSError, EOFError, RuntimeError,
    LookupError, TypeError, AttributeError, AssertionError,
)  # fmt: skip
"""What readers raise at bytes that are not what they should be: the unpickler fails wherever they lead it."""


def published_file(path: str) -> str | None:
    """The file of published weights that `path` means, itself or in a folder; None if it means none."""
    if path.endswith(SUFFIXES):
        return path
    place = folder(path)
    return next((place.join(name) for name in WEIGHTS_NAME.values() if place.exists(name)), None)


def read_published(path: str) -> TwoTowers:
    """The plain model in a file, or in a folder with a configuration; float32, in evaluation mode, on CPU."""
    file = published_file(path)
    if file is None:
        expected = " or ".join(WEIGHTS_NAME.values())
        raise CheckpointError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder with {expected}"
        )
    place, name = _split(file)
    try:
        with local_files(place, [name]) as here:
            weights = _named_tensors(_load(here / name))
        names = names_of(weights)
        heads = _heads(place, names)
        settings = settings_of(weights, names, heads.image, heads.text)
        towers = TwoTowers(settings)
        towers.load_state_dict(from_published(settings, weights, names))
    except ValueError as error:
        raise CheckpointError(f"{place.join(name)}: {error}") from None
    return towers.eval()


def towers_at(path: str) -> TwoTowers:
    """The towers at `path`: of a checkpoint, of a run's newest checkpoint, or of published weights."""
    return load_towers(path)[0] if published_file(path) is None else read_published(path)


def write_published(towers: TwoTowers, path: str, names: Names) -> None:
    """Writes a plain model into the folder `path` as open_clip (`local-dir:PATH`) or transformers reads it.

    The weights come last. CheckpointError for a model that is more than CLIP.
    """
    place = folder(path)
    try:
        weights = to_published(towers, names)
    except ValueError as error:
        raise CheckpointError(f"{place.root}: cannot be written: {error}") from None
    place.make().write_text(CONFIG_NAME[names], json.dumps(make_config(towers.settings, names), indent=2) + "\n")
    with tempfile.TemporaryDirectory(prefix="hiclip-weights-") as local:
        save_file(weights, f"{local}/weights", metadata={"format": "pt"})
        place.upload(f"{local}/weights", WEIGHTS_NAME[names])


def _split(path: str) -> tuple[Folder, str]:
    place, _, name = folder(path).root.rpartition("/")
    return Folder(place or "/"), name


def _heads(place: Folder, names: Names) -> Heads:
    """What the configuration beside the weights says of heads, once it has said nothing that is not our model."""
    name = CONFIG_NAME[names]
    if not place.exists(name):
        log.warning("%s has no %s: its weights are taken to be trained with QuickGELU", place.root, name)
        return Heads()
    try:
        config = json.loads(place.read_text(name))
    except ValueError as error:
        raise ValueError(f"{name} beside it cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{name} beside it: expected keys and values, came {type(config).__name__}")
    return read_config(config, names)


def _load(file: Path) -> Any:
    """Whatever the file holds, without running anything of it. ValueError if it cannot be read so."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        torchscript = _is_torchscript(file)
        if not torchscript:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to load it with code and all.
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"{code[1]} besides tensors" if code else "no PyTorch file, or a damaged one"
        raise ValueError(f"cannot be read: expected tensors alone, found {found}; nothing else is unpickled") from None
    except _DAMAGED as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot be read: {first_line}") from None
    raise ValueError(
        "is a TorchScript archive, a program with its weights (as OpenAI's own files are): where you trust it, save "
        "the state_dict() of torch.jit.load as safetensors, or take a converted one"
    )


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """The weights by name: the file's content, or what a training run stored there as its `state_dict`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"expected tensors by name, found {type(content).__name__}")
    wrong = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"expected tensors by name, found {', '.join(wrong[:6])}")
    wrapped = bool(content) and all(str(name).startswith("module.") for name in content)  # as DDP stores them
    return {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in content.items()}
