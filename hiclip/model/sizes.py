"""What a model is: the keys under `model:` in a job, the named sizes behind them, and the checks that need both.

A size is a row of numbers; everything else is a switch whose default is what the papers state, or, where they are
silent, what is argued beside it. Nothing here builds a tensor, so the closed forms of `hiclip.training.cost` can price
a model of any size without making it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

HEAD_WIDTH = 64
"""Channels of one attention head, in every size of CLIP's family."""

RESNET_STRIDE = 32
"""Pixels of the picture along one side of a place of a ResNet's last map."""

SizeName = Literal["tiny", "small", "vit_b_32", "vit_b_16", "resnet_tiny", "resnet_50"]
SelfLink = Literal["one", "zero"]
PathMerge = Literal["max", "mean"]
ClsLink = Literal["one", "column_only"]
TextPooling = Literal["end", "max"]


@dataclass(frozen=True)
class ModelSettings:
    """The keys under `model:` in a job. A key left at None takes its value from `size`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    size: SizeName = "tiny"
    """Named row of numbers that the overrides below start from."""
    width: int | None = None
    """Channels of both towers; a tower's own width wins. 64 channels make a head."""
    depth: int | None = None
    """Layers of both towers; a tower's own depth wins."""
    image_width: int | None = None
    """Channels of the image tower; of a ResNet, those that its first stage works in (64 in ResNet-50)."""
    image_depth: int | None = None
    """Layers of the image tower."""
    image_heads: int | None = None
    """Attention heads of the image tower; without it one for every 64 channels."""
    text_width: int | None = None
    """Channels of the text tower."""
    text_depth: int | None = None
    """Layers of the text tower."""
    text_heads: int | None = None
    """Attention heads of the text tower; without it one for every 64 channels."""
    image_px: int | None = None
    """Side of the square picture the image tower sees, in pixels."""
    patch_px: int | None = None
    """Side of one patch, in pixels; divides image_px."""
    context: int | None = None
    """Longest caption in tokens, its start and end included."""
    embedding: int | None = None
    """Length of the vector in which a picture and its caption meet."""
    vocabulary: int = 49_408
    """Rows of the token table: CLIP's byte-pair vocabulary."""
    text_pooling: TextPooling = "end"
    """Where a caption's vector is read: at its end token, as in CLIP; or the greatest value of each channel over the
    caption's places, as in PyramidCLIP."""

    image_hierarchy: bool = True
    """Group Transformer: the image tower's attention follows affinities between adjacent patches."""
    text_hierarchy: bool = True
    """Tree Transformer: the text tower's attention follows affinities between adjacent words."""
    hierarchy_layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers that have affinities of their own, counted from 0 at the bottom; the others attend as plain CLIP does."""
    affinity_scale: float = 256.0
    """Divisor of the affinity scores: 256 in both towers of the paper, whatever their width."""
    affinity_width: Literal["full"] | int = "full"
    """Channels of the affinity's queries and keys: the tower's width in the paper; fewer make it cheaper."""
    self_link: SelfLink = "one"
    """Weight of a token's attention to itself: one (the empty product) or zero (as in Tree Transformer's code)."""
    path_merge: PathMerge = "max"
    """How the two one-turn paths between patches become one: the paper's maximum, or their mean as an ablation."""
    causal: bool = True
    """Whether a word sees only the words before it, as in CLIP; if not, every word of its caption."""
    cls_link: ClsLink = "one"
    """Links of the image's CLS token: one both ways; or one where patches read it, while it reads a patch by that
    patch's mean link to all patches."""
    special_tokens_in_chain: bool = True
    """Whether a caption's start and end are nodes of its chain; if not, they are linked to every word by one."""
    frozen_patch_embedding: bool = False
    """Leave the patch embedding at its random start, as DeCLIP's and PyramidCLIP's code do."""
    front_layers: int | None = None
    """Layers of the image tower that regions skip and that `leff` is for: 9 of 12 in PyramidCLIP. A ResNet has none:
    all its convolutions are in front."""
    leff: bool = False
    """Front layers have PyramidCLIP's LeFF, a convolution over the grid of patches between two maps, for the MLP."""
    region_width: int | None = None
    """Numbers of a region's vector, 2052 in PyramidCLIP; null: the image tower takes no regions."""
    initial_temperature: float = 0.07
    """Temperature of the contrastive loss before the first step; its inverse is learnt."""
    max_logit_scale: float = 100.0
    """Upper bound of the inverse temperature."""


@dataclass(frozen=True)
class TowerSize:
    """The numbers of one tower of attention layers."""

    width: int
    depth: int
    heads: int
    hierarchy_layers: tuple[int, ...]
    """Layers with affinities, ascending; empty when the hierarchy is off."""
    affinity_width: int
    leff_layers: int = 0
    """How many layers, from the bottom, have LeFF in place of the MLP."""


@dataclass(frozen=True)
class ResNetSize:
    """The numbers of a ResNet as image tower."""

    width: int
    """Channels that the first stage works in; every further stage doubles them, and four times as many come out."""
    stages: tuple[int, ...]
    """Blocks of each stage."""

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.stages)

    @property
    def features(self) -> int:
        """Channels of the last map, which the attention pool reads."""
        return self.width << (len(self.stages) + 1)

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return self.features // HEAD_WIDTH


@dataclass(frozen=True)
class Sizes:
    """All numbers of a model, with nothing left to default."""

    image: TowerSize | ResNetSize
    text: TowerSize
    image_px: int
    patch_px: int
    """Of a ResNet: the stride of its last map."""
    context: int
    embedding: int
    vocabulary: int
    front_layers: int | None = None
    region_width: int | None = None

    @property
    def grid(self) -> int:
        """Patches, or places of a ResNet's last map, along one side of the picture."""
        return self.image_px // self.patch_px

    @property
    def sees_the_batch(self) -> bool:
        """Whether a picture's vector depends, in training, on the pictures beside it: through batch norms."""
        return isinstance(self.image, ResNetSize) or self.image.leff_layers > 0


@dataclass(frozen=True)
class _Row:
    image_width: int
    image_depth: int
    text_width: int
    text_depth: int
    image_px: int
    patch_px: int
    context: int
    embedding: int
    stages: tuple[int, ...] = ()


_ROWS: dict[str, _Row] = {
    "tiny": _Row(192, 4, 192, 4, image_px=64, patch_px=8, context=32, embedding=192),
    "small": _Row(384, 6, 384, 6, image_px=128, patch_px=16, context=48, embedding=384),
    "vit_b_32": _Row(768, 12, 512, 12, image_px=224, patch_px=32, context=77, embedding=512),
    "vit_b_16": _Row(768, 12, 512, 12, image_px=224, patch_px=16, context=77, embedding=512),
    "resnet_tiny": _Row(16, 4, 192, 4, 64, RESNET_STRIDE, context=32, embedding=192, stages=(1, 1, 1, 1)),
    "resnet_50": _Row(64, 16, 512, 12, 224, RESNET_STRIDE, context=77, embedding=1024, stages=(3, 4, 6, 3)),
}

_NOT_OF_A_RESNET = {
    "image_hierarchy": (False, "nothing in it attends along a grid"),
    "leff": (False, "LeFF takes the place of an attention layer's MLP"),
    "frozen_patch_embedding": (False, "it has no patches"),
    "front_layers": (None, "all its convolutions are in front"),
    "width": (None, "image_width and text_width tell its towers apart"),
    "depth": (None, "its stages are those of its size; there is text_depth"),
    "image_depth": (None, "its stages are those of its size"),
    "image_heads": (None, "its attention pool has one for every 64 channels"),
    "patch_px": (None, "it has no patches"),
}
"""Keys that say nothing to a ResNet: the value they must have, and why."""


def resolve(settings: ModelSettings) -> Sizes:
    """The numbers of a model. Raises ValueError that starts with the key at fault and says what it expects."""
    if settings.size not in _ROWS:
        raise ValueError(f"size: expected one of {', '.join(_ROWS)}, came {settings.size!r}")
    row = _ROWS[settings.size]
    _check_positive(settings)
    sizes = Sizes(
        image=_resnet(settings, row) if row.stages else _image_tower(settings, row),
        text=_text_tower(settings, row),
        image_px=settings.image_px or row.image_px,
        patch_px=settings.patch_px or row.patch_px,
        context=settings.context or row.context,
        embedding=settings.embedding or row.embedding,
        vocabulary=settings.vocabulary,
        front_layers=settings.front_layers,
        region_width=settings.region_width,
    )
    if sizes.image_px % sizes.patch_px and row.stages:
        raise ValueError(f"image_px: expected a multiple of a ResNet's stride ({RESNET_STRIDE}), came {sizes.image_px}")
    if sizes.image_px % sizes.patch_px:
        raise ValueError(f"patch_px: expected a divisor of image_px ({sizes.image_px}), came {sizes.patch_px}")
    if sizes.context < 3:
        raise ValueError(f"context: expected room for start, one word and end (3 tokens), came {sizes.context}")
    return sizes


def _check_positive(settings: ModelSettings) -> None:
    for name, value in vars(settings).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
            raise ValueError(f"{name}: expected a number above 0, came {value}")


def _image_tower(settings: ModelSettings, row: _Row) -> TowerSize:
    width = settings.image_width or settings.width or row.image_width
    heads = _heads(settings.image_heads, width, "image_heads", "image_width" if settings.image_width else "width")
    depth = settings.image_depth or settings.depth or row.image_depth
    front = _front_layers(settings, depth)
    hierarchy = _hierarchy(settings, settings.image_hierarchy, width, depth)
    return TowerSize(width, depth, heads, *hierarchy, leff_layers=front if settings.leff else 0)


def _front_layers(settings: ModelSettings, depth: int) -> int:
    """Layers of the image tower in front of where regions enter; 0 without regions and LeFF."""
    front = settings.front_layers
    if front is None:
        wanting = "leff" if settings.leff else "region_width" if settings.region_width else None
        if wanting:
            raise ValueError(f"front_layers: expected 1 to {depth - 1} with {wanting}, came null")
        return 0
    if not settings.leff and settings.region_width is None:
        raise ValueError(f"front_layers: expected null without leff and region_width, came {front}")
    if front >= depth:
        raise ValueError(
            f"front_layers: expected 1 to {depth - 1}, below the image tower's {depth} layers, came {front}"
        )
    return front


def _resnet(settings: ModelSettings, row: _Row) -> ResNetSize:
    for key, (expected, why) in _NOT_OF_A_RESNET.items():
        came = getattr(settings, key)
        if came != expected:
            raise ValueError(
                f"{key}: expected {json.dumps(expected)} with size {settings.size} ({why}), came {json.dumps(came)}"
            )
    size = ResNetSize(settings.image_width or row.image_width, row.stages)
    if size.width % 2:
        raise ValueError(f"image_width: expected an even number with size {settings.size}, came {size.width}")
    return size


def _text_tower(settings: ModelSettings, row: _Row) -> TowerSize:
    width = settings.text_width or settings.width or row.text_width
    heads = _heads(settings.text_heads, width, "text_heads", "text_width" if settings.text_width else "width")
    depth = settings.text_depth or settings.depth or row.text_depth
    return TowerSize(width, depth, heads, *_hierarchy(settings, settings.text_hierarchy, width, depth))


def _heads(heads: int | None, width: int, heads_key: str, width_key: str) -> int:
    if heads is None and width % HEAD_WIDTH:
        raise ValueError(f"{width_key}: expected a multiple of {HEAD_WIDTH} (channels of one head), came {width}")
    if heads is not None and width % heads:
        raise ValueError(f"{heads_key}: expected a divisor of the tower's width ({width}), came {heads}")
    return heads or width // HEAD_WIDTH


def _hierarchy(settings: ModelSettings, wanted: bool, width: int, depth: int) -> tuple[tuple[int, ...], int]:
    """Layers of a tower that have affinities, and the width of those."""
    affinity_width = width if settings.affinity_width == "full" else settings.affinity_width
    if not wanted:
        return (), affinity_width
    if settings.hierarchy_layers == "all":
        return tuple(range(depth)), affinity_width
    layers = settings.hierarchy_layers
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < depth for layer in layers):
        raise ValueError(
            f"hierarchy_layers: expected all, or different layers of 0 to {depth - 1}, came {list(layers)}"
        )
    return tuple(sorted(layers)), affinity_width
