"""Keeps captions that are neither a stub nor an essay."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.rules import FilterSettings, first_reason, word_counts


class CaptionLength(FilterSettings):
    """Bounds on words and characters. CC12M and COYO ask for 3 to 256 words, DataComp for over 2 and 5 characters."""

    name: Literal["caption_length"] = "caption_length"
    min_words: Annotated[int, Field(ge=0)] = 1
    """Fewest words, told apart by blanks."""
    max_words: Annotated[int, Field(ge=1)] | None = 256
    """Most words; null: any number."""
    min_characters: Annotated[int, Field(ge=0)] = 1
    """Fewest characters."""
    max_characters: Annotated[int, Field(ge=1)] | None = 1000
    """Most characters; null: any number."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """Words are what blanks separate, characters are Unicode code points."""
        words, characters = word_counts(pairs["caption"]), pc.utf8_length(pairs["caption"])
        # What is compared with a bound of null is null, and refuses nothing.
        return first_reason(
            (pc.less(words, self.min_words), "too_few_words"),
            (pc.greater(words, self.max_words), "too_many_words"),
            (pc.less(characters, self.min_characters), "too_few_characters"),
            (pc.greater(characters, self.max_characters), "too_many_characters"),
        )
