"""Intervals by resampling: how far a number would move had other pictures of the same kind been drawn.

A metric is written once, as a function of the weight that each picture has. Weight one for all gives its value, weights
of a resample give one draw of its distribution; so a value and its interval can never disagree about what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

Statistic = Callable[[FloatArray], FloatArray]
"""Weights of N pictures, (draws, N), to the values of M metrics under them, (draws, M)."""

_CELLS = 1 << 22
"""Weights held at once: 32 MiB, whatever the number of pictures."""


@dataclass(frozen=True)
class Estimates:
    """Values of M metrics and the ends of their intervals, each (M,); NaN for a metric of nothing."""

    value: FloatArray
    low: FloatArray
    high: FloatArray


def estimate(statistic: Statistic, pictures: int, seed: int, draws: int = 1000, level: float = 0.95) -> Estimates:
    """The metrics of `statistic` over `pictures` and their percentile bootstrap intervals at `level`.

    Each draw takes `pictures` of the pictures with replacement. The same seed gives the same interval.
    Example: for 100 pictures of which 20 are right, value 0.20 and an interval of about 0.13 to 0.28.
    """
    value = statistic(np.ones((1, pictures)))[0]
    tail = (1.0 - level) / 2.0
    known = np.isfinite(value)
    ends = np.full((2, len(value)), np.nan)
    # A draw may leave out all pictures of a small part; it then says nothing about that part.
    sampled = resampled(statistic, pictures, seed, draws)
    ends[:, known] = np.nanquantile(sampled[:, known], [tail, 1.0 - tail], axis=0)
    return Estimates(value, *ends)


def resampled(statistic: Statistic, pictures: int, seed: int, draws: int) -> FloatArray:
    """(draws, M) metrics of resamples of `pictures` pictures: the same resamples for every model asked about them, so
    that what one has to thank the pictures for can be told from what several have."""
    random = np.random.default_rng([seed, pictures])
    share = np.full(pictures, 1.0 / pictures)
    at_once = max(1, _CELLS // pictures)
    sampled = [
        statistic(random.multinomial(pictures, share, size=min(at_once, draws - first)).astype(np.float64))
        for first in range(0, draws, at_once)
    ]
    return np.concatenate(sampled)


def weighted_mean(weights: FloatArray, values: FloatArray, counts: FloatArray | None = None) -> FloatArray:
    """Mean of `values` under each row of `weights`; (draws, N), (N, M) -> (draws, M); NaN where nothing has weight.

    counts: (N, M), for values that are sums over several things of one picture (its captions): how many they are; 0 for
    a picture that does not take part. None: each picture counts once.
    """
    below = weights.sum(axis=1, keepdims=True) if counts is None else weights @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = np.where(below > 0, (weights @ values) / below, np.nan)
    return mean
