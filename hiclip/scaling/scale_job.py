"""ScaleJob: the keys of a scaling study. `ladder` checks what needs the base job, `law` what needs results."""

from __future__ import annotations

import itertools
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from hiclip.evaluation.bootstrap import FloatArray
from hiclip.evaluation.measure import METRICS
from hiclip.evaluation.result import LOWER_IS_BETTER, UNITS
from hiclip.evaluation.sets import SetSettings
from hiclip.scaling.chosen_rungs import Selection
from hiclip.scaling.robust_fit import Form
from hiclip.scaling.search_settings import SearchSettings
from pipeline.jobfile import Job, Number, Settings

Measured = TypeVar("Measured", float, FloatArray)

Changes = dict[str, Any]
"""Dotted keys of a pretrain job and their values, as on a command line."""


def _flat(changes: Changes) -> Changes:
    """`{model: {width: 64}}` as `{model.width: 64}`: a mapping would replace all other keys of the section."""
    found: Changes = {}

    def take(path: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                take(f"{path}.{key}", inner)
        elif path in found:
            raise ValueError(f"expected each key once, came {path} twice")
        else:
            found[path] = value

    for key, value in changes.items():
        take(key, value)
    return found


FlatChanges = Annotated[Changes, AfterValidator(_flat)]
"""The same, key by key: what is not said stays as it is."""

METHOD_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
"""A method's name is part of files' names."""


class BaseSettings(Settings):
    """The pretrain job that every rung is a variant of."""

    job: Annotated[str, Field(min_length=1)]
    """Path of the pretrain job's file, from the current directory."""
    overrides: Changes = Field(default_factory=dict)
    """Keys changed in every rung: `{precision: bf16, engine: {name: plain}}`."""


class LadderSettings(Settings):
    """The rungs: every combination of some axes, or a list; each of them for every method."""

    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values of each key; a rung for each combination: `{model.width: [64, 128], schedule.pairs: [5120, 10240]}`."""
    rungs: list[FlatChanges] = Field(default_factory=list)
    """Or each rung by its own changes."""
    cooldown_share: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """The rate is constant after the warm-up and falls linearly over this last share of a rung's pairs, so that rungs
    that differ in their pairs alone have their beginning in common: it is trained once, by the longest of them, and
    the others branch off from it. Null: every rung is trained from its start, on the base job's schedule."""

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

    def of(self, value: Measured) -> Measured:
        """The error that a value of the metric is, or (n,) values."""
        return value if self.metric in LOWER_IS_BETTER else 1 - value


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
    methods: dict[Annotated[str, Field(pattern=METHOD_NAME)], FlatChanges] = Field(default_factory=dict)
    """Methods that are compared, each by the keys that make it: every rung is trained with each and each has a law of
    its own. The first is the one that the others are compared with: `{hiclip: {}, clip: {model.image_hierarchy: false,
    model.text_hierarchy: false}}`. Empty: the base job's alone."""
    held_out: FlatChanges | None = None
    """A rung larger than all others, of the first method: predicted from them, and only then run. Null: none."""
    error: ErrorSettings
    form: Form = "power"
    """power: error = a·C^b; power_with_floor: E + a·C^b; shifted_power: E + a·(C + C0)^b. The law of size and pairs
    has a floor E wherever the rungs are enough to find one."""
    selection: Selection = "all"
    """The rungs that the law of compute stands on: all; frontier, those that no other beats with no more compute; bins,
    the best of each of `bins` equal parts of log compute; bin_middles, these at the middles of their parts."""
    bins: Annotated[int, Field(ge=2)] = 5
    """Parts of log compute, for `selection: bins`."""
    budgets: tuple[Annotated[Number, Field(gt=0)], ...] = ()
    """FLOPs of single runs for which the best size and number of pairs is told; empty: the largest rung's, ten times
    and a hundred times that."""
    search: SearchSettings | None = None
    """Search for the best learning rate and weight decay on one rung, before the others are run with them; null: the
    base job's."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    concurrent: Annotated[int, Field(ge=1)] = 1
    """Most rungs that run at a time; each takes what the base job's `workers` ask for."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a rung that failed is tried again; it goes on from its newest checkpoint."""
    budget_flops: Annotated[Number, Field(gt=0)] | None = None
    """Training FLOPs of the whole study, held-out rung, search and repeated work included: a study that needs more is
    refused before it starts, and what comes to need more while it runs is stopped."""
    budget_hours: Annotated[Number, Field(gt=0)] | None = None
    """Device-hours likewise: before the start by the base job's `price`, then by the clock."""
    budget_money: Annotated[Number, Field(gt=0)] | None = None
    """Money likewise, in the currency of the base job's `price`."""
