"""Does the table ask for a floor? The forms of a law side by side on the same rungs, by what they leave unexplained.

Log residuals are taken as normal. AICc charges a form for its numbers and for how few rungs there are (Burnham and
Anderson 2002); its weight is the share of the evidence that the form has among those that could be fitted. Leaving out
one rung at a time asks the same without any assumption about noise. Below a difference of two neither says anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hiclip.scaling.law import LawError, fit_law
from hiclip.scaling.robust_fit import PARAMETERS, Form

_TELLS = 2.0
"""Difference of AICc from which a form is preferred."""
_LEAST_NOISE = 1e-9


@dataclass(frozen=True)
class FormFit:
    """How one form fares."""

    form: Form
    parameters: int
    """Numbers that the form fits, the noise not counted."""
    log_likelihood: float
    aicc: float
    """The lower the better; only differences mean something."""
    weight: float
    """Akaike weight, 0 to 1."""
    leave_one_out: float
    """Typical relative error of predicting one rung from the others."""


@dataclass(frozen=True)
class FormChoice:
    """The forms that the table carries, and why it does not carry the others."""

    fits: tuple[FormFit, ...]
    refused: dict[str, str]
    """Form -> reason."""

    @property
    def preferred(self) -> Form | None:
        """The form with the lowest AICc, None if the next one is as good or there is no other."""
        ranked = sorted(self.fits, key=lambda fit: fit.aicc)
        if len(ranked) < 2 or ranked[1].aicc - ranked[0].aicc < _TELLS:
            return None
        return ranked[0].form

    def sentence(self) -> str:
        """What the comparison says."""
        if len(self.fits) < 2:
            return "; ".join(f"{form} cannot be compared: {why}" for form, why in self.refused.items())
        ranked = sorted(self.fits, key=lambda fit: fit.aicc)
        if self.preferred is None:
            alike = [fit.form for fit in ranked if fit.aicc - ranked[0].aicc < _TELLS]
            out = [f"{fit.form} (AICc higher by {fit.aicc - ranked[0].aicc:.1f})" for fit in ranked[len(alike) :]]
            said = f"the rungs do not tell {' and '.join(alike)} apart (difference of AICc below {_TELLS:g})"
            return f"{said}, and prefer them to {' and '.join(out)}" if out else said
        lower = ranked[1].aicc - ranked[0].aicc
        return f"the rungs prefer {ranked[0].form} to {ranked[1].form} (AICc lower by {lower:.1f})"

    def numbers(self) -> dict[str, Any]:
        """As plain data for result.json."""
        return {
            "preferred": self.preferred,
            "fits": {fit.form: {key: value for key, value in vars(fit).items() if key != "form"} for fit in self.fits},
            "refused": self.refused,
        }


def choose_form(computes: Sequence[float], errors: Sequence[float]) -> FormChoice:
    """Fits every form to the n rungs and compares them."""
    found: dict[Form, tuple[float, float, float]] = {}
    refused: dict[str, str] = {}
    for form in get_args(Form):
        try:
            law = fit_law(computes, errors, form, draws=2)  # of which nothing is told
            aicc, log_likelihood = _aicc(law.noise, len(computes), PARAMETERS[form])
        except LawError as error:
            refused[form] = str(error)
            continue
        found[form] = log_likelihood, aicc, law.leave_one_out
    least = min((aicc for _, aicc, _ in found.values()), default=0.0)
    weights = {form: math.exp((least - aicc) / 2) for form, (_, aicc, _) in found.items()}
    fits = tuple(
        FormFit(form, PARAMETERS[form], log_likelihood, aicc, weights[form] / sum(weights.values()), left_out)
        for form, (log_likelihood, aicc, left_out) in found.items()
    )
    return FormChoice(fits, refused)


def _aicc(noise: float, rungs: int, parameters: int) -> tuple[float, float]:
    """(AICc, log likelihood); LawError if the rungs are too few for the correction. `noise` has n-p below it."""
    fitted = parameters + 1  # the noise is fitted as well
    if rungs - fitted - 1 < 2:  # with one the correction is larger than anything that it corrects
        raise LawError(f"AICc of this form needs at least {fitted + 3} rungs, came {rungs}")
    variance = max(noise, _LEAST_NOISE) ** 2 * (rungs - parameters) / rungs
    log_likelihood = -rungs / 2 * (math.log(2 * math.pi * variance) + 1)
    return -2 * log_likelihood + 2 * fitted + 2 * fitted * (fitted + 1) / (rungs - fitted - 1), log_likelihood
