"""Fits many power laws at once, each by Huber's loss on log residuals: numpy only, rows are independent tables.

A bootstrap refits the same form to thousands of drawn tables; written over rows that is one array program and takes
a second, where a call of an optimiser for each row would take minutes.

Letters: S tables, n rungs. x (n,) is log compute around a centre, t (S, n) are log errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["power", "power_with_floor", "shifted_power"]
Array = NDArray[np.float64]

PARAMETERS: dict[Form, int] = {"power": 2, "power_with_floor": 3, "shifted_power": 4}
"""Numbers that a form fits: level and slope, and a floor, and a shift of the compute."""

_HUBER = 1.345  # in standard deviations: 95 % as efficient as least squares when the noise is normal
_MAD = 1.4826  # standard deviation of normal noise over the median of its absolute deviations
_EXACT = 1e-12  # noise of a table that lies on its law: keeps the scale of Huber's loss above zero
_SIMPLER: dict[Form, Form] = {"power_with_floor": "power", "shifted_power": "power_with_floor"}
_FLOOR_STARTS = 1 - np.geomspace(1, 1e-3, 12)  # floors to start from, as parts of the least error: 0 .. 0.999
_SHIFT_STARTS = np.linspace(-0.2, 0.5, 8)  # shifts to start from, as places between the least and the largest log C
_ROUNDS = 3  # the scale of the noise and the fit depend on each other; three rounds settle them
_STEPS = 20
_PATIENT_STEPS = 200  # with a shift, for one table: its valleys are long and flat, and what is measured is fitted once


@dataclass(frozen=True)
class Curves:
    """S laws, one a row: log error = log(exp(floor) + exp(level + slope·u)), u = log(exp(x) + exp(shift))."""

    level: Array
    """(S,) log of a at the centre."""
    slope: Array
    """(S,) exponent b."""
    floor: Array
    """(S,) log E; -inf for a law without a floor."""
    shift: Array
    """(S,) log of the compute that is added to each, around the same centre; -inf for a law without a shift."""

    def at(self, x: Array) -> Array:
        """(S, n) log errors at x (n,)."""
        return np.logaddexp(self.floor[:, None], self.level[:, None] + self.slope[:, None] * self._shifted(x))

    def gradient(self, x: Array) -> Array:
        """(S, n, 4) derivatives of `at` with respect to level, slope, floor and shift."""
        slope, shifted = self.slope[:, None], self._shifted(x)
        part = np.exp(self.level[:, None] + slope * shifted - self.at(x))
        moved = slope * np.exp(self.shift[:, None] - shifted)
        return np.stack([part, part * shifted, 1 - part, part * moved], axis=-1)

    def values(self) -> tuple[Array, Array, Array, Array]:
        """Level, slope, floor and shift."""
        return self.level, self.slope, self.floor, self.shift

    def _shifted(self, x: Array) -> Array:
        shifted: Array = np.logaddexp(x, self.shift[:, None])
        return shifted


def fit_curves(form: Form, x: Array, t: Array) -> Curves:
    """The robust fit of `form` to each of the S tables t (S, n), n above the form's number of parameters less one."""
    return _fit_lines(x, t) if form == "power" else _fit_bent(form, x, t)


def _fit_lines(x: Array, t: Array) -> Curves:
    weights = np.ones_like(t)
    curves = _weighted_lines(x, t, weights)
    for _ in range(_ROUNDS):
        bend = bend_of(t - curves.at(x), PARAMETERS["power"])
        for _ in range(8):
            curves = _weighted_lines(x, t, _huber_weights(t - curves.at(x), bend))
    return curves


def _fit_bent(form: Form, x: Array, t: Array) -> Curves:
    free = PARAMETERS[form]
    curves = _start(form, x, t)
    bend = np.full((len(t), 1), np.inf)  # least squares first; then the residuals say what an outlier is
    for _ in range(_ROUNDS):
        fixed = curves.values()[free:]

        def whole(values: Array, fixed: tuple[Array, ...] = fixed) -> Curves:
            return Curves(*values.T, *fixed)

        values = refine(
            np.stack(curves.values()[:free], axis=1),
            t,
            bend,
            lambda values: whole(values).at(x),
            lambda values: whole(values).gradient(x)[..., :free],
            _PATIENT_STEPS if form == "shifted_power" and len(t) == 1 else _STEPS,
            # A shift above the rungs makes an exponential of the power: the upper half has to follow it.
            (np.inf, np.inf, np.inf, (x.min() + x.max()) / 2)[:free],
        )
        curves = whole(values)
        bend = bend_of(t - curves.at(x), free)
    simpler = fit_curves(_SIMPLER[form], x, t)  # the limits E = 0 and no shift, which their logs reach only at -inf
    better = loss_of(t - simpler.at(x), bend) <= loss_of(t - curves.at(x), bend)
    ends = zip(simpler.values(), curves.values(), strict=True)
    return Curves(*(np.where(better, limit, fitted) for limit, fitted in ends))


def _start(form: Form, x: Array, t: Array) -> Curves:
    """The best of the lines through log(error - E) over a grid of floors E, and over one of shifts: the loss has
    valleys, so many starts."""
    places = _SHIFT_STARTS if form == "shifted_power" else np.array([-np.inf])
    shifts = x.min() + (x.max() - x.min()) * places
    tables, starts = len(t), len(_FLOOR_STARTS) * len(shifts)
    every = np.repeat(t, starts, axis=0)  # (S·starts, n)
    floor = np.tile(np.log(np.maximum(_FLOOR_STARTS, 1e-9)), tables * len(shifts)) + every.min(axis=1)
    shift = np.tile(np.repeat(shifts, len(_FLOOR_STARTS)), tables)
    above = -np.expm1(np.minimum(floor[:, None] - every, -1e-12))  # (error - E) / error
    lines = _weighted_lines(  # log error moves `above` times as much as log(error - E)
        np.logaddexp(x, shift[:, None]), every + np.log(above), above**2
    )
    curves = Curves(lines.level, lines.slope, floor, shift)
    loss = loss_of(every - curves.at(x), np.full((len(every), 1), np.inf)).reshape(tables, starts)
    best = np.arange(tables) * starts + loss.argmin(axis=1)
    return Curves(*(values[best] for values in curves.values()))


def refine(
    values: Array,
    t: Array,
    bend: Array,
    at: Callable[[Array], Array],
    gradient: Callable[[Array], Array],
    steps: int = _STEPS,
    most: Sequence[float] | None = None,
) -> Array:
    """(S, P) values after Levenberg-Marquardt steps with Huber's weights, each table's taken only if its loss falls.

    at: (S, P) to (S, n) log errors. gradient: to (S, n, P). bend: (S, 1), see `bend_of`. most: (P,) what none exceeds.
    """
    damping = np.full(len(t), 1e-4)
    loss = loss_of(t - at(values), bend)
    for _ in range(steps):
        moved = values + _step(t - at(values), gradient(values), bend, damping)
        moved = moved if most is None else np.minimum(moved, most)
        moved_loss = loss_of(t - at(moved), bend)
        lower = moved_loss <= loss
        values, loss = np.where(lower[:, None], moved, values), np.where(lower, moved_loss, loss)
        damping = np.clip(np.where(lower, damping * 0.3, damping * 10), 1e-9, 1e6)
    return values


def _step(residuals: Array, slopes: Array, bend: Array, damping: Array) -> Array:
    """(S, P) damped Gauss-Newton step."""
    weighted = slopes * _huber_weights(residuals, bend)[..., None]
    normal = np.einsum("snp,snq->spq", weighted, slopes)
    pull = np.einsum("snp,sn->sp", weighted, residuals)
    ridge = damping[:, None] * np.einsum("spp->sp", normal) + 1e-12
    solved = np.linalg.solve(normal + ridge[:, :, None] * np.eye(slopes.shape[-1]), pull[..., None])[..., 0]
    step: Array = np.clip(solved, -2, 2)  # in logs: no step leaves the valley it starts in
    return step


def _weighted_lines(x: Array, t: Array, weights: Array) -> Curves:
    total = weights.sum(axis=1)
    middle, height = (weights * x).sum(axis=1) / total, (weights * t).sum(axis=1) / total
    away = x - middle[:, None]
    slope = (weights * away * (t - height[:, None])).sum(axis=1) / (weights * away**2).sum(axis=1)
    none = np.full(len(t), -np.inf)
    return Curves(height - slope * middle, slope, none, none)


def bend_of(residuals: Array, parameters: int) -> Array:
    """(S, 1) size of residual (S, n) at which Huber's loss turns from square to straight."""
    rungs = residuals.shape[1]
    deviation = _MAD * np.median(np.abs(residuals), axis=1, keepdims=True)
    bend: Array = _HUBER * deviation * np.sqrt(rungs / max(rungs - parameters, 1)) + _EXACT
    return bend


def _huber_weights(residuals: Array, bend: Array) -> Array:
    weights: Array = np.minimum(1.0, bend / np.maximum(np.abs(residuals), 1e-300))
    return weights


def loss_of(residuals: Array, bend: Array) -> Array:
    """(S,) Huber's loss, halves left out; plain squares where bend is infinite."""
    size = np.abs(residuals)
    inner = np.minimum(size, bend)
    loss: Array = (inner * (2 * size - inner)).sum(axis=1)
    return loss
