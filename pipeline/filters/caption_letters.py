"""Keeps captions that are made of letters: no file names of cameras, dates, prices, or text that lost its encoding."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.jobfile import Number
from pipeline.rules import FilterSettings, first_reason


class CaptionLetters(FilterSettings):
    """A least share of letters."""

    name: Literal["caption_letters"] = "caption_letters"
    min_share: Number = 0.6
    """Letters of any script and their marks, divided by all characters that are not blanks, 0..1."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """Counts with Unicode's own classes, so that Greek or Hindi is as much text as English."""
        letters = pc.count_substring_regex(pairs["caption"], r"[\pL\pM]")
        visible = pc.count_substring_regex(pairs["caption"], r"[^\s]")
        share = pc.divide(letters.cast(pa.float64()), pc.max_element_wise(visible, 1).cast(pa.float64()))
        return first_reason((pc.less(share, self.min_share), "too_few_letters"))
