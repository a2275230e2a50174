"""Two models on the same pictures: intervals of differences against closed forms, McNemar's test against counting."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hiclip.evaluation.bootstrap import FloatArray, Statistic, estimate, weighted_mean
from hiclip.evaluation.paired import mcnemar, paired_differences


def _share(right: FloatArray) -> Statistic:
    return lambda weights: weighted_mean(weights, right[:, None])


def test_what_is_hard_for_both_cancels() -> None:
    """Both get the same pictures, but for 12 and 4 of 400: the difference is far surer than the shares are."""
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [2000, 120, 40, 1840])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [2000, 120, 40, 1840])
    found = paired_differences([_share(first), _share(second)], 4000, seed=0, draws=2000)
    difference = found[0, 1]
    assert difference.value.tolist() == pytest.approx([0.02])
    # Each picture adds +1, -1 or 0: the mean's deviation is known in closed form.
    deviation = np.sqrt((0.04 - 0.02**2) / 4000)
    assert difference.low[0] == pytest.approx(0.02 - 1.96 * deviation, abs=0.0006)
    assert difference.high[0] == pytest.approx(0.02 + 1.96 * deviation, abs=0.0006)
    assert difference.low[0] > 0
    alone = estimate(_share(first), 4000, 0)
    assert alone.high[0] - alone.low[0] > 2 * (difference.high[0] - difference.low[0])
    turned = found[1, 0]
    assert (turned.value[0], turned.low[0], turned.high[0]) == (
        -difference.value[0],
        -difference.high[0],
        -difference.low[0],
    )


def test_every_pair_of_runs_has_its_difference_and_a_run_has_none_from_itself() -> None:
    values = [np.random.default_rng(seed).random(30) for seed in range(3)]
    found = paired_differences([_share(one) for one in [*values, values[0]]], 30, seed=1, draws=200)
    assert set(found) == {(i, j) for i, j in product(range(4), repeat=2) if i != j}
    for (first, second), one in found.items():
        if {first, second} == {0, 3}:
            assert (one.low[0], one.value[0], one.high[0]) == (0, 0, 0)
        else:
            expected = ([*values, values[0]][first] - [*values, values[0]][second]).mean()
            assert one.value[0] == pytest.approx(expected)
            assert one.low[0] < expected < one.high[0]


def test_mcnemar_by_hand() -> None:
    """One picture that only the first gets right, five that only the second: 2·(1 + 6)/64, and less 6/64."""
    first = np.array([True] * 10 + [True] + [False] * 5 + [False] * 3)
    second = np.array([True] * 10 + [False] + [True] * 5 + [False] * 3)
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (1, 5)
    assert test.exact == pytest.approx(14 / 64)
    assert test.mid == pytest.approx(8 / 64)
    turned = mcnemar(second, first)
    assert (turned.only_first, turned.only_second, turned.mid) == (5, 1, pytest.approx(8 / 64))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (2, 2), (3, 4), (0, 9), (7, 2)])
def test_mcnemar_against_counting_all_outcomes(only_first: int, only_second: int) -> None:
    """Fair coins for the pictures that tell: the outcomes further out than what came, and half of those as far."""
    together = only_first + only_second
    heads = [sum(coins) for coins in product((0, 1), repeat=together)]
    further = np.mean([abs(2 * one - together) > abs(only_first - only_second) for one in heads])
    as_far = np.mean([abs(2 * one - together) == abs(only_first - only_second) for one in heads])
    first = np.array([True] * only_first + [False] * only_second, dtype=bool)
    test = mcnemar(first, ~first)
    assert test.exact == pytest.approx(further + as_far)
    assert test.mid == pytest.approx(1.0 if together == 0 else further + as_far / 2)
