"""When a run is saved, and what goes into a checkpoint: all ranks hand in their parts, the first one writes."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from hiclip.distributed import from_first_rank, rank, world
from hiclip.training.checkpoint import (
    Checkpoint,
    TrainState,
    begin_checkpoint,
    checkpoint_name,
    complete_checkpoint,
    go_back,
    prune_checkpoints,
    write_contents,
)
from hiclip.training.checkpoint_writer import CheckpointWriter
from hiclip.training.engine import Engine
from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import resolved_yaml
from pipeline.mlflow_tracker import recorded_run_id
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


@dataclass(frozen=True)
class LeftOut:
    """What a run has given up because a number was not finite."""

    steps: tuple[int, ...] = ()
    """Steps whose batches are not learnt from."""
    rollbacks: int = 0
    """How often it went back to a checkpoint."""


class Saver:
    """Keeps what goes into checkpoints and has them written while training goes on."""

    def __init__(self, job: PretrainJob, place: RunPlace, resumed: Checkpoint | None, left_out: LeftOut) -> None:
        self.history: list[StepRow] = [] if resumed is None else resumed.history()
        self.run_folder = place.run_folder
        self.pairs = (place.steps or job.steps) * job.data.batch
        self._job, self._place, self._left_out = job, place, left_out
        self._writer = CheckpointWriter()
        self._saved_at, self._saved_rows = time.monotonic(), len(self.history)

    @property
    def seen(self) -> int:
        """Pairs consumed."""
        return self.history[-1].seen if self.history else 0

    def is_due(self) -> bool:
        """Whether the step that was just done is one to save after."""
        every, batch = self._job.checkpoints.every_pairs, self._job.data.batch
        return self.seen // every > (self.seen - batch) // every or self.seen == self.pairs or self._stays(self.seen)

    def _stays(self, seen: int) -> bool:
        """Whether the job names these pairs seen, or the step that led there passed a number that it names."""
        return any(seen - self._job.data.batch < at <= seen for at in self._job.checkpoints.at)

    def is_late(self) -> bool:
        """Whether the last checkpoint, or the start, is too long ago, by the clock of this rank."""
        minutes = self._job.checkpoints.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save(self, engine: Engine) -> None:
        """Hands what there is now to the writer. Every rank must call; nothing is on disk yet when it returns.

        StorageError, on the first rank, if several checkpoints in a row could not be written.
        """
        weights, optimizer = engine.weights(), engine.optimizer_state()
        state = self._state()
        if rank() == 0:
            weights = {name: _copied(tensor) for name, tensor in weights.items()}
            history = list(self.history)
            self._writer.begin(lambda: self._write(weights, optimizer, state, history))
        self._saved_at, self._saved_rows = time.monotonic(), len(self.history)

    def finish(self) -> None:
        """Waits until the last checkpoint is written. StorageError, on the first rank, if it could not be."""
        self._writer.finish()
        if world() > 1:
            dist.barrier()

    def go_back(self, seen: int) -> str | None:
        """`hiclip.training.checkpoint.go_back`, the same on every rank; every rank must ask."""
        self._writer.finish()
        return from_first_rank(go_back(self._place.run_folder, seen) if rank() == 0 else None)

    def close(self) -> None:
        """Lets go of the writer's thread."""
        self._writer.close()

    def _write(
        self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: TrainState, history: list[StepRow]
    ) -> None:
        job, target = self._job, folder(self._place.run_folder).child(checkpoint_name(state.seen))
        begin_checkpoint(target)
        write_contents(target, weights, optimizer, job.model, resolved_yaml(job), state, history)
        complete_checkpoint(target)
        prune_checkpoints(self._place.run_folder, job.checkpoints.keep, job.checkpoints.keep_best, self._stays)

    def _state(self) -> TrainState:
        losses = [row.loss for row in self.history[self._saved_rows :] if math.isfinite(row.loss)]
        return TrainState(
            step=self.seen // self._job.data.batch,
            seen=self.seen,
            world=world(),
            seconds=sum(row.seconds for row in self.history),
            wait_s=sum(row.wait_s for row in self.history),
            job_fingerprint=self._job.fingerprint,
            manifest_fingerprint=self._place.manifest_fingerprint,
            train_flops=training_flops(self._job, self.seen),
            recent_loss=statistics.fmean(losses) if losses else None,
            left_out=self._left_out.steps,
            rollbacks=self._left_out.rollbacks,
            mlflow_run_id=recorded_run_id(self._place.run_folder) if rank() == 0 else None,
            commit=self._place.commit,
        )


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: training goes on with the other."""
    return tensor.detach().to("cpu", copy=True)
