"""Which rung to run next: the one that makes the law surest where one wants to know it, for the budget that is left.

Near the fit the variance of the law's log error at a target is g·(JᵀJ)⁻¹·gᵀ in units of a run's noise, with J the
derivatives of the law at the rungs and g at the target; what another rung would leave of it is known before it is run
(c-optimal design). One more rung also gives Student's t one more degree of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from hiclip.scaling.law import Law
from hiclip.scaling.robust_fit import PARAMETERS, Array


@dataclass(frozen=True)
class Candidate:
    """A rung that could be run."""

    name: str
    compute: float
    """C of the run."""
    cost: float
    """What it takes of the budget, in the budget's unit: less than C where it goes on from another rung."""


@dataclass(frozen=True)
class Suggestion:
    """The rung to run next, or why there is none."""

    candidate: Candidate | None
    reason: str
    """Why there is none; empty if there is one."""
    target: float
    """C at which the law is to become sure."""
    now: float
    """Half the 95 % band of the law there, as a share of the error: 0.08 is 8 % up or down."""
    then: float
    """The same with the candidate; `now` if there is none."""

    def sentence(self, unit: str) -> str:
        """The suggestion in words."""
        where = f"at {self.target:.3g} {unit}"
        if self.candidate is None:
            return f"No rung is suggested: {self.reason}"
        return (
            f"The rung to run next is '{self.candidate.name}' ({self.candidate.cost:.3g} {unit}): it should narrow the "
            f"law's band {where} from ±{self.now:.1%} to ±{self.then:.1%}"
        )

    def numbers(self) -> dict[str, Any]:
        """As plain data for result.json."""
        own = None if self.candidate is None else vars(self.candidate)
        return {"rung": own, "reason": self.reason, "target": self.target, "now": self.now, "then": self.then}


def most_informative(law: Law, candidates: Sequence[Candidate], target: float, budget: float) -> Suggestion:
    """The candidate within `budget` after which the law's band at `target` should be narrowest; of equal ones the
    cheapest."""
    now = half_band(law, law.computes, target)
    affordable = [one for one in candidates if one.cost <= budget]
    if not candidates:
        return Suggestion(None, "there is no candidate", target, now, now)
    if not affordable:
        least = min(candidates, key=lambda one: one.cost)
        reason = f"{budget:.3g} is left, and the cheapest candidate, '{least.name}', takes {least.cost:.3g}"
        return Suggestion(None, reason, target, now, now)
    bands = [half_band(law, (*law.computes, one.compute), target) for one in affordable]
    best = min(range(len(bands)), key=lambda place: (float(f"{bands[place]:.6g}"), affordable[place].cost))
    return Suggestion(affordable[best], "", target, now, bands[best])


def half_band(law: Law, computes: Sequence[float], target: float) -> float:
    """Half the 95 % band of the law at `target`, were it fitted to rungs of these computes, as a share of the error."""
    slopes = _slopes(law, computes)
    at = _slopes(law, [target])[0]
    free = len(computes) - PARAMETERS[law.form]
    spread = law.noise * float(np.sqrt(at @ np.linalg.pinv(slopes.T @ slopes) @ at))
    return float(np.expm1(student.ppf(0.975, free) * spread))


def _slopes(law: Law, computes: Sequence[float]) -> Array:
    x = np.log(np.asarray(computes, dtype=float)) - law.centre
    slopes: Array = law.curve.gradient(x)[0][:, : PARAMETERS[law.form]]
    return slopes
