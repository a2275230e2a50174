"""The law of size and pairs where the truth is known, and the best use of compute against its closed form."""

from __future__ import annotations

import numpy as np
import pytest

from hiclip.scaling.law import LawError
from hiclip.scaling.optimum import compute_optimal, iso_flops, pair_cost
from hiclip.scaling.size_law import SizeLaw, fit_size_law

SIZES = np.repeat(np.geomspace(1e6, 3e7, 4), 4)
PAIRS = np.tile(np.geomspace(1e6, 6.4e7, 4), 4)
E, A, ALPHA, B, BETA = 0.4, 0.5, 0.35, 0.8, 0.28


def worth(pairs: np.ndarray, unique: np.ndarray | float, repeat: float) -> np.ndarray:
    """D' of Muennighoff et al. 2023, equation 5."""
    extra = np.maximum(pairs / unique - 1, 0)
    return np.where(extra > 0, unique * (1 + repeat * (1 - np.exp(-extra / repeat))), pairs)


def truth(sizes: np.ndarray, pairs: np.ndarray, floor: float = E) -> np.ndarray:
    return np.asarray(floor + A * (sizes / 1e6) ** -ALPHA + B * (pairs / 1e6) ** -BETA)


def noisy(errors: np.ndarray, noise: float, seed: int) -> list[float]:
    return (errors * np.exp(noise * np.random.default_rng(seed).standard_normal(len(errors)))).tolist()


def fitted(errors: np.ndarray | list[float], form: str = "power_with_floor", **more: object) -> SizeLaw:
    return fit_size_law(SIZES.tolist(), PAIRS.tolist(), list(errors), form, **{"draws": 100, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.4, 1.5])
def test_a_known_law_comes_back(floor: float) -> None:
    law = fitted(truth(SIZES, PAIRS, floor), "power_with_floor" if floor else "power")
    assert law.alpha.value == pytest.approx(ALPHA, rel=1e-5)
    assert law.beta.value == pytest.approx(BETA, rel=1e-5)
    assert law.E.value == pytest.approx(floor, rel=1e-5)
    assert law.A.value == pytest.approx(A * 1e6**ALPHA, rel=1e-4)
    assert law.B.value == pytest.approx(B * 1e6**BETA, rel=1e-4)
    assert law.error(1e9, 1e10) == pytest.approx(float(truth(np.array(1e9), np.array(1e10), floor)), rel=1e-6)
    assert law.repeat is None
    assert law.leave_one_out < 1e-6


def test_one_rung_gone_wrong_does_not_turn_the_law() -> None:
    errors = noisy(truth(SIZES, PAIRS), 0.002, 0)
    broken = fitted([*errors[:-1], 2 * errors[-1]])
    sound = fitted(errors)
    assert broken.error(3e7, 1e6) == pytest.approx(sound.error(3e7, 1e6), rel=0.02)
    assert broken.alpha.high - broken.alpha.low > 3 * (sound.alpha.high - sound.alpha.low)


def test_coverage_of_predictions_and_exponents() -> None:
    """The 95 % bands hold what is measured at twice the largest size and pairs, the law there and both exponents; of 60
    tables here, of 500 as the module says."""
    size, pairs, noise, tables = 6e7, 1.3e8, 0.01, 60
    there = float(truth(np.array(size), np.array(pairs)))
    covered = np.zeros(4)
    for seed in range(tables):
        law = fitted(noisy(truth(SIZES, PAIRS), noise, seed), draws=100, seed=seed)
        measured = there * np.exp(noise * np.random.default_rng(10_000 + seed).standard_normal())
        low, high = np.quantile(law.drawn(np.array([size]), np.array([pairs])), [0.025, 0.975])
        covered += [
            law.prediction(size, pairs).covers(measured),
            low <= there <= high,
            law.alpha.covers(ALPHA),
            law.beta.covers(BETA),
        ]
    shares = covered / tables
    assert (shares >= 0.86).all(), shares  # one band in 5 of 95 %: three deviations below


def test_what_repeated_pairs_are_worth_comes_back() -> None:
    sizes = np.repeat([1e6, 4e6, 1.6e7], 8)
    pairs = np.tile([1e6, 4e6, 1.6e7, 6.4e7], 6)
    unique = np.tile(np.repeat([2e6, 1e8], 4), 3)
    errors = truth(sizes, worth(pairs, unique, 4.0))
    law = fit_size_law(sizes.tolist(), pairs.tolist(), errors.tolist(), draws=100, unique=unique.tolist())
    assert law.repeat is not None
    assert law.repeat.value == pytest.approx(4.0, rel=1e-3)
    assert law.error(1e6, 6.4e7, 2e6) == pytest.approx(float(errors[3]), rel=1e-6)
    assert law.error(1e6, 6.4e7, 2e6) > 1.05 * law.error(1e6, 6.4e7), "32 passes are worth less than 32 times as much"
    blind = fit_size_law(sizes.tolist(), pairs.tolist(), errors.tolist(), draws=100)
    assert blind.leave_one_out > 10 * law.leave_one_out


def test_pairs_that_never_come_again_leave_repetition_out() -> None:
    law = fitted(truth(SIZES, PAIRS), unique=[1e8] * 16)
    assert law.repeat is None


def test_the_best_use_of_compute_is_the_closed_form_of_hoffmann() -> None:
    """C = 6ND: N = G·(C/6)^(beta/(alpha+beta)), G = (alpha·A / (beta·B))^(1/(alpha+beta)). Their equation 4."""
    law = fitted(truth(SIZES, PAIRS))
    budget = 6 * 8e6 * 4e7
    gain = (ALPHA * A * 1e6**ALPHA / (BETA * B * 1e6**BETA)) ** (1 / (ALPHA + BETA))
    size = gain * (budget / 6) ** (BETA / (ALPHA + BETA))
    best = compute_optimal(law, lambda sizes: 6 * sizes, budget)
    assert best.size.value == pytest.approx(size, rel=1e-3)
    assert best.pairs.value == pytest.approx(budget / 6 / size, rel=1e-3)
    assert best.exponent.value == pytest.approx(BETA / (ALPHA + BETA), rel=1e-3)
    assert best.error.value == pytest.approx(law.error(size, budget / 6 / size), rel=1e-6)
    assert best.outside == ""
    far = compute_optimal(law, lambda sizes: 6 * sizes, 1e6 * budget)
    assert "times the largest that was measured" in far.sentence("FLOPs")


def test_a_law_without_a_best_size_says_so() -> None:
    pairs_alone = fitted(np.asarray(E + B * (PAIRS / 1e6) ** -BETA + 1e-9 * SIZES**-0.1))
    best = compute_optimal(pairs_alone, lambda sizes: 6 * sizes, 6 * 8e6 * 4e7)
    assert best.end == "smallest"
    assert "no best size; the law would choose the smallest that it was asked about, 500k" in best.sentence("FLOPs")
    assert best.numbers()["end"] == "smallest"


def test_a_small_budget_has_its_best_size_too() -> None:
    law = fitted(truth(SIZES, PAIRS))
    gain = (ALPHA * A * 1e6**ALPHA / (BETA * B * 1e6**BETA)) ** (1 / (ALPHA + BETA))
    budget = 1e-4 * 6 * 1e6 * 1e6
    best = compute_optimal(law, lambda sizes: 6 * sizes, budget)
    assert best.end == ""
    assert best.size.value == pytest.approx(gain * (budget / 6) ** (BETA / (ALPHA + BETA)), rel=1e-3)
    assert "times smaller than any that was measured" in best.sentence("FLOPs")


@pytest.mark.parametrize("times", [1, 2.6, 5, 10, 30, 100])
def test_the_best_size_is_looked_for_as_far_as_it_may_lie(times: float) -> None:
    """Far more pairs than a small dataset has: the best use of ten times the compute is a far larger model."""
    sizes = np.repeat([1e6, 4e6, 1.6e7, 6.4e7], 8)
    pairs = np.tile([1e6, 4e6, 1.6e7, 6.4e7], 8)
    unique = np.tile(np.repeat([2e6, 1e8], 4), 4)
    errors = truth(sizes, worth(pairs, unique, 4.0)).tolist()
    law = fit_size_law(sizes.tolist(), pairs.tolist(), errors, draws=100, unique=unique.tolist())
    budget = times * 6 * 6.4e7 * 6.4e7
    best = compute_optimal(law, lambda sizes: 6 * sizes, budget, 2e6)
    wide = np.geomspace(1e5, 1e13, 20_000)
    errors = law.errors_at(wide, budget / (6 * wide), 2e6)
    assert best.end == ""
    assert best.size.value == pytest.approx(wide[errors.argmin()], rel=0.02)


def test_draws_without_a_best_size_leave_the_band_open() -> None:
    """Where the end of what was asked about is the best of many draws, that end is no bound."""
    errors = noisy(truth(SIZES, PAIRS), 0.3, 1)
    law = fitted(errors, draws=400)
    best = compute_optimal(law, lambda sizes: 6 * sizes, 6 * 8e6 * 4e7)
    assert not (best.size.low > 0 and np.isfinite(best.size.high)), best
    assert (
        "or more)" in best.sentence("FLOPs")
        or "or less)" in best.sentence("FLOPs")
        or "draws have" in best.sentence("FLOPs")
    )
    assert not np.isfinite([best.exponent.low, best.exponent.high]).all()
    sure = compute_optimal(fitted(noisy(truth(SIZES, PAIRS), 0.005, 1)), lambda sizes: 6 * sizes, 6 * 8e6 * 4e7)
    assert 0 < sure.size.low < sure.size.high < np.inf
    assert 0 < sure.exponent.low < sure.exponent.high < 1


def test_bands_of_the_best_use_hold_it() -> None:
    """The size that the true law would choose lies in the interval, in at least 34 of 40 tables."""
    budget = 6 * 8e6 * 4e7
    gain = (ALPHA * A * 1e6**ALPHA / (BETA * B * 1e6**BETA)) ** (1 / (ALPHA + BETA))
    size, held = gain * (budget / 6) ** (BETA / (ALPHA + BETA)), 0
    for seed in range(40):
        law = fitted(noisy(truth(SIZES, PAIRS), 0.01, seed), seed=seed)
        held += compute_optimal(law, lambda sizes: 6 * sizes, budget).size.covers(size)
    assert held >= 34, held


def test_repetition_moves_the_best_use_to_a_larger_model() -> None:
    sizes = np.repeat([1e6, 4e6, 1.6e7], 8)
    pairs = np.tile([1e6, 4e6, 1.6e7, 6.4e7], 6)
    unique = np.tile(np.repeat([2e6, 1e8], 4), 3)
    errors = truth(sizes, worth(pairs, unique, 4.0)).tolist()
    law = fit_size_law(sizes.tolist(), pairs.tolist(), errors, draws=100, unique=unique.tolist())
    budget = 6 * 8e6 * 4e7
    plenty, scarce = (compute_optimal(law, lambda sizes: 6 * sizes, budget, own) for own in (None, 2e6))
    assert scarce.size.value > 1.3 * plenty.size.value
    assert scarce.error.value > plenty.error.value
    assert "passes over 2M" in scarce.sentence("FLOPs")


def test_iso_flops_have_their_minimum_at_the_best_use() -> None:
    law = fitted(truth(SIZES, PAIRS))
    budgets = [6 * 8e6 * 4e7, 6 * 3e6 * 2e7]
    sizes, curves = iso_flops(law, lambda sizes: 6 * sizes, budgets)
    for budget, curve in zip(budgets, curves, strict=True):
        best = compute_optimal(law, lambda sizes: 6 * sizes, budget)
        assert sizes[curve.argmin()] == pytest.approx(best.size.value, rel=0.03)
        assert curve.min() == pytest.approx(best.error.value, rel=1e-4)


def test_the_cost_of_a_pair_is_a_line_in_logs() -> None:
    cost = pair_cost([1e6, 4e6, 1.6e7], [3e6, 6e6, 1.2e7])
    assert cost(np.array([6.4e7])) == pytest.approx([2.4e7])
    assert cost.spread == pytest.approx(0, abs=1e-12)
    assert pair_cost([1e6, 1e6], [6e6, 6e6])(np.array([2e6])) == pytest.approx([1.2e7])


REFUSALS = [
    (SIZES[:6], PAIRS[:6], "needs at least 7 rungs, came 6"),
    (SIZES[:8], PAIRS[:8], "needs at least 3 different sizes and numbers of pairs, .* came 2 and 4"),
    (SIZES[::4].repeat(2), PAIRS[::4].repeat(2), "came 4 and 1"),
    (1e6 * SIZES**0.06, PAIRS, "sizes span a factor 1.23"),
    (np.where(np.arange(16) % 2, 1.0001, 1) * np.repeat([1e6, 4e6], 8), PAIRS, "came 2 and 4"),
    (SIZES[::4].repeat(2), PAIRS[:4].repeat(2), r"go together \(correlation 1.000\)"),
    (SIZES[:8], [np.nan, *PAIRS[1:8]], "rung 1: expected a finite number of pairs above 0, came nan"),
]


@pytest.mark.parametrize(("sizes", "pairs", "words"), REFUSALS)
def test_rungs_that_carry_no_law_of_size_are_refused_in_words(
    sizes: np.ndarray, pairs: np.ndarray | list[float], words: str
) -> None:
    with pytest.raises(LawError, match=words):
        fit_size_law(list(sizes), list(pairs), [1.0] * len(sizes))
