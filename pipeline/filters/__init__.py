"""The filters: each keeps or drops a pair for reasons of its own, over a whole Arrow table at once.

A filter is one file. Its name is the file's name, in the job too: `- caption_length: {min_words: 3}`.
"""

from __future__ import annotations

from typing import Annotated, Protocol, get_args

import pyarrow as pa
from pydantic import BeforeValidator, Field

from pipeline.filters.address import Address
from pipeline.filters.caption_length import CaptionLength
from pipeline.filters.caption_letters import CaptionLetters
from pipeline.filters.caption_pattern import CaptionPattern
from pipeline.filters.caption_repetition import CaptionRepetition
from pipeline.filters.caption_words import CaptionWords
from pipeline.filters.columns_present import ColumnsPresent
from pipeline.filters.image_file import ImageFile
from pipeline.filters.image_shape import ImageShape
from pipeline.filters.image_size import ImageSize
from pipeline.filters.language import LanguageFilter
from pipeline.filters.score import Score
from pipeline.steps import step_reader

_Known = (
    Address
    | CaptionLength
    | CaptionLetters
    | CaptionPattern
    | CaptionRepetition
    | CaptionWords
    | ColumnsPresent
    | ImageFile
    | ImageShape
    | ImageSize
    | LanguageFilter
    | Score
)
FILTERS = get_args(_Known)

AnyFilter = Annotated[
    Annotated[_Known, Field(discriminator="name")],
    BeforeValidator(step_reader("filter", [kind.model_fields["name"].default for kind in FILTERS])),
]
"""One filter as a job file may write it."""


class Filter(Protocol):
    """What every filter is."""

    @property
    def name(self) -> str:
        """The name in the job."""

    @property
    def step(self) -> str:
        """The name of the step in funnel and ledger; no two filters of a job have the same."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The annotation columns that it reads."""

    @property
    def quantile(self) -> tuple[str, float] | None:
        """Column and share of the downloaded pairs whose threshold it has to be given; None: it needs none."""

    def with_threshold(self, value: float | None) -> Filter:
        """The filter to ask for reasons, with what it asked for in `quantile`; None where no pair has a score."""

    def ready(self) -> Filter:
        """Itself, checked before anything is fetched and with its paths as every machine means them."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """(pairs,) strings: why a pair is refused, null where it stays. `pairs` has every column but the picture."""
