"""One, two and four workers learn from the same pairs at every step: real DeepSpeed runs over a real dataset, for two
epochs, compared by pair_id.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_dataset import small_dataset
from small_run import small_job
from two_ranks import run_on_ranks

from hiclip.batch import Batch
from hiclip.data.step_reader import local_stream
from hiclip.distributed import rank, world
from hiclip.pretrain import stream_plan
from hiclip.training.history import StepRow
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace

PAIRS, BATCH = 64, 8


def two_epochs(dataset: str, out: str) -> tuple[list[list[str]], list[tuple[int, float]]]:
    """This rank's pair_ids of every step, and the digests and losses that the run noted."""
    os.environ.update(RANK=str(rank()), LOCAL_RANK=str(rank()), WORLD_SIZE=str(world()), DS_ACCELERATOR="cpu")
    job = small_job(
        f"{out}/{world()}",
        dataset,
        schedule={"pairs": 2 * PAIRS},
        engine={"name": "deepspeed"},
        workers={"count": world()},
    )
    plan = stream_plan(job)
    shown: list[list[str]] = []
    rows: list[StepRow] = []

    def batches(first_step: int) -> Iterator[Batch]:
        for step in local_stream(plan, first_step, job.steps, rank(), world()):
            shown.append(step.pair_ids)
            yield step.to_batch()

    run_rank(job, RunPlace(job.out, plan.fingerprint, None), None, batches, rows.append)
    return shown, [(row.pairs_digest, row.loss) for row in rows]


def test_every_world_learns_from_the_same_pairs_at_every_step(tmp_path: Path) -> None:
    small_dataset(tmp_path / "data", pairs=PAIRS, px=32)
    ((ids, noted),) = run_on_ranks(1, two_epochs, str(tmp_path / "data"), str(tmp_path))
    for workers in (2, 4):  # four are more than most machines that run this have cores
        shared = run_on_ranks(workers, two_epochs, str(tmp_path / "data"), str(tmp_path))
        steps = [[name for part in parts for name in part] for parts in zip(*(ids for ids, _ in shared), strict=True)]
        assert [set(step) for step in steps] == [set(step) for step in ids]
        assert all(len(set(step)) == BATCH for step in steps)
        for first in (0, PAIRS // BATCH):
            epoch = Counter(name for step in steps[first : first + PAIRS // BATCH] for name in step)
            assert set(epoch.values()) == {1}, "each pair once"
            assert len(epoch) == PAIRS
        for _, theirs in shared:
            assert [digest for digest, _ in theirs] == [digest for digest, _ in noted]
            assert [loss for _, loss in theirs] == pytest.approx([loss for _, loss in noted], abs=1e-4)
