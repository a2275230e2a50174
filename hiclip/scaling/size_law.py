"""The law of size and pairs, error = E + A·N^-alpha + B·D^-beta: what a larger model and more pairs are worth, and so
how a given compute is best spent (Hoffmann et al. 2022, approach 3; with repeated pairs Muennighoff et al. 2023).

Fit and bands are those of `hiclip.scaling.law`: Huber's loss on log residuals, tables drawn from the fitted law with
Student's uncertainty of the noise, and the pictures' own. Coverage over 500 synthetic tables of 16 rungs (4 sizes by 4
numbers of pairs, noise 1 %, a floor): a new measurement at twice the largest size and pairs 94.4 %, the law there
93.0 %, alpha 92.8 %, beta 95.6 %. With few rungs the single exponents are far less certain than what the law predicts:
a larger E and larger exponents look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hiclip.scaling.law import Interval, LawError, picture_moves
from hiclip.scaling.robust_fit import Array
from hiclip.scaling.size_fit import Runs, SizeCurves, SizeForm, fit_sizes, free_of, parameters_of

LEAST_RANGE = 2.0
"""Largest N over smallest, and D likewise, below which an exponent is only noise."""
LEAST_DIFFERENT = 3
_ROUNDING = 0.05
"""Share by which sizes, or numbers of pairs, differ that are different ones: C / D of one model varies a little."""
_MOST_ALIKE = 0.97
"""Correlation of log N and log D above which the two cannot be told apart."""
_LEAST_REPEATING = 3


@dataclass(frozen=True)
class SizeLaw:
    """A fitted law of size and pairs."""

    form: SizeForm
    sizes: tuple[float, ...]
    """N of each rung."""
    pairs: tuple[float, ...]
    """D of each rung."""
    unique: tuple[float, ...] | None
    """U of each rung; None where repetition is no part of the law."""
    errors: tuple[float, ...]
    curve: SizeCurves
    """The fit."""
    noise: float
    """Standard deviation of the log residuals with n-p in the denominator."""
    draws: SizeCurves
    """Refitted to drawn tables: runs and, where resamples were given, pictures drawn anew."""
    draws_here: SizeCurves
    """Likewise, on the very pictures that were asked."""
    drawn_noise: Array
    drawn_ripples: Array

    @cached_property
    def E(self) -> Interval:
        """The error that neither size nor pairs remove; 0 in the form without."""
        return self._interval(
            lambda curves: np.exp(curves.floor) if self.form == "power_with_floor" else 0 * curves.floor
        )

    @cached_property
    def A(self) -> Interval:
        """What size can still remove, at N = 1."""
        return self._interval(lambda curves: _exp(curves.size_level + curves.alpha * self._centres[0]))

    @cached_property
    def alpha(self) -> Interval:
        """Exponent of size, positive where it helps."""
        return self._interval(lambda curves: curves.alpha)

    @cached_property
    def B(self) -> Interval:
        """What pairs can still remove, at D = 1."""
        return self._interval(lambda curves: _exp(curves.pair_level + curves.beta * self._centres[1]))

    @cached_property
    def beta(self) -> Interval:
        """Exponent of pairs, positive where they help."""
        return self._interval(lambda curves: curves.beta)

    @cached_property
    def repeat(self) -> Interval | None:
        """R*: passes beyond the first after which repeating is worth 1 - 1/e of its limit; None: no part of the law."""
        return None if self.unique is None else self._interval(lambda curves: _exp(curves.repeat))

    def error(self, size: float, pairs: float, unique: float | None = None) -> float:
        """The law's error of a model of N = `size` on D = `pairs`, of `unique` ones (None: all of them)."""
        return float(np.exp(self.curve.at(self._runs([size], [pairs], _uniques(unique, 1)))[0, 0]))

    def errors_at(self, sizes: Array, pairs: Array, unique: float | None = None) -> Array:
        """(n,) errors of the fit."""
        values: Array = np.exp(self.curve.at(self._runs(sizes, pairs, _uniques(unique, len(sizes))))[0])
        return values

    def drawn(self, sizes: Array, pairs: Array, unique: float | None = None) -> Array:
        """(draws, n) errors of the drawn laws: where the law itself may lie."""
        values: Array = np.exp(self.draws.at(self._runs(sizes, pairs, _uniques(unique, len(sizes)))))
        return values

    def prediction(self, size: float, pairs: float, unique: float | None = None) -> Interval:
        """What one run will measure on the same pictures, with 95 %."""
        runs = self._runs([size], [pairs], _uniques(unique, 1))
        logs = self.draws_here.at(runs)[:, 0] + self.drawn_noise * self.drawn_ripples
        low, high = np.exp(np.quantile(logs, [0.025, 0.975]))
        return Interval(self.error(size, pairs, unique), float(low), float(high))

    @cached_property
    def covariance(self) -> tuple[tuple[float, ...], ...]:
        """Of the fitted numbers, in the order of `SizeCurves` without those that are not fitted: s²·(JᵀJ)⁻¹."""
        slopes = self.curve.gradient(self._own)[0][:, self._free]
        return tuple(map(tuple, (self.noise**2 * np.linalg.pinv(slopes.T @ slopes)).tolist()))

    @cached_property
    def left_out(self) -> tuple[float, ...]:
        """For each rung, the error that the law of all other rungs gives it."""
        found = []
        for left in range(len(self.errors)):
            rest = [place for place in range(len(self.errors)) if place != left]
            runs = Runs(*(values[rest] for values in vars(self._own).values()))
            t = np.log(np.array(self.errors))[None, rest]
            curve = fit_sizes(self.form, runs, t, self.unique is not None, self.curve)
            found.append(float(np.exp(curve.at(self._own)[0, left])))
        return tuple(found)

    @property
    def leave_one_out(self) -> float:
        """Root mean square of log(left out / measured): the typical relative error of predicting one rung."""
        return float(np.sqrt(np.mean((np.log(self.left_out) - np.log(self.errors)) ** 2)))

    def numbers(self) -> dict[str, Any]:
        """Everything, as plain data for result.json."""
        named = {"E": self.E, "A": self.A, "alpha": self.alpha, "B": self.B, "beta": self.beta, "R": self.repeat}
        return {
            "form": self.form,
            **{name: None if one is None else vars(one) for name, one in named.items()},
            "noise": self.noise,
            "leave_one_out": self.leave_one_out,
            "covariance": [list(row) for row in self.covariance],
            "rungs": len(self.errors),
        }

    @property
    def _free(self) -> list[int]:
        return free_of(self.form, self.unique is not None)

    @cached_property
    def _centres(self) -> tuple[float, float]:
        return _centre(self.sizes), _centre(self.pairs)

    @cached_property
    def _own(self) -> Runs:
        return self._runs(self.sizes, self.pairs, self.unique)

    def _runs(
        self, sizes: Sequence[float] | Array, pairs: Sequence[float] | Array, unique: Sequence[float] | None
    ) -> Runs:
        return _runs(sizes, pairs, unique if self.unique is not None else None, self._centres)

    def _interval(self, read: Callable[[SizeCurves], Array]) -> Interval:
        low, high = np.quantile(read(self.draws), [0.025, 0.975])
        return Interval(float(read(self.curve)[0]), float(low), float(high))


def fit_size_law(
    sizes: Sequence[float],
    pairs: Sequence[float],
    errors: Sequence[float],
    form: SizeForm = "power_with_floor",
    draws: int = 2000,
    seed: int = 0,
    unique: Sequence[float] | None = None,
    picture_draws: Array | None = None,
) -> SizeLaw:
    """Fits the law to n rungs and draws its bands. Raises LawError, which says why the rungs carry none.

    unique: U of each rung. What pairs that come again are worth is fitted where at least three rungs repeat, not all
    alike; elsewhere a pair that comes again counts as a new one. picture_draws: as for `fit_law`.
    """
    repeats = unique is not None and _repeats(pairs, unique)
    check_size_rungs(sizes, pairs, errors, form, repeats)
    known = tuple(unique) if unique is not None and repeats else None
    runs = _runs(sizes, pairs, known, (_centre(sizes), _centre(pairs)))
    t = np.log(np.asarray(errors, dtype=float))[None]
    curve = fit_sizes(form, runs, t, repeats)
    free = len(errors) - parameters_of(form, repeats)
    noise = float(np.sqrt(((t - curve.at(runs)) ** 2).sum() / free))
    random = np.random.default_rng(seed)
    levels = noise * np.sqrt(free / random.chisquare(free, draws))
    run_noise = random.standard_normal((draws, len(errors)))
    starts = SizeCurves(*(np.repeat(values, draws) for values in vars(curve).values()))
    here = fit_sizes(form, runs, curve.at(runs) + levels[:, None] * run_noise, repeats, starts)
    everywhere = here
    if picture_draws is not None:
        slopes = curve.gradient(runs)[0][:, free_of(form, repeats)]
        moved, apart = picture_moves(picture_draws, t[0], slopes)
        alone = np.sqrt(np.maximum(levels**2 - apart, 0))
        moves = moved[np.arange(draws) % len(moved)]
        everywhere = fit_sizes(form, runs, curve.at(runs) + alone[:, None] * run_noise + moves, repeats, starts)
    ripples = random.standard_normal(draws)
    return SizeLaw(
        form, tuple(sizes), tuple(pairs), known, tuple(errors), curve, noise, everywhere, here, levels, ripples
    )


def check_size_rungs(
    sizes: Sequence[float], pairs: Sequence[float], errors: Sequence[float], form: SizeForm, repeats: bool
) -> None:
    """Raises LawError unless a law of size and pairs can be fitted to these rungs."""
    for what, values in (("size", sizes), ("number of pairs", pairs), ("error", errors)):
        for number, value in enumerate(values, 1):
            if not (math.isfinite(value) and value > 0):
                raise LawError(f"rung {number}: expected a finite {what} above 0, came {value}")
    least = parameters_of(form, repeats) + 2
    if len(errors) < least:
        raise LawError(f"a law of size and pairs of the form {form} needs at least {least} rungs, came {len(errors)}")
    different = _different(sizes), _different(pairs)
    if min(different) < LEAST_DIFFERENT:
        raise LawError(
            f"a law of size and pairs needs at least {LEAST_DIFFERENT} different sizes and numbers of pairs, or "
            f"nothing shows whether it bends as it should; came {different[0]} and {different[1]}"
        )
    for what, values in (("sizes", sizes), ("pairs", pairs)):
        span = max(values) / min(values)
        if span < LEAST_RANGE:
            raise LawError(
                f"the rungs' {what} span a factor {span:.2f}; a law of size and pairs needs at least {LEAST_RANGE:g}"
            )
    alike = float(np.corrcoef(np.log(sizes), np.log(pairs))[0, 1])
    if abs(alike) > _MOST_ALIKE:
        raise LawError(
            f"the rungs' sizes and pairs go together (correlation {alike:.3f}), so they cannot be told apart"
        )


def _different(values: Sequence[float]) -> int:
    """How many of them are more than rounding apart."""
    count, last = 0, 0.0
    for value in sorted(values):
        if value > last * (1 + _ROUNDING):
            count, last = count + 1, value
    return count


def _repeats(pairs: Sequence[float], unique: Sequence[float]) -> bool:
    passes = [seen / own for seen, own in zip(pairs, unique, strict=True)]
    again = [one for one in passes if one > 1.01]
    return len(again) >= _LEAST_REPEATING and max(again) / min(again) > 1.5 and len(set(unique)) > 1


def _runs(
    sizes: Sequence[float] | Array,
    pairs: Sequence[float] | Array,
    unique: Sequence[float] | None,
    centres: tuple[float, float],
) -> Runs:
    seen = np.asarray(pairs, dtype=float)
    extra = np.zeros(len(seen)) if unique is None else np.maximum(seen / np.asarray(unique, dtype=float) - 1, 0)
    return Runs(np.log(np.asarray(sizes, dtype=float)) - centres[0], np.log(seen) - centres[1], extra)


def _uniques(unique: float | None, count: int) -> list[float] | None:
    return None if unique is None else [unique] * count


def _centre(values: Sequence[float]) -> float:
    return float(np.log(np.asarray(values, dtype=float)).mean())


def _exp(logs: Array) -> Array:
    powers: Array = np.exp(np.clip(logs, -690, 690))
    return powers
