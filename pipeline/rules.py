"""How a filter puts its rules together, over whole Arrow columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


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
