"""What follows from laws: compute ratios of two methods, and the rung to run next, on laws whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hiclip.scaling.compute_ratio import ComputeRatio, compute_ratio, ratio_curve
from hiclip.scaling.law import Interval, Law, fit_law
from hiclip.scaling.next_rung import Candidate, half_band, most_informative

COMPUTES = 1e12 * np.geomspace(1, 300, 8)


def law(
    share: float = 1.0, b: float = -0.2, floor: float = 0.0, noise: float = 0.0, seed: int = 0, **more: object
) -> Law:
    """Of error = floor + 2·(C / (share·10^12))^b: the same error at `share` of the compute."""
    errors = floor + 2 * (COMPUTES / 1e12 / share) ** b
    errors = errors * np.exp(noise * np.random.default_rng(seed).standard_normal(len(errors)))
    form = "power_with_floor" if floor else "power"
    return fit_law(COMPUTES.tolist(), errors.tolist(), form, **{"draws": 400, "seed": seed, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.3, 1.0, 1.7])
def test_the_ratio_is_the_share_of_compute(share: float, floor: float) -> None:
    for compute in (1e12, 1e14, 1e16):
        found = compute_ratio(law(share, floor=floor), law(floor=floor), compute)
        assert found.ratio.value == pytest.approx(share, rel=1e-4)


def shifted(share: float, worse: float = 1.0) -> Law:
    """Of error = 0.3 + 2·worse·((C / share + 5·10^12) / 10^12)^-0.2."""
    errors = 0.3 + 2 * worse * (COMPUTES / share / 1e12 + 5) ** -0.2
    return fit_law(COMPUTES.tolist(), errors.tolist(), "shifted_power", draws=50)


def test_the_ratio_of_shifted_laws_is_the_share_of_compute_too() -> None:
    for compute in (1e12, 1e14, 1e16):
        assert compute_ratio(shifted(0.4), shifted(1.0), compute).ratio.value == pytest.approx(0.4, rel=1e-2)
    assert compute_ratio(shifted(1.0), shifted(1.0, worse=3), 1e12).ratio.value == 0, "better than that untrained"


def test_coverage_of_the_ratio() -> None:
    """The 95 % interval of the ratio holds it in 92 to 98 % of 500 pairs of tables."""
    held = 0
    for seed in range(500):
        ours, theirs = law(0.6, noise=0.02, seed=seed), law(noise=0.02, seed=seed + 10_000)
        held += compute_ratio(ours, theirs, 1e14).ratio.covers(0.6)
    assert 460 <= held <= 490, held


def test_what_the_pictures_did_to_both_cancels_out() -> None:
    random = np.random.default_rng(0)
    moves = np.exp(0.05 * random.standard_normal((300, 1)))
    one, other = law(0.6, noise=0.002, seed=1), law(noise=0.002, seed=2)
    one, other = (
        law(share, noise=0.002, seed=seed, picture_draws=np.array(plain.errors) * moves)
        for share, seed, plain in ((0.6, 1, one), (1.0, 2, other))
    )
    low, high = one.band([1e14])
    assert high[0] / low[0] > 1.15, "the pictures move each law"
    ratio = compute_ratio(one, other, 1e14).ratio
    assert ratio.high / ratio.low < 1.1, "and not the ratio"


def test_an_error_below_the_floor_is_never_reached() -> None:
    better, worse = law(floor=0.2), law(floor=0.9)
    assert math.isinf(compute_ratio(worse, better, 1e20).ratio.value)
    assert (
        compute_ratio(worse, better, 1e20, "a", "b").sentence().startswith("a never comes to the error that b reaches")
    )
    assert compute_ratio(worse, better, 1e20).numbers()["ratio"] is None
    assert compute_ratio(better, worse, 1e13).ratio.value < 1


def test_a_law_that_rises_is_never_cheaper() -> None:
    assert math.isinf(compute_ratio(law(b=0.1), law(), 1e14).ratio.value)


def test_the_sentence_says_whether_methods_are_told_apart() -> None:
    clear = compute_ratio(law(0.5, noise=0.002), law(noise=0.002, seed=5), 1e14, "HiCLIP", "CLIP")
    assert clear.sentence().startswith("HiCLIP reaches the error that CLIP has at 1e+14 with 0.")
    assert "of the compute (0." in clear.sentence()
    same = compute_ratio(law(noise=0.05), law(noise=0.05, seed=5), 1e14, "HiCLIP", "CLIP")
    assert same.sentence().startswith("HiCLIP and CLIP are not told apart")


def test_never_is_said_of_what_no_draw_reaches_alone() -> None:
    def said(*ends: float) -> str:
        return ComputeRatio("hiclip", "clip", 1e12, 0.5, Interval(*ends)).sentence()

    assert said(math.inf, math.inf, math.inf) == "hiclip never comes to the error that clip reaches with 1e+12"
    needs = "hiclip needs 12.5 of the compute or more (95 %) for the error that clip has at 1e+12"
    assert said(math.inf, 12.5, math.inf) == needs
    assert said(math.inf, 0.5, math.inf).startswith("hiclip and clip are not told apart: at 1e+12, the same error with")


def test_the_curve_is_the_ratio_at_each_compute() -> None:
    ours, theirs = law(b=-0.25), law()
    curve = ratio_curve(ours, theirs, [1e12, 1e14])
    assert curve[0].value == pytest.approx(1.0, rel=1e-6)
    assert curve[1] == compute_ratio(ours, theirs, 1e14).ratio
    assert curve[1].value < curve[0].value


def candidates() -> list[Candidate]:
    return [
        Candidate(f"{compute:.0e}", float(compute), float(compute)) for compute in 1e12 * np.geomspace(0.5, 1000, 9)
    ]


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_the_suggested_rung_narrows_the_band_most(floor: float) -> None:
    """By brute force: each candidate is added to 40 synthetic tables, and the mean band at the target compared."""
    target, noise = 3e15, 0.01
    suggestion = most_informative(law(floor=floor, noise=noise, seed=3), candidates(), target, 1e15)
    assert suggestion.candidate is not None
    widths = {}
    form = "power_with_floor" if floor else "power"
    for candidate in candidates():
        computes = np.array([*COMPUTES, candidate.compute])
        bands = []
        for seed in range(40):
            errors = (floor + 2 * (computes / 1e12) ** -0.2) * np.exp(
                noise * np.random.default_rng(seed).standard_normal(9)
            )
            low, high = fit_law(computes.tolist(), errors.tolist(), form, draws=100, seed=seed).band([target])
            bands.append(float(np.log(high[0] / low[0])))
        widths[candidate.name] = np.mean(bands)
    best = min(widths, key=lambda name: widths[name])
    assert widths[suggestion.candidate.name] <= 1.03 * widths[best], (suggestion, widths)
    assert suggestion.then < suggestion.now


def test_the_suggestion_fits_the_budget_or_says_why_there_is_none() -> None:
    fitted = law(noise=0.01)
    small = most_informative(fitted, candidates(), 1e16, 2e12)
    assert small.candidate is not None
    assert small.candidate.cost <= 2e12
    none = most_informative(fitted, candidates(), 1e16, 1e11)
    assert none.candidate is None
    assert none.sentence("FLOPs") == (
        "No rung is suggested: 1e+11 is left, and the cheapest candidate, '5e+11', takes 5e+11"
    )
    assert most_informative(fitted, [], 1e16, 1e20).reason == "there is no candidate"


def test_half_band_is_that_of_the_draws() -> None:
    fitted = law(noise=0.01, draws=4000)
    low, high = fitted.band([1e15])
    assert half_band(fitted, fitted.computes, 1e15) == pytest.approx(math.sqrt(high[0] / low[0]) - 1, rel=0.1)
