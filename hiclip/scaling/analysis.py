"""From measured rungs to all that a study says: a law for each method, its rivals, the law of size and pairs, and the
answers that follow from them. The same for our own rungs and for somebody else's table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from hiclip.scaling.chosen_rungs import Selection, chosen_rungs
from hiclip.scaling.compute_ratio import ComputeRatio, common_computes, compute_ratio
from hiclip.scaling.form_choice import FormChoice, choose_form
from hiclip.scaling.law import Interval, Law, LawError, check_numbers, fit_law
from hiclip.scaling.optimum import Optimum, PairCost, compute_optimal, pair_cost
from hiclip.scaling.points import Point
from hiclip.scaling.robust_fit import Array, Form
from hiclip.scaling.size_fit import SizeForm
from hiclip.scaling.size_law import SizeLaw, fit_size_law

log = logging.getLogger(__name__)

_LEAST_KEPT = 0.5  # share of the resamples
_TELLING_SPREAD = 0.1  # of the log compute of a pair around its line


@dataclass(frozen=True)
class Analysis:
    """How a table is read."""

    form: Form = "power"
    selection: Selection = "all"
    bins: int = 5
    draws: int = 2000
    seed: int = 0
    budgets: tuple[float, ...] = ()
    """Compute of single runs for which the best size and pairs are told; empty: the largest run's, ten times and a
    hundred times that."""


@dataclass(frozen=True)
class Prediction:
    """What the law of compute says of a budget."""

    compute: float
    run: Interval
    """What one run of it would measure."""
    law: Interval
    """Where the law itself lies there."""


@dataclass(frozen=True)
class MethodFindings:
    """What the rungs of one method say."""

    method: str
    """Empty where there is one alone."""
    points: tuple[Point, ...]
    selected: tuple[int, ...]
    """Places in `points` of those that the law of compute stands on, in its own order."""
    stands_on: tuple[Point, ...]
    """These points, where the law has them: see `chosen_rungs`."""
    law: Law
    forms: FormChoice
    size_law: SizeLaw | None
    size_law_refused: str
    """Why there is none."""
    allocations: tuple[Optimum, ...]
    predictions: tuple[Prediction, ...] = ()
    """By the law of compute, for the budgets."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the law of size and pairs leaves out of what the table says."""
        law, said = self.size_law, []
        if law is None:
            return ()
        if law.form == "power":
            said.append("the law of size and pairs has no floor E, for the rungs are too few to find one")
        again = [p.seen / p.unique for p in self.points if p.seen and p.unique and p.seen > 1.01 * p.unique]
        if again and law.repeat is None:
            said.append(
                f"pairs that came again, up to {max(again):.3g} times, count as new: what they are worth needs "
                "datasets of several sizes, and runs with and without repetition"
            )
        spread = cost_of_a_pair(self.points).spread
        if spread > _TELLING_SPREAD:
            said.append(f"runs of one size differ in the compute of a pair, by {math.expm1(spread):.0%} or so")
        return tuple(said)

    @property
    def sizes(self) -> tuple[float, ...]:
        """N of every point, or what stands for it; see `size_of`."""
        return tuple(size for point in self.points if (size := size_of(point)) is not None)


@dataclass(frozen=True)
class NoLaw:
    """A method whose rungs carry no law of compute."""

    method: str
    points: tuple[Point, ...]
    reason: str


@dataclass(frozen=True)
class Laws:
    """All methods of a table, each in its order: those with a law of compute, at least one, and those without."""

    found: tuple[MethodFindings, ...]
    refused: tuple[NoLaw, ...]


def size_of(point: Point) -> float | None:
    """N; where a table does not say it, the compute of a pair, which grows with it."""
    return point.parameters if point.parameters is not None else point.flops_per_pair


def analyse(points: Sequence[Point], how: Analysis, methods: Sequence[str] = ()) -> Laws:
    """What the rungs of each method say; `methods`: their order, or that in which they come.

    A method whose rungs carry no law of compute takes none from the others. A law of size and pairs is left out, and it
    is said why, where they carry none. Raises LawError, which names each method and why, if no method has a law.
    """
    found, refused = [], []
    points = usable_draws(points)
    for place, method in enumerate(methods or dict.fromkeys(point.method for point in points) or ("",)):
        own = tuple(point for point in points if point.method == method)
        try:
            # A seed of its own: the runs of two methods have nothing in common; pictures have, see `compute_ratio`.
            found.append(_of_method(method, own, replace(how, seed=how.seed + place)))
        except LawError as error:
            refused.append(NoLaw(method, own, str(error)))
    if not found:
        raise LawError("; ".join(f"{one.method}: {one.reason}" if one.method else one.reason for one in refused))
    return Laws(tuple(found), tuple(refused))


def compare(found: Sequence[MethodFindings]) -> tuple[ComputeRatio, ...]:
    """The first method against each other: in the middle of the computes that both have reached, and at their end.

    One whose rungs have no compute in common with the first's is left out: beyond them the form itself is a guess. So
    are two of which one does not fall: what it needs for an error says nothing.
    """
    first, *others = found
    ratios = []
    for other in others:
        if max(first.law.b.value, other.law.b.value) >= 0:
            continue
        least, most = common_computes(first.law, other.law)
        places = (math.sqrt(least) * math.sqrt(most), most) if least < most else (most,) if least == most else ()
        ratios += [compute_ratio(first.law, other.law, at, first.method, other.method) for at in places]
    return tuple(ratios)


def _of_method(method: str, points: Sequence[Point], how: Analysis) -> MethodFindings:
    computes, errors = [point.compute for point in points], [point.error for point in points]
    check_numbers(computes, errors)
    chosen = chosen_rungs(computes, errors, how.selection, how.bins)
    stood = [replace(points[one.place], compute=one.compute) for one in chosen]
    law = fit_law(
        [point.compute for point in stood],
        [point.error for point in stood],
        how.form,
        how.draws,
        how.seed,
        _picture_draws(stood),
    )
    size_law, refused = _size_law(points, how)
    return MethodFindings(
        method,
        tuple(points),
        tuple(one.place for one in chosen),
        tuple(stood),
        law,
        choose_form(law.computes, law.errors),
        size_law,
        refused,
        () if size_law is None else _allocations(points, size_law, how),
        tuple(_predicted(law, budget) for budget in _budgets(points, how)),
    )


def _budgets(points: Sequence[Point], how: Analysis) -> tuple[float, ...]:
    largest = max(point.compute for point in points)
    return how.budgets or (largest, 10 * largest, 100 * largest)


def _predicted(law: Law, budget: float) -> Prediction:
    low, high = law.band([budget])
    return Prediction(budget, law.prediction(budget), Interval(law.error(budget), float(low[0]), float(high[0])))


def _size_law(points: Sequence[Point], how: Analysis) -> tuple[SizeLaw | None, str]:
    """The law of size and pairs, or None and why."""
    sizes, seen = [size_of(point) for point in points], [point.seen for point in points]
    if None in sizes or None in seen:
        return None, "the table does not say how many pairs each run has seen"
    unique = [point.unique for point in points]
    for what, said in (("parameters", [point.parameters for point in points]), ("unique", unique)):
        # What stands for the one that is not said would be of another kind than those that are.
        if len(said) > said.count(None) > 0:
            blank = points[said.index(None)].name
            return None, f"{what}: expected for every run or for none, the table does not say it of '{blank}'"
    refused = ""
    # Without a floor the law is taken to fall for ever, and names far too small a model far beyond its rungs; so there
    # is one, whatever the form of the law of compute, unless the rungs are too few to find it.
    for form in get_args(SizeForm)[::-1]:
        try:
            return (
                fit_size_law(
                    [float(size) for size in sizes if size is not None],
                    [float(one) for one in seen if one is not None],
                    [point.error for point in points],
                    form,
                    how.draws,
                    how.seed,
                    None if None in unique else [float(one) for one in unique if one is not None],
                    _picture_draws(points),
                ),
                "",
            )
        except LawError as error:
            refused = str(error)
    return None, refused


def _allocations(points: Sequence[Point], law: SizeLaw, how: Analysis) -> tuple[Optimum, ...]:
    cost = cost_of_a_pair(points)
    unique = [point.unique for point in points if point.unique is not None]
    most = max(unique) if law.repeat is not None and unique else None
    return tuple(compute_optimal(law, cost, budget, most) for budget in _budgets(points, how))


def cost_of_a_pair(points: Sequence[Point]) -> PairCost:
    """N -> compute of one pair, through what was measured."""
    known = [(size, cost) for point in points if (size := size_of(point)) and (cost := point.flops_per_pair)]
    return pair_cost([size for size, _ in known], [cost for _, cost in known])


def usable_draws(points: Sequence[Point]) -> Sequence[Point]:
    """The points without the resamples of the pictures on which any of them has no error, or one of 0: no logarithm.

    Without any resamples, and it is said, where that leaves fewer than half. All points lose the same ones, for draw k
    is the same resample in the law of every method.
    """
    if len({len(point.draws) for point in points}) != 1 or not points[0].draws:
        return points
    draws = np.array([point.draws for point in points], dtype=float)
    with np.errstate(invalid="ignore"):
        kept = (np.isfinite(draws) & (draws > 0)).all(axis=0)
    if kept.all():
        return points
    lost = f"{len(kept) - kept.sum()} of {len(kept)} resamples of the pictures have a rung without errors"
    if kept.mean() < _LEAST_KEPT:
        log.warning("%s: the bands are over other runs alone, not over other pictures", lost)
        return [replace(point, draws=()) for point in points]
    log.warning("%s and are left out of the bands", lost)
    return [replace(point, draws=tuple(own[kept].tolist())) for point, own in zip(points, draws, strict=True)]


def _picture_draws(points: Sequence[Point]) -> Array | None:
    """(K, n) errors on resamples of the pictures; None unless all points have them."""
    if not points or not all(point.draws for point in points):
        return None
    return np.array([point.draws for point in points], dtype=float).T
