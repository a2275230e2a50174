"""How much compute one method needs for what another reaches: "the same error at 0.62 of the compute, 0.5 to 0.8".

A difference of errors at equal compute says little of a method that is dearer a step; the ratio at equal error says
what one would pay. Draw k of the one law is compared with draw k of the other: both saw the same pictures anew, so
that what the pictures did to both cancels out, while their runs are drawn apart, by seeds of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiclip.scaling.law import Interval, Law
from hiclip.scaling.robust_fit import Array, Curves


@dataclass(frozen=True)
class ComputeRatio:
    """Compute of `method` over that of `other`, for the error that `other` reaches with `compute`."""

    method: str
    other: str
    compute: float
    """Of `other`."""
    error: float
    """That its law has there."""
    ratio: Interval
    """Infinite where the method's law never comes to that error."""

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.ratio.covers(1.0)

    def sentence(self) -> str:
        """The comparison in words."""
        share = f"{_said(self.ratio.value)} of the compute ({_said(self.ratio.low)} to {_said(self.ratio.high)}, 95 %)"
        if math.isinf(self.ratio.low):
            return f"{self.method} never comes to the error that {self.other} reaches with {self.compute:.3g}"
        if math.isinf(self.ratio.value) and self.told_apart:
            least = f"{_said(self.ratio.low)} of the compute or more (95 %)"
            return f"{self.method} needs {least} for the error that {self.other} has at {self.compute:.3g}"
        if self.told_apart:
            return f"{self.method} reaches the error that {self.other} has at {self.compute:.3g} with {share}"
        return f"{self.method} and {self.other} are not told apart: at {self.compute:.3g}, the same error with {share}"

    def numbers(self) -> dict[str, Any]:
        """As plain data for result.json; an infinite ratio is null."""
        ends = {key: None if math.isinf(value) else value for key, value in vars(self.ratio).items()}
        own = {"method": self.method, "other": self.other, "compute": self.compute, "error": self.error}
        return own | {"ratio": ends.pop("value"), **ends, "told_apart": self.told_apart}


def common_computes(law: Law, other: Law) -> tuple[float, float]:
    """Least and most compute that the rungs of both laws have reached; the first is the larger where they have none."""
    return max(min(law.computes), min(other.computes)), min(max(law.computes), max(other.computes))


def compute_ratio(law: Law, other: Law, compute: float, method: str = "", other_method: str = "") -> ComputeRatio:
    """The ratio at one compute of `other`. Both laws need equally many draws, made with different seeds."""
    return ComputeRatio(method, other_method, compute, other.error(compute), ratio_curve(law, other, [compute])[0])


def ratio_curve(law: Law, other: Law, computes: Sequence[float]) -> tuple[Interval, ...]:
    """The ratio at each of the computes of `other`."""
    logs = np.log(np.asarray(computes, dtype=float))
    fit = _ratios(law.curve, law.centre, other.curve, other.centre, logs)[0]
    drawn = _ratios(law.draws, law.centre, other.draws, other.centre, logs)
    # By order and not by linear interpolation, which cannot go between a number and infinity.
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest")
    return tuple(Interval(*map(float, ends)) for ends in zip(np.exp(fit), np.exp(low), np.exp(high), strict=True))


def _ratios(curves: Curves, centre: float, others: Curves, other_centre: float, logs: Array) -> Array:
    """(S, n) log of the compute that each law needs, over that of the other: infinite where it never comes there, or
    comes nearer with less compute."""
    wanted = others.at(logs - other_centre)
    floor, slope, shift = curves.floor[:, None], curves.slope[:, None], curves.shift[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        above = wanted + np.log1p(-np.exp(floor - wanted))  # log of what is left to remove
        shifted = (above - curves.level[:, None]) / slope
        # A law with a shift has an error at no compute at all: what is worse than that costs nothing.
        needed = shifted + np.log1p(-np.minimum(np.exp(shift - shifted), 1.0)) + centre
    return np.where((floor < wanted) & (slope < 0), needed - logs, np.inf)


def _said(ratio: float) -> str:
    if math.isinf(ratio):
        return "any multiple"
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.3g}"
