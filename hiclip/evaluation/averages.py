"""The average over the eleven classification sets of HiCLIP's tables, which all of them must be there for.

HiCLIP's caption says top-1 for all eleven; since CLIP four of them are quoted as the mean over classes. Both are given,
because which one the paper's numbers are is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hiclip.evaluation.result import Result

ELEVEN = (
    "imagenet",
    "cifar10",
    "cifar100",
    "stanford_cars",
    "caltech101",
    "flowers102",
    "sun397",
    "dtd",
    "fgvc_aircraft",
    "oxford_pets",
    "food101",
)
BY_CLASS = frozenset({"fgvc_aircraft", "oxford_pets", "caltech101", "flowers102"})
"""Sets that CLIP and its followers quote as the mean over classes."""


@dataclass(frozen=True)
class ElevenSets:
    """The averages, where they can be had."""

    there: int
    """Sets of the eleven that were measured."""
    top1: float | None
    """Mean of top-1 over the eleven, a share; None unless all are there."""
    by_convention: float | None
    """The same with the mean over classes for BY_CLASS."""

    def __str__(self) -> str:
        if self.top1 is None or self.by_convention is None:
            return f"{self.there} of {len(ELEVEN)} sets"
        return f"{100 * self.top1:.1f} ({100 * self.by_convention:.1f} by CLIP's convention)"


def eleven_sets(results: Sequence[Result]) -> ElevenSets:
    """The averages of an evaluation's results."""
    values = {(result.set, result.metric): result.value for result in results}
    there = sum((name, "top1") in values for name in ELEVEN)
    asked = {
        "top1": [(name, "top1") for name in ELEVEN],
        "by_convention": [(name, "mean_per_class" if name in BY_CLASS else "top1") for name in ELEVEN],
    }
    means = {
        kind: sum(values[cell] for cell in cells) / len(cells) if all(cell in values for cell in cells) else None
        for kind, cells in asked.items()
    }
    return ElevenSets(there, **means)
