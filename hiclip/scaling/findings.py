"""What a study found, in numbers for machines and in one sentence for people. The pictures are made from this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiclip.scaling.law import Interval, Law
from hiclip.scaling.rung_table import Failure, Row


@dataclass(frozen=True)
class Point:
    """One measured rung as the law sees it."""

    name: str
    group: str
    """Points of one group are drawn alike: rungs that differ only in the pairs they see."""
    compute: float
    error: float
    low: float
    """Lower end of the error's interval over the evaluation set; the error itself if it has none."""
    high: float


@dataclass(frozen=True)
class HeldOut:
    """The rung that the law had to predict."""

    name: str
    compute: float
    predicted: Interval
    before: bool
    """Whether the prediction was written down before the rung was run."""
    point: Point | None
    """What was measured; None if the rung failed."""

    @property
    def covered(self) -> bool | None:
        """Whether the predicted interval holds what was measured."""
        return None if self.point is None else self.predicted.covers(self.point.error)


@dataclass(frozen=True)
class Findings:
    """A study, done."""

    name: str
    what: str
    """The error in words with its unit: `loss on openmoji (nats)`."""
    compute_unit: str
    points: tuple[Point, ...]
    """What the law was fitted to, in the order of the law's own table."""
    law: Law
    held_out: HeldOut | None
    failures: tuple[Failure, ...]

    def sentence(self) -> str:
        """The law in one sentence."""
        b = self.law.b
        parts = [
            f"The {self.what} {_verb(b)} {formula(self.law)} over {len(self.points)} rungs, "
            f"b = {b.value:.3f} ({b.low:.3f} to {b.high:.3f}, 95 %)"
        ]
        if self.law.form == "power" and b.value < 0:
            parts.append(f"twice the compute takes {1 - 2**b.value:.1%} off")
        if self.held_out is not None:
            parts.append(_verdict(self.held_out))
        if self.failures:
            parts.append(f"without {' and '.join(failure.name for failure in self.failures)}, which failed")
        return "; ".join(parts) + "."

    def numbers(self) -> dict[str, Any]:
        """The keys `law` and `held_out` of result.json."""
        return {
            "law": law_numbers(self.law),
            "held_out": None if self.held_out is None else held_out_numbers(self.held_out),
        }


def point_of(row: Row) -> Point:
    """A row of the study's own table as the law sees it."""
    return Point(row.name, row.group, row.compute, row.error, row.error_low, row.error_high)


def formula(law: Law) -> str:
    """The fitted law as a formula, written around a compute near the rungs where its factor is readable."""
    power = round(law.centre / math.log(10))
    floor = f"{law.E.value:.3g} + " if law.form == "power_with_floor" else ""
    return f"{floor}{law.error(10.0**power) - law.E.value:.3g} · (C / 10^{power})^{law.b.value:.3f}"


def law_numbers(law: Law) -> dict[str, Any]:
    """Everything about a law; `low` and `high` are the 95 % interval of the exponent b."""
    return {
        "form": law.form,
        "a": law.a.value,
        "b": law.b.value,
        "E": law.E.value,
        "low": law.b.low,
        "high": law.b.high,
        "a_low": law.a.low,
        "a_high": law.a.high,
        "E_low": law.E.low,
        "E_high": law.E.high,
        "noise": law.noise,
        "leave_one_out": law.leave_one_out,
        "covariance": [list(row) for row in law.covariance],
        "rungs": len(law.computes),
        "draws": len(law.drawn_noise),
    }


def residual_rows(law: Law, points: Sequence[Point]) -> list[tuple[Point, float, float]]:
    """Each rung with the law's error there and the error that the other rungs' law gives it."""
    return [(p, law.error(p.compute), alone) for p, alone in zip(points, law.left_out, strict=True)]


def held_out_numbers(held_out: HeldOut) -> dict[str, Any]:
    """What was predicted with its 95 % interval, what was measured, and in which order."""
    return {
        "name": held_out.name,
        "compute": held_out.compute,
        "predicted": held_out.predicted.value,
        "low": held_out.predicted.low,
        "high": held_out.predicted.high,
        "measured": None if held_out.point is None else held_out.point.error,
        "covered": held_out.covered,
        "before": held_out.before,
    }


def _verb(b: Interval) -> str:
    if b.value >= 0:
        return "does not fall with compute:"
    return "falls as" if b.high < 0 else "seems to fall, not yet told apart from standing still, as"


def _verdict(held_out: HeldOut) -> str:
    predicted = held_out.predicted
    band = f"{predicted.value:.3g} ({predicted.low:.3g} to {predicted.high:.3g})"
    if held_out.point is None:
        return f"'{held_out.name}' was predicted at {band} and failed"
    inside = "inside" if held_out.covered else "outside"
    return f"'{held_out.name}' was predicted at {band} and measured {held_out.point.error:.3g}, {inside} the band"
