"""What ranks say to each other. Without a process group there is one rank and nothing to say.

Gradients are averaged over ranks by the engine (DDP and DeepSpeed both do), and everything here is written for that: a
loss is the mean over a rank's own pairs, and the mean of the ranks' losses is the loss of the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(world())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # gloo has no reduce-scatter; an all-reduce of (world * b, E) floats is small beside a step.
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd's own may serve others too
        dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]
