"""What a study found, in numbers for machines and in sentences for people. Page and pictures are made from this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hiclip.scaling.analysis import MethodFindings, NoLaw
from hiclip.scaling.compute_ratio import ComputeRatio
from hiclip.scaling.law import Interval, Law
from hiclip.scaling.next_rung import Suggestion
from hiclip.scaling.points import Point
from hiclip.scaling.rung_table import Failure
from hiclip.scaling.search_trials import Search
from hiclip.scaling.size_law import SizeLaw


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
    by_size: Interval | None = None
    """What the law of size and pairs predicts; None without one."""

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
    methods: tuple[MethodFindings, ...]
    """Those with a law. The first is the one that others are compared with."""
    held_out: HeldOut | None
    """Of the study's first method; None without one, and where that method has no law to predict it."""
    failures: tuple[Failure, ...] = ()
    ratios: tuple[ComputeRatio, ...] = ()
    """The first method's compute over that of each other, for the same error: in the middle of what both have reached,
    where it is known best, and at its end."""
    suggestion: Suggestion | None = None
    """The rung to run next; None where nobody asked."""
    searches: Mapping[str, Search] = field(default_factory=dict)
    """By method, what a search has found; empty without one."""
    refused: tuple[NoLaw, ...] = ()
    """Methods without a law of compute, and why."""
    not_run: str = ""
    """Name of a held-out rung that was not run, because nothing predicts it."""

    @property
    def law(self) -> Law:
        """The first method's."""
        return self.methods[0].law

    def sentence(self) -> str:
        """The findings in one paragraph."""
        said = [self._law_sentence(found) for found in self.methods]
        if self.held_out is not None:
            said.append(_verdict(self.held_out))
        said += [f"There is no law of {one.method}: {one.reason}" for one in self.refused]
        if self.not_run:
            said.append(f"'{self.not_run}' was not run: no law predicts it")
        said += [ratio.sentence() for ratio in self.ratios]
        said += [
            f"{self.methods[0].method} and {found.method} are not compared: {_why_not_compared(self.methods[0], found)}"
            for found in self.methods[1:]
            if all(ratio.other != found.method for ratio in self.ratios)
        ]
        if self.failures:
            said.append(f"Without {' and '.join(failure.name for failure in self.failures)}, which failed")
        return " ".join(f"{one}." for one in said)

    def numbers(self) -> dict[str, Any]:
        """The findings' keys of result.json; `law` is the first method's."""
        return {
            "sentence": self.sentence(),
            "compute_unit": self.compute_unit,
            "law": law_numbers(self.law),
            "methods": {found.method or "law": method_numbers(found) for found in self.methods},
            "refused": {one.method: one.reason for one in self.refused},
            "held_out": None if self.held_out is None else held_out_numbers(self.held_out),
            "ratios": [ratio.numbers() for ratio in self.ratios],
            "next": None if self.suggestion is None else self.suggestion.numbers(),
            "search": {
                method or "search": {
                    "learning_rate": one.learning_rate,
                    "weight_decay": one.weight_decay,
                    "rung": one.rung,
                }
                for method, one in self.searches.items()
            },
            "missing": [failure.model_dump(exclude={"trace"}) for failure in self.failures],
        }

    def _law_sentence(self, found: MethodFindings) -> str:
        law, b = found.law, found.law.b
        whose = f"{found.method}: the {self.what}" if found.method else f"The {self.what}"
        stands = f"{len(law.computes)} rungs"
        if len(law.computes) < len(found.points):
            stands = f"the best {len(law.computes)} of {len(found.points)} rungs"
        said = f"{whose} {_verb(b)} {formula(law)} over {stands}, b = {b.value:.3f} ({b.low:.3f} to {b.high:.3f}, 95 %)"
        if law.form == "power" and b.value < 0:
            said += f"; twice the compute takes {1 - 2**b.value:.1%} off"
        return said


def formula(law: Law) -> str:
    """The fitted law as a formula, written around a compute near the rungs where its factor is readable."""
    power = round(law.centre / math.log(10))
    floor = "" if law.form == "power" else f"{_floor(law.E.value, min(law.errors))} + "
    if law.form != "shifted_power":
        return f"{floor}{law.error(10.0**power) - law.E.value:.3g} · (C / 10^{power})^{law.b.value:.3f}"
    factor = math.exp(law.curve.level[0] + law.curve.slope[0] * (power * math.log(10) - law.centre))
    shift = law.shift.value / 10**power
    return f"{floor}{factor:.3g} · (C / 10^{power} + {shift:.3g})^{law.b.value:.3f}"


def size_formula(law: SizeLaw) -> str:
    """The law of size and pairs as a formula with rounded numbers."""
    floor = f"{_floor(law.E.value, min(law.errors))} + " if law.form == "power_with_floor" else ""
    return f"{floor}{law.A.value:.3g} / N^{law.alpha.value:.3f} + {law.B.value:.3g} / D^{law.beta.value:.3f}"


def _floor(floor: float, least: float) -> str:
    """A floor that is fitted far below all errors is none."""
    return f"{floor:.3g}" if floor > 1e-4 * least else "0"


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
        "shift": law.shift.value,
        "shift_low": law.shift.low,
        "shift_high": law.shift.high,
        "noise": law.noise,
        "leave_one_out": law.leave_one_out,
        "covariance": [list(row) for row in law.covariance],
        "rungs": len(law.computes),
        "draws": len(law.drawn_noise),
    }


def method_numbers(found: MethodFindings) -> dict[str, Any]:
    """Everything about one method: its law, the other forms, the law of size and pairs, and what that answers."""
    size_law = found.size_law
    return {
        "law": law_numbers(found.law),
        "stands_on": [found.points[place].name for place in found.selected],
        "forms": found.forms.numbers(),
        "size_law": {"refused": found.size_law_refused} if size_law is None else size_law.numbers(),
        "allocations": [one.numbers() for one in found.allocations],
        "caveats": list(found.caveats),
        "predictions": [vars(one.run) | {"compute": one.compute, "law": vars(one.law)} for one in found.predictions],
    }


def residual_rows(law: Law, points: Sequence[Point]) -> list[tuple[Point, float, float]]:
    """Each rung that the law stands on, with the law's error there and the error that the other rungs' law gives it."""
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
        "by_size": None if held_out.by_size is None else vars(held_out.by_size),
    }


def _why_not_compared(first: MethodFindings, other: MethodFindings) -> str:
    for one in (first, other):
        if one.law.b.value >= 0:
            return f"the error of {one.method} does not fall with compute"
    return "their rungs have no compute in common"


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
    said = f"'{held_out.name}' was predicted at {band} and measured {held_out.point.error:.3g}, {inside} the band"
    if held_out.by_size is None:
        return said
    other = held_out.by_size
    inside = "inside" if other.covers(held_out.point.error) else "outside"
    return f"{said}; by size and pairs at {other.value:.3g} ({other.low:.3g} to {other.high:.3g}), {inside}"
