"""The learning rate follows pairs seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiclip.training.schedule import ScheduleSettings, rate_factor, rate_factor_of_step


def test_cosine_rises_linearly_and_falls_to_zero() -> None:
    schedule = ScheduleSettings(pairs=1100, warmup_pairs=100)
    assert [rate_factor(schedule, seen) for seen in (0, 25, 50, 100)] == [0, 0.25, 0.5, 1]
    assert rate_factor(schedule, 600) == pytest.approx(0.5)
    assert rate_factor(schedule, 350) == pytest.approx((1 + 0.5**0.5) / 2)
    assert rate_factor(schedule, 1100) == pytest.approx(0, abs=1e-12)


def test_constant_stays_until_the_cooldown() -> None:
    schedule = ScheduleSettings(pairs=1000, warmup_pairs=100, kind="constant", cooldown_pairs=200)
    assert [rate_factor(schedule, seen) for seen in (50, 100, 500, 800, 900, 1000)] == [0.5, 1, 1, 1, 0.5, 0]
    assert rate_factor(ScheduleSettings(pairs=10, kind="constant"), 10) == 1


@given(st.integers(1, 7), st.integers(0, 400))
def test_a_rate_depends_on_pairs_and_not_on_steps(times: int, step: int) -> None:
    """A batch `times` as large has the same schedule over pairs: its step lies in the middle of the small ones'."""
    schedule = ScheduleSettings(pairs=10_000, warmup_pairs=10_000)  # linear, so that middles are means
    small = [rate_factor_of_step(schedule, step * times + part, 8) for part in range(times)]
    if (step + 1) * times * 8 <= 10_000:
        assert rate_factor_of_step(schedule, step, 8 * times) == pytest.approx(sum(small) / times)


def test_no_step_is_wasted_at_rate_zero() -> None:
    schedule = ScheduleSettings(pairs=80, warmup_pairs=16)
    assert all(rate_factor_of_step(schedule, step, 8) > 0.005 for step in range(10))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pairs": 0}, "pairs: expected at least 1"),
        ({"pairs": 10, "warmup_pairs": 11}, "warmup_pairs: expected warm-up and cool-down within"),
        ({"pairs": 10, "cooldown_pairs": 5}, "cooldown_pairs: expected 0 with kind cosine"),
    ],
)
def test_impossible_schedules_are_refused(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**keys)
