"""Runs a job on Ray Train's workers and hears of every step (door: ray.train).

What Ray does here: place one worker a device, connect them (gloo or NCCL), send all back to the start when one is lost,
tell them when a machine of theirs is about to be taken away, and use more or fewer of them as the cluster grows and
shrinks. What it does not: hold our checkpoints. `ray.train.report` would copy them to a folder that only this run's Ray
knows, and it is a barrier that every rank must enter; ours lie in the run's folder, are read by name, and outlive Ray.
So a restarted worker looks for the newest whole checkpoint itself, and steps reach the driver through a mailbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hiclip.batch import Batch
from hiclip.data.ray_stream import rank_stream
from hiclip.data.stream_plan import StreamPlan
from hiclip.training.checkpoint import newest_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.loop import Wish
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import RunFailedError, run_rank
from hiclip.training.saving import RunPlace
from pipeline.jobfile import EndedEarlyError, InputError, JobError

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


class StoppedError(EndedEarlyError):
    """The run was asked to stop and did so after a checkpoint."""

    exit_code = 128 + signal.SIGTERM


def run_workers(
    task: WorkerTask,
    on_steps: Callable[[list[StepRow]], object],
    on_start: Callable[[], object] | None = None,
) -> None:
    """Trains the job to its end; `on_steps` hears, on another thread and in order, of the steps as they are done, and
    `on_start` before that, of each start of the workers.

    After a restart steps come again from the checkpoint on. A SIGTERM, the first one, lets the workers write a
    checkpoint and end: StoppedError; so does whatever `on_steps` or `on_start` raises, which is then raised here. After
    an EndedEarlyError `on_steps` goes on to hear of the steps that are done until the workers have ended. Raises
    RunFailedError if the run cannot go on, the worker's own InputError if that is what ended it for good, else Ray's
    TrainingFailedError.
    """
    if ray.get_runtime_context().get_actor_id() is None:  # a trial of Tune runs in an actor, and its driver has looked
        check_room(task.job)
    # With the driver, or it could be lost with a machine that the run can do without.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
    done, stop = threading.Event(), threading.Event()
    enough: list[Exception] = []
    hears = (mailbox, on_steps, on_start, done, stop, enough)
    reader = threading.Thread(target=_read, args=hears, name="steps", daemon=True)
    reader.start()
    try:
        with tempfile.TemporaryDirectory(prefix="hiclip-ray-train-") as notes, _sets_at_sigterm(stop):
            _trainer(task, mailbox, notes).fit()
        end = ray.get(mailbox.end.remote())
    except ray.train.WorkerGroupError as error:
        raise _own(error) from error
    finally:
        done.set()
        reader.join()
        ray.kill(mailbox)
    if enough:
        raise enough[0]
    if end is not None:
        raise end


@contextlib.contextmanager
def _sets_at_sigterm(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM sets the event, another one does what it did before. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        stop.set()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trainer(task: WorkerTask, mailbox: object, notes: str) -> TorchTrainer:
    """Ray Train's trainer; `notes` is a folder on this machine for what its controller writes down about itself."""
    job = task.job
    resources = {"CPU": job.workers.cpus, **({"GPU": job.workers.gpus} if job.workers.gpus else {})}
    fewest = job.workers.count if job.workers.least is None else min(job.worlds)
    return _Trainer(
        job.worlds,
        _train_worker,
        train_loop_config={"task": task, "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if job.workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.workers.count if fewest == job.workers.count else (fewest, job.workers.count),
            use_gpu=job.workers.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=60 * job.workers.resize_minutes,
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


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """Ray's trainer, whose groups have sizes that the batch can be shared among."""

    def __init__(self, worlds: tuple[int, ...], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._worlds = worlds

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        # Ray offers no setting for this, nor a policy of one's own.
        if self.scaling_config.elasticity_enabled:
            named["scaling_policy"] = _SizesThatShare(self.scaling_config, self._worlds)
        return super()._initialize_and_run_controller(**named)


class _SizesThatShare(ElasticScalingPolicy):  # type: ignore[misc]  # Ray ships no types
    """Ray's policy for a group that grows and shrinks, rounded down to sizes that divide the batch."""

    def __init__(self, scaling_config: ScalingConfig, worlds: tuple[int, ...]) -> None:
        super().__init__(scaling_config)
        self._worlds = worlds

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((world for world in self._worlds if world <= possible), default=0)


def check_room(job: PretrainJob) -> None:
    """JobError if a Ray of our own is too small, for nothing could make it grow: Ray Train would wait for ever. Asked
    in the driver, whose `RAY_ADDRESS` says whose Ray it is."""
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
    if rank == 0:
        mailbox.begun.remote()  # type: ignore[attr-defined]  # not waited for
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

    end: EndedEarlyError | None = None
    try:
        if not run_rank(task.job, task.place, newest, batches, post, get_device(), _Notices(mailbox, rank).wish):
            end = StoppedError(
                f"stopped after a checkpoint in {task.place.run_folder}; the same command goes on from it"
            )
    except RunFailedError as error:  # raised on all ranks: Ray is not to start them again
        end = error
    if rank == 0:
        ray.get(mailbox.ended.remote(end))  # type: ignore[attr-defined]


class _Notices:
    """What a worker is asked for: by its driver through the mailbox, by Ray when a machine will be taken away."""

    def __init__(self, mailbox: object, rank: int) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._answer: ray.ObjectRef | None = None
        self._known: set[str] = set()

    def wish(self) -> Wish:
        """Every rank must ask as often as the others."""
        info = ray.train.get_preemption_info()
        lost = set(info.preempted_node_ids) if info is not None else set()
        fresh, self._known = lost - self._known, self._known | lost
        return Wish(save=bool(fresh), stop=self._rank == 0 and self._stop_is_wished())

    def _stop_is_wished(self) -> bool:
        """The mailbox's answer to an earlier question: none is waited for."""
        wished = False
        if self._answer is not None:
            if not ray.wait([self._answer], timeout=0)[0]:
                return False
            wished = bool(ray.get(self._answer))
        self._answer = self._mailbox.stop_is_wished.remote()  # type: ignore[attr-defined]
        return wished


class _Mailbox:
    """Holds steps until the driver takes them, and what the driver wishes until the workers ask."""

    def __init__(self) -> None:
        self._rows: list[StepRow] = []
        self._starts = 0
        self._stop = False
        self._end: EndedEarlyError | None = None

    def wish_stop(self) -> None:
        self._stop = True

    def stop_is_wished(self) -> bool:
        return self._stop

    def ended(self, end: EndedEarlyError | None) -> None:
        self._end = end

    def end(self) -> EndedEarlyError | None:
        return self._end

    def post(self, row: StepRow) -> None:
        self._rows.append(row)

    def begun(self) -> None:
        self._starts += 1

    def take(self) -> tuple[int, list[StepRow]]:
        """How often workers have begun, and the steps since the last call."""
        rows, self._rows = self._rows, []
        return self._starts, rows


def _read(
    mailbox: object,
    on_steps: Callable[[list[StepRow]], object],
    on_start: Callable[[], object] | None,
    done: threading.Event,
    stop: threading.Event,
    enough: list[Exception],
) -> None:
    """Hands steps on until the run is `done`; asks the workers to stop when `stop` is set or who hears has `enough`."""
    last = told = False
    starts = 0
    while not last:
        last = done.wait(_POLL_S)  # once more after the end, for what came since
        if stop.is_set() and not told:
            told = True
            mailbox.wish_stop.remote()  # type: ignore[attr-defined]
        begun, rows = ray.get(mailbox.take.remote())  # type: ignore[attr-defined]
        if enough and not isinstance(enough[0], EndedEarlyError):
            continue  # who hears is broken
        try:
            if begun > starts and on_start is not None:
                on_start()
            starts = begun
            if rows:
                on_steps(rows)
        except Exception as error:  # raised again by run_workers: on this thread nobody would see it
            enough.append(error)
            stop.set()


def _own(error: ray.train.WorkerGroupError) -> Exception:
    """The mistake that a worker named (the others then fail for want of it), else Ray's error as it is."""
    return next((failure for failure in error.worker_failures.values() if isinstance(failure, InputError)), error)
