"""One rank's part of a run: build or restore, train, save on time. It does not know who started it, so it runs under
Ray as it runs in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hiclip.batch import Batch
from hiclip.distributed import rank, world
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainState,
    begin_checkpoint,
    checkpoint_name,
    complete_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_contents,
)
from hiclip.training.engine import Engine, PlainEngine, Pretraining, compile_towers
from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.loop import Plan, train
from hiclip.training.mlflow_tracker import recorded_run_id
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.schedule import rate_factor_of_step
from pipeline.jobfile import resolved_yaml
from pipeline.storage import folder


@dataclass(frozen=True)
class RunPlace:
    """Where a run lives and what it was made from; the same on every rank."""

    run_folder: str
    """Absolute path or s3://."""
    manifest_fingerprint: str
    commit: str | None
    steps: int | None = None
    """Steps after which the run ends, as if it were stopped there; None: those of the job."""


def run_rank(
    job: PretrainJob,
    place: RunPlace,
    newest: str | None,
    batches_from: Callable[[int], Iterable[Batch]],
    on_step: Callable[[StepRow], None],
    device: torch.device | str = "cpu",
) -> None:
    """Trains from the checkpoint `newest` (None: from the start; the same on all ranks) to the end of the run.

    `batches_from(step)` gives this rank's batches, on `device`, from that step to the run's last. When this returns,
    the last checkpoint is whole.
    """
    module, checkpoint = build_module(job), None if newest is None else read_checkpoint(newest)
    if checkpoint is not None:
        _check_dataset(checkpoint, place)
        module.load_state_dict(checkpoint.weights())
    engine = make_engine(job, module.to(device))
    saver = _Saver(job, place, engine)
    if checkpoint is not None:
        engine.set_optimizer_state(checkpoint.optimizer_state())
        saver.history = checkpoint.history()

    def note(row: StepRow, wished: bool) -> None:
        saver.history.append(row)
        on_step(row)
        if wished or saver.is_due(row.seen):
            saver.save(row.seen)

    first_step = saver.seen // job.data.batch
    plan = Plan(first_step, job.data.batch, job.seed, lambda step: learning_rate(job, step), saver.is_late)
    train(engine, batches_from(first_step), plan, note)
    if saver.seen != saver.pairs:
        raise RuntimeError(f"the data ended after {saver.seen} of {saver.pairs} pairs")


def build_module(job: PretrainJob) -> Pretraining:
    """The freshly initialised module of a job: the same numbers on every rank and machine."""
    torch.manual_seed(job.seed)
    towers = TwoTowers(job.model)
    towers.recompute_layers(job.activation_checkpointing)
    if job.compiled:
        compile_towers(towers)
    objective = job.objective.build(job.model)
    return Pretraining(towers, objective, bf16=job.precision == "bf16", micro_batch=job.data.micro_batch)


def make_engine(job: PretrainJob, module: Pretraining) -> Engine:
    """The engine that the job names."""
    if job.engine.name == "plain":
        return PlainEngine(module, job.optimizer)
    from hiclip.training.deepspeed_engine import DeepSpeedEngine  # only where it is wanted: it takes seconds to import

    engine = job.engine
    return DeepSpeedEngine(module, job.optimizer, engine.zero_stage, job.data.batch // world(), engine.offload)


def learning_rate(job: PretrainJob, step: int) -> float:
    """The rate of step `step`, counted from 0."""
    return job.optimizer.learning_rate * rate_factor_of_step(job.schedule, step, job.data.batch)


def _check_dataset(checkpoint: Checkpoint, place: RunPlace) -> None:
    if checkpoint.state.manifest_fingerprint != place.manifest_fingerprint:
        raise CheckpointError(f"{checkpoint.place.root}: was trained on another dataset than the job's is now")


class _Saver:
    """Writes checkpoints together with the other ranks, and keeps what goes into them."""

    def __init__(self, job: PretrainJob, place: RunPlace, engine: Engine) -> None:
        self.history: list[StepRow] = []
        self._job, self._place, self._engine = job, place, engine
        self.pairs = (place.steps or job.steps) * job.data.batch
        self._saved_at = time.monotonic()

    @property
    def seen(self) -> int:
        return self.history[-1].seen if self.history else 0

    def is_due(self, seen: int) -> bool:
        every, batch = self._job.checkpoints.every_pairs, self._job.data.batch
        return seen // every > (seen - batch) // every or seen == self.pairs

    def is_late(self) -> bool:
        """Whether the last checkpoint, or the start, is too long ago, by the clock of this rank."""
        minutes = self._job.checkpoints.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save(self, seen: int) -> None:
        # All ranks hand in their parts; one writes.
        weights, optimizer = self._engine.weights(), self._engine.optimizer_state()
        if rank() == 0:
            target = folder(self._place.run_folder).child(checkpoint_name(seen))
            begin_checkpoint(target)
            write_contents(
                target, weights, optimizer, self._job.model, resolved_yaml(self._job), self._state(), self.history
            )
            complete_checkpoint(target)
            prune_checkpoints(self._place.run_folder, self._job.checkpoints.keep)
        _wait_for_all()
        self._saved_at = time.monotonic()

    def _state(self) -> TrainState:
        return TrainState(
            step=self.seen // self._job.data.batch,
            seen=self.seen,
            world=world(),
            seconds=sum(row.seconds for row in self.history),
            wait_s=sum(row.wait_s for row in self.history),
            job_fingerprint=self._job.fingerprint,
            manifest_fingerprint=self._place.manifest_fingerprint,
            train_flops=training_flops(self._job, self.seen),
            mlflow_run_id=recorded_run_id(self._place.run_folder),
            commit=self._place.commit,
        )


def _wait_for_all() -> None:
    if world() > 1:
        dist.barrier()
