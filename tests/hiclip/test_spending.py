"""Budgets hold: over attempts, over trials at a time, and over what nobody had planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import small_job

from hiclip.scaling.spending import BudgetSpentError, Meter, Purse, Spent, spent
from hiclip.scaling.study_bill import Budget
from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from pipeline.storage import Folder

JOB = small_job("nowhere")
STEP = training_flops(JOB, JOB.data.batch)
WHOLE = training_flops(JOB, JOB.pairs)


def row(step: int, seconds: float = 0.01) -> StepRow:
    return StepRow(
        seen=(step + 1) * JOB.data.batch, loss=1.0, learning_rate=1.0, logit_scale=1.0, seconds=seconds, wait_s=0
    )


def train(meter: Meter, steps: int = JOB.steps) -> int:
    """Steps that the meter allows."""
    for step in range(steps):
        try:
            meter.on_row(row(step))
        except BudgetSpentError:
            return step + 1
    meter.note()
    return steps


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path)).make()


def test_a_rung_within_its_plan_is_never_stopped(place: Folder) -> None:
    purse = Purse(Budget(flops=2 * WHOLE), {"a": WHOLE, "b": WHOLE}, concurrent=2)
    for name in ("a", "b"):
        assert train(Meter(place, name, JOB, purse)) == JOB.steps
    assert spent(place)["a"].flops == pytest.approx(WHOLE)
    assert sum(one.flops for one in spent(place).values()) <= 2 * WHOLE * (1 + 1e-9)


def test_what_is_trained_twice_is_paid_twice(place: Folder) -> None:
    purse = Purse(Budget(flops=1.5 * WHOLE), {"a": WHOLE}, concurrent=1)
    assert train(Meter(place, "a", JOB, purse), 6) == 6  # killed after six of eight steps, and begun anew
    assert train(Meter(place, "a", JOB, purse)) == 6, "twelve steps are one and a half runs"
    assert spent(place)["a"].flops <= 1.5 * WHOLE * (1 + 1e-9)
    with pytest.raises(BudgetSpentError, match=r"the budget is spent, .* FLOPs; it was not trained further"):
        Meter(place, "a", JOB, purse)


def test_what_is_not_planned_lives_on_what_is_left(place: Folder) -> None:
    purse = Purse(Budget(flops=2.25 * WHOLE), {"a": WHOLE, "b": WHOLE}, concurrent=1)
    assert train(Meter(place, "of an earlier job", JOB, purse)) == 2
    assert train(Meter(place, "a", JOB, purse)) == JOB.steps, "what is planned is not touched"


def test_hours_are_by_the_clock_and_of_all_attempts(place: Folder) -> None:
    place.child("spent").make().write_text("b.json", Spent(flops=0, device_s=3595, start_s=1).model_dump_json())
    hour = Budget(device_hours=1.0)
    assert train(Meter(place, "a", JOB, Purse(hour, {}, concurrent=1))) == JOB.steps
    with pytest.raises(BudgetSpentError, match="of 1 device-hours"):
        Meter(place, "a", JOB, Purse(hour, {}, concurrent=1)).on_row(row(0, seconds=4.0))
    # Two at a time may spend as fast again before either looks.
    with pytest.raises(BudgetSpentError):
        Meter(place, "a", JOB, Purse(hour, {}, concurrent=2)).on_row(row(0, seconds=1.0))


def test_without_a_budget_nothing_is_stopped_and_everything_is_told(place: Folder) -> None:
    assert train(Meter(place, "a", JOB, Purse(Budget(), {}, concurrent=3))) == JOB.steps
    assert json.loads(place.read_text("spent/a.json"))["device_s"] > 0


def test_a_torn_record_is_no_licence_to_spend(place: Folder) -> None:
    place.child("spent").make().write_text("b.json", '{"flops": ')
    with pytest.raises(BudgetSpentError, match="nobody knows what was spent"):
        Meter(place, "a", JOB, Purse(Budget(flops=1e30), {}, concurrent=1))
