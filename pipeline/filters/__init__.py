"""The filters: each keeps or drops a pair for reasons of its own, over a whole Arrow table at once.

A filter is one file. Its name is the file's name, in the job too: `- caption_length: {min_words: 3}`.
"""

from __future__ import annotations

from typing import Annotated, Protocol, get_args

import pyarrow as pa
from pydantic import BeforeValidator, Field

from pipeline.filters.caption_length import CaptionLength
from pipeline.filters.caption_letters import CaptionLetters
from pipeline.filters.caption_repetition import CaptionRepetition
from pipeline.filters.columns_present import ColumnsPresent
from pipeline.filters.image_shape import ImageShape
from pipeline.filters.image_size import ImageSize
from pipeline.filters.language import LanguageFilter
from pipeline.steps import step_reader

_Known = CaptionLength | CaptionLetters | CaptionRepetition | ColumnsPresent | LanguageFilter | ImageSize | ImageShape
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
        """The name of the step in job, funnel and ledger."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The annotation columns that it reads."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """(pairs,) strings: why a pair is refused, null where it stays. `pairs` has every column but the picture."""
