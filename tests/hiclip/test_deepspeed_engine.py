"""DeepSpeed on two real ranks does what one plain process does, in every ZeRO stage, with and without gradient caching,
activation checkpointing and an optimizer on the CPU, and resumes bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import random_batches, small_job
from torch.nn.utils import parameters_to_vector

from hiclip.batch import Batch
from hiclip.training import deepspeed_engine
from hiclip.training.checkpoint import load_towers, newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import DivergenceSettings, PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace


@dataclass(frozen=True)
class Case:
    """How two ranks train."""

    stage: int
    micro_batch: int | None = None
    """How many of a rank's four pairs are encoded at once."""
    offload: bool = False
    checkpointing: bool = False

    def __str__(self) -> str:
        switches = ("-offload" if self.offload else "") + ("-checkpointing" if self.checkpointing else "")
        return f"stage{self.stage}-{self.micro_batch or 'whole'}{switches}"


CASES = [
    *(Case(stage, micro_batch) for stage in (0, 1, 2) for micro_batch in (None, 2)),
    Case(3),
    *(Case(stage, offload=True) for stage in (1, 2, 3)),
    Case(1, checkpointing=True),
    Case(2, micro_batch=2, offload=True, checkpointing=True),
    Case(3, checkpointing=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def run(job: PretrainJob, newest: str | None, rank: int = 0, world: int = 1) -> list[float]:
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, newest, lambda step: random_batches(job, step, rank, world), rows.append)
    return [row.loss for row in rows]


def run_spoilt(job: PretrainJob, rank: int = 0, world: int = 1) -> list[list[float]]:
    """Two steps whose losses are no numbers, one more than may be skipped: seen, loss, length of the gradient."""
    job = job.model_copy(update={"divergence": DivergenceSettings(skipped_in_a_row=1, rollbacks=1)})
    rows: list[StepRow] = []

    def batches(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(random_batches(job, first_step, rank, world), first_step):
            if step in (4, 5) and rank == 0:
                batch.images["crop"][1] = math.nan
            yield batch

    run_rank(job, RunPlace(job.out, "fingerprint of the data", None), None, batches, rows.append)
    return [[row.seen, row.loss, row.gradient_norm] for row in rows]


def job_of(folder: Path, case: Case) -> PretrainJob:
    engine = {"name": "deepspeed", "zero_stage": case.stage, "offload": case.offload}
    out, data = str(folder / str(case)), {"micro_batch": case.micro_batch}
    again = case.checkpointing
    return small_job(out, data=data, engine=engine, workers={"count": 2}, activation_checkpointing=again)


def middle(run_folder: Path | str) -> str:
    return f"{run_folder}/checkpoints/seen-000000000024"


def one_rank(rank: int, port: int, folder: Path) -> None:
    """What each process does: in every case a whole run, then once more from its middle checkpoint."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), TORCH_EXTENSIONS_DIR=str(folder / "extensions"))
    torch.set_num_threads(1)
    deepspeed_engine.WHOLE_BELOW = 0  # or ZeRO-3 would shard nothing of so small a model but its token table
    dist.init_process_group("gloo")
    answers: dict[str, Any] = {}
    for case in CASES:
        job = job_of(folder, case)
        losses = run(job, None, rank, 2)
        starts = middle(job.out), middle(folder / "plain")
        answers[str(case)] = [losses, *(run(job, start, rank, 2) for start in starts)]
    for stage in range(4):
        job = job_of(folder, Case(stage)).model_copy(update={"out": str(folder / f"spoilt{stage}")})
        answers[f"spoilt{stage}"] = run_spoilt(job, rank, 2)
    (folder / f"rank{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = run(small_job(str(folder / "plain")), None)
    (folder / "plain.json").write_text(json.dumps(plain))
    (folder / "spoilt.json").write_text(json.dumps(run_spoilt(small_job(str(folder / "plain-spoilt")))))
    mp.spawn(one_rank, (port, folder), nprocs=2)
    return folder


def plain_losses(folder: Path) -> list[float]:
    losses: list[float] = json.loads((folder / "plain.json").read_text())
    return losses


@every_case
def test_two_ranks_step_like_one_plain_process(folder: Path, case: Case) -> None:
    name = str(case)
    losses, *others = json.loads((folder / "rank0.json").read_text())[name]
    assert [losses, *others] == json.loads((folder / "rank1.json").read_text())[name]
    plain = plain_losses(folder)
    assert losses == pytest.approx(plain, abs=1e-5)
    assert len({round(loss, 4) for loss in plain}) > 4, "the steps differ, so equality means something"
    ours, theirs = load_towers(str(folder / name))[0], load_towers(str(folder / "plain"))[0]
    apart = (parameters_to_vector(ours.parameters()) - parameters_to_vector(theirs.parameters())).abs()
    # Not all: a key's bias has gradient zero, and Adam makes steps of whatever sign its rounding noise has.
    assert apart.quantile(0.98) < 1e-6


@pytest.mark.parametrize("stage", range(4))
def test_two_ranks_skip_and_go_back_like_one_plain_process(folder: Path, stage: int) -> None:
    plain = json.loads((folder / "spoilt.json").read_text())
    assert [seen // 8 for seen, *_ in plain] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    assert [math.isfinite(norm) for *_, norm in plain] == [True] * 4 + [False] * 4 + [True] * 2
    for rank in range(2):
        ours = json.loads((folder / f"rank{rank}.json").read_text())[f"spoilt{stage}"]
        assert [seen for seen, *_ in ours] == [seen for seen, *_ in plain]
        for our, their in zip(ours, plain, strict=True):
            assert our[1:] == pytest.approx(their[1:], abs=1e-4, rel=1e-4, nan_ok=True)


@every_case
def test_a_resume_repeats_the_losses_bit_for_bit(folder: Path, case: Case) -> None:
    losses, resumed, _ = json.loads((folder / "rank0.json").read_text())[str(case)]
    assert resumed == losses[3:]
    assert newest_checkpoint(str(folder / str(case)))


@every_case
def test_any_engine_goes_on_from_the_checkpoint_of_any_other(folder: Path, tmp_path: Path, case: Case) -> None:
    """One rank's by two, and two ranks' by one: the same pairs, the same losses but for the order of sums."""
    name, plain = str(case), plain_losses(folder)
    _, _, by_two = json.loads((folder / "rank0.json").read_text())[name]
    assert by_two == pytest.approx(plain[3:], abs=1e-5)
    assert run(small_job(str(tmp_path)), middle(folder / name)) == pytest.approx(plain[3:], abs=1e-5)


def test_checkpoints_of_all_engines_hold_the_same_things(folder: Path) -> None:
    names = [str(case) for case in CASES]
    states = {name: read_checkpoint(middle(folder / name)).optimizer_state() for name in [*names, "plain"]}
    for name in names:
        assert {key: tensor.numel() for key, tensor in states[name].items()} == {
            key: tensor.numel() for key, tensor in states["plain"].items()
        }
        for key, tensor in states["plain"].items():
            ours = states[name][key].reshape(tensor.shape)
            assert torch.allclose(ours, tensor, rtol=1e-3, atol=1e-6), f"{name}: {key}"


def test_nothing_was_compiled(folder: Path) -> None:
    assert not (folder / "extensions").exists()
