"""Closed forms of one tower: its parameters, its FLOPs, and the bytes that its forward keeps for the backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hiclip.model.sizes import ResNetSize, TowerSize

FP32 = 4


def layer_parameters(tower: TowerSize) -> int:
    """All layers of a tower: attention 4D^2 + 4D, MLP 8D^2 + 5D, two norms 4D; for each hierarchy its own norm and two
    projections to A channels; for each LeFF 3 x 3 weights of 4D channels and three batch norms (4D, 4D, D).
    """
    width, narrow = tower.width, tower.affinity_width
    plain = 12 * width**2 + 13 * width
    hierarchy = 2 * width + 2 * (width * narrow + narrow)
    leff = 9 * 4 * width + 2 * 9 * width
    return tower.depth * plain + len(tower.hierarchy_layers) * hierarchy + tower.leff_layers * leff


def layer_flops(tower: TowerSize, places: int, linked: int, links: int, all_tokens: bool) -> int:
    """All layers: `places` tokens in the stream, `linked` of them in the hierarchy, with `links` between neighbours."""
    width, narrow = tower.width, tower.affinity_width
    project, score = 4 * linked * width * narrow, 4 * links * narrow
    mask = (tower.heads + 4) * places**2  # form C once, multiply it into every head
    hierarchy = project + score + mask
    # CLS passes LeFF by; every patch has nine products more in each of 4D channels.
    leff = 2 * 9 * 4 * width * (places - 1) - 16 * width**2
    plain = plain_layer_flops(tower, places, places if all_tokens else 1, tower.depth)
    return plain + len(tower.hierarchy_layers) * hierarchy + tower.leff_layers * leff


def plain_layer_flops(tower: TowerSize, places: int, last_readers: int, layers: int) -> int:
    """Attention and MLP of `layers` layers, the last of which answers for `last_readers` of its tokens."""
    width = tower.width

    def layer(readers: int) -> int:
        projections = (4 * readers + 4 * places) * width**2  # query and output; key and value
        return projections + 4 * readers * places * width + 16 * readers * width**2

    return (layers - 1) * layer(places) + layer(last_readers)


def layer_activation_bytes(tower: TowerSize, places: int, low: int, all_tokens: bool = True) -> float:
    """All layers on one picture or caption; `low` is the size of a number in matrix products. Norms, affinities and C
    stay fp32. Without `all_tokens` the last layer answers for one token, and keeps what that token reads alone."""
    width, heads = tower.width, tower.heads
    stream = 2 * places * width * FP32  # inputs of the two norms
    attention = places * width * 7 * low + 2 * heads * places**2 * low
    mlp = places * width * (1 + 4 + 4) * low
    # Into and out of three norms, three activations and three maps.
    leff = places * width * (1 + 4 * 6 + 2) * low - mlp
    projection = places * (width * (FP32 + low) + 2 * tower.affinity_width * low)
    mask = 4 * places**2 * FP32 + heads * places**2 * low
    layers = tower.depth * (stream + attention + mlp) + tower.leff_layers * leff
    hierarchy = len(tower.hierarchy_layers) * (projection + mask)
    if all_tokens:
        return layers + hierarchy
    read = places * width * (FP32 + 3 * low)  # into the norm, out of it, keys and values
    return layers + hierarchy - (stream + attention + mlp - read) - mask * (tower.depth - 1 in tower.hierarchy_layers)


def recomputed_activation_bytes(tower: TowerSize, places: int, low: int) -> tuple[float, float]:
    """With activation checkpointing, on one picture or caption: what enters the layers, and what one layer holds in its
    backward, the widest gradient beside it."""
    below = (0,) if tower.hierarchy_layers else ()
    one = replace(tower, depth=1, hierarchy_layers=below, leff_layers=0)
    inside = layer_activation_bytes(one, places, low) + 4 * places * tower.width * low
    return float(tower.depth * places * tower.width * FP32), inside


def weight_copy_bytes(tower: TowerSize, low: int) -> int:
    """Products of weights that all pairs share and the backward needs: in fp32 those of the MLPs with QuickGELU's
    constants, in bf16 every matrix of a layer."""
    leff, width = tower.leff_layers, tower.width
    if low == FP32:
        return FP32 * width**2 * (8 * (tower.depth - leff) + 4 * leff)
    return low * (12 * width**2 * tower.depth + 2 * width * tower.affinity_width * len(tower.hierarchy_layers))


def resnet_parameters(size: ResNetSize, grid: int, embedding: int) -> int:
    """Convolutions, each with its batch norm, and the attention pool."""
    features = size.features
    pool = (1 + grid**2) * features + 3 * (features**2 + features) + features * embedding + embedding
    return pool + sum(conv.kernel**2 * conv.inputs * conv.outputs + 2 * conv.outputs for conv in _convolutions(size, 1))


def resnet_flops(size: ResNetSize, image_px: int, grid: int, embedding: int) -> int:
    """Convolutions and the attention pool on one picture."""
    convolutions = sum(
        2 * conv.kernel**2 * conv.inputs * conv.outputs * conv.side**2 for conv in _convolutions(size, image_px)
    )
    return convolutions + pool_flops(size, 1 + grid**2, embedding)


def pool_flops(size: ResNetSize, places: int, embedding: int) -> int:
    """The attention pool over `places` tokens, read by one."""
    features = size.features
    return 2 * features**2 + 4 * places * features**2 + 4 * places * features + 2 * features * embedding


def resnet_activation_bytes(size: ResNetSize, image_px: int, low: int) -> float:
    """The picture, and of every convolution what comes out, what its activation answers, and the average it reads."""
    kept = 3 * image_px**2
    for conv in _convolutions(size, image_px):
        kept += conv.side**2 * (conv.outputs * (1 + conv.activated) + conv.inputs * conv.reads_average)
    return float(kept * low)


@dataclass(frozen=True)
class _Convolution:
    inputs: int
    outputs: int
    kernel: int
    side: int
    """Of the map that comes out."""
    activated: bool = True
    reads_average: bool = False


def _convolutions(size: ResNetSize, image_px: int) -> Iterator[_Convolution]:
    """All of a ResNet; strides are averages, so that only the stem's first convolution shrinks the map itself."""
    width, side = size.width, image_px // 2
    yield _Convolution(3, width // 2, 3, side)
    yield _Convolution(width // 2, width // 2, 3, side)
    yield _Convolution(width // 2, width, 3, side)
    inputs, side = width, side // 2
    for stage, blocks in enumerate(size.stages):
        for block in range(blocks):
            shrinks = stage > 0 and block == 0
            yield from _block(inputs, size.width << stage, side, shrinks, behind_stem=stage == block == 0)
            inputs, side = 4 * size.width << stage, side // 2 if shrinks else side


def _block(inputs: int, width: int, side: int, shrinks: bool, behind_stem: bool) -> Iterator[_Convolution]:
    out = side // 2 if shrinks else side
    yield _Convolution(inputs, width, 1, side, reads_average=behind_stem)
    yield _Convolution(width, width, 3, side)
    yield _Convolution(width, 4 * width, 1, out, reads_average=shrinks)
    if shrinks or inputs != 4 * width:
        yield _Convolution(inputs, 4 * width, 1, out, activated=False, reads_average=shrinks)
