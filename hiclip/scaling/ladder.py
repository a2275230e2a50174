"""The rungs of a study, made from its base job: what will be trained is known, and what it costs, before anything is.

Rungs that differ in their pairs alone can share a trunk (`ladder.cooldown_share`): on a rate that is constant until the
cool-down they are the same run up to there, bit for bit, since order, views and rate are arithmetic on pairs seen. The
longest rung of a trunk is trained whole and keeps a checkpoint wherever another branches off; the others are trained
over their cool-downs only (as Hägele et al. 2024 do it for language models).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hiclip.scaling.chosen_rungs import chosen_rungs
from hiclip.scaling.law import LawError, check_computes
from hiclip.scaling.next_rung import Candidate
from hiclip.scaling.scale_job import Changes, ScaleJob
from hiclip.scaling.transfer import Best, transferred
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_bill import hours
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import JobError, read_job, resolved


@dataclass(frozen=True)
class Rung:
    """One pretraining run of a study."""

    name: str
    """What makes it this rung, for people: `width 64, pairs 5,120`."""
    changes: Changes
    """The same as keys of the pretrain job, without those that make the method."""
    job: PretrainJob
    method: str = ""
    """The method's name in the job; empty where there is one alone."""
    branch: int | None = None
    """Pairs seen where its cool-down begins; None without a trunk."""

    @property
    def id(self) -> str:
        """Short name of everything in the job that can change its weights."""
        return self.job.fingerprint[:12]

    @property
    def full_name(self) -> str:
        """The name with the method's before it."""
        return f"{self.method}: {self.name}" if self.method else self.name

    @property
    def group(self) -> str:
        """What it has in common with rungs that only see more or fewer pairs, or have another seed: `width 64`."""
        own = {key: value for key, value in self.changes.items() if not key.startswith("schedule.") and key != "seed"}
        return _name(own) if own else self.method or _name(own)

    @cached_property
    def trunk(self) -> str | None:
        """Equal for rungs that are the same run until their cool-downs; None without a trunk."""
        if self.branch is None:
            return None
        content = {key: value for key, value in resolved(self.job).items() if key not in self.job.not_the_result}
        schedule = {key: value for key, value in content["schedule"].items() if key not in ("pairs", "cooldown_pairs")}
        return hashlib.sha256(json.dumps(content | {"schedule": schedule}, sort_keys=True).encode()).hexdigest()

    @property
    def compute(self) -> float:
        """Training FLOPs of the whole run."""
        return self.compute_from(0)

    def compute_from(self, seen: int) -> float:
        """Training FLOPs of what is left of the run after `seen` pairs."""
        return training_flops(self.job, self.job.pairs - seen)

    def device_hours_from(self, seen: int) -> float | None:
        """Devices times hours of what is left after `seen` pairs, by the base job's price; None without one."""
        needed = hours(self.job)
        return None if needed is None else needed * self.job.workers.count * (1 - seen / self.job.pairs)


@dataclass(frozen=True)
class Ladder:
    """All rungs of a study."""

    rungs: tuple[Rung, ...]
    """What the laws are fitted to, method by method in the order of the job."""
    held_out: Rung | None
    """What the law predicts."""

    @property
    def all(self) -> tuple[Rung, ...]:
        """The rungs and, last, the held-out one."""
        return (*self.rungs, *([self.held_out] if self.held_out else []))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the first one first; one empty name where there is no choice."""
        return tuple(dict.fromkeys(rung.method for rung in self.rungs))

    def of(self, method: str) -> tuple[Rung, ...]:
        """The method's rungs."""
        return tuple(rung for rung in self.rungs if rung.method == method)

    @cached_property
    def waves(self) -> tuple[tuple[Rung, ...], ...]:
        """The rungs in the order in which they can be run: those of a wave do not wait for each other."""
        first = tuple(rung for rung in self.rungs if self._source(rung) is None)
        later = tuple(rung for rung in self.rungs if self._source(rung) is not None)
        return tuple(wave for wave in (first, later) if wave)

    def start(self, rung: Rung) -> int:
        """Pairs that the rung takes over from the trunk, where all goes well."""
        source = self._source(rung)
        if source is None or source.branch is None or rung.branch is None:
            return 0
        return min(source.branch, rung.branch)

    def trunk_of(self, rung: Rung) -> tuple[Rung, ...]:
        """The rungs that share the rung's trunk, itself included."""
        return tuple(one for one in self.all if rung.trunk is not None and one.trunk == rung.trunk)

    def branches(self, rung: Rung) -> tuple[int, ...]:
        """Pairs seen after which a checkpoint of the rung is of use to others of its trunk, ascending."""
        points = {one.branch for one in self.trunk_of(rung)}
        own = rung.branch or 0
        return tuple(sorted(point for point in points if point is not None and 0 < point <= own))

    def own_compute(self, rung: Rung) -> float:
        """Training FLOPs that the rung adds to the study."""
        return rung.compute_from(self.start(rung))

    @property
    def compute(self) -> float:
        """Training FLOPs of the study, what a trunk has in common counted once."""
        return sum(self.own_compute(rung) for rung in self.all)

    @property
    def device_hours(self) -> float | None:
        """Device-hours of the study; None if the base job has no price."""
        needed = [rung.device_hours_from(self.start(rung)) for rung in self.all]
        return None if None in needed else sum(hours for hours in needed if hours is not None)

    def _source(self, rung: Rung) -> Rung | None:
        """The rung whose checkpoint this one starts from: the longest of its trunk, unless that is itself."""
        trunk = [one for one in self.rungs if rung.trunk is not None and one.trunk == rung.trunk]
        if not trunk:
            return None
        longest = max(trunk, key=lambda one: one.job.pairs)
        return None if longest is rung else longest


def candidates(ladder: Ladder, groups: Collection[str]) -> list[Candidate]:
    """Rungs that could be run next: each model of these `groups` of the first method on as many pairs as the smallest
    rung, twice as many, and so on to four times the largest; those that were not run yet. Without a trunk to go on
    from, and not on a dataset that is smaller than another's."""
    rungs = [rung for rung in ladder.of(ladder.methods[0]) if rung.group in groups]
    if not rungs:
        return []
    most_unique = max(rung.job.data.unique_pairs or math.inf for rung in rungs)
    rungs = [rung for rung in rungs if (rung.job.data.unique_pairs or math.inf) == most_unique]
    least, most = min(rung.job.pairs for rung in rungs), 4 * max(rung.job.pairs for rung in ladder.all)
    found: dict[tuple[str, int], Candidate] = {}
    known = {(rung.group, rung.job.pairs) for rung in ladder.all}
    for rung in rungs:
        flops = training_flops(rung.job, 1)
        pairs = least
        while pairs <= most:
            if (rung.group, pairs) not in known:
                name = f"{rung.group}, pairs {shown(pairs)}"
                found.setdefault((rung.group, pairs), Candidate(name, flops * pairs, flops * pairs))
            pairs *= 2
    return list(found.values())


def read_ladder(job: ScaleJob, found: Mapping[str, Best] | None = None) -> Ladder:
    """The checked rungs of a study. Raises JobError, which names the rung, or LawError if no law can come of them.

    found: by method, what a search has found: it gives way to what a rung or its method says itself. Rungs that are one
    with it are trained once.
    """
    rungs = _rungs(job, found or {})
    if found:
        rungs = tuple({(rung.method, rung.id): rung for rung in reversed(rungs)}.values())[::-1]
    ladder = Ladder(rungs, _held_out(job, found or {}))
    for method in ladder.methods:
        _check_differences(job, ladder.of(method))
        _check_carries_a_law(job, ladder.of(method))
    _check_methods(ladder)
    _check_held_out(ladder)
    return ladder


def _rungs(job: ScaleJob, found: Mapping[str, Best]) -> tuple[Rung, ...]:
    return tuple(
        _rung(job, changes, method, found, f"ladder rung {number}{f' of {method}' if method else ''}")
        for method in job.methods or {"": {}}
        for number, changes in enumerate(job.ladder.changes(), 1)
    )


def _held_out(job: ScaleJob, found: Mapping[str, Best]) -> Rung | None:
    if job.held_out is None:
        return None
    return _rung(job, job.held_out, next(iter(job.methods), ""), found, "held_out")


def searched_rungs(job: ScaleJob, ladder: Ladder) -> tuple[Rung, ...]:
    """Of each method, the rung whose hyperparameters are searched; none without a search."""
    if job.search is None:
        return ()
    chosen = job.search.rung
    if chosen is None:
        return tuple(min(ladder.of(method), key=lambda rung: rung.compute) for method in ladder.methods)
    return tuple(_rung(job, chosen, method, {}, "search.rung") for method in ladder.methods)


def _rung(job: ScaleJob, changes: Changes, method: str, found: Mapping[str, Best], where: str) -> Rung:
    try:
        variant = variant_of(job, method, changes)
        under: Changes = {}
        if method in found and job.search is not None:
            own = job.methods.get(method, {})
            under = transferred(found[method], variant, job.search.transfer)
            under = {key: value for key, value in under.items() if key not in own}
            variant = variant_of(job, method, under | changes)
        share = job.ladder.cooldown_share
        if share is None:
            return Rung(_name(changes), changes, variant, method)
        cooldown = max(1, round(share * variant.steps)) * variant.data.batch
        trunk = {"schedule.kind": "constant", "schedule.cooldown_pairs": cooldown}
        clash = next((key for key in trunk if key in changes | job.base.overrides), None)
        if clash is not None:
            raise JobError(f"{clash}: ladder.cooldown_share makes this key; leave one of them out")
        variant = variant_of(job, method, under | changes | trunk)
        return Rung(_name(changes), changes, variant, method, variant.pairs - cooldown)
    except JobError as error:
        raise JobError(f"{'base.job' if str(error) == _mistake_of_base(job) else where}: {error}") from None


def variant_of(job: ScaleJob, method: str, changes: Changes) -> PretrainJob:
    """The base job with a method's keys and then these; JobError if the two contradict each other."""
    own = job.methods.get(method, {})
    clash = next((key for key in own if key in changes and own[key] != changes[key]), None)
    if clash is not None:
        raise JobError(
            f"{clash}: is {changes[clash]!r} here and {own[clash]!r} in methods.{method}; say it in one place"
        )
    # Base, method, rung: a section that the base replaces whole is replaced before single keys of it are said.
    base = {key: value for key, value in job.base.overrides.items() if key not in own | changes}
    overrides = [f"{key}={json.dumps(value)}" for key, value in (base | own | changes).items()]
    return read_job(job.base.job, overrides, PretrainJob)


def _mistake_of_base(job: ScaleJob) -> str | None:
    """What is wrong with the base before any rung changes it, None if nothing is."""
    try:
        read_job(job.base.job, [f"{key}={json.dumps(value)}" for key, value in job.base.overrides.items()], PretrainJob)
    except JobError as error:
        return str(error)
    return None


def _name(changes: Changes) -> str:
    """`{model.width: 64, schedule.pairs: 5120}` becomes `width 64, pairs 5,120`; who computes it is not said. Keys that
    end alike are said whole."""
    ends = [key.rsplit(".", 1)[-1] for key in changes]
    said = {
        (end if ends.count(end) == 1 else key).replace("_", " "): value
        for (key, value), end in zip(changes.items(), ends, strict=True)
        if not key.startswith("workers")
    }
    return ", ".join(f"{key} {shown(value)}" for key, value in said.items()) or "the base job"


def shown(value: object) -> str:
    """A value of a job as people read it: 5,120, or 12.5M from a million on."""
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.1f}M"


def _check_differences(job: ScaleJob, rungs: Sequence[Rung]) -> None:
    """Refuses rungs that are one run or that a law of compute cannot tell apart."""
    for number, rung in enumerate(rungs):
        for earlier in rungs[:number]:
            if rung.id == earlier.id:
                raise JobError(f"ladder: '{earlier.name}' and '{rung.name}' are the same run; leave out one")
            seeds = {key: value for key, value in rung.changes.items() if key != "seed"}
            again = seeds == {key: value for key, value in earlier.changes.items() if key != "seed"}
            # Other seeds of one rung show its noise; other values of something else would be taken for noise.
            if job.selection == "all" and not again and abs(rung.compute / earlier.compute - 1) < 1e-9:
                raise JobError(
                    f"ladder: '{earlier.name}' and '{rung.name}' have equal compute ({rung.compute:.4g} FLOPs): "
                    "a law of compute cannot tell them apart; change or leave out one, or let the better one stand "
                    "for both by selection: frontier"
                )


def _check_carries_a_law(job: ScaleJob, rungs: Sequence[Rung]) -> None:
    computes = sorted({float(f"{rung.compute:.9g}") for rung in rungs})
    try:
        check_computes(computes, job.form)
        if job.selection.startswith("bin"):
            # Whatever the errors will be, as many bins are filled as now; which rung of a bin stands is not known yet.
            chosen = chosen_rungs(computes, [1.0] * len(computes), job.selection, job.bins)
            check_computes([one.compute for one in chosen], job.form)
    except LawError as error:
        raise LawError(f"ladder: {error}") from None


def _check_methods(ladder: Ladder) -> None:
    """Refuses two methods that are one."""
    by_id: dict[str, Rung] = {}
    for rung in ladder.rungs:
        other = by_id.setdefault(rung.id, rung)
        if other is not rung:
            raise JobError(
                f"methods: {other.method} and {rung.method} train the same run for '{rung.name}': "
                "each needs a key that makes it this method"
            )


def _check_held_out(ladder: Ladder) -> None:
    held_out = ladder.held_out
    if held_out is None:
        return
    largest = max(ladder.of(held_out.method), key=lambda rung: rung.compute)
    if held_out.compute <= largest.compute:
        raise JobError(
            f"held_out: expected more compute than every rung ('{largest.name}': {largest.compute:.4g} FLOPs), "
            f"came {held_out.compute:.4g}: a law is tested by what lies beyond it"
        )
