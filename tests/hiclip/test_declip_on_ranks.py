"""DeCLIP under DeepSpeed on two real ranks, encoded in chunks: its heads and the one queue go along, and it resumes
exactly.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from small_run import random_batches, small_job
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.distributed import rank, world
from hiclip.training.checkpoint import read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace


def job_of(out: str) -> PretrainJob:
    """Three steps of eight pairs, two of a rank's four encoded at once; the queue of 20 is run round."""
    return small_job(
        out,
        data={"micro_batch": 2},
        objective={"name": "declip", "queue": 20},
        model={"vocabulary": 49_409},
        schedule={"pairs": 24},
        checkpoints={"every_pairs": 16},
        engine={"name": "deepspeed", "zero_stage": 1},
        workers={"count": 2},
    )


def run(job: PretrainJob, newest: str | None) -> list[dict[str, float]]:
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, newest, lambda step: random_batches(job, step, rank(), world()), rows.append)
    return [row.parts for row in rows]


def whole_and_resumed(out: str) -> tuple[list[dict[str, float]], list[dict[str, float]], bool, dict[str, Tensor]]:
    """A whole run, its last step again from the checkpoint before, whether that gave the same weights, the queue."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank()), LOCAL_RANK=str(rank()))
    whole = run(job_of(out), None)
    dist.barrier()  # rank 0 declares a checkpoint whole when the others have left it
    weights = read_checkpoint(out).weights()
    dist.barrier()
    resumed = run(job_of(out), f"{out}/checkpoints/seen-000000000016")
    dist.barrier()
    again = read_checkpoint(out).weights()
    same = all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    return whole, resumed, same, {name: tensor for name, tensor in weights.items() if ".queue." in name}


def test_two_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    first, second = run_on_ranks(2, whole_and_resumed, str(tmp_path))
    whole, resumed, same, queue = first
    assert second[:3] == first[:3]
    assert len(whole) == 3
    assert set(whole[0]) == {"clip", "image_self", "masked_words", "neighbours"}
    assert resumed == whole[2:]
    assert same
    vectors, oldest = (queue[f"objective.self_supervision.queue.{name}"] for name in ("vectors", "oldest"))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))
    assert oldest.tolist() == [3 * 16 % 20]
