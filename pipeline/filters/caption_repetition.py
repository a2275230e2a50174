"""Keeps captions that do not say one thing over and over."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number
from pipeline.rules import FilterSettings, first_reason, word_counts


class CaptionRepetition(FilterSettings):
    """A greatest share of words that were said before in the same caption. CC12M asks for 0.2."""

    name: Literal["caption_repetition"] = "caption_repetition"
    max_share: Number = 0.5
    """Words that repeat an earlier one (letters' case aside), divided by all words, 0..1."""
    min_words: Annotated[int, Field(ge=2)] = 4
    """Shorter captions are never refused: "walkie talkie walkie" is a name."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """Counts distinct words a caption in one pass over all words of the table."""
        words = word_counts(pairs["caption"])
        # The repeated words are counted before they are divided: 3 / 10 is 0.3, and 1 - 7 / 10 is a little more.
        repeated = pc.subtract(words.cast(pa.float64()), _distinct_words(pairs["caption"]))
        share = pc.divide(repeated, pc.max_element_wise(words, 1).cast(pa.float64()))
        return first_reason(
            (pc.and_(pc.greater(share, self.max_share), pc.greater_equal(words, self.min_words)), "repeated_words")
        )


def _distinct_words(captions: pa.ChunkedArray) -> pa.Array:
    """(captions,) float64."""
    words = pc.utf8_split_whitespace(pc.utf8_lower(pc.utf8_trim_whitespace(captions.combine_chunks())))
    said = pa.table({"row": pc.list_parent_indices(words), "word": pc.list_flatten(words)})
    counts = said.group_by("row").aggregate([("word", "count_distinct")]).sort_by("row")
    # Every caption, an empty one too, splits into at least one word, so every row has its count.
    return counts["word_count_distinct"].combine_chunks().cast(pa.float64())
