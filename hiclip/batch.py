"""What one step of training is shown: the views an objective asks for and the tensors that answer it.

Letters of shapes, here and in every docstring of `hiclip`:
B pairs of a batch · b pairs of one rank · E length of a tower's vector · D channels of a tower · H attention heads ·
L tokens of a caption · N tokens of any sequence · R rows and C columns of the grid of patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Names of the views of a pair that an objective wants to see; `hiclip.data.views` makes them."""

    images: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Pairs of one rank at one step, a tensor for each view.

    images: view -> (B, 3, H, W) floats, normalised. tokens: view -> (B, L) int64, 0 after the end of a caption.
    """

    images: dict[str, Tensor]
    tokens: dict[str, Tensor]
    pair_ids: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            {view: images.to(device, non_blocking=True) for view, images in self.images.items()},
            {view: tokens.to(device, non_blocking=True) for view, tokens in self.tokens.items()},
            self.pair_ids,
        )

    def __len__(self) -> int:
        return len(self.pair_ids)


def end_positions(tokens: Tensor) -> Tensor:
    """(B, L) tokens -> (B,) index of each caption's end: its largest id, as in CLIP.

    Id 0 is padding but also a letter of the vocabulary ("!"), so the end says where a caption stops, not the first 0.
    """
    return tokens.argmax(dim=-1)


def trim_padding(tokens: Tensor) -> Tensor:
    """(B, L) tokens -> (B, L') without most columns after the longest caption; no feature changes, time is saved.

    L' is a multiple of 8 (or L), so that a compiled or captured step meets few shapes.
    """
    longest = int(end_positions(tokens).max()) + 1
    return tokens[:, : -(-longest // 8) * 8]
