"""The loop learns, tells the truth about every step, stops before a broken loss reaches the weights, and resumes
exactly.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_s3 import bucket
from small_run import random_batches, small_job
from two_ranks import run_on_ranks

from hiclip.batch import Batch
from hiclip.distributed import rank
from hiclip.training.checkpoint import CheckpointError, load_towers, newest_checkpoint
from hiclip.training.engine import PlainEngine
from hiclip.training.history import StepRow, from_csv, to_csv
from hiclip.training.loop import DivergedError, Plan, train
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import RunPlace, build_module, run_rank
from pipeline.storage import StorageError


def run(job: PretrainJob, newest: str | None = None, stop_before: int | None = None) -> list[StepRow]:
    """Runs one rank in this process; with `stop_before` the data break off there, as a killed run would."""
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)

    def batches(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(random_batches(job, first_step), first_step):
            if step == stop_before:
                raise KeyboardInterrupt
            yield batch

    run_rank(job, place, newest, batches, rows.append)
    return rows


def test_the_same_few_pairs_are_learnt() -> None:
    job = small_job("nowhere")
    batch = next(random_batches(job, 0))
    rows: list[StepRow] = []
    engine = PlainEngine(build_module(job), job.optimizer)
    train(engine, [batch] * 30, Plan(0, 8, 0, lambda _: 1e-3), lambda row, _: rows.append(row))
    assert rows[0].loss > 1.5
    assert rows[-1].loss < 0.2


def test_every_step_is_told() -> None:
    job = small_job("nowhere")

    def slow() -> Iterator[Batch]:
        for batch in random_batches(job, 2):
            time.sleep(0.05)
            yield batch

    rows: list[StepRow] = []
    engine = PlainEngine(build_module(job), job.optimizer)
    train(engine, slow(), Plan(2, 8, 0, lambda step: step / 100), lambda row, _: rows.append(row))
    assert [row.seen for row in rows] == [24, 32, 40, 48, 56, 64]
    assert [row.learning_rate for row in rows] == [0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    assert all(0.05 <= row.wait_s < row.seconds for row in rows)
    assert all(row.loss == row.parts["contrastive"] for row in rows)
    assert rows[0].logit_scale == pytest.approx(1 / 0.07, rel=0.05)
    assert from_csv(to_csv(rows)) == rows


def test_a_broken_loss_never_reaches_the_weights() -> None:
    job = small_job("nowhere")
    module = build_module(job)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch = next(random_batches(job, 0))
    batch.images["crop"][3] = float("nan")
    with pytest.raises(DivergedError, match=r"after 8 pairs the loss is .*nan.*pair-0-0"):
        train(PlainEngine(module, job.optimizer), [batch], Plan(0, 8, 0, lambda _: 1e-3), lambda row, _: None)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_initial_weights_belong_to_the_seed() -> None:
    one, same = build_module(small_job("nowhere")), build_module(small_job("elsewhere"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with bucket("runs") as address:
        yield address


@pytest.mark.parametrize(("precision", "remote"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_a_resumed_run_repeats_the_undisturbed_one_bit_for_bit(
    tmp_path: Path, precision: str, remote: bool, request: pytest.FixtureRequest
) -> None:
    job = small_job(str(tmp_path / "whole")).model_copy(update={"precision": precision})
    undisturbed = run(job)
    place = request.getfixturevalue("s3") if remote else str(tmp_path)
    broken = job.model_copy(update={"out": f"{place}/broken"})
    with pytest.raises(KeyboardInterrupt):
        run(broken, stop_before=5)
    newest = newest_checkpoint(broken.out)
    assert newest is not None
    assert newest.endswith("seen-000000000024")
    resumed = run(broken, newest)
    assert [(row.seen, row.loss) for row in resumed] == [(row.seen, row.loss) for row in undisturbed[3:]]
    whole, again = load_towers(job.out)[0], load_towers(broken.out)[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_checkpoints_come_on_time_and_at_the_end(tmp_path: Path) -> None:
    run(small_job(str(tmp_path)))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"seen-{seen:012d}" for seen in (24, 48, 64)]
    state = load_towers(str(tmp_path))[1]
    assert (state.step, state.seen, state.world) == (8, 64, 1)
    assert 0 < state.wait_s < state.seconds


def test_checkpoints_come_after_some_time_in_any_case(tmp_path: Path) -> None:
    run(small_job(str(tmp_path), checkpoints={"every_pairs": 64, "every_minutes": 1e-9, "keep": 9}))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 8


def wishes_of_two_ranks() -> list[bool]:
    job, heard = small_job("nowhere"), list[bool]()
    wishes = iter([False, rank() == 0, False, rank() == 1])
    batches = [batch.part(4 * rank(), 4 * rank() + 4) for batch in itertools.islice(random_batches(job, 0), 4)]
    plan = Plan(0, 8, 0, lambda _: 1e-3, lambda: next(wishes))
    train(PlainEngine(build_module(job), job.optimizer), batches, plan, lambda _, wished: heard.append(wished))
    return heard


def test_a_wish_of_one_rank_is_all_ranks_wish() -> None:
    assert run_on_ranks(2, wishes_of_two_ranks) == [[False, True, False, True]] * 2


def test_a_checkpoint_of_another_dataset_is_refused(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    run(job)
    newest = newest_checkpoint(job.out)
    other = RunPlace(job.out, "fingerprint of other data", None)
    with pytest.raises(CheckpointError, match="was trained on another dataset"):
        run_rank(job, other, newest, lambda step: random_batches(job, step), lambda row: None)


def test_a_run_that_cannot_save_says_so_and_leaves_nothing_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file stands where the folder should be")
    with pytest.raises(StorageError, match="checkpoints/seen-000000000024"):
        run(small_job(str(tmp_path)))
    assert newest_checkpoint(str(tmp_path)) is None


def test_data_that_end_early_fail_the_run(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    place = RunPlace(job.out, "fingerprint of the data", None)
    with pytest.raises(RuntimeError, match="the data ended after 24 of 64 pairs"):
        run_rank(job, place, None, lambda step: list(random_batches(job, step))[:3], lambda row: None)
