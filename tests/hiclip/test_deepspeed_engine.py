"""DeepSpeed on two real ranks does what one plain process does, in every ZeRO stage, with and without gradient caching,
and resumes bit for bit.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import random_batches, small_job
from torch.nn.utils import parameters_to_vector

from hiclip.training.checkpoint import load_towers, newest_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import RunPlace, run_rank

CASES = [(stage, micro_batch) for stage in (0, 1, 2) for micro_batch in (None, 2)]
"""ZeRO stage, and how many of a rank's four pairs are encoded at once."""
every_case = pytest.mark.parametrize(("stage", "micro_batch"), CASES)


def run(job: PretrainJob, newest: str | None, rank: int = 0, world: int = 1) -> list[float]:
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, newest, lambda step: random_batches(job, step, rank, world), rows.append)
    return [row.loss for row in rows]


def job_of(folder: Path, stage: int, micro_batch: int | None) -> PretrainJob:
    engine = {"name": "deepspeed", "zero_stage": stage}
    out, data = str(folder / name_of(stage, micro_batch)), {"micro_batch": micro_batch}
    return small_job(out, data=data, engine=engine, workers={"count": 2})


def name_of(stage: int, micro_batch: int | None) -> str:
    return f"stage{stage}-{micro_batch or 'whole'}"


def one_rank(rank: int, port: int, folder: Path) -> None:
    """What each process does: in every case a whole run, then once more from its middle checkpoint."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), TORCH_EXTENSIONS_DIR=str(folder / "extensions"))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    answers: dict[str, Any] = {}
    for case in CASES:
        job = job_of(folder, *case)
        losses = run(job, None, rank, 2)
        answers[name_of(*case)] = losses, run(job, f"{job.out}/checkpoints/seen-000000000024", rank, 2)
    (folder / f"rank{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, (port, folder), nprocs=2)
    return folder


@every_case
def test_two_ranks_step_like_one_plain_process(
    folder: Path, tmp_path: Path, stage: int, micro_batch: int | None
) -> None:
    name = name_of(stage, micro_batch)
    losses, resumed = json.loads((folder / "rank0.json").read_text())[name]
    assert [losses, resumed] == json.loads((folder / "rank1.json").read_text())[name]
    plain = run(small_job(str(tmp_path)), None)
    assert losses == pytest.approx(plain, abs=1e-5)
    assert len({round(loss, 4) for loss in plain}) > 4, "the steps differ, so equality means something"
    ours, theirs = load_towers(str(folder / name))[0], load_towers(str(tmp_path))[0]
    apart = (parameters_to_vector(ours.parameters()) - parameters_to_vector(theirs.parameters())).abs()
    # Not all: a key's bias has gradient zero, and Adam makes steps of whatever sign its rounding noise has.
    assert apart.quantile(0.98) < 1e-6


@every_case
def test_a_resume_repeats_the_losses_bit_for_bit(folder: Path, stage: int, micro_batch: int | None) -> None:
    losses, resumed = json.loads((folder / "rank0.json").read_text())[name_of(stage, micro_batch)]
    assert resumed == losses[3:]
    assert newest_checkpoint(str(folder / name_of(stage, micro_batch)))


def test_each_rank_keeps_a_part_of_the_optimizer_and_nothing_was_compiled(folder: Path) -> None:
    engine = folder / "stage1-whole" / "checkpoints" / "seen-000000000064" / "engine"
    shares = [path.stat().st_size for path in sorted(engine.rglob("*optim_states.pt"))]
    weights = (engine.parent / "weights.safetensors").stat().st_size
    assert len(shares) == 2
    assert max(shares) < 1.6 * weights, "half of two moments and of a master copy, each as large as the weights"
    assert not (folder / "extensions").exists()
