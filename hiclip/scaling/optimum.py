"""Given so much compute: how large a model, on how many pairs, and what will it reach?

The law of size and pairs is minimised along the line of equal compute C = D · cost(N), for the fit and for each of its
draws, so that every answer has its band (the IsoFLOP curves of Hoffmann et al. 2022 are that line seen from the side).
For C = k·N·D and no repetition the minimum is theirs in closed form, which a test compares; here the cost of a pair is
what our own formula or the table says, and repeated pairs are worth less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hiclip.scaling.law import Interval
from hiclip.scaling.robust_fit import Array
from hiclip.scaling.size_law import SizeLaw

_GRID = 400
_SMALLER, _LARGER = 2.0, 4.0  # times beyond the measured sizes that are searched, more for smaller and larger budgets
_STEP = 1.5  # of compute, on both sides of a budget, over which the frontier's exponent is taken


@dataclass(frozen=True)
class PairCost:
    """Compute of one pair as a power of N: a line in logs through what was measured."""

    level: float
    slope: float
    spread: float
    """Standard deviation of the measured log costs around the line."""

    def __call__(self, sizes: Array) -> Array:
        """(n,) N to (n,) compute of a pair."""
        costs: Array = np.exp(self.level + self.slope * np.log(sizes))
        return costs


def pair_cost(sizes: Sequence[float], costs: Sequence[float]) -> PairCost:
    """The line through (N, compute of a pair) of the measured rungs."""
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(costs, dtype=float))
    slope, level = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (1.0, float((y - x).mean()))
    return PairCost(float(level), float(slope), float(np.std(y - level - slope * x)))


@dataclass(frozen=True)
class Optimum:
    """The best use of a budget of compute."""

    budget: float
    """C of one run."""
    size: Interval
    """N. An end is 0, or infinite, where the draws of that side have no best size among those that were asked about."""
    pairs: Interval
    """D; likewise."""
    error: Interval
    """Where the law lies there."""
    exponent: Interval
    """p of N ~ C^p along the frontier, around this budget; without an end where too many draws have no best size."""
    unique: float | None
    """U that it was computed for; None: every pair is new."""
    outside: str
    """In words, what of it lies beyond the measured rungs; empty if nothing does."""
    end: Literal["", "smallest", "largest"] = ""
    """Whether the law would choose the smallest or largest size that it was asked about: it shows no best one."""

    def sentence(self, unit: str, what: str = "parameters") -> str:
        """The answer in words. `unit`: of compute; `what`: of N."""
        size, pairs, error = self.size, self.pairs, self.error
        if self.end:
            why = {"smallest": "size is not shown to help", "largest": "size is not shown to cost"}[self.end]
            return (
                f"With {self.budget:.3g} {unit}: no best size; the law would choose the {self.end} that it was asked "
                f"about, {short(size.value)} {what}, for {why} at this compute"
            )
        passes = ""
        if self.unique is not None and pairs.value > self.unique:
            passes = f" ({pairs.value / self.unique:.1f} passes over {short(self.unique)})"
        beyond = f"; {self.outside}" if self.outside else ""
        return (
            f"With {self.budget:.3g} {unit}: {short(size.value)} {what} ({_band(size)}) on "
            f"{short(pairs.value)} pairs ({_band(pairs)}){passes}, for an error of "
            f"{error.value:.3g} ({error.low:.3g} to {error.high:.3g}){beyond}"
        )

    def numbers(self) -> dict[str, Any]:
        """As plain data for result.json."""
        named = {"size": self.size, "pairs": self.pairs, "error": self.error, "exponent": self.exponent}
        own = {"budget": self.budget, "unique": self.unique, "outside": self.outside, "end": self.end}
        return own | {name: vars(one) for name, one in named.items()}


def compute_optimal(
    law: SizeLaw, cost: Callable[[Array], Array], budget: float, unique: float | None = None
) -> Optimum:
    """The best N and D for `budget`, with bands. `unique`: pairs that there are; None: enough."""
    unique = unique if law.repeat is not None else None
    places = {times: _frontier(law, cost, times * budget, unique) for times in (1 / _STEP, 1.0, _STEP)}
    (low_fit, low_drawn), (high_fit, high_drawn) = places[1 / _STEP][:2], places[_STEP][:2]
    fit, drawn, error, errors = places[1.0]
    span = 2 * np.log(_STEP)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.log(high_drawn / low_drawn) / span
    low, high = (
        _interval(0, np.where(np.isnan(exponents) | np.isinf(exponents), end, exponents)) for end in (-np.inf, np.inf)
    )
    exponent = Interval(float(np.log(high_fit / low_fit) / span), low.low, high.high)
    pairs = budget / cost(np.array([fit]))[0]
    return Optimum(
        budget,
        _interval(fit, drawn),
        _interval(pairs, _pairs_for(budget, cost, drawn)),
        _interval(error, errors),
        exponent,
        unique,
        _outside(law, fit, pairs),
        _end(fit, _asked(law, cost, budget)),
    )


def iso_flops(
    law: SizeLaw,
    cost: Callable[[Array], Array],
    budgets: Sequence[float],
    unique: float | None = None,
    best: Sequence[float] = (),
) -> tuple[Array, Array]:
    """(n,) N, and (budgets, n) errors of a model of N that spends each budget: the IsoFLOP curves. `best`: sizes that
    lie among the N, as the measured ones do."""
    sizes = np.geomspace(min(*law.sizes, *best) / 2, max(*law.sizes, *best) * 4, 160)
    unique = unique if law.repeat is not None else None
    return sizes, np.stack([law.errors_at(sizes, budget / cost(sizes), unique) for budget in budgets])


def _frontier(
    law: SizeLaw, cost: Callable[[Array], Array], budget: float, unique: float | None
) -> tuple[float, Array, float, Array]:
    """Best N of the fit and (draws,) of the draws, and the errors there."""
    sizes = _asked(law, cost, budget)
    pairs = budget / cost(sizes)
    fit, drawn = law.errors_at(sizes, pairs, unique)[None], law.drawn(sizes, pairs, unique)
    (best,), (least,) = _lowest(np.log(sizes), np.log(fit))
    many, _ = _lowest(np.log(sizes), np.log(drawn))
    many = np.exp(many)
    # A draw whose best size is an end of those that were asked about shows none: it lies somewhere beyond.
    many = np.where(many < sizes[1], 0.0, np.where(many > sizes[-2], np.inf, many))
    # The error of the draws at the size that one would choose: nobody knows each draw's own best.
    chosen = np.exp(np.array([best]))
    errors = law.drawn(chosen, budget / cost(chosen), unique)[:, 0]
    return float(np.exp(best)), many, float(np.exp(least)), errors


def _asked(law: SizeLaw, cost: Callable[[Array], Array], budget: float) -> Array:
    """(G,) sizes among which the best is looked for: with ten times the compute, up to ten times as large."""
    spent = np.array(law.pairs) * cost(np.array(law.sizes))
    smaller = _SMALLER * max(1.0, float(spent.min()) / budget)
    larger = _LARGER * max(1.0, budget / float(spent.max()))
    return np.geomspace(min(law.sizes) / smaller, max(law.sizes) * larger, _GRID)


def _end(size: float, asked: Array) -> Literal["", "smallest", "largest"]:
    if size < asked[1]:
        return "smallest"
    return "largest" if size > asked[-2] else ""


def _lowest(x: Array, curves: Array) -> tuple[Array, Array]:
    """(S,) places and (S,) heights of the minima of S curves over an even grid x, between points by a parabola."""
    at = np.clip(curves.argmin(axis=1), 1, len(x) - 2)
    rows = np.arange(len(curves))
    left, middle, right = curves[rows, at - 1], curves[rows, at], curves[rows, at + 1]
    bend = left - 2 * middle + right
    move = np.where(bend > 1e-15, np.clip(0.5 * (left - right) / np.where(bend > 1e-15, bend, 1), -1, 1), 0)
    ends = curves.argmin(axis=1)
    inside = (ends > 0) & (ends < len(x) - 1)
    places = np.where(inside, x[at] + move * (x[1] - x[0]), x[ends])
    heights = np.where(inside, middle - 0.25 * (left - right) * move, curves[rows, ends])
    return places, heights


def _outside(law: SizeLaw, size: float, pairs: float) -> str:
    beyond = []
    for what, value, measured in (("model", size, law.sizes), ("number of pairs", pairs, law.pairs)):
        least, most = min(measured), max(measured)
        if value > most:
            beyond.append(f"the {what} is {value / most:.3g} times the largest that was measured")
        elif value < least:
            beyond.append(f"the {what} is {least / value:.3g} times smaller than any that was measured")
    return ", and ".join(beyond)


def _pairs_for(budget: float, cost: Callable[[Array], Array], sizes: Array) -> Array:
    """(S,) D that the budget leaves for each size: infinite for one of 0, none for an infinite one."""
    inside = np.isfinite(sizes) & (sizes > 0)
    pairs = np.where(sizes > 0, 0.0, np.inf)
    pairs[inside] = budget / cost(sizes[inside])
    return pairs


def _interval(value: float, drawn: Array) -> Interval:
    # By order and not by linear interpolation, which cannot go between a number and infinity.
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(drawn).all() else "nearest"
    low, high = np.quantile(drawn, [0.025, 0.975], method=method)
    return Interval(float(value), float(low), float(high))


def _band(interval: Interval) -> str:
    """From where to where, as far as it is known."""
    known = interval.low > 0, math.isfinite(interval.high)
    if all(known):
        return f"{short(interval.low)} to {short(interval.high)}"
    if not any(known):
        return "the draws have no best one"
    return f"{short(interval.low)} or more" if known[0] else f"{short(interval.high)} or less"


def short(count: float) -> str:
    """1.23M; three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
