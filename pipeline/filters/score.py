"""Keeps pairs by a number that a model gave them: how well picture and caption fit, how safe or pretty a picture is."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.jobfile import Number
from pipeline.manifest import DatasetError
from pipeline.rules import FilterSettings, first_reason

_Bound = Annotated[Number, Field(allow_inf_nan=False)] | None


class Score(FilterSettings):
    """Bounds on a column of numbers; may stand in a job once for each column.

    A bound is rounded to the column's own precision, so that a score stored as 0.7 in 32 bits passes `min: 0.7`. LAION
    asks for a CLIP score (ViT-B/32) of at least 0.3 or 0.28, DataComp for the top 0.3 (ViT-L/14), COYO for two unsafe
    scores of at most 0.5.
    """

    name: Literal["score"] = "score"
    column: Annotated[str, Field(min_length=1)]
    """The annotation column, of numbers: `clip_score`."""
    min: _Bound = None
    """Pairs with at least this stay."""
    max: _Bound = None
    """Pairs with at most this stay."""
    top_share: Annotated[Number, Field(gt=0, le=1)] | None = None
    """In place of `min`: the share, 0..1, of all downloaded pairs that have a score, with the highest, whatever other
    filters say. The threshold is one of the scores, and pairs that equal it stay."""
    keep_null: bool = False
    """Whether pairs without a score, or with one that is not a number (NaN), stay."""

    @model_validator(mode="after")
    def _has_bounds(self) -> Score:
        if self.min is None and self.max is None and self.top_share is None:
            raise ValueError("min, max, top_share: expected one of them, or min and max")
        if self.top_share is not None and not self.min is self.max is None:
            raise ValueError("top_share: expected neither min nor max beside it")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min, max: expected a min of at most max, came {self.min:g} and {self.max:g}")
        return self

    @property
    def step(self) -> str:
        """`score_` and the column."""
        return f"score_{self.column}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def quantile(self) -> tuple[str, float] | None:
        """Column and share, where a threshold has to be looked up."""
        return None if self.top_share is None else (self.column, self.top_share)

    def with_threshold(self, value: float | None) -> Score:
        """`value` as the least score in place of `top_share`; None where no pair has a score."""
        return self.model_copy(update={"min": value, "top_share": None})

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`no_score`, `score_too_low`, `score_too_high`. DatasetError if the column holds no numbers."""
        assert self.top_share is None, "the threshold of `top_share` was not looked up"
        scores = pairs[self.column]
        if not (pa.types.is_floating(scores.type) or pa.types.is_integer(scores.type)):
            raise DatasetError(f"filters.score: expected numbers in the column {self.column}, found {scores.type}")
        precision = scores.type if pa.types.is_floating(scores.type) else pa.float64()
        rules = [] if self.keep_null else [(pc.is_null(scores, nan_is_null=True), "no_score")]
        if self.min is not None:
            rules.append((pc.less(scores, pa.scalar(self.min).cast(precision)), "score_too_low"))
        if self.max is not None:
            rules.append((pc.greater(scores, pa.scalar(self.max).cast(precision)), "score_too_high"))
        return first_reason(*rules) if rules else pa.nulls(pairs.num_rows, pa.string())


def threshold_place(share: float, scores: int) -> int:
    """Where, from 0, the threshold of a `top_share` stands among so many (at least one) scores in descending order.

    As DataComp counts (`get_threshold` of its baselines/apply_filter.py): the pairs before that place, and it.
    """
    return min(int(scores * share), scores - 1)
