"""Affinities: how strongly two neighbouring words, or two adjacent patches, belong together at one layer (0 to 1).

Tree Transformer's "neighbouring attention" as HiCLIP uses it (eq. 3 to 8). A token divides one unit of attention among
its direct neighbours only; the affinity of a link is the geometric mean of what its two ends give each other; and a
layer can only strengthen what the layer below found, so that what has merged stays merged.

Scores are taken between neighbours alone (no N x N matrix is formed), and everything after the two projections is
computed in float32 at least, also under autocast: chains of small differences are what a hierarchy is made of.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WordLinks: TypeAlias = Tensor
"""(B, N-1): the link from token i to token i+1."""
PatchLinks: TypeAlias = tuple[Tensor, Tensor]
"""right (B, R, C-1): the link from patch (r, c) to (r, c+1); down (B, R-1, C): from (r, c) to (r+1, c)."""

_SMALLEST_SQUARE = 1e-9
"""Added under the square root as in Tree Transformer's code: bounds its slope, keeps an affinity above 3e-5."""
_NO_NEIGHBOUR = -1e9
"""Score of a neighbour that is not there: a share of exactly 0, and no NaN where a token has no neighbour at all."""


def sentence_affinity(
    query: Tensor, key: Tensor, valid: Tensor, previous: Tensor | None = None, *, scale: float
) -> WordLinks:
    """Two (B, N, D) and valid (B, N) bool -> (B, N-1) affinities of the links between neighbouring words (eq. 3 to 5).

    `previous`: affinities of the layer below. Links from or to a token that is not valid have affinity 0 and take no
    share from a valid one. `scale` divides the scores (the paper's sigma, 256).
    """
    onward, back = _neighbour_scores(query, key, 1)
    linked = valid[:, :-1] & valid[:, 1:]
    onward = (onward / scale).masked_fill(~linked, _NO_NEIGHBOUR)
    back = (back / scale).masked_fill(~linked, _NO_NEIGHBOUR)
    shares = torch.stack((_at_start(onward, dim=1), _at_end(back, dim=1)), dim=-1).softmax(dim=-1)
    there, here = shares.unbind(dim=-1)
    link = _geometric_mean(there[:, :-1], here[:, 1:])
    return strengthen(link.masked_fill(~linked, 0.0), previous)


def grid_affinity(query: Tensor, key: Tensor, previous: PatchLinks | None = None, *, scale: float) -> PatchLinks:
    """Two (B, R, C, D) -> affinities right (B, R, C-1) and down (B, R-1, C) between adjacent patches (eq. 6 to 8).

    A patch divides its attention among the neighbours it has: four inside, three on an edge, two in a corner.
    """
    to_right, to_left, to_lower, to_upper = _neighbour_scores(query, key, 2, 1)
    scores = (_at_start(to_right, dim=2), _at_end(to_left, dim=2), _at_start(to_lower, dim=1), _at_end(to_upper, dim=1))
    right, left, lower, upper = (torch.stack(scores, dim=-1) / scale).softmax(dim=-1).unbind(dim=-1)
    link_right = _geometric_mean(right[:, :, :-1], left[:, :, 1:])
    link_down = _geometric_mean(lower[:, :-1], upper[:, 1:])
    if previous is None:
        return link_right, link_down
    return strengthen(link_right, previous[0]), strengthen(link_down, previous[1])


def strengthen(link: Tensor, previous: Tensor | None) -> Tensor:
    """a = previous + (1 - previous) * link (eq. 5): a link never weakens from layer to layer."""
    return link if previous is None else previous + (1 - previous) * link


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class NeighbourProjection(nn.Module):
    """Queries and keys of the affinity, from the layer's input through a LayerNorm of their own.

    One full-width pair for all heads, with biases, as in Tree Transformer's code. (The key's bias shifts all scores of
    a token alike and cancels in its softmax; it is kept so that the shapes are the ancestor's.)
    """

    def __init__(self, width: int, affinity_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, affinity_width)
        self.key = nn.Linear(width, affinity_width)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=width**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> queries and keys (B, N, affinity width)."""
        tokens = self.norm(tokens)
        return self.query(tokens), self.key(tokens)


def _neighbour_scores(query: Tensor, key: Tensor, *dims: int) -> tuple[Tensor, ...]:
    """For each of `dims`: products of place i with i+1, and of place i+1 with i; in float32 at least."""
    scores: tuple[Tensor, ...] = _NeighbourScores.apply(query, key, dims)  # type: ignore[no-untyped-call]
    return scores


class _NeighbourScores(torch.autograd.Function):
    """Written out because autograd would fill each of eight slices up to full size before adding them.

    Forward and backward on 64 grids of 8 x 8 patches of width 192 take 3.7 ms so, and 8.4 ms by autograd (one core).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(query, key)
        ctx.dims = dims
        query, key = at_least_float32(query), at_least_float32(key)
        scores: list[Tensor] = []
        for dim in dims:
            scores.append((_first(query, dim) * _second(key, dim)).sum(dim=-1))
            scores.append((_second(query, dim) * _first(key, dim)).sum(dim=-1))
        return tuple(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        saved = ctx.saved_tensors  # read once: a layer that is computed again gives them no second time
        dtype = saved[0].dtype
        query, key = (at_least_float32(side) for side in saved)
        into_query, into_key = torch.zeros_like(query), torch.zeros_like(key)
        for dim, onward, back in zip(ctx.dims, gradients[::2], gradients[1::2], strict=True):
            onward, back = onward.unsqueeze(-1), back.unsqueeze(-1)
            _first(into_query, dim).addcmul_(onward, _second(key, dim))
            _second(into_query, dim).addcmul_(back, _first(key, dim))
            _second(into_key, dim).addcmul_(onward, _first(query, dim))
            _first(into_key, dim).addcmul_(back, _second(query, dim))
        return into_query.to(dtype), into_key.to(dtype), None


def _first(places: Tensor, dim: int) -> Tensor:
    """View of the first place of every two neighbours along `dim`."""
    return places.narrow(dim, 0, places.shape[dim] - 1)


def _second(places: Tensor, dim: int) -> Tensor:
    """View of the second place of every two neighbours along `dim`."""
    return places.narrow(dim, 1, places.shape[dim] - 1)


def _at_start(scores: Tensor, dim: int) -> Tensor:
    """A score for every place but the last of `dim` -> one for every place; the last has no such neighbour."""
    return _extend(scores, dim, before=0)


def _at_end(scores: Tensor, dim: int) -> Tensor:
    """A score for every place but the first of `dim` -> one for every place; the first has no such neighbour."""
    return _extend(scores, dim, before=1)


def _extend(scores: Tensor, dim: int, before: int) -> Tensor:
    padding = [0, 0] * (scores.dim() - 1 - dim) + [before, 1 - before]
    return F.pad(scores, padding, value=_NO_NEIGHBOUR)


def _geometric_mean(there: Tensor, back: Tensor) -> Tensor:
    return (there * back + _SMALLEST_SQUARE).sqrt()
