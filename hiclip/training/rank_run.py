"""One rank's part of a run: build or restore, train, save on time. It does not know who started it, so it runs under
Ray as it runs in a test.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterable

import torch

from hiclip.batch import Batch
from hiclip.distributed import of_all_ranks, rank, world
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from hiclip.training.engine import Engine, PlainEngine, Pretraining, compile_towers
from hiclip.training.history import StepRow
from hiclip.training.loop import NotFiniteError, Plan, Wish, train
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.profile import profiled
from hiclip.training.saving import LeftOut, RunPlace, Saver
from hiclip.training.schedule import rate_factor_of_step
from pipeline.jobfile import EndedEarlyError
from pipeline.storage import folder

DIVERGED = "diverged.json"
"""Names, in a run's folder, the batches whose numbers were not finite."""
_BROKEN_JUDGED_AFTER = 10_000


class RunFailedError(EndedEarlyError):
    """The run cannot go on, on all ranks alike and however often it is started: to start it again would not help."""


class DivergedError(RunFailedError):
    """Loss or gradient are not finite, and going back did not help."""


class BrokenPicturesError(RunFailedError):
    """More of the pictures than the job allows cannot be decoded."""


def run_rank(
    job: PretrainJob,
    place: RunPlace,
    newest: str | None,
    batches_from: Callable[[int], Iterable[Batch]],
    on_step: Callable[[StepRow], None],
    device: torch.device | str = "cpu",
    wish: Callable[[], Wish] = Wish,
) -> bool:
    """Trains from the checkpoint `newest` (None: from the start; the same on all ranks) to the end of the run, or until
    some rank wishes to stop; -> whether the end was reached.

    `batches_from(step)` gives this rank's batches, on `device`, from that step to the run's last. When this returns,
    the last checkpoint is whole. Where numbers are not finite the step is skipped; if that happens too often in a row
    the run goes back to its newest checkpoint before them and leaves those batches out, and the one before them, whose
    update led there; in the end it raises DivergedError.
    """
    left_out: LeftOut | None = None
    while True:
        resumed = None if newest is None else read_checkpoint(newest)
        if resumed is not None:
            _check_dataset(resumed, place)
            stored = LeftOut(resumed.state.left_out, resumed.state.rollbacks)
            left_out = left_out or stored
        with contextlib.closing(Saver(job, place, resumed, left_out or LeftOut())) as saver:
            try:
                return _train(job, saver, resumed, left_out or LeftOut(), batches_from, on_step, device, wish)
            except NotFiniteError as error:
                left_out = _given_up(job, place, left_out or LeftOut(), error)
                before = max(min(error.skipped) - 1, 0)
            newest = saver.go_back(before * job.data.batch)
        gc.collect()  # the spoilt engine, before there is a second one


def _train(
    job: PretrainJob,
    saver: Saver,
    resumed: Checkpoint | None,
    left_out: LeftOut,
    batches_from: Callable[[int], Iterable[Batch]],
    on_step: Callable[[StepRow], None],
    device: torch.device | str,
    wish: Callable[[], Wish],
) -> bool:
    """`run_rank` until a number is not finite for too long."""
    module = build_module(job)
    if resumed is not None:
        module.load_state_dict(resumed.weights())
    engine = make_engine(job, module.to(device))
    if resumed is not None:
        engine.set_optimizer_state(resumed.optimizer_state())
    broken, owed = sum(row.broken for row in saver.history), False

    def wished() -> Wish:
        asked = wish()
        return asked._replace(save=asked.save or saver.is_late())

    def note(row: StepRow, asked: Wish) -> None:
        nonlocal broken, owed
        saver.history.append(row)
        on_step(row)
        profile_step()
        broken += row.broken
        if broken > job.loader.broken_share * max(row.seen, min(saver.pairs, _BROKEN_JUDGED_AFTER)):
            raise BrokenPicturesError(
                f"loader.broken_share: expected at most {job.loader.broken_share:g} of the pictures to be broken, "
                f"came {broken:,} of {row.seen:,}; {job.data.dataset} may be damaged"
            )
        owed = owed or asked.save or asked.stop or saver.is_due()
        if owed and (row.applied or row.seen // job.data.batch - 1 in left_out.steps):
            saver.save(engine)  # not while steps are skipped: one that goes back is to find weights from before
            owed = False

    first_step = saver.seen // job.data.batch
    plan = Plan(
        first_step,
        job.data.batch,
        job.seed,
        lambda step: learning_rate(job, step),
        wished,
        frozenset(left_out.steps),
        job.divergence.skipped_in_a_row,
        saver.pairs // job.data.batch,
    )
    with profiled(job.profile, saver.run_folder) as profile_step:
        reached = train(engine, batches_from(first_step), plan, note)
    saver.finish()
    if reached and saver.seen != saver.pairs:
        raise RuntimeError(f"the data ended after {saver.seen} of {saver.pairs} pairs")
    if reached and not any(row.applied for row in saver.history):
        raise DivergedError(f"not one of {len(saver.history)} steps could be applied: loss or gradient are not finite")
    return reached


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


def _given_up(job: PretrainJob, place: RunPlace, left_out: LeftOut, error: NotFiniteError) -> LeftOut:
    """What is left out from now on. DivergedError, after the pairs have been written down, if that was tried before."""
    ids = of_all_ranks(error.skipped)
    steps = sorted(error.skipped)
    if rank() == 0:
        batches = [{"step": step, "pair_ids": [name for part in ids for name in part[step]]} for step in steps]
        report = {"seen": error.row.seen, "losses": {name: repr(loss) for name, loss in error.row.parts.items()}}
        folder(place.run_folder).write_text(DIVERGED, json.dumps({**report, "batches": batches}, indent=1) + "\n")
    if left_out.rollbacks >= job.divergence.rollbacks:
        raise DivergedError(
            f"after {error.row.seen:,} pairs loss or gradient are not finite ({error}): {len(steps)} steps in a row, "
            f"after {left_out.rollbacks} rollbacks (divergence.skipped_in_a_row, divergence.rollbacks); first pair "
            f"{ids[0][steps[0]][0]}, all are in "
            f"{folder(place.run_folder).join(DIVERGED)}"
        ) from None
    again = {*left_out.steps, max(steps[0] - 1, 0), *steps}
    return LeftOut(tuple(sorted(again)), left_out.rollbacks + 1)
