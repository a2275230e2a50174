"""Weights of published CLIP models, in and out: names of OpenAI and open_clip, or of `transformers`, and ours.

CLIP's published models are our model with both hierarchies off; `hiclip.model.clip_relations` says what is called how.

Weights do not say which activation they were trained with. Ours is QuickGELU, as in all of OpenAI's models; several of
open_clip's have GELU, fit all names and shapes, and would silently give other features. Who reads a file must know:
`hiclip.training.published_weights` looks into the configuration beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hiclip.model.clip_relations import Names, relations
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.two_towers import TwoTowers

_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "embeddings.position_ids", "num_batches_tracked")
"""Ends of names that files hold beside the weights: sizes, and counts."""
_NAMED = 6
"""Names that an error lists before it only counts."""


def names_of(weights: Mapping[str, Tensor]) -> Names:
    """Whose names these are. Raises ValueError if they are nobody's."""
    if any(name.startswith("vision_model.") for name in weights):
        return "transformers"
    if any(name.startswith("visual.") for name in weights):
        return "open_clip"
    found = _listed(sorted(weights)) if weights else "nothing"
    raise ValueError(f"expected a CLIP model under OpenAI's, open_clip's or transformers' names, found {found}")


def from_published(settings: ModelSettings, weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Published weights -> the state of `TwoTowers(settings)`, in float32.

    Raises ValueError that names what is missing, unknown or of another shape than the settings ask for.
    """
    shapes = _own_shapes(settings)
    table = relations(resolve(settings), names)
    _check({name: relation.their_shape(shapes) for relation in table for name in relation.theirs}, weights)
    own: dict[str, Tensor] = {}
    for relation in table:
        own |= relation.read(weights, shapes)
    return {name: tensor.float() for name, tensor in own.items()}


def to_published(towers: TwoTowers, names: Names) -> dict[str, Tensor]:
    """The weights of a plain model under published names, each in memory of its own.

    Raises ValueError, naming the keys at fault, for a model that is more than CLIP: its weights would be read as
    something that it is not.
    """
    _refuse_more_than_clip(towers.settings)
    own = towers.state_dict()
    theirs: dict[str, Tensor] = {}
    for relation in relations(resolve(towers.settings), names):
        theirs |= relation.write(own)
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in theirs.items()}


def _own_shapes(settings: ModelSettings) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in TwoTowers(settings).state_dict().items()}


def _check(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected and not name.endswith(_NO_WEIGHTS)]
    present = {name: weights[name] for name in expected if name in weights}
    misshapen = [
        f"{name} is {tuple(tensor.shape)} and should be {expected[name]}"
        for name, tensor in present.items()
        if tuple(tensor.shape) != expected[name]
    ]
    no_floats = [
        f"{name} holds {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in present.items()
        if not tensor.is_floating_point()
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": misshapen, "no floats": no_floats}
    if any(faults.values()):
        said = "; ".join(f"{what}: {_listed(names)}" for what, names in faults.items() if names)
        raise ValueError(f"the weights are not those of a CLIP model of these sizes; {said}")


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _refuse_more_than_clip(settings: ModelSettings) -> None:
    plain = {
        "image_hierarchy": False,
        "text_hierarchy": False,
        "causal": True,
        "text_pooling": "end",
        "leff": False,
        "region_width": None,
    }
    wrong = [key for key, value in plain.items() if getattr(settings, key) != value]
    if wrong:
        said = ", ".join(f"{key}: {getattr(settings, key)}" for key in wrong)
        raise ValueError(f"CLIP's published names hold the plain model only, this one has {said}")
