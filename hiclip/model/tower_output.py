"""What a tower answers: its vector, and what an objective or a drawing may want to see inside, by name."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

Links = TypeVar("Links")
"""Affinities of one layer: `WordLinks` (B, N-1) or `PatchLinks` (right, down)."""


class TowerOutput(NamedTuple, Generic[Links]):
    """vector (B, E), not normalised. tokens (B, N, D) after the final norm. affinities, bottom layer first.

    tokens is None unless the tower was called with `all_tokens=True`: without it the last layer is computed only where
    the vector is read (CLS, end of the caption), the same vector for a fifth less work in a tower of four layers.
    affinities has one entry for each layer that computes some, and is empty when the hierarchy is off.

    A tuple, because ZeRO-3 looks into a module's answer for tensors, to know when its backward begins, and would not
    find them in a dataclass.
    """

    vector: Tensor
    tokens: Tensor | None
    affinities: list[Links]
