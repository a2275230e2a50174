"""Budgets hold: over attempts, over trials at a time, and over what nobody had planned."""

from __future__ import annotations

import json
import time
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


WORKERS = small_job("nowhere", engine={"name": "deepspeed"})


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


@pytest.mark.parametrize("seconds", [0.004, 0.1, 3.0])
def test_workers_that_hear_late_of_a_stop_keep_the_budget_too(place: Folder, seconds: float) -> None:
    """Their steps are heard of every half second, and they go on until they know: all is paid, and none too much."""
    job = small_job("nowhere", engine={"name": "deepspeed"}, schedule={"pairs": 8 * 2000})
    steps, poll = job.steps, max(1, round(0.5 / seconds))
    purse = Purse(Budget(flops=1.5 * steps * STEP), {"a": steps * STEP}, concurrent=1)
    train(Meter(place, "a", job, purse), steps - 1)  # killed in its last step
    meter = Meter(place, "a", job, purse)
    trained, stopped = 0, None
    while trained < steps and (stopped is None or trained < stopped + poll):
        for _ in range(poll):
            try:
                meter.on_row(row(trained, seconds))
            except BudgetSpentError:
                stopped = trained if stopped is None else stopped
            trained += 1
    meter.end()
    assert stopped is not None
    total = steps - 1 + trained
    assert 1.2 * steps < total <= 1.5 * steps, "used, and not passed"
    assert spent(place)["a"].flops == pytest.approx(total * STEP)


def test_trials_of_unequal_steps_keep_the_budget(place: Folder) -> None:
    """What the larger one may train before it looks is left to it by the smaller one."""
    large = small_job("nowhere", model={"size": "tiny", "width": 256, "depth": 2})
    big = training_flops(large, large.data.batch)
    assert big > 3 * STEP
    purse = Purse(Budget(flops=6 * big), {}, concurrent=2)
    meters = [(Meter(place, "large", large, purse), large), (Meter(place, "small", JOB, purse), JOB)]
    going = dict.fromkeys(range(2), True)
    for step in range(100):
        for number, (meter, job) in enumerate(meters):
            if going[number]:
                try:
                    meter.on_row(row(step % (job.steps - 1)))
                except BudgetSpentError:
                    going[number] = False
    assert not any(going.values())
    total = sum(one.flops for one in spent(place).values())
    assert 3 * big < total <= 6 * big * (1 + 1e-9)


def test_waiting_for_machines_and_asking_a_checkpoint_are_no_device_hours_of_workers(place: Folder) -> None:
    meter = Meter(place, "a", WORKERS, Purse(Budget(device_hours=1.0), {}, concurrent=1))
    time.sleep(0.2)
    assert meter.now.device_s == 0, "its workers wait for their machines"
    meter.on_start()
    time.sleep(0.1)
    meter.on_row(row(0))
    meter.on_row(row(JOB.steps - 1))
    meter.on_trained()
    held = meter.now.device_s / WORKERS.workers.count
    assert 0.1 <= held < 0.2
    time.sleep(0.2)
    meter.end()
    assert spent(place)["a"].device_s == meter.now.device_s == held * WORKERS.workers.count

    plain = Meter(place, "b", JOB, Purse(Budget(device_hours=1.0), {}, concurrent=1))
    plain.on_row(row(JOB.steps - 1))
    time.sleep(0.2)
    plain.end()
    assert spent(place)["b"].device_s >= 0.2, "this process holds its device while it asks its checkpoint"
    assert spent(place)["b"].end_s >= 0.2


def test_what_comes_after_the_last_step_is_left_room_for(place: Folder) -> None:
    hour = Purse(Budget(device_hours=1.0), {}, concurrent=1)
    known = Spent(device_s=3000, start_s=1, end_s=590)
    place.child("spent").make().write_text("b.json", known.model_dump_json())
    assert train(Meter(place, "a", JOB, hour), 2) == 2
    place.child("spent").write_text("b.json", known.model_copy(update={"end_s": 599.0}).model_dump_json())
    with pytest.raises(BudgetSpentError, match="of 1 device-hours"):
        Meter(place, "a", JOB, hour).on_row(row(0))


def test_a_trial_is_known_before_its_first_step(place: Folder) -> None:
    Meter(place, "a", JOB, Purse(Budget(), {}, concurrent=1))
    assert list(spent(place)) == ["a"]


def test_without_a_budget_nothing_is_stopped_and_everything_is_told(place: Folder) -> None:
    assert train(Meter(place, "a", JOB, Purse(Budget(), {}, concurrent=3))) == JOB.steps
    assert json.loads(place.read_text("spent/a.json"))["device_s"] > 0


def test_a_torn_record_is_no_licence_to_spend(place: Folder) -> None:
    place.child("spent").make().write_text("b.json", '{"flops": ')
    with pytest.raises(BudgetSpentError, match="nobody knows what was spent"):
        Meter(place, "a", JOB, Purse(Budget(flops=1e30), {}, concurrent=1))
