"""The seam between the loop and whoever computes gradients and moves weights: a forward, an update, and what it knows.

An engine is made around a module that has its weights already, those of a checkpoint or fresh ones.

`PlainEngine` is torch alone on one device. `hiclip.training.deepspeed_engine` is the other one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from hiclip.batch import Batch
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.objective import Objective
from hiclip.training.gradient_cache import encode_in_chunks
from hiclip.training.optimizer import (
    OptimizerSettings,
    make_optimizer,
    optimizer_state,
    set_optimizer_state,
    set_rate,
)


class Pretraining(nn.Module):
    """Towers and objective as the one module that is trained, so that an engine may wrap, shard and gather it whole."""

    def __init__(
        self, towers: TwoTowers, objective: Objective, bf16: bool = False, micro_batch: int | None = None
    ) -> None:
        super().__init__()
        self.towers = towers
        self.objective = objective
        self.bf16 = bf16
        self.micro_batch = micro_batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """This rank's pairs -> weighted losses by name; weights stay fp32 when the arithmetic is bf16.

        With a `micro_batch` the towers encode that many pairs at once, and again in the backward; the losses and their
        gradients are the same.
        """
        if self.micro_batch is None:
            encoded = self._encode(batch)
        else:
            encoded = encode_in_chunks(self._encode, self.towers, batch, self.micro_batch)
        with self._arithmetic(batch):
            return self.objective.losses(encoded, batch, self.towers.logit_scale())

    def _encode(self, batch: Batch) -> dict[str, Tensor]:
        with self._arithmetic(batch):
            return self.objective.encode(self.towers, batch)

    def _arithmetic(self, batch: Batch) -> torch.autocast:
        # Inside the module: DeepSpeed switches off an autocast that is around its own forward. One for each stage: it
        # keeps the weights' bf16 copies until it ends, and those that a pass without graph has made carry no gradient.
        return torch.autocast(next(iter(batch.images.values())).device.type, torch.bfloat16, enabled=self.bf16)


def compile_towers(towers: TwoTowers, backend: str = "inductor") -> None:
    """torch.compile of both towers in place, at their first pass; no name of a weight changes.

    Captions are as long as the longest of their batch, so their length stays a variable: one compilation for all.
    """
    towers.image_tower.compile(backend=backend)
    towers.text_tower.compile(backend=backend, dynamic=True)


class Engine(Protocol):
    """Trains a `Pretraining` module on one rank; every rank calls the same methods in the same order."""

    @property
    def module(self) -> Pretraining:
        """What is trained, with this rank's current weights."""
        ...

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Forward: this rank's pairs -> losses by name, with gradient."""
        ...

    def update(self, loss: Tensor, learning_rate: float) -> float:
        """Backward and one step of the optimizer with the gradient averaged over ranks; -> its length before clipping.

        Where that is not finite nothing is moved.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers of the module by name, whole, however they are shared out: on rank 0.

        Every rank must ask; the others may get anything.
        """
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `hiclip.training.optimizer.optimizer_state`: whole, on the CPU of rank 0. Every rank must ask."""
        ...

    def set_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what some engine, on any number of ranks, has answered to `optimizer_state`."""
        ...


def gradient_norm(module: nn.Module, clip_norm: float | None) -> float:
    """Length of the gradient of all parameters, which is then shortened to `clip_norm` if it is longer."""
    parameters = list(module.parameters())
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return float(norm)


class PlainEngine:
    """One device, one process, torch alone."""

    def __init__(self, module: Pretraining, settings: OptimizerSettings) -> None:
        self.module = module
        self._optimizer = make_optimizer(module, settings)
        self._clip_norm = settings.clip_norm

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Engine`."""
        return cast(dict[str, Tensor], self.module(batch))

    def update(self, loss: Tensor, learning_rate: float) -> float:
        """See `Engine`."""
        set_rate(self._optimizer, learning_rate)
        torch.autograd.backward(loss)
        norm = gradient_norm(self.module, self._clip_norm)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return self.module.state_dict()

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return optimizer_state(self._optimizer, self.module)

    def set_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        set_optimizer_state(self._optimizer, self.module, state)
