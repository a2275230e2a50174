"""SearchSettings: the keys of a search over the hyperparameters of one rung, and how far its findings are carried.

Two hyperparameters, drawn log-uniformly by a seeded generator and thinned out by ASHA (Li et al. 2020), and no model of
the objective (Optuna's or another): with two axes and a few dozen trials such a model has little to learn from, and it
draws from what happened to end first, so that the same job would try other values after a kill.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.jobfile import Number, Settings

RATE, DECAY = "optimizer.learning_rate", "optimizer.weight_decay"
"""The keys of a pretrain job that are searched."""

Transfer = Literal["same", "inverse_width"]


class JudgedBySettings(Settings):
    """What a trial of a search is judged by."""

    loss_share: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """On the way: training loss averaged over the newest steps, this share of the whole run; smooth where an error on
    an evaluation set is still that of chance."""
    at_end: Literal["error", "loss"] = "error"
    """Among the trials that reach the end, the best is the one with the lowest error of the study (equal ones: loss),
    or with the lowest training loss."""


class SearchSettings(Settings):
    """Which values of one rung's hyperparameters are tried, when a trial is stopped, and what other rungs take over."""

    rung: dict[str, Any] | None = None
    """Which rung is searched, as changes of the base job; null: the ladder's cheapest."""
    learning_rate: tuple[Number, Number]
    """Lowest and highest rate tried, `[1e-4, 1e-2]`; drawn evenly on a log scale."""
    weight_decay: tuple[Number, Number] | None = None
    """Lowest and highest decay tried, drawn in the same way; null: the rung's own."""
    trials: Annotated[int, Field(ge=2)]
    """Values tried; more of them are the same ones and further ones."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials that are worse than most others were at the same point; none lets all reach the end."""
    reduction_factor: Annotated[Number, Field(gt=1)] = 2.0
    """At each look one in so many goes on, and the next look is after so many times the pairs."""
    grace_share: Annotated[Number, Field(gt=0, lt=1)] = 0.25
    """Share of the run before the first look. By then healthy trials must be below log(batch) nats: collapsed ones stay
    there from their first steps on. Early looks favour low rates, too, for high ones pay off as the rate falls."""
    judged_by: JudgedBySettings = JudgedBySettings()
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws."""
    transfer: Transfer = "inverse_width"
    """How the best rate moves to rungs of another width: as it is, or by the inverse ratio of the image towers' widths
    (as Adam's rate of hidden matrices in muP, Yang et al. 2022). Weight decay stays as it is."""

    @field_validator("learning_rate", "weight_decay")
    @classmethod
    def _a_range(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and not 0 < ends[0] < ends[1] < float("inf"):
            raise ValueError(f"expected two numbers above 0, the lower one first, came {list(ends)}")
        return ends

    @model_validator(mode="after")
    def _rung_leaves_free_what_is_searched(self) -> SearchSettings:
        for key, ends in ((RATE, self.learning_rate), (DECAY, self.weight_decay)):
            if ends is not None and key in (self.rung or {}):
                raise ValueError(f"rung: expected changes without {key}, which is searched, came {self.rung}")
        return self
