"""What a tower answers: its vector, and everything an objective or a drawing may want to see inside, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Links = TypeVar("Links")


@dataclass(frozen=True)
class TowerOutput(Generic[Links]):
    """vector (B, E), not normalised. tokens (B, N, D) after the final norm. affinities: one entry a layer that has any.

    Affinities are `WordLinks` (B, N-1) of the text tower and `PatchLinks` (right, down) of the image tower, bottom
    layer first; empty when the hierarchy is off.
    """

    vector: Tensor
    tokens: Tensor
    affinities: list[Links]
