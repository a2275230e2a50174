"""An exported model, read with torch and safetensors alone: a folder that `python -m hiclip.export` wrote.

weights.safetensors    the towers' weights and the logit scale, fp32
config.json            what the model is, and how pictures and captions are given to it; written last
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file

from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.two_towers import TwoTowers, differing_weights, listed

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
FORMAT = 1


def config_of(settings: ModelSettings) -> dict[str, Any]:
    """What `config.json` says of the model, so that `load` builds it again."""
    return {"format": FORMAT, "model": asdict(settings)}


def load(path: str) -> TwoTowers:
    """The towers of the export in the folder `path`, in evaluation mode on CPU.

    Nothing is read that could run code. Raises ValueError, in one line, that names what is missing or does not fit.
    """
    place = Path(path)
    towers = TwoTowers(_settings(place / CONFIG))
    file = place / WEIGHTS
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    said = differing_weights(towers, weights)
    if said:
        raise ValueError(f"{file}: the weights are not those of the model in {CONFIG}; {said}")
    towers.load_state_dict(weights)
    return towers.eval()


def _settings(file: Path) -> ModelSettings:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: is not there; an export without it was not finished") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file}: expected format {FORMAT} and the keys of a model, came something else")
    known = {field.name for field in fields(ModelSettings)}
    if model.keys() != known:
        raise ValueError(f"{file}: expected the model's keys, differing: {listed(model.keys() ^ known)}")
    if isinstance(model["hierarchy_layers"], list):
        model["hierarchy_layers"] = tuple(model["hierarchy_layers"])
    for name, kind in get_type_hints(ModelSettings).items():
        if name in known and not _fits(model[name], kind):
            raise ValueError(f"{file}: {name}: expected {_said(kind)}, came {model[name]!r}")
    settings = ModelSettings(**model)
    try:
        resolve(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: no such model: {error}") from None
    return settings


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is what a field's annotation says; a dataclass itself takes anything."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(kind)[0]) for one in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_said, get_args(kind)))
    return "null" if kind is type(None) else str(getattr(kind, "__name__", kind))
