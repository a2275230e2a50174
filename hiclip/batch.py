"""What one step of training is shown: the views an objective asks for and the tensors that answer it.

Letters of shapes, here and in every docstring of `hiclip`:
B pairs of a batch · b pairs of one rank · E length of a tower's vector · D channels of a tower · H attention heads ·
L tokens of a caption · N tokens of any sequence · R rows and C columns of the grid of patches · M regions of a picture,
each a vector of F numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

MASK_TOKEN = 49_408
"""Stands in a masked caption for a word that is to be guessed: one past CLIP's vocabulary, so that CLIP's table and
ids stay as published. (DeCLIP inserts it before the start instead, which moves the ids of start and end.)"""

NOT_PREDICTED = -100
"""Fills the places of a view of targets where nothing is to be predicted; 0 would not do, it is a token ("!")."""

TARGETS = "_targets"
"""Ending of the name of a token view that holds no caption but what is to be predicted at the places of another."""


@dataclass(frozen=True)
class Views:
    """Names of the views of a pair that an objective wants to see; `hiclip.data` makes them."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    regions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """The text views that a tower reads: all but targets."""
        return tuple(view for view in self.texts if not view.endswith(TARGETS))


@dataclass(frozen=True)
class Batch:
    """Pairs of one rank at one step, a tensor for each view.

    images: view -> (B, 3, H, W) floats, normalised. tokens: view -> (B, L) int64, 0 after the end of a caption, and
    `NOT_PREDICTED` for nothing in a view of targets. regions: view -> (B, M, F) floats; one of zeros is absent.
    """

    images: dict[str, Tensor]
    tokens: dict[str, Tensor]
    pair_ids: list[str]
    regions: dict[str, Tensor] = field(default_factory=dict)
    broken: int = 0
    """Pictures that could not be decoded; other pairs stand in their places."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), self.pair_ids)

    def part(self, first: int, last: int) -> Batch:
        """The pairs `first` to `last` (not included), in the same memory."""
        return self._map(lambda tensor: tensor[first:last], self.pair_ids[first:last])

    def _map(self, change: Callable[[Tensor], Tensor], pair_ids: list[str]) -> Batch:
        images, tokens, regions = (
            {view: change(tensor) for view, tensor in views.items()}
            for views in (self.images, self.tokens, self.regions)
        )
        return Batch(images, tokens, pair_ids, regions, self.broken)

    def __len__(self) -> int:
        return len(self.pair_ids)


def end_positions(tokens: Tensor) -> Tensor:
    """(B, L) tokens -> (B,) index of each caption's end: its largest id but `MASK_TOKEN`, as in CLIP.

    Id 0 is padding but also a letter of the vocabulary ("!"), so the end says where a caption stops, not the first 0.
    """
    return tokens.masked_fill(tokens == MASK_TOKEN, 0).argmax(dim=-1)


def trim_padding(tokens: Tensor) -> Tensor:
    """(B, L) tokens -> (B, L') without most columns after the longest caption; no feature changes, time is saved.

    L' is a multiple of 8 (or L), so that a compiled or captured step meets few shapes.
    """
    longest = int(end_positions(tokens).max()) + 1
    return tokens[:, : -(-longest // 8) * 8]
