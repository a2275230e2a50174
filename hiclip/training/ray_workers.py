"""Runs a job on Ray Train's workers and hears of every step (door: ray.train).

What Ray does here: place one worker a device, connect them (gloo or NCCL), send all back to the start when one is lost.
What it does not: hold our checkpoints. `ray.train.report` would copy them to a folder that only this run's Ray knows,
and it is a barrier that every rank must enter; ours lie in the run's folder, are read by name, and outlive Ray. So a
restarted worker looks for the newest whole checkpoint itself, and steps reach the driver through a mailbox.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
import ray.train
import torch
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from hiclip.batch import Batch
from hiclip.data.ray_stream import rank_stream
from hiclip.data.stream_plan import StreamPlan
from hiclip.training.checkpoint import newest_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import RunPlace, run_rank
from pipeline.jobfile import InputError, JobError

log = logging.getLogger(__name__)

_POLL_S = 0.5

# glibc hands freed memory back to the kernel and asks for it again at every step, which costs a CPU worker a good part
# of its time; these keep it. They are read when a process starts, so they belong to the worker's environment.
_KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


@dataclass(frozen=True)
class WorkerTask:
    """All that a worker is told."""

    job: PretrainJob
    place: RunPlace
    plan: StreamPlan
    """Its dataset is an absolute path or s3://: Ray moves workers to a directory of its own."""


def run_workers(task: WorkerTask, on_steps: Callable[[list[StepRow]], None]) -> None:
    """Trains the job to its end; `on_steps` hears, on another thread and in order, of the steps as they are done.

    After a restart steps come again from the checkpoint on. Raises the worker's own InputError if that is what ended
    the run for good, else Ray's TrainingFailedError.
    """
    _check_room(task.job)
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    done = threading.Event()
    reader = threading.Thread(target=_read, args=(mailbox, on_steps, done), name="steps", daemon=True)
    reader.start()
    try:
        with tempfile.TemporaryDirectory(prefix="hiclip-ray-train-") as notes:
            _trainer(task, mailbox, notes).fit()
    except ray.train.WorkerGroupError as error:
        raise _own(error) from error
    finally:
        done.set()
        reader.join()
        ray.kill(mailbox)


def _trainer(task: WorkerTask, mailbox: object, notes: str) -> TorchTrainer:
    """Ray Train's trainer; `notes` is a folder on this machine for what its controller writes down about itself."""
    job = task.job
    resources = {"CPU": job.workers.cpus, **({"GPU": job.workers.gpus} if job.workers.gpus else {})}
    return TorchTrainer(
        _train_worker,
        train_loop_config={"task": task, "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if job.workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.workers.count, use_gpu=job.workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"{job.name}-{job.fingerprint[:12]}",
            # Ray resumes from checkpoints that it finds under this path. It is given none, so a fresh one will do, and
            # neither the run's folder nor its s3:// credentials are Ray's business.
            storage_path=notes,
            failure_config=FailureConfig(max_failures=job.workers.restarts),
            # The worker's own environment and not that of `ray.init`, which would clash with `ray job submit`'s.
            worker_runtime_env={"env_vars": _KEEP_MEMORY},
        ),
    )


def _check_room(job: PretrainJob) -> None:
    """JobError if a Ray of our own is too small, for nothing could make it grow: Ray Train would wait for ever."""
    there = ray.cluster_resources().get("CPU", 0.0)
    if job.ray_cpus <= there:
        return
    needed = f"workers and loaders take {job.ray_cpus:g} CPUs together, Ray has {there:g}"
    if not os.environ.get("RAY_ADDRESS"):
        raise JobError(f"ray.num_cpus: {needed}; see workers.cpus, loader.tasks and loader.cpus_per_task")
    log.warning("%s; waiting for the cluster to grow", needed)


class _PausingLoop(ExecutionCallback):  # type: ignore[misc]  # Ray ships no types
    """Lets Ray Data's scheduling loop, a thread of the worker's process, rest after each of its steps.

    While batches lie ready and nobody takes one the loop spins: it used more of a CPU worker's time than the model did.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(0.05)  # far below a step


def _train_worker(config: dict[str, object]) -> None:
    task, mailbox = config["task"], config["mailbox"]
    assert isinstance(task, WorkerTask)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(task.job.workers.cpus)))
    DataContext.get_current().custom_execution_callback_classes.append(_PausingLoop)
    # One rank looks, or a checkpoint that appears just now could send ranks to different steps.
    newest = broadcast_from_rank_zero(newest_checkpoint(task.place.run_folder) if rank == 0 else None)

    def post(row: StepRow) -> None:
        if rank == 0:
            mailbox.post.remote(row)  # type: ignore[attr-defined]  # not waited for

    last_step = task.place.steps or task.job.steps

    def batches(first_step: int) -> Iterator[Batch]:
        steps = rank_stream(task.plan, task.job.loader, first_step, last_step, rank, world)
        return (step.to_batch(get_device()) for step in steps)

    run_rank(task.job, task.place, newest, batches, post, get_device())


class _Mailbox:
    """Holds steps until the driver takes them."""

    def __init__(self) -> None:
        self._rows: list[StepRow] = []

    def post(self, row: StepRow) -> None:
        self._rows.append(row)

    def take(self) -> list[StepRow]:
        rows, self._rows = self._rows, []
        return rows


def _read(mailbox: object, on_steps: Callable[[list[StepRow]], None], done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(_POLL_S)  # once more after the end, for what came since
        rows = ray.get(mailbox.take.remote())  # type: ignore[attr-defined]
        if rows:
            on_steps(rows)


def _own(error: ray.train.WorkerGroupError) -> Exception:
    """The mistake that a worker named (the others then fail for want of it), else Ray's error as it is."""
    return next((failure for failure in error.worker_failures.values() if isinstance(failure, InputError)), error)
