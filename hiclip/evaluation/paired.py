"""Whether one model is better than another on the same pictures: each resample is given to both, so that what makes a
picture hard for everybody cancels out of the difference.

Two intervals that overlap may belong to models that differ beyond doubt; the interval of their difference says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import binom

from hiclip.evaluation.bootstrap import Estimates, FloatArray, Statistic, estimate
from hiclip.evaluation.retrieval import BoolArray


def paired_differences(
    statistics: Sequence[Statistic], pictures: int, seed: int, draws: int = 1000, level: float = 0.95
) -> dict[tuple[int, int], Estimates]:
    """The metrics of K models over the same pictures -> for each two of them, (i, j), those of i less those of j.

    Every draw weighs the pictures alike for all models. Each interval holds for itself: of twenty differences of
    nothing, one is expected to exclude zero.
    Example: 100 pictures, both right on 60, only the first on 12, only the second on 4: 0.08 (0.00 to 0.16).
    """
    pairs = list(combinations(range(len(statistics)), 2))

    def differences(weights: FloatArray) -> FloatArray:
        values = [statistic(weights) for statistic in statistics]
        return np.hstack([values[first] - values[second] for first, second in pairs])

    found = estimate(differences, pictures, seed, draws, level)
    ends = [np.split(part, len(pairs)) for part in (found.value, found.low, found.high)]
    there = {pair: Estimates(*(part[place] for part in ends)) for place, pair in enumerate(pairs)}
    return there | {(second, first): turned(one) for (first, second), one in there.items()}


def turned(difference: Estimates) -> Estimates:
    """The same difference seen from the other side."""
    return Estimates(-difference.value, -difference.high, -difference.low)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two classifiers on the same pictures: only those that one alone gets right say anything."""

    only_first: int
    """Pictures that the first alone gets right."""
    only_second: int
    exact: float
    """Two-sided p-value of the exact (binomial) test."""
    mid: float
    """The mid-p value, which is less conservative: Fagerland, Lydersen and Laake 2013."""


def mcnemar(first_right: BoolArray, second_right: BoolArray) -> McNemar:
    """(N,), (N,) whether each model is right on a picture -> the test.

    Example: 1 picture that only the first and 5 that only the second gets right -> exact p 14/64, mid-p 8/64.
    """
    only_first = int(np.count_nonzero(first_right & ~second_right))
    only_second = int(np.count_nonzero(second_right & ~first_right))
    fewer, together = min(only_first, only_second), only_first + only_second
    below, at = float(binom.cdf(fewer, together, 0.5)), float(binom.pmf(fewer, together, 0.5))
    # Of equal counts the middle is in both tails, so half of it is taken off once.
    mid = 2.0 * below - at if only_first != only_second else 1.0 - at / 2.0 if together else 1.0
    return McNemar(only_first, only_second, min(1.0, 2.0 * below), mid)
