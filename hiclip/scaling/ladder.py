"""The rungs of a study, made from its base job, and their bill: what will be trained is known before anything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hiclip.scaling.law import LawError, check_computes
from hiclip.scaling.scale_job import Changes, ScaleJob
from hiclip.training.cost import parameters
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_bill import hours
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import JobError, read_job


@dataclass(frozen=True)
class Rung:
    """One pretraining run of a study."""

    name: str
    """What makes it this rung, for people: `width 64, pairs 5,120`."""
    changes: Changes
    """The same as keys of the pretrain job."""
    job: PretrainJob

    @property
    def id(self) -> str:
        """Short name of everything in the job that can change its weights."""
        return self.job.fingerprint[:12]

    @property
    def group(self) -> str:
        """What it has in common with rungs that only see more or fewer pairs: `width 64`."""
        return _name({key: value for key, value in self.changes.items() if not key.startswith("schedule.")})

    @property
    def compute(self) -> float:
        """Training FLOPs of the whole run."""
        return training_flops(self.job, self.job.pairs)

    @property
    def device_hours(self) -> float | None:
        """Devices times hours by the base job's price; None without one."""
        needed = hours(self.job)
        return None if needed is None else needed * self.job.workers.count


@dataclass(frozen=True)
class Ladder:
    """All rungs of a study."""

    rungs: tuple[Rung, ...]
    """What the law is fitted to, in the order of the job."""
    held_out: Rung | None
    """What the law predicts."""

    @property
    def all(self) -> tuple[Rung, ...]:
        """The rungs and, last, the held-out one."""
        return (*self.rungs, *([self.held_out] if self.held_out else []))

    @property
    def compute(self) -> float:
        """Training FLOPs of the study."""
        return sum(rung.compute for rung in self.all)

    @property
    def device_hours(self) -> float | None:
        """Device-hours of the study; None if the base job has no price."""
        needed = [rung.device_hours for rung in self.all]
        return None if None in needed else sum(hours for hours in needed if hours is not None)


def read_ladder(job: ScaleJob) -> Ladder:
    """The checked rungs of a study. Raises JobError, which names the rung, or LawError if no law can come of them."""
    ladder = Ladder(
        tuple(_rung(job, changes, f"ladder rung {number}") for number, changes in enumerate(job.ladder.changes(), 1)),
        _rung(job, job.held_out, "held_out") if job.held_out is not None else None,
    )
    _check_differences(ladder.rungs)
    try:
        check_computes([rung.compute for rung in ladder.rungs], job.form)
    except LawError as error:
        raise LawError(f"ladder: {error}") from None
    _check_held_out(ladder)
    _check_budget(job, ladder)
    return ladder


def bill(job: ScaleJob, ladder: Ladder) -> Table:
    """What every rung and the whole study will see, compute and, where the base job has a price, take and cost."""
    table = Table(title=f"{job.name}: the bill", title_justify="left", show_footer=True, box=SIMPLE_HEAD)
    table.add_column("rung", footer="the study")
    priced = ladder.device_hours is not None
    footers = ["", *_amounts(ladder)] if priced else ["", *_amounts(ladder)][:-2]
    heads = ["parameters", "pairs", "FLOPs", "device h", "money"]
    for head, footer in zip(heads, footers, strict=False):
        table.add_column(head, footer=footer, justify="right", no_wrap=True)
    for rung in ladder.all:
        name = rung.name + (" (held out)" if rung is ladder.held_out else "")
        cells = [_shown(parameters(rung.job.model)), *_amounts(Ladder((rung,), None))]
        table.add_row(name, *(cells if priced else cells[:-2]))
    return table


def _rung(job: ScaleJob, changes: Changes, where: str) -> Rung:
    try:
        return Rung(_name(changes), changes, _variant(job, changes))
    except JobError as error:
        raise JobError(f"{'base.job' if str(error) == _mistake_of_base(job) else where}: {error}") from None


def _variant(job: ScaleJob, changes: Changes) -> PretrainJob:
    overrides = [f"{key}={json.dumps(value)}" for key, value in (job.base.overrides | changes).items()]
    return read_job(job.base.job, overrides, PretrainJob)


def _mistake_of_base(job: ScaleJob) -> str | None:
    """What is wrong with the base before any rung changes it, None if nothing is."""
    try:
        _variant(job, {})
    except JobError as error:
        return str(error)
    return None


def _name(changes: Changes) -> str:
    """`{model.width: 64, schedule.pairs: 5120}` becomes `width 64, pairs 5,120`; who computes it is not said."""
    said = {
        key.rsplit(".", 1)[-1].replace("_", " "): value
        for key, value in changes.items()
        if not key.startswith("workers")
    }
    return ", ".join(f"{key} {_shown(value)}" for key, value in said.items()) or "the base job"


def _shown(value: object) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.1f}M"


def _check_differences(rungs: Sequence[Rung]) -> None:
    """Refuses rungs that are one run or that a law of compute cannot tell apart."""
    for number, rung in enumerate(rungs):
        for earlier in rungs[:number]:
            if rung.id == earlier.id:
                raise JobError(f"ladder: '{earlier.name}' and '{rung.name}' are the same run; leave out one")
            if abs(rung.compute / earlier.compute - 1) < 1e-9:
                raise JobError(
                    f"ladder: '{earlier.name}' and '{rung.name}' have equal compute ({rung.compute:.4g} FLOPs): "
                    "a law of compute cannot tell them apart; change or leave out one"
                )


def _check_held_out(ladder: Ladder) -> None:
    largest = max(ladder.rungs, key=lambda rung: rung.compute)
    if ladder.held_out is not None and ladder.held_out.compute <= largest.compute:
        raise JobError(
            f"held_out: expected more compute than every rung ('{largest.name}': {largest.compute:.4g} FLOPs), "
            f"came {ladder.held_out.compute:.4g}: a law is tested by what lies beyond it"
        )


def _check_budget(job: ScaleJob, ladder: Ladder) -> None:
    if job.budget_flops is not None and ladder.compute > job.budget_flops:
        raise JobError(
            f"budget_flops: the study needs {ladder.compute:.4g} FLOPs, the budget is {job.budget_flops:.4g}; "
            f"its smallest rung needs {min(rung.compute for rung in ladder.all):.4g}"
        )
    if job.budget_hours is None:
        return
    if ladder.device_hours is None:
        raise JobError(f"budget_hours: {job.base.job} has no price, so its hours are unknown; give it one")
    if ladder.device_hours > job.budget_hours:
        raise JobError(
            f"budget_hours: the study needs {ladder.device_hours:,.3g} device-hours, the budget is {job.budget_hours:g}"
        )


def _amounts(ladder: Ladder) -> list[str]:
    """Pairs, FLOPs, device-hours and money of all rungs together."""
    jobs = [rung.job for rung in ladder.all]
    price, needed = jobs[0].price, ladder.device_hours
    money = "" if price is None or needed is None else f"{needed * price.per_hour:,.2f} {price.currency}"
    return [
        _shown(sum(job.pairs for job in jobs)),
        f"{ladder.compute:.3g}",
        "" if needed is None else f"{needed:,.3g}",
        money,
    ]
