"""The model: an image tower, a text tower, and the learnt temperature between their vectors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hiclip.model.affinity import at_least_float32
from hiclip.model.image_tower import ImageTower
from hiclip.model.resnet import ResNetTower
from hiclip.model.sizes import ModelSettings, ResNetSize, resolve
from hiclip.model.text_tower import TextTower
from hiclip.model.tower_output import TowerOutput
from hiclip.model.transformer import Transformer

_NAMED = 4
"""Names that an error lists before it only counts."""

__all__ = ["LogitScale", "TowerOutput", "TwoTowers", "differing_weights", "listed"]


class LogitScale(nn.Module):
    """The inverse temperature: a module, so that engines that shard parameters gather it when it is asked for."""

    def __init__(self, initial_temperature: float, max_logit_scale: float) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor(math.log(1 / initial_temperature)))
        self.max_logit_scale = max_logit_scale

    def forward(self) -> Tensor:
        """Scalar exp(logarithm), at most max_logit_scale; there it may still fall, but rise no further."""
        # Engines may have given the scalar an axis.
        logarithm = at_least_float32(self.logarithm).reshape(())
        capped: Tensor = _Capped.apply(logarithm, math.log(self.max_logit_scale))  # type: ignore[no-untyped-call]
        return capped.exp()


class _Capped(torch.autograd.Function):
    """min(x, cap). At the cap a gradient that leads down gets through, and one that leads up does not.

    CLIP moves the parameter back to the cap after each step, which an engine that shards the optimizer's copy of it
    would undo; a plain clamp has no gradient beyond the cap, so what has once gone over it stays for good.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.cap = cap
        return x.clamp(max=cap)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient.where((x < ctx.cap) | (gradient > 0), 0.0), None


class TwoTowers(nn.Module):
    """Image tower, text tower and logit scale as one module of parameters; towers are called by name."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        sizes = resolve(settings)
        self.settings = settings
        is_resnet = isinstance(sizes.image, ResNetSize)
        self.image_tower: ImageTower | ResNetTower = ResNetTower(sizes) if is_resnet else ImageTower(settings, sizes)
        self.text_tower = TextTower(settings, sizes)
        self.logit_scale = LogitScale(settings.initial_temperature, settings.max_logit_scale)

    def recompute_layers(self, wanted: bool) -> None:
        """Whether the backward computes each transformer layer again instead of the forward keeping what is in it."""
        for module in self.modules():
            if isinstance(module, Transformer):
                module.recomputes = wanted


def differing_weights(towers: TwoTowers, weights: Mapping[str, Tensor]) -> str:
    """In what `weights` are not those of a model of this shape, in a few words; empty if they are."""
    own = towers.state_dict()
    misshapen = [
        f"{name} ({tuple(weights[name].shape)}, expected {tuple(own[name].shape)})"
        for name in own
        if name in weights and weights[name].shape not in (own[name].shape, _same_number(own[name]))
    ]
    faults = {"missing": own.keys() - weights.keys(), "unknown": weights.keys() - own.keys(), "misshapen": misshapen}
    return "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)


def _same_number(tensor: Tensor) -> tuple[int, ...]:
    """Another shape under which a lone number may be stored, as DeepSpeed does; torch takes it."""
    return (1,) if not tensor.ndim else tuple(tensor.shape)


def listed(names: Collection[str]) -> str:
    """The first few names in order, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
