"""Which form of law a table asks for, where the truth is known."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from hiclip.scaling.form_choice import FormChoice, FormFit, choose_form
from hiclip.scaling.robust_fit import Form

COMPUTES = 1e12 * np.geomspace(1, 1000, 12)


def table(floor: float, noise: float, seed: int = 0) -> list[float]:
    errors = floor + 2 * (COMPUTES / 1e12) ** -0.3
    return (errors * np.exp(noise * np.random.default_rng(seed).standard_normal(12))).tolist()


def test_a_clear_floor_is_preferred() -> None:
    choice = choose_form(COMPUTES.tolist(), table(0.8, 0.005))
    assert choice.preferred == "power_with_floor"
    line, floor, shifted = sorted(choice.fits, key=lambda fit: fit.parameters)
    assert floor.weight > 0.7
    assert floor.weight + line.weight + shifted.weight == pytest.approx(1)
    assert line.weight < 1e-3
    assert floor.leave_one_out < line.leave_one_out
    assert "prefer power_with_floor to shifted_power" in choice.sentence()


def test_a_clear_shift_is_preferred() -> None:
    errors = 0.8 + 2 * (COMPUTES / 1e12 + 20) ** -0.3
    ripples = np.exp(0.002 * np.random.default_rng(0).standard_normal(12))
    assert choose_form(COMPUTES.tolist(), (errors * ripples).tolist()).preferred == "shifted_power"


def test_a_line_is_seldom_taken_for_a_floor() -> None:
    """A floor or a shift that is not there is charged for: of 20 lines at most 4 are taken for one."""
    found = [choose_form(COMPUTES.tolist(), table(0.0, 0.02, seed)).preferred for seed in range(20)]
    assert sum(form not in ("power", None) for form in found) <= 4, found
    assert None in found, "a difference below two says nothing"


def test_forms_that_are_out_are_not_among_those_that_are_not_told_apart() -> None:
    fits = tuple(
        FormFit(form, 2, 0.0, aicc, 0.5, 0.1) for form, aicc in zip(get_args(Form), (50.0, 1.0, 2.0), strict=True)
    )
    said = FormChoice(fits, {}).sentence()
    assert said == (
        "the rungs do not tell power_with_floor and shifted_power apart (difference of AICc below 2), "
        "and prefer them to power (AICc higher by 49.0)"
    )


def test_what_cannot_be_compared_is_told_with_its_reason() -> None:
    choice = choose_form(COMPUTES[::3].tolist(), table(0.8, 0.005)[::3])
    assert choice.refused == {
        "power": "AICc of this form needs at least 6 rungs, came 4",
        "power_with_floor": "the form power_with_floor needs at least 5 rungs, came 4",
        "shifted_power": "the form shifted_power needs at least 7 rungs, came 4",
    }
    assert choice.preferred is None
    assert choice.numbers()["fits"] == {}
    assert "cannot be compared" in choice.sentence()


def test_aicc_is_that_of_least_squares() -> None:
    """Of a line: n·log(RSS/n) + 2k + 2k(k+1)/(n-k-1) up to what all forms have in common, k = 3 with the noise."""
    errors = table(0.0, 0.02)
    (line,) = [fit for fit in choose_form(COMPUTES.tolist(), errors).fits if fit.form == "power"]
    x, t = np.log(COMPUTES), np.log(errors)
    residual = t - np.polyval(np.polyfit(x, t, 1), x)
    expected = 12 * np.log((residual**2).sum() / 12) + 12 * (np.log(2 * np.pi) + 1) + 6 + 24 / 8
    assert line.aicc == pytest.approx(expected, abs=0.3), "Huber's line is not quite that of least squares"
