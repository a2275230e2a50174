"""How a filter puts its rules together, over whole Arrow columns, and what a filter is unless it says otherwise."""

from __future__ import annotations

from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.jobfile import Settings


class FilterSettings(Settings):
    """A filter that needs nothing but the metadata of the pairs that it is asked about."""

    name: str
    """The filter's name in a job: the name of its file."""

    @property
    def step(self) -> str:
        """The name in funnel and ledger; a filter that may stand in a job several times says which one it is."""
        return self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """No annotation."""
        return ()

    @property
    def quantile(self) -> tuple[str, float] | None:
        """Nothing has to be looked up in all pairs."""
        return None

    def with_threshold(self, value: float | None) -> Self:
        """Itself: there is no threshold to take."""
        return self

    def ready(self) -> Self:
        """Itself: it reads no file."""
        return self


def first_reason(*rules: tuple[pa.Array | pa.ChunkedArray, str]) -> pa.Array:
    """(pairs,) strings: the reason of the first rule whose mask is true, null where none is.

    Each rule is a boolean column, true where a pair is refused (null counts as false), and its reason.
    """
    masks = [_one_chunk(mask) for mask, _ in rules]
    reasons = [pa.scalar(reason) for _, reason in rules]
    return pc.case_when(pc.make_struct(*masks, field_names=[reason for _, reason in rules]), *reasons)


def word_counts(captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """(captions,) int32: words, as blanks separate them; 0 for a caption of blanks."""
    captions = pc.utf8_trim_whitespace(_one_chunk(captions))
    words = pc.list_value_length(pc.utf8_split_whitespace(captions))
    return pc.if_else(pc.equal(pc.utf8_length(captions), 0), pa.scalar(0, pa.int32()), words)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
