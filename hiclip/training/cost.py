"""What a model costs, from its settings alone: parameters, FLOPs of a pair, and what a device must hold.

Closed forms, two FLOPs for each multiply-add, held to the built module by a test: parameters exactly, FLOPs within 2 %.
CLIP ViT-B/32 comes to 151.28 M parameters and 14.78 GFLOP, HiCLIP's to 171.79 M and 16 % more FLOPs (its authors say
15 %), nearly all of it in two D x D projections a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hiclip.model.sizes import ModelSettings, Sizes, TowerSize, resolve

_FP32, _BF16 = 4, 2


def parameters(settings: ModelSettings) -> int:
    """Numbers the model holds: both towers and the temperature, a frozen patch embedding included."""
    sizes = resolve(settings)
    image, text = sizes.image, sizes.text
    patches = 3 * sizes.patch_px**2 * image.width
    image_places = (1 + sizes.grid**2 + 1) * image.width  # positions of CLS and patches, and CLS itself
    text_places = (sizes.vocabulary + sizes.context) * text.width
    norms = 2 * image.width * 2 + 2 * text.width
    projections = (image.width + text.width) * sizes.embedding
    layers = _layer_parameters(image) + _layer_parameters(text)
    return patches + image_places + text_places + norms + projections + layers + 1


def forward_flops_per_pair(settings: ModelSettings, *, all_tokens: bool = True) -> float:
    """FLOPs of both towers on one picture and one caption of full length.

    By convention every layer is counted for every token, as papers do. `all_tokens=False` counts what runs when only
    the vectors are wanted (see `TowerOutput`), which is the number to judge a device's utilisation by.
    """
    sizes = resolve(settings)
    embed = 2 * sizes.grid**2 * 3 * sizes.patch_px**2 * sizes.image.width
    project = 2 * (sizes.image.width + sizes.text.width) * sizes.embedding
    grid_links, chain_links = 2 * sizes.grid * (sizes.grid - 1), sizes.context - 1
    image = _tower_flops(sizes.image, 1 + sizes.grid**2, sizes.grid**2, grid_links, all_tokens)
    text = _tower_flops(sizes.text, sizes.context, sizes.context, chain_links, all_tokens)
    return float(embed + project + image + text)


def train_flops(settings: ModelSettings, seen: int) -> float:
    """FLOPs of training on `seen` pairs: the backward counts twice the forward."""
    return 3 * forward_flops_per_pair(settings) * seen


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes one device holds while it trains."""

    weights: float
    gradients: float
    optimizer: float
    """AdamW's two moments, and DeepSpeed's own copy of the weights where it shards (stages 1 to 3)."""
    activations: float
    """What the forward keeps for the backward; an estimate, good to about a quarter."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def device_memory(
    settings: ModelSettings, pairs: int, precision: Literal["fp32", "bf16"], zero_stage: int, world: int
) -> DeviceMemory:
    """Bytes on each of `world` devices that trains `pairs` pairs a step; weights are fp32, bf16 is autocast's.

    ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too.
    """
    numbers = parameters(settings)
    copies = 3 if zero_stage else 2
    return DeviceMemory(
        weights=numbers * _FP32 / (world if zero_stage >= 3 else 1),
        gradients=numbers * _FP32 / (world if zero_stage >= 2 else 1),
        optimizer=numbers * _FP32 * copies / (world if zero_stage >= 1 else 1),
        activations=pairs * _activation_bytes(resolve(settings), _BF16 if precision == "bf16" else _FP32),
    )


def _layer_parameters(tower: TowerSize) -> int:
    """All layers of a tower: attention 4D^2 + 4D, MLP 8D^2 + 5D, two norms 4D; and for each hierarchy its own norm and
    two projections to A channels."""
    width, narrow = tower.width, tower.affinity_width
    plain = 12 * width**2 + 13 * width
    hierarchy = 2 * width + 2 * (width * narrow + narrow)
    return tower.depth * plain + len(tower.hierarchy_layers) * hierarchy


def _tower_flops(tower: TowerSize, places: int, linked: int, links: int, all_tokens: bool) -> int:
    """`places` tokens in the stream, `linked` of them in the hierarchy, with `links` between neighbours."""
    width, narrow = tower.width, tower.affinity_width

    def layer(readers: int) -> int:
        projections = (4 * readers + 4 * places) * width**2  # query and output; key and value
        return projections + 4 * readers * places * width + 16 * readers * width**2

    project, score = 4 * linked * width * narrow, 4 * links * narrow
    mask = (tower.heads + 4) * places**2  # form C once, multiply it into every head
    hierarchy = project + score + mask
    last = layer(places if all_tokens else 1)
    return (tower.depth - 1) * layer(places) + last + len(tower.hierarchy_layers) * hierarchy


def _activation_bytes(sizes: Sizes, low: int) -> float:
    """Bytes a pair; `low` is the size of a number in matrix products. Norms, affinities and C stay fp32."""
    image = _tower_activation_bytes(sizes.image, 1 + sizes.grid**2, low)
    return image + _tower_activation_bytes(sizes.text, sizes.context, low)


def _tower_activation_bytes(tower: TowerSize, places: int, low: int) -> float:
    width, heads = tower.width, tower.heads
    stream = 2 * places * width * _FP32  # inputs of the two norms
    attention = places * width * 7 * low + 2 * heads * places**2 * low
    mlp = places * width * (1 + 4 + 4) * low
    hierarchy = places * (width * (_FP32 + low) + 2 * tower.affinity_width * low) + 4 * places**2 * _FP32
    hierarchy += heads * places**2 * low
    return tower.depth * (stream + attention + mlp) + len(tower.hierarchy_layers) * hierarchy
