"""The loop learns, tells the truth about every step, stops before a broken loss reaches the weights, and resumes
exactly.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import resource
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loopback_s3 import bucket
from small_run import random_batches, small_job
from two_ranks import run_on_ranks

from hiclip.batch import Batch
from hiclip.distributed import rank
from hiclip.training.checkpoint import CheckpointError, load_towers, newest_checkpoint, read_checkpoint
from hiclip.training.engine import PlainEngine
from hiclip.training.history import StepRow, from_csv, to_csv
from hiclip.training.loop import NotFiniteError, Plan, Wish, train
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import BrokenPicturesError, DivergedError, build_module, run_rank
from hiclip.training.saving import RunPlace
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
    with pytest.raises(NotFiniteError, match=r"contrastive.: nan") as error:
        train(PlainEngine(module, job.optimizer), [batch], Plan(0, 8, 0, lambda _: 1e-3), lambda row, _: None)
    assert error.value.skipped == {0: batch.pair_ids}
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


def wishes_of_two_ranks() -> tuple[bool, list[Wish]]:
    job, heard = small_job("nowhere"), list[Wish]()
    wishes = iter([Wish(), Wish(save=rank() == 0), Wish(), Wish(stop=rank() == 1), Wish()])
    batches = [batch.part(4 * rank(), 4 * rank() + 4) for batch in itertools.islice(random_batches(job, 0), 5)]
    plan = Plan(0, 8, 0, lambda _: 1e-3, lambda: next(wishes))
    reached = train(PlainEngine(build_module(job), job.optimizer), batches, plan, lambda _, wish: heard.append(wish))
    return reached, heard


def test_a_wish_of_one_rank_is_all_ranks_wish() -> None:
    heard = [Wish(), Wish(save=True), Wish(), Wish(stop=True)]
    assert run_on_ranks(2, wishes_of_two_ranks) == [(False, heard)] * 2


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = small_job(str(tmp_path / "whole"))
    stopped = small_job(str(tmp_path / "stopped"))
    place = RunPlace(stopped.out, "fingerprint of the data", None)
    wishes = iter([Wish()] * 4 + [Wish(stop=True)])
    rows: list[StepRow] = []
    assert not run_rank(
        stopped, place, None, lambda s: random_batches(stopped, s), rows.append, wish=lambda: next(wishes)
    )
    newest = newest_checkpoint(stopped.out)
    assert newest is not None
    assert newest.endswith("seen-000000000040")
    assert run_rank(stopped, place, newest, lambda s: random_batches(stopped, s), rows.append)
    assert [(row.seen, row.loss) for row in rows] == [(row.seen, row.loss) for row in run(whole)]


def spoilt(job: PretrainJob, steps: set[int], first_step: int) -> Iterator[Batch]:
    """The job's batches, some with a picture that makes the loss no number."""
    for step, batch in enumerate(random_batches(job, first_step), first_step):
        if step in steps:
            batch.images["crop"][1] = float("nan")
        yield batch


def run_spoilt(job: PretrainJob, steps: set[int], newest: str | None = None) -> list[StepRow]:
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, newest, lambda step: spoilt(job, steps, step), rows.append)
    return rows


def test_a_step_whose_loss_is_no_number_is_skipped(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    rows = run_spoilt(job, {3})
    assert [row.applied for row in rows] == [True] * 3 + [False] + [True] * 4
    assert all(math.isfinite(row.loss) == row.applied for row in rows)
    assert all(tensor.isfinite().all() for tensor in load_towers(job.out)[0].state_dict().values())


def test_too_many_skipped_steps_send_the_run_back_and_their_batches_are_left_out(tmp_path: Path) -> None:
    job = small_job(str(tmp_path / "whole"), divergence={"skipped_in_a_row": 1, "rollbacks": 1})
    rows = run_spoilt(job, {4, 5})
    assert [row.seen // 8 for row in rows] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8], "from the checkpoint of three steps"
    again = rows[5:]
    assert [row.applied for row in again] == [False, False, False, True, True], "and the step before them"
    state = load_towers(job.out)[1]
    assert (state.left_out, state.rollbacks) == ((3, 4, 5), 1)
    assert state.recent_loss == pytest.approx((again[3].loss + again[4].loss) / 2)
    killed = small_job(str(tmp_path / "whole"), divergence={"skipped_in_a_row": 1, "rollbacks": 1})
    resumed = run_spoilt(killed, {4, 5}, f"{job.out}/checkpoints/seen-000000000048")
    assert [(row.seen, row.loss) for row in resumed] == [(row.seen, row.loss) for row in rows[-2:]]


def test_going_back_passes_over_a_checkpoint_of_the_step_that_led_there(tmp_path: Path) -> None:
    """The step before the first bad one is left out as well, so no checkpoint that it had a part in may be taken up."""
    every = {"every_pairs": 8, "keep": 9}
    job = small_job(str(tmp_path), checkpoints=every, divergence={"skipped_in_a_row": 1, "rollbacks": 1})
    rows = run_spoilt(job, {4, 5})
    assert [row.seen // 8 for row in rows] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8], "steps 0 to 2 stay, 3 is left out"
    assert read_checkpoint(f"{tmp_path}/checkpoints/seen-{32:012d}").state.left_out == (3, 4, 5)


def test_a_run_does_not_end_on_a_step_that_was_skipped(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), divergence={"skipped_in_a_row": 3, "rollbacks": 1})
    rows = run_spoilt(job, {7})
    assert [row.seen // 8 for row in rows] == [1, 2, 3, 4, 5, 6, 7, 7, 8], "back to the checkpoint of six steps"
    assert not any(row.applied for row in rows[-2:]), "left out, with the one before"
    with pytest.raises(DivergedError):
        run_spoilt(small_job(str(tmp_path / "hopeless"), divergence={"rollbacks": 0}), {7})
    assert not (tmp_path / "hopeless" / "checkpoints" / "seen-000000000064").exists()


def test_a_run_that_learnt_from_nothing_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not one of 8 steps could be applied"):
        run_spoilt(small_job(str(tmp_path), divergence={"skipped_in_a_row": 8, "rollbacks": 1}), set(range(8)))


def test_a_run_that_going_back_does_not_help_ends_and_names_the_pairs(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), divergence={"skipped_in_a_row": 0, "rollbacks": 1})
    with pytest.raises(DivergedError, match=r"after 48 pairs .*1 rollbacks.*first pair pair-5-0.*diverged\.json"):
        run_spoilt(job, {1, 5})
    named = json.loads((tmp_path / "diverged.json").read_text())["batches"]
    assert named == [{"step": 5, "pair_ids": [f"pair-5-{number}" for number in range(8)]}]


def test_too_many_broken_pictures_end_the_run(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), loader={"broken_share": 0.1})
    place = RunPlace(job.out, "fingerprint of the data", None)

    def batches(last: int) -> Iterator[Batch]:
        """Two broken pictures in each of the steps before `last`."""
        return (replace(batch, broken=2 * (step < last)) for step, batch in enumerate(random_batches(job, 0)))

    with pytest.raises(BrokenPicturesError, match=r"at most 0\.1 of the pictures .*came 8 of 32"):
        run_rank(job, place, None, lambda _: batches(8), lambda row: None)
    rows: list[StepRow] = []
    run_rank(job, place, None, lambda _: batches(3), rows.append)
    assert sum(row.broken for row in rows) == 6


def test_the_digest_of_a_step_names_its_pairs_whatever_their_order() -> None:
    rows = []
    for ids in (["a", "b"], ["b", "a"], ["a", "a"]):
        job = small_job("nowhere", data={"batch": 2})
        batch = replace(next(random_batches(job, 0)), pair_ids=ids)
        train(
            PlainEngine(build_module(job), job.optimizer),
            [batch],
            Plan(0, 2, 0, lambda _: 1e-3),
            lambda r, _: rows.append(r),
        )
    assert rows[0].pairs_digest == rows[1].pairs_digest == zlib.crc32(b"a") + zlib.crc32(b"b") != rows[2].pairs_digest


def test_a_trace_of_some_steps_is_left_in_the_run(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), profile={"after_steps": 2, "steps": 2})
    run(job)
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as trace:
        names = {event.get("name", "") for event in json.load(trace)["traceEvents"]}
    assert any(name.startswith("ProfilerStep") for name in names)
    assert "aten::mm" in names


def test_the_checkpoint_of_lowest_loss_stays(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), checkpoints={"every_pairs": 8, "keep": 1, "keep_best": 1})
    rows = run(job)
    best = min(rows, key=lambda row: row.loss).seen
    kept = {int(path.name.removeprefix("seen-")) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 64}
    assert best != 64, "or the test shows nothing"


def test_a_checkpoint_of_another_dataset_is_refused(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    run(job)
    newest = newest_checkpoint(job.out)
    other = RunPlace(job.out, "fingerprint of other data", None)
    with pytest.raises(CheckpointError, match="was trained on another dataset"):
        run_rank(job, other, newest, lambda step: random_batches(job, step), lambda row: None)


def test_a_run_that_cannot_save_says_so_and_leaves_nothing_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file stands where the folder should be")
    with pytest.raises(StorageError, match="checkpoints/seen-000000000064"):
        run(small_job(str(tmp_path)))
    assert newest_checkpoint(str(tmp_path)) is None
    often = small_job(str(tmp_path), checkpoints={"every_pairs": 8, "keep": 1})
    with pytest.raises(StorageError, match="checkpoints/seen-000000000024"):
        run(often)


def test_a_full_disk_fails_the_run_in_one_line_and_leaves_nothing_whole(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, limits[1])
    )  # bytes that a file may take; the weights take 13 MB
    try:
        with pytest.raises(StorageError, match=r"weights\.safetensors: cannot be written: .*[Ff]ile too large"):
            run(small_job(str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_checkpoint(str(tmp_path)) is None
    run(small_job(str(tmp_path)))
    assert newest_checkpoint(str(tmp_path)) is not None


def test_training_goes_on_where_a_checkpoint_cannot_be_written_for_a_while(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file stands where the folder should be")
    job = small_job(str(tmp_path))

    def unblock(row: StepRow) -> None:
        if row.seen == 40:
            blocked.unlink()

    run_rank(job, RunPlace(job.out, "fingerprint of the data", None), None, lambda s: random_batches(job, s), unblock)
    assert sorted(path.name for path in blocked.iterdir()) == [f"seen-{seen:012d}" for seen in (48, 64)]


def test_data_that_end_early_fail_the_run(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    place = RunPlace(job.out, "fingerprint of the data", None)
    with pytest.raises(RuntimeError, match="the data ended after 24 of 64 pairs"):
        run_rank(job, place, None, lambda step: list(random_batches(job, step))[:3], lambda row: None)
