"""Fits many laws of size and pairs at once, by Huber's loss on log residuals: numpy only, rows are separate tables.

    log error = log(E + A·N^-alpha + B·D'^-beta)      D' = D, or with repetition U + U·R*·(1 - exp(-(D / U - 1) / R*))

Hoffmann et al. 2022 (approach 3) and, for pairs that come again, Muennighoff et al. 2023 (their equation 5, of data).
Letters: S tables, n rungs. Sizes and pairs are logs around a centre of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from hiclip.scaling.robust_fit import Array, bend_of, loss_of, refine

SizeForm = Literal["power", "power_with_floor"]

_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2)  # of both terms: the loss has valleys, so many starts
_REPEATS = (1.0, 5.0, 20.0)  # R* to start from; Muennighoff et al. find 15 for language
_FIRST_STEPS, _STEPS, _ROUNDS = 60, 25, 3
_NO_FLOOR = -60.0  # log E of a law without one, against errors of order 1


@dataclass(frozen=True)
class Runs:
    """Where n runs lie."""

    sizes: Array
    """(n,) log N less its centre."""
    pairs: Array
    """(n,) log D less its centre."""
    extra: Array
    """(n,) passes beyond the first, D / U - 1; 0 where nothing comes again."""


@dataclass(frozen=True)
class SizeCurves:
    """S laws, one a row."""

    floor: Array
    """(S,) log E; -60 for a law without a floor."""
    size_level: Array
    """(S,) log of A·N^-alpha at the centre of sizes."""
    alpha: Array
    pair_level: Array
    """(S,) log of B·D^-beta at the centre of pairs."""
    beta: Array
    repeat: Array
    """(S,) log R*; +inf where repeated pairs are as good as new ones."""

    def at(self, runs: Runs) -> Array:
        """(S, n) log errors."""
        return np.logaddexp.reduce(np.stack(self._terms(runs)), axis=0)  # type: ignore[no-any-return]

    def gradient(self, runs: Runs) -> Array:
        """(S, n, 6) derivatives of `at` in the order of the fields."""
        floor, size, pair = self._terms(runs)
        whole = self.at(runs)
        of_floor, of_size, of_pair = (np.exp(term - whole) for term in (floor, size, pair))
        worth, by_repeat = _worth(runs.extra, self.repeat)
        pairs = runs.pairs + worth
        return np.stack(
            [
                np.broadcast_to(of_floor, whole.shape),
                of_size,
                -of_size * runs.sizes,
                of_pair,
                -of_pair * pairs,
                -of_pair * self.beta[:, None] * by_repeat,
            ],
            axis=-1,
        )

    def _terms(self, runs: Runs) -> tuple[Array, Array, Array]:
        pairs = runs.pairs + _worth(runs.extra, self.repeat)[0]
        size = self.size_level[:, None] - self.alpha[:, None] * runs.sizes
        pair = self.pair_level[:, None] - self.beta[:, None] * pairs
        return np.broadcast_to(self.floor[:, None], size.shape), size, pair


def _worth(extra: Array, repeat: Array) -> tuple[Array, Array]:
    """(S, n) log D' - log D, and its derivative with respect to log R*."""
    lasting = np.exp(repeat)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        gone = np.exp(-extra / lasting)
        own = np.where(np.isinf(lasting), extra, lasting * (1 - gone))
        slope = np.where(np.isinf(lasting), 0.0, lasting * (1 - gone) - extra * gone)
    return np.log1p(own) - np.log1p(extra), slope / (1 + own)


def parameters_of(form: SizeForm, repeats: bool) -> int:
    """Numbers that are fitted."""
    return 4 + (form == "power_with_floor") + repeats


def fit_sizes(form: SizeForm, runs: Runs, t: Array, repeats: bool, starts: SizeCurves | None = None) -> SizeCurves:
    """The robust fit to each of the S tables t (S, n): from `starts`, one a table, or of one table from many."""
    free = free_of(form, repeats)
    found = [_fitted(free, runs, t, _starts(form, runs, t, repeats) if starts is None else starts, starts is None)]
    if form == "power_with_floor":  # and the limit E = 0, which log E reaches only at -inf
        limit = None if starts is None else SizeCurves(**{**vars(starts), "floor": np.full(len(t), _NO_FLOOR)})
        without = _starts("power", runs, t, repeats) if limit is None else limit
        found.append(_fitted(free_of("power", repeats), runs, t, without, starts is None))
    best, *others = found
    for other in others:
        bend = bend_of(t - best.at(runs), len(free))
        better = loss_of(t - other.at(runs), bend) <= loss_of(t - best.at(runs), bend)
        best = SizeCurves(
            *(np.where(better, ours, theirs) for ours, theirs in zip(_values(other), _values(best), strict=True))
        )
    return best


def free_of(form: SizeForm, repeats: bool) -> list[int]:
    """Which of the six numbers are fitted."""
    return [*([0] if form == "power_with_floor" else []), 1, 2, 3, 4, *([5] if repeats else [])]


def _fitted(free: list[int], runs: Runs, t: Array, starts: SizeCurves, many: bool) -> SizeCurves:
    """Least squares first, then Huber's loss. `many`: the starts are all of one table, of which the best is kept."""
    values = np.stack(_values(starts), axis=1)
    tables = np.repeat(t, len(values), axis=0) if many else t
    bend = np.full((len(tables), 1), np.inf)
    for lap in range(_ROUNDS):
        steps = _FIRST_STEPS if many and not lap else _STEPS
        values = _refined(values, free, runs, tables, bend, steps)
        if many and not lap:
            kept = loss_of(tables - SizeCurves(*values.T).at(runs), bend).argmin()
            values, tables, bend = values[[kept]], t, bend[:1]
        bend = bend_of(tables - SizeCurves(*values.T).at(runs), len(free))
    return SizeCurves(*values.T)


def _refined(values: Array, free: list[int], runs: Runs, t: Array, bend: Array, steps: int) -> Array:
    def whole(some: Array) -> SizeCurves:
        every = values.copy()
        every[:, free] = some
        return SizeCurves(*every.T)

    some = refine(
        values[:, free],
        t,
        bend,
        lambda some: whole(some).at(runs),
        lambda some: whole(some).gradient(runs)[..., free],
        steps,
    )
    out = values.copy()
    out[:, free] = some
    return out


def _starts(form: SizeForm, runs: Runs, t: Array, repeats: bool) -> SizeCurves:
    """For a grid of exponents the terms that fit one table t (1, n) best, none below 0: a linear problem."""
    errors, found = np.exp(t[0]), []
    for repeat in np.log(_REPEATS) if repeats else (np.inf,):
        pairs = runs.pairs + _worth(runs.extra, np.array([repeat]))[0][0]
        for alpha in _EXPONENTS:
            for beta in _EXPONENTS:
                terms = [np.exp(-alpha * runs.sizes), np.exp(-beta * pairs)]
                terms = [np.ones_like(errors), *terms] if form == "power_with_floor" else terms
                shares = nnls(np.stack(terms, axis=1) / errors[:, None], np.ones_like(errors))[0]
                *floor, size, pair = np.log(np.maximum(shares, 1e-6 * errors.min()))
                found.append((floor[0] if floor else _NO_FLOOR, size, alpha, pair, beta, repeat))
    return SizeCurves(*np.array(found).T)


def _values(curves: SizeCurves) -> list[Array]:
    return list(vars(curves).values())
