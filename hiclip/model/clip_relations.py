"""Which of our weights is which of a published CLIP model, under OpenAI's and open_clip's names or `transformers`'.

Three things differ, and one table of `Relation`s, read in either direction, says them all: names, whether projections
are stored transposed, and which of query, key and value are stacked into one matrix.

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

A ResNet as image tower has OpenAI's names but for these (transformers has no such CLIP):

    image_tower.stem.convN, normN     visual.convN, bnN
    .stages.N.B.convN, normN          .layer(N + 1).B.convN, bnN
    ..shortcut.conv, norm             ..downsample.0, downsample.1
    .pool.positions                   .attnpool.positional_embedding
    ..query, key, value, output       ..q_proj, k_proj, v_proj, c_proj
    running_variance                  running_var
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hiclip.model.sizes import ResNetSize, Sizes, TowerSize

Names = Literal["open_clip", "transformers"]
"""Whose names: OpenAI's models have open_clip's."""


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


def relations(sizes: Sizes, names: Names) -> list[Relation]:
    """Every tensor of the plain model of these sizes, each once. ValueError if nobody has names for them."""
    if names == "open_clip":
        return list(_open_clip(sizes))
    if isinstance(sizes.image, ResNetSize):
        raise ValueError("transformers has no CLIP with a ResNet; open_clip has")
    return list(_transformers(sizes, sizes.image))


def _open_clip(sizes: Sizes) -> Iterator[Relation]:
    yield from _open_clip_resnet(sizes.image) if isinstance(sizes.image, ResNetSize) else _open_clip_vit(sizes.image)
    yield _one("text_tower.token_embedding.weight", "token_embedding.weight")
    yield _one("text_tower.positions", "positional_embedding")
    for layer in range(sizes.text.depth):
        yield from _open_clip_layer(f"text_tower.transformer.layers.{layer}", f"transformer.resblocks.{layer}")
    yield from _both("text_tower.final_norm", "ln_final")
    yield Relation(("text_tower.projection.weight",), ("text_projection",), transposed=True)
    yield _one("logit_scale.logarithm", "logit_scale")


def _open_clip_vit(size: TowerSize) -> Iterator[Relation]:
    yield _one("image_tower.patch_embedding.weight", "visual.conv1.weight")
    yield _one("image_tower.cls_token", "visual.class_embedding")
    yield _one("image_tower.positions", "visual.positional_embedding")
    yield from _both("image_tower.stream_norm", "visual.ln_pre")
    for layer in range(size.depth):
        yield from _open_clip_layer(f"image_tower.transformer.layers.{layer}", f"visual.transformer.resblocks.{layer}")
    yield from _both("image_tower.final_norm", "visual.ln_post")
    yield Relation(("image_tower.projection.weight",), ("visual.proj",), transposed=True)


def _open_clip_resnet(size: ResNetSize) -> Iterator[Relation]:
    yield from _convolutions("image_tower.stem", "visual")
    inputs = size.width
    for stage, count in enumerate(size.stages):
        outputs = 4 * size.width * 2**stage
        for block in range(count):
            own, theirs = f"image_tower.stages.{stage}.{block}", f"visual.layer{stage + 1}.{block}"
            yield from _convolutions(own, theirs)
            if block == 0 and (stage > 0 or inputs != outputs):
                yield _one(f"{own}.shortcut.conv.weight", f"{theirs}.downsample.0.weight")
                yield from _batch_norm(f"{own}.shortcut.norm", f"{theirs}.downsample.1")
        inputs = outputs
    yield _one("image_tower.pool.positions", "visual.attnpool.positional_embedding")
    for own, theirs in {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "c_proj"}.items():
        yield from _both(f"image_tower.pool.{own}", f"visual.attnpool.{theirs}")


def _convolutions(own: str, theirs: str) -> Iterator[Relation]:
    """The three of a stem, or of a block, each with its batch norm."""
    for number in (1, 2, 3):
        yield _one(f"{own}.conv{number}.weight", f"{theirs}.conv{number}.weight")
        yield from _batch_norm(f"{own}.norm{number}", f"{theirs}.bn{number}")


def _batch_norm(own: str, theirs: str) -> Iterator[Relation]:
    yield from _both(own, theirs)
    yield _one(f"{own}.running_mean", f"{theirs}.running_mean")
    yield _one(f"{own}.running_variance", f"{theirs}.running_var")


def _open_clip_layer(own: str, theirs: str) -> Iterator[Relation]:
    yield from _both(f"{own}.attention_norm", f"{theirs}.ln_1")
    for kind in ("weight", "bias"):
        stacked = (f"{own}.attention.query.{kind}", f"{own}.attention.key_value.{kind}")
        yield Relation(stacked, (f"{theirs}.attn.in_proj_{kind}",))
    yield from _both(f"{own}.attention.output", f"{theirs}.attn.out_proj")
    yield from _both(f"{own}.mlp_norm", f"{theirs}.ln_2")
    yield from _both(f"{own}.mlp.widen", f"{theirs}.mlp.c_fc")
    yield from _both(f"{own}.mlp.narrow", f"{theirs}.mlp.c_proj")


def _transformers(sizes: Sizes, image: TowerSize) -> Iterator[Relation]:
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
        yield _one(own, theirs)
    yield from _both("image_tower.stream_norm", "vision_model.pre_layrnorm")
    yield from _both("image_tower.final_norm", "vision_model.post_layernorm")
    yield from _both("text_tower.final_norm", "text_model.final_layer_norm")
    for own, theirs, depth in (
        ("image_tower", "vision_model", image.depth),
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


def _one(own: str, theirs: str) -> Relation:
    return Relation((own,), (theirs,))


def _both(own: str, theirs: str) -> Iterator[Relation]:
    """Weight and bias of one module."""
    for kind in ("weight", "bias"):
        yield _one(f"{own}.{kind}", f"{theirs}.{kind}")
