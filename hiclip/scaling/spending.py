"""What a study has spent so far, kept in its folder by the trials themselves, so that a budget holds over kills,
retries and restarts: what was trained twice was paid twice.

A trial looks at the sum of all before it goes on, and stops where its next look could come too late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from hiclip.scaling.study_bill import Budget
from hiclip.scaling.study_stop import StudyStoppedError, stop_is_asked
from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import EndedEarlyError, Settings
from pipeline.storage import Folder

_FOLDER = "spent"
_EVERY_S = 2.0
_START_S = 30.0  # that a trial may take until its first step, where no other has shown it
_UNHEARD_S = 1.0  # that workers may train until a wish to stop has reached them: their steps are asked for every 0.5 s


class BudgetSpentError(EndedEarlyError):
    """A trial was stopped because the study's budget does not allow it to go on."""


class Spent(Settings):
    """What was spent by one rung or by all."""

    flops: float = 0.0
    """Training FLOPs, of every attempt."""
    device_s: float = 0.0
    """Seconds of every attempt in which it held its devices, times their number."""
    start_s: float = 0.0
    """Seconds that the newest attempt held them until its first step was done; 0: it has done none."""
    end_s: float = 0.0
    """Seconds that it held them after its last step; 0: it has not come there."""
    unseen_flops: float = 0.0
    """FLOPs that it may train before it looks at what others have spent."""


def spent(place: Folder) -> dict[str, Spent]:
    """What everything in the study at `place` has spent, by name: a rung's id, or that of a trial of the search."""
    own = place.child(_FOLDER)
    return {name.removesuffix(".json"): _read(own, name) for name in own.names(suffix=".json")}


@dataclass(frozen=True)
class Purse:
    """What a study may spend, and on what it means to."""

    budget: Budget
    planned: Mapping[str, float]
    """FLOPs of everything that the study will train, by name; together within the budget."""
    concurrent: int
    """Trials that may be spending at the same time."""

    def flops_left(self, known: Mapping[str, Spent]) -> float:
        """FLOPs that the budget allows beyond the plan, after all that was trained twice or is no longer planned."""
        if self.budget.flops is None:
            return math.inf
        over = sum(max(0.0, one.flops - self.planned.get(name, 0.0)) for name, one in known.items())
        return self.budget.flops * (1 + 1e-9) - sum(self.planned.values()) - over

    def device_s_left(self, known: Mapping[str, Spent]) -> float:
        """Device-seconds that are left of the budget."""
        if self.budget.device_hours is None:
            return math.inf
        return self.budget.device_hours * 3600 - sum(one.device_s for one in known.values())


class Meter:
    """Counts what one trial spends, and stops it where the study's budget ends."""

    def __init__(self, place: Folder, name: str, job: PretrainJob, purse: Purse) -> None:
        """BudgetSpentError if nothing is left. `name`: a rung's id, or that of a trial of the search."""
        self._place, self._name, self._purse = place.child(_FOLDER), name, purse
        self._study, self._pairs = place, job.pairs
        self._devices, self._step_flops = job.workers.count, training_flops(job, job.data.batch)
        self._before = _read(self._place, f"{name}.json")
        self._here = job.engine.name == "plain"
        # Workers of Ray Train may wait long for their machines, which nobody pays; this process has its own already.
        self._held_from = time.monotonic() if self._here else None
        self._held_s = 0.0
        self._batch, self._left = job.data.batch, job.steps
        self._flops, self._slowest_s, self._fastest_s = 0.0, 0.0, math.inf
        self._start_s, self._end_s, self._last_step = 0.0, 0.0, 0.0
        self._looked_at = time.monotonic()
        self._others = self._look()
        known = [one.start_s for one in (*self._others.values(), self._before)]
        self._check(max(known, default=0.0) or _START_S)
        self.note()

    @property
    def now(self) -> Spent:
        """Of this trial, its earlier attempts included."""
        return Spent(
            flops=self._before.flops + self._flops,
            device_s=self._before.device_s + self._held * self._devices,
            start_s=self._start_s or self._before.start_s,
            end_s=self._end_s or self._before.end_s,
            unseen_flops=self._unseen_flops,
        )

    def on_start(self) -> None:
        """Hears that the trial's workers have their devices; once more after they were lost."""
        if self._held_from is None:
            self._held_from = time.monotonic()

    def on_row(self, row: StepRow) -> None:
        """Takes a step that was done. BudgetSpentError if the budget does not allow another, and there is one."""
        self.on_start()
        self._flops += self._step_flops
        self._left = -((row.seen - self._pairs) // self._batch)
        self._start_s, self._last_step = self._start_s or self._held, time.monotonic()
        self._slowest_s, self._fastest_s = max(self._slowest_s, row.seconds), min(self._fastest_s, row.seconds)
        if self._over or time.monotonic() - self._looked_at >= _EVERY_S:
            self.note()
            self._others, self._looked_at = self._look(), time.monotonic()
        if self._left > 0:
            self._check(_EVERY_S + self._slowest_s + (0 if self._here else _UNHEARD_S))

    def on_trained(self) -> None:
        """Hears that training has ended: workers have let go of their devices, whatever is done with the checkpoint."""
        if not self._here:
            self._let_go()

    def end(self) -> None:
        """Writes down what was spent in all; nothing more will be, unseen or not."""
        self._let_go()
        self._left = 0
        self.note()

    def _let_go(self) -> None:
        if self._held_from is not None:
            self._end_s = time.monotonic() - self._last_step if self._last_step and self._left <= 0 else 0.0
            self._held_s, self._held_from = self._held, None

    @property
    def _held(self) -> float:
        """Seconds of this attempt in which it held its devices."""
        return self._held_s + (0.0 if self._held_from is None else time.monotonic() - self._held_from)

    @property
    def _unseen_flops(self) -> float:
        """FLOPs until this trial's next look: of a step, and of those that workers take before they hear of a stop."""
        steps = 1 if self._here or math.isinf(self._fastest_s) else 2 + math.ceil(_UNHEARD_S / self._fastest_s)
        return self._step_flops * min(steps, max(self._left, 0))

    def note(self) -> None:
        """Writes down what was spent up to now."""
        self._place.write_text(f"{self._name}.json", self.now.model_dump_json() + "\n")

    @property
    def _over(self) -> bool:
        """Whether the next steps are more than was planned: from there on others are to know of every step."""
        return self._before.flops + self._flops + self._unseen_flops > self._purse.planned.get(self._name, 0.0) * (
            1 + 1e-9
        )

    def _look(self) -> dict[str, Spent]:
        if stop_is_asked(self._study):
            self.note()
            raise StudyStoppedError("the study was asked to stop")
        return {name: one for name, one in spent(self._study).items() if name != self._name}

    def _check(self, unseen_s: float) -> None:
        """`unseen_s`: how long this trial and others may spend before somebody looks again."""
        known = self._others | {self._name: self.now}
        others = self._purse.concurrent - 1
        # Others may be over their plans too, with larger steps than this one's.
        unseen = self._unseen_flops + others * max(one.unseen_flops for one in known.values())
        if self._over and unseen > self._purse.flops_left(known):
            self._stop("FLOPs", self._purse.budget.flops, sum(one.flops for one in known.values()))
        unseen_s += max(one.end_s for one in known.values())
        if unseen_s * (1 + others) * self._devices > self._purse.device_s_left(known):
            hours = sum(one.device_s for one in known.values()) / 3600
            self._stop("device-hours", self._purse.budget.device_hours, hours)

    def _stop(self, unit: str, budget: float | None, total: float) -> None:
        self.note()
        raise BudgetSpentError(f"the budget is spent, {total:.4g} of {budget:.4g} {unit}; it was not trained further")


def _read(own: Folder, name: str) -> Spent:
    if not own.exists(name):
        return Spent()
    try:
        return Spent.model_validate_json(own.read_text(name))
    except ValidationError:  # written by nobody but a Meter, whole or not at all
        raise BudgetSpentError(f"{own.join(name)}: cannot be read, so nobody knows what was spent") from None
