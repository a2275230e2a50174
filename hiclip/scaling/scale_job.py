"""ScaleJob: the keys of a scaling study. `ladder` checks what needs the base job, `law` what needs results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from hiclip.evaluation.measure import METRICS
from hiclip.evaluation.result import LOWER_IS_BETTER, UNITS, Result
from hiclip.evaluation.sets import SetSettings
from hiclip.scaling.robust_fit import Form
from pipeline.jobfile import Job, Number, Settings

Changes = dict[str, Any]
"""Dotted keys of a pretrain job and their values, as on a command line."""


class BaseSettings(Settings):
    """The pretrain job that every rung is a variant of."""

    job: Annotated[str, Field(min_length=1)]
    """Path of the pretrain job's file, from the current directory."""
    overrides: Changes = Field(default_factory=dict)
    """Keys changed in every rung: `{precision: bf16, engine: {name: plain}}`."""


class LadderSettings(Settings):
    """The rungs: every combination of some axes, or a list."""

    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values of each key; a rung for each combination: `{model.width: [64, 128], schedule.pairs: [5120, 10240]}`."""
    rungs: list[Changes] = Field(default_factory=list)
    """Or each rung by its own changes."""

    @model_validator(mode="after")
    def _one_of_both(self) -> LadderSettings:
        if bool(self.axes) == bool(self.rungs):
            raise ValueError("expected either axes or rungs, came " + ("both" if self.axes else "neither"))
        return self

    def changes(self) -> list[Changes]:
        """The changes of each rung, in the order of the job."""
        if self.rungs:
            return list(self.rungs)
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]


class ErrorSettings(Settings):
    """The number that the law is about."""

    set: SetSettings
    """Evaluation set that every rung is asked, see `hiclip.evaluation.sets`."""
    metric: str
    """A metric of the set. The error is the metric itself where lower is better (`loss`, in nats, is smooth even at
    tiny budgets, where shares are still at chance), else 1 - metric."""

    @field_validator("metric")
    @classmethod
    def _is_one(cls, metric: str) -> str:
        if metric not in METRICS:
            nearest = get_close_matches(metric, METRICS, n=1, cutoff=0.5)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(METRICS)}"
            raise ValueError(f"no such metric; {hint}")
        if metric not in LOWER_IS_BETTER and metric in UNITS:
            raise ValueError(f"{metric} is in {UNITS[metric]} and has no error; choose a share or the loss")
        return metric

    @property
    def unit(self) -> str:
        """What the error is measured in."""
        return UNITS[self.metric] if self.metric in LOWER_IS_BETTER else f"1 - {self.metric}"

    @property
    def what(self) -> str:
        """The error in words, with its unit."""
        if self.metric in LOWER_IS_BETTER:
            return f"{self.metric.replace('_', ' ')} on {self.set.name} ({self.unit})"
        return f"error on {self.set.name} ({self.unit})"

    def of(self, results: Sequence[Result]) -> tuple[float, float, float]:
        """(error, low, high): the error in the results of a checkpoint, with its interval over the set's pictures."""
        result = next(one for one in results if one.metric == self.metric)
        if self.metric in LOWER_IS_BETTER:
            return result.value, result.low, result.high
        return 1 - result.value, 1 - result.high, 1 - result.low


class BootstrapSettings(Settings):
    """How the bands of the law are drawn."""

    draws: Annotated[int, Field(ge=100)] = 2000
    """Tables drawn and refitted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws."""


class ScaleJob(Job):
    """A scaling study: short runs of a ladder, the law through them, and a larger run that the law predicts."""

    base: BaseSettings
    ladder: LadderSettings
    held_out: Changes | None = None
    """A rung larger than all others: predicted from them, and only then run. Null: none."""
    error: ErrorSettings
    form: Form = "power"
    """power: error = a·C^b; power_with_floor: error = E + a·C^b."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    concurrent: Annotated[int, Field(ge=1)] = 1
    """Most rungs that run at a time; each takes what the base job's `workers` ask for."""
    budget_flops: Annotated[Number, Field(gt=0)] | None = None
    """Training FLOPs of the whole study, held-out rung included, above which it is refused before it starts."""
    budget_hours: Annotated[Number, Field(gt=0)] | None = None
    """Device-hours of the whole study, by the base job's `price`, above which it is refused before it starts."""
