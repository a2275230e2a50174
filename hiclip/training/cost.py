"""What a model costs, from its settings alone: parameters, FLOPs of a pair, and what a device must hold.

Closed forms, two FLOPs for each multiply-add, held to the built module by a test: parameters exactly, FLOPs within 2 %.
CLIP ViT-B/32 comes to 151.28 M parameters and 14.78 GFLOP, HiCLIP's to 171.79 M and 16 % more FLOPs (its authors say
15 %), nearly all of it in two D x D projections a layer. What one tower costs is in `hiclip.training.tower_cost`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hiclip.model.sizes import ModelSettings, ResNetSize, Sizes, resolve
from hiclip.training.tower_cost import (
    FP32,
    layer_activation_bytes,
    layer_flops,
    layer_parameters,
    plain_layer_flops,
    pool_flops,
    recomputed_activation_bytes,
    resnet_activation_bytes,
    resnet_flops,
    resnet_parameters,
    weight_copy_bytes,
)

_BF16 = 2
_OFFLOADED = 5
"""Numbers on the CPU for each of a device's part: weights, moments, gradients, and weights on their way back."""
BUCKETS = 8
"""In how many parts DeepSpeed adds up gradients over devices."""


def parameters(settings: ModelSettings) -> int:
    """Numbers the model holds: both towers and the temperature, a frozen patch embedding included."""
    sizes = resolve(settings)
    return _image_parameters(sizes) + _region_parameters(sizes) + _text_parameters(sizes) + 1


def forward_flops_per_pair(settings: ModelSettings, *, all_tokens: bool = True) -> float:
    """FLOPs of both towers on one picture and one caption of full length.

    By convention every layer is counted for every token, as papers do. `all_tokens=False` counts what runs when only
    the vectors are wanted (see `TowerOutput`), which is the number to judge a device's utilisation by.
    """
    image, text = image_flops(settings, all_tokens=all_tokens), text_flops(settings, all_tokens=all_tokens)
    return image + text


def image_flops(settings: ModelSettings, *, all_tokens: bool = True) -> float:
    """FLOPs of one picture; see `forward_flops_per_pair`."""
    sizes = resolve(settings)
    image, grid = sizes.image, sizes.grid
    if isinstance(image, ResNetSize):
        return float(resnet_flops(image, sizes.image_px, grid, sizes.embedding))
    embed, project = 2 * grid**2 * 3 * sizes.patch_px**2 * image.width, 2 * image.width * sizes.embedding
    return float(embed + project + layer_flops(image, 1 + grid**2, grid**2, 2 * grid * (grid - 1), all_tokens))


def text_flops(settings: ModelSettings, *, all_tokens: bool = True) -> float:
    """FLOPs of one caption of full length; see `forward_flops_per_pair`. Max pooling reads all tokens always."""
    sizes = resolve(settings)
    text, places = sizes.text, sizes.context
    every = all_tokens or settings.text_pooling == "max"
    return float(2 * text.width * sizes.embedding + layer_flops(text, places, places, places - 1, every))


def region_flops(settings: ModelSettings, regions: int, *, all_tokens: bool = True) -> float:
    """FLOPs of one picture's regions, where the image tower takes any."""
    sizes = resolve(settings)
    image, places = sizes.image, 1 + regions
    assert sizes.region_width is not None
    if isinstance(image, ResNetSize):
        project, average = 2 * regions * sizes.region_width * image.features, 2 * regions * image.features
        return float(project + average + pool_flops(image, places, sizes.embedding))
    assert sizes.front_layers is not None
    project = 2 * regions * sizes.region_width * image.width + 2 * image.width * sizes.embedding
    rear = image.depth - sizes.front_layers
    return float(project + plain_layer_flops(image, places, places if all_tokens else 1, rear))


def train_flops(settings: ModelSettings, seen: int) -> float:
    """FLOPs of training on `seen` pairs: the backward counts twice the forward."""
    return 3 * forward_flops_per_pair(settings) * seen


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes one device holds while it trains."""

    weights: float
    gradients: float
    """At the end of a backward, with what DeepSpeed copies to add them up over devices. With gradient caching, all of
    them twice at least: their sum over chunks, and a chunk's."""
    optimizer: float
    """AdamW's two moments, and DeepSpeed's own copy of the weights where it shards (stages 1 to 3)."""
    activations: float
    """What the towers' forward keeps for the backward; an estimate, good to about a quarter."""
    logits: float
    """What the losses hold at most: scores of pairs, and of words that are guessed."""
    early: float = 0.0
    """Of the gradients, those that are there while activations are at their most: with gradient caching their sum over
    the chunks that are done, with activation checkpointing the text tower's."""
    host: float = 0.0
    """What offloading holds on the CPU, for each device."""

    @property
    def total(self) -> float:
        """The most at a time: gradients come as activations go."""
        return self.weights + self.optimizer + max(self.gradients, self.early + self.activations + self.logits)


def device_memory(
    settings: ModelSettings,
    pairs: int,
    precision: Literal["fp32", "bf16"],
    zero_stage: int | None,
    world: int,
    micro_batch: int | None = None,
    *,
    offload: bool = False,
    checkpointing: bool = False,
    pictures: int = 1,
    texts: int = 1,
    heads: int = 0,
    kept: int = 0,
    logits: int = 0,
) -> DeviceMemory:
    """Bytes on each of `world` devices that trains `pairs` pairs a step; weights are fp32, bf16 is autocast's.

    ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too; None is the plain engine. `micro_batch`: how
    many of the pairs are encoded at once, None for all. `pictures`, `texts`: views of a pair. `heads` and `kept`:
    numbers that the objective trains and remembers; `logits`: bytes of its own.
    """
    numbers = parameters(settings) + heads
    stage, part = zero_stage or 0, 1 / world
    moves = offload and stage > 0
    optimizer = 0 if moves else 3 * part if stage else 2
    sizes, low = resolve(settings), _BF16 if precision == "bf16" else FP32
    activations = _recomputed_bytes if checkpointing else _activation_bytes
    gradients = _gradient_copies(zero_stage, part, moves)
    early = numbers if micro_batch is not None else _text_parameters(sizes) if checkpointing else 0
    return DeviceMemory(
        weights=numbers * FP32 * (part if stage == 3 else 1) + kept * FP32,
        gradients=numbers * FP32 * (gradients if micro_batch is None else max(2, gradients)),
        optimizer=numbers * FP32 * optimizer,
        activations=activations(sizes, low, micro_batch or pairs, pictures, texts, settings.text_pooling == "max"),
        logits=logits,
        early=early * FP32,
        host=numbers * FP32 * _OFFLOADED * part if moves else 0.0,
    )


def _image_parameters(sizes: Sizes) -> int:
    image = sizes.image
    if isinstance(image, ResNetSize):
        return resnet_parameters(image, sizes.grid, sizes.embedding)
    patches, places = 3 * sizes.patch_px**2, 1 + sizes.grid**2
    # Patches; positions and CLS itself; two norms; the projection.
    return image.width * (patches + places + 1 + 2 * 2 + sizes.embedding) + layer_parameters(image)


def _region_parameters(sizes: Sizes) -> int:
    """The projection and, in a ResNet, a norm of their own."""
    if sizes.region_width is None:
        return 0
    if isinstance(sizes.image, ResNetSize):
        return (sizes.region_width + 2) * sizes.image.features
    return sizes.region_width * sizes.image.width


def _text_parameters(sizes: Sizes) -> int:
    text = sizes.text
    return text.width * (sizes.vocabulary + sizes.context + 2 + sizes.embedding) + layer_parameters(text)


def _gradient_copies(zero_stage: int | None, part: float, offload: bool) -> float:
    """What a device holds at the end of a backward, in units of all gradients; `part`: its share of them."""
    bucket = 1 / BUCKETS
    if zero_stage is None:
        return 1
    if zero_stage == 0:
        return 2  # all of them, side by side in one tensor to be sent
    if offload:
        return (1 if zero_stage == 1 else 0) + bucket
    return {1: 1 + part, 2: 2 * part, 3: part}[zero_stage] + bucket


def _activation_bytes(sizes: Sizes, low: int, pairs: int, pictures: int, texts: int, all_words: bool) -> float:
    """Bytes that `pairs` pairs keep; `low` is the size of a number in matrix products, `all_words` whether a caption's
    vector is read at all of its tokens."""
    text = layer_activation_bytes(sizes.text, sizes.context, low, all_words)
    copies = weight_copy_bytes(sizes.text, low)
    if isinstance(sizes.image, ResNetSize):
        picture = resnet_activation_bytes(sizes.image, sizes.image_px, low)
        copies += 0 if low == FP32 else low * _image_parameters(sizes)
    else:
        picture = layer_activation_bytes(sizes.image, 1 + sizes.grid**2, low, all_tokens=False)
        copies += weight_copy_bytes(sizes.image, low)
    return pairs * (pictures * picture + texts * text) + copies


def _recomputed_bytes(sizes: Sizes, low: int, pairs: int, pictures: int, texts: int, all_words: bool) -> float:
    """The same with activation checkpointing: what enters the layers, and the inside of the one that is at work."""
    assert not isinstance(sizes.image, ResNetSize)
    picture, inside_image = recomputed_activation_bytes(sizes.image, 1 + sizes.grid**2, low)
    text, inside_text = recomputed_activation_bytes(sizes.text, sizes.context, low)
    return pairs * (pictures * picture + texts * text + max(inside_image, inside_text))
