"""The sizes of a published CLIP model, read off the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from hiclip.model.clip_relations import Names
from hiclip.model.sizes import HEAD_WIDTH, RESNET_STRIDE, ModelSettings, ResNetSize, SizeName, resolve


@dataclass(frozen=True)
class _Where:
    """Names of the weights whose shapes tell a model's sizes."""

    patches: str
    places: str
    image_layers: str
    tokens: str
    context: str
    text_layers: str
    projection: str
    """Of the text tower; its shape holds the embedding's length in the axis `embedding_axis`."""
    embedding_axis: int


_WHERE: dict[Names, _Where] = {
    "open_clip": _Where(
        patches="visual.conv1.weight",
        places="visual.positional_embedding",
        image_layers="visual.transformer.resblocks",
        tokens="token_embedding.weight",
        context="positional_embedding",
        text_layers="transformer.resblocks",
        projection="text_projection",
        embedding_axis=1,
    ),
    "transformers": _Where(
        patches="vision_model.embeddings.patch_embedding.weight",
        places="vision_model.embeddings.position_embedding.weight",
        image_layers="vision_model.encoder.layers",
        tokens="text_model.embeddings.token_embedding.weight",
        context="text_model.embeddings.position_embedding.weight",
        text_layers="text_model.encoder.layers",
        projection="text_projection.weight",
        embedding_axis=0,
    ),
}


def settings_of(
    weights: Mapping[str, Tensor], names: Names, image_heads: int | None = None, text_heads: int | None = None
) -> ModelSettings:
    """The settings whose plain model has these weights: a named size alone where it fits.

    Shapes do not show attention heads: without a number of them, 64 channels make a head, as in all of OpenAI's models.
    Raises ValueError that names the weight that is missing or of a shape that no model has.
    """
    where = _WHERE[names]
    vocabulary, text_width = _shape(weights, where.tokens, 2)
    is_resnet = any(name.startswith("visual.layer1.") for name in weights)
    found = replace(
        _resnet(weights) if is_resnet else _vit(weights, where, image_heads),
        text_width=text_width,
        text_depth=_depth(weights, where.text_layers),
        text_heads=_unusual(text_heads, text_width),
        context=_shape(weights, where.context, 2)[0],
        embedding=_shape(weights, where.projection, 2)[where.embedding_axis],
        vocabulary=vocabulary,
    )
    sizes = resolve(found)
    named = (_plain(size) for size in get_args(SizeName))
    return next((settings for settings in named if resolve(settings) == sizes), found)


def _vit(weights: Mapping[str, Tensor], where: _Where, heads: int | None) -> ModelSettings:
    width, _, patch_px, _ = _shape(weights, where.patches, 4)
    return replace(
        _plain("vit_b_32"),
        image_width=width,
        image_depth=_depth(weights, where.image_layers),
        image_heads=_unusual(heads, width),
        image_px=patch_px * _grid(weights, where.places),
        patch_px=patch_px,
    )


def _resnet(weights: Mapping[str, Tensor]) -> ModelSettings:
    """Of OpenAI's names. Its stages must be those of a named size."""
    stages = tuple(_depth(weights, f"visual.layer{stage}") for stage in (1, 2, 3, 4))
    for size in get_args(SizeName):
        image = resolve(_plain(size)).image
        if isinstance(image, ResNetSize) and image.stages == stages:
            width = _shape(weights, "visual.conv3.weight", 4)[0]
            image_px = RESNET_STRIDE * _grid(weights, "visual.attnpool.positional_embedding")
            return replace(_plain(size), image_width=width, image_px=image_px)
    raise ValueError(f"visual.layer1 to visual.layer4: expected the blocks of ResNet-50 (3, 4, 6, 3), came {stages}")


def _unusual(heads: int | None, width: int) -> int | None:
    """The number of heads, None where it is the usual one."""
    return None if heads is None or heads * HEAD_WIDTH == width else heads


def _plain(size: SizeName) -> ModelSettings:
    return ModelSettings(size=size, image_hierarchy=False, text_hierarchy=False)


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"the weights are not those of a CLIP model; missing: {name}")
    shape = tuple(weights[name].shape)
    if len(shape) != axes:
        raise ValueError(f"{name}: expected {axes} axes, came the shape {shape}")
    return shape


def _grid(weights: Mapping[str, Tensor], name: str) -> int:
    """Patches along one side, from the positions of all of them and of CLS."""
    places, _ = _shape(weights, name, 2)
    side = math.isqrt(max(0, places - 1))
    if side**2 != places - 1:
        raise ValueError(f"{name}: expected a square number of patches and one more row, came {places} rows")
    return side


def _depth(weights: Mapping[str, Tensor], layers: str) -> int:
    """One more than the highest layer's number; a layer that is missing below it is named when names are checked."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    numbers = [int(match[1]) for match in map(pattern.match, weights) if match]
    if not numbers:
        raise ValueError(f"the weights are not those of a CLIP model; missing: {layers}.0")
    return 1 + max(numbers)
