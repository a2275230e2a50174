"""What ranks say to each other. Without a process group there is one rank and nothing to say.

Gradients are averaged over ranks by the engine (DDP and DeepSpeed both do), and everything here is written for that: a
loss is the mean over a rank's own pairs, and the mean of the ranks' losses is the loss of the global batch.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _connected() else 1


def rank() -> int:
    """This process's number among the ranks, from 0; 0 without a process group."""
    return dist.get_rank() if _connected() else 0


def gather_with_gradient(local: Tensor) -> Tensor:
    """(b, ...) of this rank -> (world * b, ...) of all ranks in rank order, with gradient to every rank's part.

    Every rank must bring the same b. In the backward each rank receives the gradient of its own part summed over all
    ranks' losses; averaged over ranks afterwards, that is the gradient of the mean of the losses.
    """
    if world() == 1:
        return local
    gathered: Tensor = _Gather.apply(local)  # type: ignore[no-untyped-call]
    return gathered


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over ranks, the same on every rank, without gradient: for numbers that are reported."""
    mean = value.detach().clone()
    if world() > 1:
        dist.all_reduce(mean)
    return mean / world()


def sum_over_ranks(values: Tensor) -> list[float]:
    """(n,) of this rank -> the n sums over all ranks, the same on every rank, without gradient: to be reported."""
    totals = values.detach().clone()
    if world() > 1:
        dist.all_reduce(totals)
    numbers: list[float] = totals.tolist()
    return numbers


def from_first_rank(value: T) -> T:
    """What the first rank brings, on every rank; for small things that only it can know."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def of_all_ranks(value: T) -> list[T]:
    """What each rank brings, in rank order, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather_seconds() -> float:
    """Seconds that gathers, forward and backward, have taken on this rank since the last call; on a GPU they must be
    over."""
    seconds = sum(gather.seconds() for gather in _gathers)
    _gathers.clear()
    return seconds


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gathering:
    """Begin and end of one gather, on the GPU's clock for a GPU's tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if tensor.is_cuda else []  # type: ignore[no-untyped-call]
        self._times = [0.0, 0.0]

    def __enter__(self) -> None:
        self._note(0)

    def __exit__(self, *_: object) -> None:
        self._note(1)
        _gathers.append(self)

    def seconds(self) -> float:
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._times[1] - self._times[0]

    def _note(self, end: int) -> None:
        if self._events:
            self._events[end].record()
        else:
            self._times[end] = time.perf_counter()


_gathers: list[_Gathering] = []
"""Those since they were last asked for."""


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(world())]
        with _Gathering(local):
            dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # gloo has no reduce-scatter; an all-reduce of (world * b, E) floats is small beside a step.
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd's own may serve others too
        with _Gathering(gradient):
            dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]
