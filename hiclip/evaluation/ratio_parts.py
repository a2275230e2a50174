"""What metrics that are ratios of sums are made of, unit by unit (a picture with all its questions, a sentence), stored
so that two models can be compared over the same units afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import Field

from hiclip.evaluation.bootstrap import FloatArray, Statistic, weighted_mean
from pipeline.jobfile import Settings


class RatioParts(Settings):
    """M metrics over N units: each is a sum over the units divided by another one."""

    units: str
    """Hex sha256 of what the units were; two models are compared over the same ones only."""
    metrics: list[str] = Field(min_length=1)
    sums: list[list[float]]
    """(N, M) of what is averaged."""
    counts: list[list[float]]
    """(N, M) of what it is averaged over; 0 where a unit does not take part."""

    @property
    def statistic(self) -> Statistic:
        """The metrics as a function of the weights of the units."""
        sums, counts = np.array(self.sums), np.array(self.counts)
        return lambda weights: weighted_mean(weights, sums, counts)


def ratio_parts(units: Iterable[str], metrics: Sequence[str], sums: FloatArray, counts: FloatArray) -> RatioParts:
    """(N, M) sums and counts of the units that are called so."""
    called = hashlib.sha256("\n".join(units).encode()).hexdigest()
    return RatioParts(units=called, metrics=list(metrics), sums=sums.tolist(), counts=counts.tolist())
