"""Keeps captions by how many of their words are in a list: known words, nouns, names of classes, words nobody wants."""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.jobfile import Number
from pipeline.manifest import DatasetError
from pipeline.rules import FilterSettings, first_reason
from pipeline.storage import absolute, folder


class CaptionWords(FilterSettings):
    """Bounds on the words of a caption that are in a list; may stand in a job once for each list.

    Words are what blanks separate, in small letters and without the punctuation and symbols at their ends ("well-known"
    is one word, a dash between blanks is none), in the list as in the caption; inflected forms are other words. CC12M
    asks that all words are known (`min_share: 1`), DataComp for one name of a class (`min_words: 1`), COYO for a noun
    (`min_words: 1`) and no profanity (`max_words: 0`).
    """

    name: Literal["caption_words"] = "caption_words"
    list: Annotated[str, Field(min_length=1)]
    """Text file, a word or a phrase a line, UTF-8, maybe `.gz`; a path or s3://. Every process holds it in memory."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the file. With it the job says which words the dataset is made with, and other ones are refused."""
    min_words: Annotated[int, Field(ge=0)] = 0
    """Fewest times that a caption says words or phrases of the list."""
    max_words: Annotated[int, Field(ge=0)] | None = None
    """Most times."""
    min_share: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Least share of the caption's words that are single words of the list, 0..1; a caption without words has 0."""

    @model_validator(mode="after")
    def _has_bounds(self) -> CaptionWords:
        if not self.min_words and self.max_words is None and not self.min_share:
            raise ValueError("min_words, max_words, min_share: expected at least one of them")
        if self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(
                f"min_words, max_words: expected a min of at most max, came {self.min_words} and {self.max_words}"
            )
        return self

    @property
    def step(self) -> str:
        """`caption_words_` and the name of the list's file without its suffixes."""
        return f"caption_words_{PurePosixPath(self.list).name.partition('.')[0]}"

    def ready(self) -> CaptionWords:
        """Looks into the list, so that a fault in it is said before anything is fetched."""
        path = absolute(self.list)
        if self.sha256 is not None and (found := folder(path).sha256()) != self.sha256:
            raise DatasetError(f"{path}: expected the file with sha256 {self.sha256[:16]}..., found {found[:16]}...")
        _phrases(path)
        return self.model_copy(update={"list": path})

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`too_few_listed_words`, `too_many_listed_words` or `too_small_share_listed`; by whole columns."""
        rows, words = _words(pairs["caption"])
        phrases = _phrases(self.list)
        single = _said(rows, words, 1, phrases[1]) if 1 in phrases else np.zeros(0, np.int64)
        longer = [_said(rows, words, length, listed) for length, listed in phrases.items() if length > 1]
        all_words, of_list, count = (
            np.bincount(found, minlength=pairs.num_rows) for found in (rows, single, np.concatenate([single, *longer]))
        )
        share = of_list / np.maximum(all_words, 1)
        rules = [
            (pa.array(count < self.min_words), "too_few_listed_words"),
            (pa.array(share < self.min_share), "too_small_share_listed"),
        ]
        if self.max_words is not None:
            rules.insert(1, (pa.array(count > self.max_words), "too_many_listed_words"))
        return first_reason(*rules)


def _words(texts: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """(words,) row of every word and (words,) the words of all texts, in order."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    split = pc.utf8_split_whitespace(pc.utf8_lower(texts))
    words = pc.replace_substring_regex(pc.list_flatten(split), r"^[\pP\pS]+|[\pP\pS]+$", "")
    are = pc.not_equal(words, "")
    return np.asarray(pc.list_parent_indices(split).filter(are), np.int64), words.filter(are)


def _said(rows: np.ndarray, words: pa.Array, length: int, listed: pa.Array) -> np.ndarray:
    """(found,) row of every place at which one of the phrases of `length` words is said."""
    places = max(len(words) - length + 1, 0)
    said = words.slice(0, places)
    for after in range(1, length):
        said = pc.binary_join_element_wise(said, words.slice(after, places), " ")
    first, last = rows[:places], rows[length - 1 :]
    found: np.ndarray = first[np.asarray(pc.is_in(said, value_set=listed)) & (first == last)]
    return found


@lru_cache(maxsize=16)
def _phrases(path: str) -> dict[int, pa.Array]:
    """The phrases of a list by their number of words; read once a process."""
    packed = folder(path).read_bytes("")
    try:
        content = gzip.decompress(packed) if path.lower().endswith(".gz") else packed
        lines = unicodedata.normalize("NFC", content.decode("utf-8-sig")).split("\n")  # as captions are
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: expected a text file, a word a line: {error}") from None
    rows, words = _words(pa.array(lines, pa.string()))
    lengths = np.bincount(rows, minlength=len(lines))
    if not len(words):
        raise DatasetError(f"{path}: expected a text file, a word a line; found no word")
    found = {}
    for length in sorted({int(one) for one in lengths} - {0}):
        starts = (np.cumsum(lengths) - lengths)[lengths == length]
        phrases = words.take(pa.array(starts))
        for after in range(1, length):
            phrases = pc.binary_join_element_wise(phrases, words.take(pa.array(starts + after)), " ")
        found[length] = pc.unique(phrases)
    return found
