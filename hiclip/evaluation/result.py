"""A result: one number, what it is of, and everything that is needed to judge it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from hiclip.evaluation.bootstrap import Estimates, FloatArray
from pipeline.jobfile import Settings

UNITS = {"rsum": "points", "loss": "nats", "typical_rank": "places", "error_distance": "steps"}
"""Unit of a metric; what is not named here is a share from 0 to 1."""

LOWER_IS_BETTER = frozenset({"loss", "typical_rank", "error_distance"})


class Result(Settings):
    """One metric of one set, beside what knowing nothing would give."""

    set: str
    metric: str
    value: float
    chance: float
    count: int
    """Pictures that the metric is over."""
    low: float
    """Lower end of the 95 % bootstrap interval over pictures."""
    high: float
    unit: str
    """share (0 to 1), points (rsum, 0 to 600), nats, places or steps."""
    quoted: bool = False
    """Whether papers since CLIP quote this metric for the set."""
    baselines: dict[str, float] = Field(default_factory=dict)
    """The same metric of methods without a model, by name; one that cannot have the metric is not in it."""


def results_of(
    name: str, metrics: Sequence[str], estimates: Estimates, chance: FloatArray, counts: Sequence[int]
) -> list[Result]:
    """A result a metric that has a value; (M,) metrics, estimates, chance and counts in the same order."""
    return [
        Result(
            set=name,
            metric=metric,
            value=float(estimates.value[place]),
            chance=float(chance[place]),
            count=counts[place],
            low=float(estimates.low[place]),
            high=float(estimates.high[place]),
            unit=UNITS.get(metric, "share"),
        )
        for place, metric in enumerate(metrics)
        if np.isfinite(estimates.value[place])
    ]
