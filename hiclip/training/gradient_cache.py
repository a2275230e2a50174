"""Gradient caching (GradCache; Gao et al. 2021): as large a batch as the loss wants where a chunk of it fits.

The loss needs the vectors of all pairs at once, the towers do not, and it is their activations that fill a device. So
the batch is encoded chunk by chunk and nothing but the vectors is kept; when the gradients of the loss to the vectors
are known, every chunk is encoded again, with a graph, and takes its share of them. It is the gradient of the whole
batch, for one more forward.

To whoever runs the backward, an engine that reduces gradients as they come perhaps, all chunks are one operation: the
gradient of a parameter appears once, summed over chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hiclip.batch import Batch

Encode: TypeAlias = Callable[[Batch], dict[str, Tensor]]
"""Pairs -> tensors with an entry for each pair along the first axis, a function of that pair alone."""


def encode_in_chunks(encode: Encode, module: nn.Module, batch: Batch, pairs: int) -> dict[str, Tensor]:
    """`encode(batch)`, `pairs` pairs at a time, with gradient to the module's parameters.

    `encode` runs twice on every chunk if there is a backward, the second time inside it; what it draws at random is the
    same both times. It must enter autocast itself, and may have no other inputs with gradient.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    chunks = _Chunks(encode, batch, pairs)
    tensors = _EncodeTwice.apply(chunks, *parameters)  # type: ignore[no-untyped-call]
    return dict(zip(chunks.names, tensors, strict=True))


@dataclass
class _Chunks:
    """What is encoded, in what order; one object, so that both passes do the same."""

    encode: Encode
    batch: Batch
    pairs: int
    names: list[str] = field(default_factory=list)
    """Of what was encoded, once something was."""

    def encoded(self) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Chunk by chunk: which pairs, and their tensors."""
        for first in range(0, len(self.batch), self.pairs):
            encoded = self.encode(self.batch.part(first, first + self.pairs))
            self.names = list(encoded)
            yield slice(first, first + self.pairs), tuple(encoded.values())


class _EncodeTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.chunks, ctx.chance = chunks, _Chance.now(next(iter(chunks.batch.images.values())).device)
        ctx.save_for_backward(*parameters)  # torch then tells if they were changed before the second pass
        ctx.set_materialize_grads(False)
        parts = [tensors for _, tensors in chunks.encoded()]
        return tuple(torch.cat(views) for views in zip(*parts, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        sums: list[Tensor | None] = [None] * len(parameters)
        with ctx.chance.again(), torch.enable_grad():
            for part, tensors in ctx.chunks.encoded():
                shares = [None if gradient is None else gradient[part] for gradient in gradients]
                _add(sums, _gradients(tensors, shares, parameters))
        return None, *sums


def _gradients(
    tensors: Sequence[Tensor], shares: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """A chunk's tensors with their graph, and the gradients to them (None: of no effect) -> to the parameters."""
    pairs = zip(tensors, shares, strict=True)
    told = [(tensor, share) for tensor, share in pairs if share is not None and tensor.requires_grad]
    if not told:
        return [None] * len(parameters)
    ends, slopes = zip(*told, strict=True)
    return torch.autograd.grad(ends, parameters, slopes, allow_unused=True)


def _add(sums: list[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
    for place, gradient in enumerate(gradients):
        have = sums[place]
        # Never in place: autograd may have given two parameters the same tensor.
        sums[place] = gradient if have is None else have if gradient is None else have + gradient


@dataclass(frozen=True)
class _Chance:
    """Where the generators of random numbers stood."""

    device: torch.device
    here: Tensor
    there: Tensor | None
    """The device's own, if it has one."""

    @classmethod
    def now(cls, device: torch.device) -> _Chance:
        there = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), there)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the same numbers are drawn once more; afterwards it is as if none had been."""
        own = [] if self.there is None else [self.device]
        with torch.random.fork_rng(own, device_type="cuda" if self.there is None else self.device.type):
            torch.set_rng_state(self.here)
            if self.there is not None:
                torch.get_device_module(self.device).set_rng_state(self.there, self.device)
            yield
