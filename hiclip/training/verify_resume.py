"""Whether a job resumes exactly: some steps at a stretch, then the second half of them again from the checkpoint in
their middle, by other processes; what differs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hiclip.training.checkpoint import Checkpoint, checkpoint_name, local_files, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.saving import RunPlace
from pipeline.jobfile import JobError
from pipeline.storage import Folder, folder

STEPS = 8
"""Of the whole trial; fewer if the job has fewer."""
_TRIAL = "verify-resume"
_MAY_DIFFER = {"seconds", "wait_s", "gather_s", "checkpoint_s", "memory_bytes"}
"""What of a step takes time or memory."""


def verify_resume(
    job: PretrainJob, place: RunPlace, train: Callable[[PretrainJob, RunPlace], None]
) -> tuple[int, list[str]]:
    """-> steps that were repeated, and what is not the same bit for bit: losses, weights, the optimizer's memory.

    `train(job, place)` trains the job to the place's last step, from its newest checkpoint if there is one. Everything
    is written below `verify-resume` in the run's folder, and removed if nothing differs.
    """
    if job.steps < 2:
        raise JobError(f"schedule.pairs: expected two steps or more to resume between, came {job.schedule.pairs} pairs")
    steps = min(STEPS, job.steps)
    middle = steps // 2 * job.data.batch
    checkpoints = job.checkpoints.model_copy(update={"every_pairs": middle, "every_minutes": None, "keep": STEPS})
    job = job.model_copy(update={"checkpoints": checkpoints})
    trial = folder(place.run_folder).child(_TRIAL)
    trial.remove()
    stretch, again = (replace(place, run_folder=trial.child(name).root, steps=steps) for name in ("stretch", "again"))
    train(job, stretch)
    _copy(
        folder(stretch.run_folder).child(checkpoint_name(middle)),
        folder(again.run_folder).child(checkpoint_name(middle)),
    )
    train(job, again)
    ends = read_checkpoint(stretch.run_folder), read_checkpoint(again.run_folder)
    differences = list(_differences(*ends, middle))
    if not differences:
        trial.remove()
    return steps - middle // job.data.batch, differences


def _copy(source: Folder, target: Folder) -> None:
    names = sorted(source.names(), key=lambda name: name == "COMPLETE")  # last, as ever
    with local_files(source, names) as here:
        for name in names:
            target.upload(str(here / name), name)


def _differences(one: Checkpoint, other: Checkpoint, middle: int) -> Iterator[str]:
    begun, taken_up = ([row for row in end.history() if row.seen <= middle] for end in (one, other))
    if begun != taken_up:  # times and all: they come out of the checkpoint
        yield f"the second run did not go on from the checkpoint of {middle:,} pairs: its first steps are its own"
    for ours, theirs in zip(_after(one, middle), _after(other, middle), strict=True):
        values, repeated = vars(ours), vars(theirs)
        for key in sorted(set(values) - _MAY_DIFFER):
            if repr(values[key]) != repr(repeated[key]):  # two that are not numbers are the same here
                yield f"{key} after {ours.seen:,} pairs: {values[key]} at a stretch, {repeated[key]} resumed"
    yield from _unequal("weights", one.weights(), other.weights())
    yield from _unequal("optimizer", one.optimizer_state(), other.optimizer_state())


def _after(checkpoint: Checkpoint, middle: int) -> list[StepRow]:
    return [row for row in checkpoint.history() if row.seen > middle]


def _unequal(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            yield f"{what}: only one of the two has {name}"
        elif not torch.equal(ours[name], theirs[name]):
            apart = (ours[name].double() - theirs[name].double()).abs()
            count = int((apart > 0).sum())
            yield f"{what}: {name} by up to {apart.max():.3g} in {count:,} of {apart.numel():,} numbers"
