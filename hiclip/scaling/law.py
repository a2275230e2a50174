"""The scaling law error = E + a·(C + C₀)^b of a study's rungs, with bands that admit how few rungs there are.

Cherti et al. 2022 print a and b to two decimals without a band; a bootstrap over their models leaves the exponent
uncertain by a quarter. So every number here has its 95 % interval, and a table that cannot carry a law is refused.

Forms: E = 0 and C₀ = 0 as in Cherti et al.; a floor E; and a floor with a shift C₀, below which compute does little, as
small models near chance have it (Nezhurina et al. 2025, who write a(C + b)^c + d). C₀ is no larger than the geometric
middle of the computes: beyond the rungs it would make an exponential of the power.

Fit: Huber's loss on log residuals (`robust_fit`), so that one rung gone wrong widens the bands but does not turn the
law; with a floor E, from many starts. It begins at least squares, so that with fewer than eight rungs one at an end may
still turn it (`LOG.md`).

Bands: drawing the rungs with replacement degenerates when they are few (two of four, drawn twice, fit perfectly), so
tables are drawn from the fitted law instead. Each draw takes a noise level s·sqrt((n-p) / chi²(n-p)), where
s² = (sum of squared log residuals) / (n-p), then n log errors, and refits them. For a line in logs with normal noise
this is Student's t with n-p degrees of freedom: honest for any n, and therefore very wide for n = 4.

Coverage of the 95 % prediction of a new measurement at four times the largest compute, 2,000 synthetic tables each:
  power, noise 2 %, computes over a factor 100:      3 rungs 95.2 %, 4 rungs 93.9 %, 5 rungs 94.6 %, 8 rungs 95.5 %
  with a floor of 17 to 30 %, over a factor 1,000:   5 rungs 94.5 %, 8 rungs 93.6 %, 12 rungs 93.9 %
At 4 rungs the median prediction spans a factor 1.24 where at 12 rungs it spans 1.12: few rungs cost width, not honesty.
Pictures: all rungs are asked about the same ones, so that another sample of pictures would move all errors together.
That is in no residual; it comes from the errors on resamples of the pictures (`picture_draws`), added to the drawn
tables. What such a resample moves rungs apart is in the residuals already and is taken off the drawn noise. A
prediction of what a run will measure is about the very pictures at hand and does not have it.

What no band knows: a law of another form beyond the rungs. That is what the held-out rung is for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hiclip.scaling.robust_fit import PARAMETERS, Array, Curves, Form, fit_curves
from pipeline.jobfile import InputError

LEAST_RUNGS: dict[Form, int] = {"power": 3, "power_with_floor": 5, "shifted_power": 7}
"""At least one rung more than parameters, so that there is a residual; a floor, which looks much like a smaller
exponent, needs two, and one with a shift three."""
LEAST_RANGE = 2.0
"""Largest compute over smallest, below which the exponent is only noise."""

_LARGEST_LOG = 690.0  # exp of it is still a float; the factor a at C = 1 may lie hundreds of decades outside the rungs


class LawError(InputError):
    """A table of rungs that can carry no scaling law."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def covers(self, measured: float) -> bool:
        """Whether `measured` lies in the interval."""
        return self.low <= measured <= self.high


@dataclass(frozen=True)
class Law:
    """A fitted law. C is in the unit of `computes` (FLOPs in a study), errors in the unit of `errors`."""

    form: Form
    computes: tuple[float, ...]
    errors: tuple[float, ...]
    curve: Curves
    """The fit: one curve over log C - `centre`."""
    noise: float
    """Standard deviation s of the log residuals with n-p in the denominator; about the relative error of one rung."""
    draws: Curves
    """D curves, refitted to drawn tables: runs and, where resamples were given, pictures drawn anew."""
    draws_here: Curves
    """D curves likewise, on the very pictures that were asked."""
    drawn_noise: Array
    """(D,) noise level of each draw."""
    drawn_ripples: Array
    """(D,) standard normal numbers: the noise of a measurement still to come."""

    @property
    def centre(self) -> float:
        """Mean log compute of the rungs."""
        return _centre(self.computes)

    @cached_property
    def a(self) -> Interval:
        """Factor a: what compute can still remove at C = 1."""
        return self._interval(lambda curves: _exp(curves.level - curves.slope * self.centre))

    @cached_property
    def b(self) -> Interval:
        """Exponent b, negative where compute helps."""
        return self._interval(lambda curves: curves.slope)

    @cached_property
    def E(self) -> Interval:
        """Floor E, the error that no compute removes; 0 in the form without one."""
        return self._interval(lambda curves: _exp(curves.floor))

    @cached_property
    def shift(self) -> Interval:
        """Shift C₀ of the compute; 0 in the forms without one."""
        return self._interval(lambda curves: _exp(curves.shift + self.centre))

    def error(self, compute: float) -> float:
        """The law's error at `compute`."""
        return float(np.exp(self.curve.at(self._x([compute])))[0, 0])

    def band(self, computes: Sequence[float]) -> tuple[Array, Array]:
        """(n,) low and (n,) high: where the law itself lies at each compute, with 95 %."""
        low, high = np.exp(np.quantile(self.draws.at(self._x(computes)), [0.025, 0.975], axis=0))
        return low, high

    def prediction(self, compute: float) -> Interval:
        """What one run of `compute` will measure on the same pictures, with 95 %: where the law lies there, and the
        noise of a single run."""
        logs = self.draws_here.at(self._x([compute]))[:, 0] + self.drawn_noise * self.drawn_ripples
        low, high = np.exp(np.quantile(logs, [0.025, 0.975]))
        return Interval(self.error(compute), float(low), float(high))

    @cached_property
    def covariance(self) -> tuple[tuple[float, ...], ...]:
        """Covariance of (log a at the centre, b), and of log E and log C₀ if fitted: s²·(JᵀJ)⁻¹, J derivatives of logs.

        Not that of the draws, whose tails are Student's: with n-p < 3 they have no variance.
        """
        slopes = self.curve.gradient(self._x(self.computes))[0][:, : PARAMETERS[self.form]]
        return tuple(map(tuple, (self.noise**2 * np.linalg.pinv(slopes.T @ slopes)).tolist()))

    @cached_property
    def left_out(self) -> tuple[float, ...]:
        """For each rung, the error that the law of all other rungs gives it."""
        rest = [[k for k in range(len(self.computes)) if k != left] for left in range(len(self.computes))]
        return tuple(
            _error_at(self.form, [self.computes[k] for k in kept], [self.errors[k] for k in kept], self.computes[left])
            for left, kept in enumerate(rest)
        )

    @property
    def leave_one_out(self) -> float:
        """Root mean square of log(left out / measured): the typical relative error of predicting one rung."""
        logs = np.log(self.left_out) - np.log(self.errors)
        return float(np.sqrt(np.mean(logs**2)))

    def _x(self, computes: Sequence[float]) -> Array:
        x: Array = np.log(np.asarray(computes, dtype=float)) - self.centre
        return x

    def _interval(self, read: Callable[[Curves], Array]) -> Interval:
        low, high = np.quantile(read(self.draws), [0.025, 0.975])
        return Interval(float(read(self.curve)[0]), float(low), float(high))


def fit_law(
    computes: Sequence[float],
    errors: Sequence[float],
    form: Form = "power",
    draws: int = 2000,
    seed: int = 0,
    picture_draws: Array | None = None,
) -> Law:
    """Fits `form` to n rungs and draws its bands. Raises LawError, which says why the rungs carry no law.

    picture_draws: (K, n) errors of the rungs on K resamples of the evaluation pictures, each the same for all rungs.
    """
    check_rungs(computes, errors, form)
    x = np.log(np.asarray(computes, dtype=float)) - _centre(computes)
    t = np.log(np.asarray(errors, dtype=float))[None]
    curve = fit_curves(form, x, t)
    free = len(computes) - PARAMETERS[form]
    noise = float(np.sqrt(((t - curve.at(x)) ** 2).sum() / free))
    random = np.random.default_rng(seed)
    levels = noise * np.sqrt(free / random.chisquare(free, draws))
    run_noise = random.standard_normal((draws, len(computes)))
    here = fit_curves(form, x, curve.at(x) + levels[:, None] * run_noise)
    everywhere = here
    if picture_draws is not None:
        slopes = curve.gradient(x)[0][:, : PARAMETERS[form]]
        moved, apart = picture_moves(picture_draws, t[0], slopes)
        alone = np.sqrt(np.maximum(levels**2 - apart, 0))
        moves = moved[np.arange(draws) % len(moved)]  # draw d sees the same pictures in every law of a study
        everywhere = fit_curves(form, x, curve.at(x) + alone[:, None] * run_noise + moves)
    ripples = random.standard_normal(draws)
    return Law(form, tuple(computes), tuple(errors), curve, noise, everywhere, here, levels, ripples)


def picture_moves(picture_draws: Array, logs: Array, slopes: Array) -> tuple[Array, float]:
    """(K, n) by how much each resample of the pictures moves the rungs' log errors, and the variance of what of it no
    law can follow: what it moves them apart. `logs`: (n,) log errors; `slopes`: (n, p) derivatives of the law.
    """
    moved: Array = np.log(picture_draws) - logs
    moved = moved - moved.mean(axis=0)
    rungs, parameters = slopes.shape
    apart = moved - moved @ np.linalg.pinv(slopes).T @ slopes.T
    return moved, float((apart**2).sum(axis=1).mean() / (rungs - parameters))


_ROUNDING = 1e-3
"""Share by which computes differ that are different ones. Runs of one compute, say of other seeds, show the noise."""


def check_rungs(computes: Sequence[float], errors: Sequence[float], form: Form) -> None:
    """Raises LawError unless `form` can be fitted to these rungs."""
    check_numbers(computes, errors)
    check_computes(computes, form)


def check_numbers(computes: Sequence[float], errors: Sequence[float]) -> None:
    """Raises LawError unless all are finite and above 0."""
    for what, values in (("compute", computes), ("error", errors)):
        for number, value in enumerate(values, 1):
            if not (math.isfinite(value) and value > 0):
                raise LawError(f"rung {number}: expected a finite {what} above 0, came {value}")


def check_computes(computes: Sequence[float], form: Form) -> None:
    """What can be known before anything is run. Raises LawError unless computes like these can carry `form`."""
    if len(computes) < LEAST_RUNGS[form]:
        raise LawError(f"the form {form} needs at least {LEAST_RUNGS[form]} rungs, came {len(computes)}")
    order = np.argsort(computes).tolist()
    equal = [
        (one, other) for one, other in itertools.pairwise(order) if computes[other] <= computes[one] * (1 + _ROUNDING)
    ]
    different = len(computes) - len(equal)
    if different < LEAST_RUNGS[form]:
        one, other = equal[0]
        raise LawError(
            f"the form {form} needs rungs of at least {LEAST_RUNGS[form]} different computes, came {different}: "
            f"rungs {one + 1} and {other + 1} have equal compute {computes[one]:.4g}"
        )
    span = max(computes) / min(computes)
    if span < LEAST_RANGE:
        raise LawError(f"the rungs' compute spans a factor {span:.2f}; a law needs at least {LEAST_RANGE:g}")


def _error_at(form: Form, computes: Sequence[float], errors: Sequence[float], compute: float) -> float:
    centre = _centre(computes)
    curve = fit_curves(form, np.log(np.asarray(computes)) - centre, np.log(np.asarray(errors))[None])
    return float(np.exp(curve.at(np.log(np.asarray([compute])) - centre))[0, 0])


def _centre(computes: Sequence[float]) -> float:
    return float(np.log(np.asarray(computes, dtype=float)).mean())


def _exp(logs: Array) -> Array:
    powers: Array = np.exp(np.minimum(logs, _LARGEST_LOG))
    return powers
