"""A measured rung as the laws see it, whoever measured it: a row of a study, or a line of somebody's table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hiclip.scaling.rung_table import Row


@dataclass(frozen=True)
class Point:
    """One measured rung."""

    name: str
    group: str
    """Points of one group are drawn alike: rungs that differ only in the pairs they see."""
    compute: float
    """C, training compute of the whole run, in the study's unit."""
    error: float
    low: float
    """Lower end of the error's interval over the evaluation set; the error itself if it has none."""
    high: float
    method: str = ""
    """Name of the method; empty where there is one alone."""
    parameters: float | None = None
    """N; None if the table does not say."""
    seen: float | None = None
    """D, pairs consumed; None likewise."""
    unique: float | None = None
    """U, pairs of the dataset that was shown; None likewise."""
    draws: tuple[float, ...] = ()
    """The error on resamples of the evaluation pictures, the same for all points; empty if there are none."""

    @property
    def flops_per_pair(self) -> float | None:
        """C / D."""
        return None if self.seen is None else self.compute / self.seen


def point_of(row: Row) -> Point:
    """A row of the study's own table."""
    return Point(
        name=row.name,
        group=row.group,
        compute=row.compute,
        error=row.error,
        low=row.error_low,
        high=row.error_high,
        method=row.method,
        parameters=row.parameters,
        seen=row.seen,
        unique=row.unique,
        draws=tuple(math.nan if one is None else one for one in row.error_draws),
    )
