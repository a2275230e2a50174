"""What our weights are called in published CLIP models: OpenAI's and open_clip's names, and those of `transformers`.

CLIP's published models are our model with both hierarchies off. Three things differ, and one table of `Relation`s, read
in either direction, says them all: names, whether projections are stored transposed, and which of query, key and value
are stacked into one matrix.

    ours                        OpenAI, open_clip                     transformers
    image_tower                 visual                                vision_model, visual_projection
    .patch_embedding            .conv1                                .embeddings.patch_embedding
    .cls_token                  .class_embedding                      .embeddings.class_embedding
    .positions                  .positional_embedding                 .embeddings.position_embedding.weight
    .stream_norm                .ln_pre                               .pre_layrnorm (so spelt)
    .transformer.layers.N       .transformer.resblocks.N              .encoder.layers.N
    ..attention_norm, mlp_norm  ..ln_1, ln_2                          ..layer_norm1, layer_norm2
    ..attention.query           ..attn.in_proj_*, first third         ..self_attn.q_proj
    ..attention.key_value       ..attn.in_proj_*, the other two       ..self_attn.k_proj, v_proj
    ..attention.output          ..attn.out_proj                       ..self_attn.out_proj
    ..mlp.widen, narrow         ..mlp.c_fc, c_proj                    ..mlp.fc1, fc2
    .final_norm                 .ln_post                              .post_layernorm
    .projection                 .proj, transposed                     visual_projection
    text_tower                  (no prefix)                           text_model, text_projection
    .token_embedding            token_embedding                       .embeddings.token_embedding
    .positions                  positional_embedding                  .embeddings.position_embedding.weight
    .final_norm                 ln_final                              .final_layer_norm
    .projection                 text_projection, transposed           text_projection
    logit_scale.logarithm       logit_scale                           logit_scale

Weights do not say which activation they were trained with. Ours is QuickGELU, as in all of OpenAI's models; several of
open_clip's have GELU, fit all names and shapes, and would silently give other features. Who reads a file must know:
`hiclip.training.published_weights` looks into the configuration beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hiclip.model.sizes import ModelSettings, Sizes, resolve
from hiclip.model.two_towers import TwoTowers

Names = Literal["open_clip", "transformers"]
"""Whose names: OpenAI's models have open_clip's."""

_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "embeddings.position_ids")
"""Ends of names that older files hold beside the weights: sizes, and a count from 0."""
_NAMED = 6
"""Names that an error lists before it only counts."""


@dataclass(frozen=True)
class Relation:
    """Tensors of ours that hold the same rows as tensors of theirs, both stacked along the first axis."""

    own: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False

    def their_shape(self, own_shapes: Mapping[str, torch.Size]) -> tuple[int, ...]:
        """The shape that each of their tensors must have; theirs divide the rows evenly."""
        shape = tuple(own_shapes[self.own[0]])
        if len(self.own) > 1 or len(self.theirs) > 1:
            rows = sum(own_shapes[name][0] for name in self.own)
            shape = (rows // len(self.theirs), *shape[1:])
        return shape[::-1] if self.transposed else shape

    def read(self, theirs: Mapping[str, Tensor], own_shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Their tensors -> ours."""
        rows = self._stacked([theirs[name] for name in self.theirs])
        if len(self.own) == 1:
            return {self.own[0]: rows}
        parts = torch.split(rows, [own_shapes[name][0] for name in self.own])
        return dict(zip(self.own, parts, strict=True))

    def write(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors -> theirs."""
        rows = self._stacked([own[name] for name in self.own])
        parts = (rows,) if len(self.theirs) == 1 else rows.chunk(len(self.theirs))
        return dict(zip(self.theirs, parts, strict=True))

    def _stacked(self, tensors: list[Tensor]) -> Tensor:
        rows = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return rows.T if self.transposed else rows


def names_of(weights: Mapping[str, Tensor]) -> Names:
    """Whose names these are. Raises ValueError if they are nobody's."""
    if any(name.startswith("vision_model.") for name in weights):
        return "transformers"
    if any(name.startswith("visual.") for name in weights):
        return "open_clip"
    found = _listed(sorted(weights)) if weights else "nothing"
    raise ValueError(f"expected a CLIP model under OpenAI's, open_clip's or transformers' names, found {found}")


def relations(sizes: Sizes, names: Names) -> list[Relation]:
    """Every tensor of the plain model of these sizes, each once."""
    return list(_open_clip(sizes) if names == "open_clip" else _transformers(sizes))


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


def _open_clip(sizes: Sizes) -> Iterator[Relation]:
    for own, theirs in {
        "image_tower.patch_embedding.weight": "visual.conv1.weight",
        "image_tower.cls_token": "visual.class_embedding",
        "image_tower.positions": "visual.positional_embedding",
        "text_tower.token_embedding.weight": "token_embedding.weight",
        "text_tower.positions": "positional_embedding",
        "logit_scale.logarithm": "logit_scale",
    }.items():
        yield Relation((own,), (theirs,))
    yield from _both("image_tower.stream_norm", "visual.ln_pre")
    yield from _both("image_tower.final_norm", "visual.ln_post")
    yield from _both("text_tower.final_norm", "ln_final")
    yield Relation(("image_tower.projection.weight",), ("visual.proj",), transposed=True)
    yield Relation(("text_tower.projection.weight",), ("text_projection",), transposed=True)
    for own, theirs, depth in (
        ("image_tower", "visual.transformer", sizes.image.depth),
        ("text_tower", "transformer", sizes.text.depth),
    ):
        for layer in range(depth):
            yield from _open_clip_layer(f"{own}.transformer.layers.{layer}", f"{theirs}.resblocks.{layer}")


def _open_clip_layer(own: str, theirs: str) -> Iterator[Relation]:
    yield from _both(f"{own}.attention_norm", f"{theirs}.ln_1")
    for kind in ("weight", "bias"):
        stacked = (f"{own}.attention.query.{kind}", f"{own}.attention.key_value.{kind}")
        yield Relation(stacked, (f"{theirs}.attn.in_proj_{kind}",))
    yield from _both(f"{own}.attention.output", f"{theirs}.attn.out_proj")
    yield from _both(f"{own}.mlp_norm", f"{theirs}.ln_2")
    yield from _both(f"{own}.mlp.widen", f"{theirs}.mlp.c_fc")
    yield from _both(f"{own}.mlp.narrow", f"{theirs}.mlp.c_proj")


def _transformers(sizes: Sizes) -> Iterator[Relation]:
    for own, theirs in {
        "image_tower.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
        "image_tower.cls_token": "vision_model.embeddings.class_embedding",
        "image_tower.positions": "vision_model.embeddings.position_embedding.weight",
        "image_tower.projection.weight": "visual_projection.weight",
        "text_tower.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text_tower.positions": "text_model.embeddings.position_embedding.weight",
        "text_tower.projection.weight": "text_projection.weight",
        "logit_scale.logarithm": "logit_scale",
    }.items():
        yield Relation((own,), (theirs,))
    yield from _both("image_tower.stream_norm", "vision_model.pre_layrnorm")
    yield from _both("image_tower.final_norm", "vision_model.post_layernorm")
    yield from _both("text_tower.final_norm", "text_model.final_layer_norm")
    for own, theirs, depth in (
        ("image_tower", "vision_model", sizes.image.depth),
        ("text_tower", "text_model", sizes.text.depth),
    ):
        for layer in range(depth):
            yield from _transformers_layer(f"{own}.transformer.layers.{layer}", f"{theirs}.encoder.layers.{layer}")


def _transformers_layer(own: str, theirs: str) -> Iterator[Relation]:
    yield from _both(f"{own}.attention_norm", f"{theirs}.layer_norm1")
    yield from _both(f"{own}.attention.query", f"{theirs}.self_attn.q_proj")
    for kind in ("weight", "bias"):
        stacked = (f"{theirs}.self_attn.k_proj.{kind}", f"{theirs}.self_attn.v_proj.{kind}")
        yield Relation((f"{own}.attention.key_value.{kind}",), stacked)
    yield from _both(f"{own}.attention.output", f"{theirs}.self_attn.out_proj")
    yield from _both(f"{own}.mlp_norm", f"{theirs}.layer_norm2")
    yield from _both(f"{own}.mlp.widen", f"{theirs}.mlp.fc1")
    yield from _both(f"{own}.mlp.narrow", f"{theirs}.mlp.fc2")


def _both(own: str, theirs: str) -> Iterator[Relation]:
    """Weight and bias of one module."""
    for kind in ("weight", "bias"):
        yield Relation((f"{own}.{kind}",), (f"{theirs}.{kind}",))


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
    plain = {"image_hierarchy": False, "text_hierarchy": False, "causal": True}
    wrong = [key for key, value in plain.items() if getattr(settings, key) != value]
    if wrong:
        said = ", ".join(f"{key}: {getattr(settings, key)}" for key in wrong)
        raise ValueError(f"CLIP's published names hold the plain model only, this one has {said}")
