"""Trains a job in the process it is called in, for a caller that Ray has already placed: a trial of a scaling study.

The same loop, order, views and checkpoints as Ray Train's workers and Ray Data's processes have, bit for bit; what is
left out is starting them, which takes longer than a short run itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hiclip.batch import Batch
from hiclip.data.step_reader import local_stream
from hiclip.data.stream_plan import StreamPlan
from hiclip.training.checkpoint import newest_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace


def run_here(job: PretrainJob, place: RunPlace, plan: StreamPlan, on_step: Callable[[StepRow], None]) -> None:
    """Trains a job of one worker from its newest checkpoint to its end; `on_step` hears of every step."""
    assert job.workers.count == 1, "one process is one worker"
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    device = "cuda" if job.workers.gpus else "cpu"

    def batches(first_step: int) -> Iterator[Batch]:
        return (step.to_batch(device) for step in local_stream(plan, first_step, place.steps or job.steps))

    run_rank(job, place, newest_checkpoint(place.run_folder), batches, on_step, device)
