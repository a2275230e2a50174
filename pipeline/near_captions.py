"""Finds captions that say nearly the same: MinHash proposes, the shared runs of words decide.

A caption is the set of its runs of words, and two captions are as similar as the sets are by Jaccard: what they share,
divided by all that they have. MinHash (Broder 1997) is written here in whole numbers over numpy, which gives the same
signatures on every machine. A bad signature can only overlook a pair, for what shares a key is compared exactly.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number, Settings
from pipeline.keyed_hash import Numbers, mixed
from pipeline.nearness import RANKED, Places, ranks_of
from pipeline.pair import pair_numbers

_FOUND = 0.99
"""Probability at which two captions that are just similar enough share a key."""
_SHARES_A_BAND = 0.4
"""What the probability that two such captions agree in one band is brought near to: higher takes fewer keys a caption
but lets more captions meet that are not alike."""
_MOST_ROWS = 16


class NearCaptions(Settings):
    """When two captions count as one. Of several the one with the largest picture stays, then the smallest pair_id.

    Captions are compared in lower case and without punctuation. At exactly `min_similarity` 99 of 100 pairs are found,
    above it more (at 0.8: 0.99 of those at 0.8, 0.9999 of those at 0.9), below it none is.
    """

    min_similarity: Annotated[Number, Field(ge=0.5, le=1)] = 0.8
    """Least share of the runs of words of two captions that both have."""
    shingle_words: Annotated[int, Field(ge=1, le=8)] = 2
    """Words in a run; a caption of fewer words is one run. With 2, one more word at the end makes a caption near to
    another of 5 words or more, one changed word within it only from 19 words on; with 1, from 9 words on."""

    @property
    def rows(self) -> int:
        """Hashes in a band: all of them must agree."""
        if self.min_similarity == 1:
            return 1
        return min(max(round(math.log(_SHARES_A_BAND) / math.log(self.min_similarity)), 1), _MOST_ROWS)

    @property
    def bands(self) -> int:
        """Keys of a caption: captions meet that agree in one band or more."""
        agree = self.min_similarity**self.rows
        return 1 if agree == 1 else math.ceil(math.log(1 - _FOUND) / math.log(1 - agree))


CAPTION_COLUMNS = (*RANKED, "caption")
"""What `caption_keys` reads."""

_AT_ONCE = 16_384
_WORDS = 4
"""Words of 64 bits that stand for a set where sets are told apart without reading them."""
_WORDLESS = r"[^\pL\pM\pN]+"
# Scripts written without blanks: each character counts as a word.
_NO_BLANKS = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_HELPS = 0.7
"""A cut helps where neither half has more than this share of the group: two such halves have fewer pairs than it."""


def caption_keys(pairs: pa.Table, settings: NearCaptions) -> pa.Table:
    """Rows (key, rank, pair, same, caption), `settings.bands` for each pair whose caption has a word."""
    sets = [_Shingles(pairs["caption"].slice(start, _AT_ONCE), settings.shingle_words)
            for start in range(0, pairs.num_rows, _AT_ONCE)]  # fmt: skip
    empty = np.empty((settings.bands, 0), np.uint64)
    keys = np.concatenate([empty, *(one.bands(settings.bands, settings.rows) for one in sets)], axis=1)
    same = np.concatenate([np.empty(0, np.uint64), *(one.hashes() for one in sets)])
    has_words = np.concatenate([np.empty(0, np.bool_), *(one.sizes > 0 for one in sets)])
    row = np.tile(np.flatnonzero(has_words), settings.bands)
    columns = {
        "key": keys[:, has_words].reshape(-1),
        "rank": ranks_of(pairs)[row],
        "pair": pair_numbers(pairs["pair_id"])[row],
        "same": same[row],
        # The captions of a task, several times over, may be more than 32-bit offsets can count.
        "caption": pairs["caption"].cast(pa.large_string()).combine_chunks().take(pa.array(row)),
    }
    return pa.table(columns)


class CaptionsAlike:
    """Compares rows of `caption_keys`."""

    def __init__(self, rows: pa.Table, settings: NearCaptions) -> None:
        self._least = settings.min_similarity
        key, same = np.asarray(rows["key"], np.uint64), np.asarray(rows["same"], np.uint64)
        # Most captions meet no other, and many stand under several keys: a set is made once, and only where needed.
        _, at, rows_of_key = np.unique(key, return_inverse=True, return_counts=True)
        meets = np.flatnonzero(rows_of_key[at] > 1)
        _, first, group = np.unique(same[meets], return_index=True, return_inverse=True)
        self._set = np.full(len(key), -1, np.int64)
        self._set[meets] = group
        captions = rows["caption"].combine_chunks().take(pa.array(meets[first]))
        self._sets = _Shingles(captions, settings.shingle_words)
        self._size, self._bits = np.zeros(len(key), np.int32), np.zeros((len(key), _WORDS), np.uint64)
        self._size[meets], self._bits[meets] = self._sets.sizes[group], self._sets.bits()[group]
        self._folded = np.bitwise_or.reduce(self._bits, axis=1)

    def __call__(self, left: Places, right: Places) -> npt.NDArray[np.bool_]:
        """(pairs,): whether the captions at `left` and at `right` are similar enough."""
        # Every bit in which two sets differ stands for another run that only one of them has. Where these are too many
        # already, as among a shop's captions of one pattern, nothing more is asked.
        both = self._size[left] + self._size[right]
        most = both * ((1 - self._least) / (1 + self._least)) + 1e-6
        alike = np.bitwise_count(self._folded[left] ^ self._folded[right]) <= most
        close = np.flatnonzero(alike)
        apart = np.bitwise_count(self._bits[left[close]] ^ self._bits[right[close]]).sum(axis=1, dtype=np.int32)
        alike[close] = apart <= most[close]
        close = close[alike[close]]
        for start in range(0, len(close), _AT_ONCE):
            some = close[start : start + _AT_ONCE]
            shared = self._sets.shared(self._set[left[some]], self._set[right[some]])
            alike[some] = shared / (both[some] - shared) >= self._least
        return np.asarray(alike)

    def split(self, places: Places) -> tuple[Places, Places] | None:
        """Cut at the middle size; of two alike sets the larger is at most 1 / min_similarity times as large."""
        sizes = self._size[places]
        reach = math.sqrt(self._least) - 1e-9
        low, high = places[sizes * reach <= np.median(sizes)], places[sizes >= np.median(sizes) * reach]
        return (low, high) if max(len(low), len(high)) < _HELPS * len(places) else None


class _Shingles:
    """The sets of runs of words of some captions."""

    def __init__(self, captions: pa.ChunkedArray | pa.Array, words: int) -> None:
        found, caption = _runs(captions, words)
        order = np.lexsort((found, caption))
        found, caption = found[order], caption[order]
        again = np.zeros(len(found), np.bool_)
        again[1:] = (found[1:] == found[:-1]) & (caption[1:] == caption[:-1])
        self._runs = found[~again]
        """By caption and hash."""
        self.sizes = np.bincount(caption[~again], minlength=len(captions))
        """(captions,)."""
        self._starts = np.cumsum(self.sizes) - self.sizes
        _, self._dense = np.unique(self._runs, return_inverse=True)

    def bands(self, bands: int, rows: int) -> Numbers:
        """(bands, captions): of each band the hash of its number and of its `rows` least hashed runs; 0 of no runs."""
        filled = np.flatnonzero(self.sizes)
        found = np.zeros((bands, len(self.sizes)), np.uint64)
        for band in range(bands if len(filled) else 0):
            least = [self._least(np.uint64(band * rows + row), filled) for row in range(rows)]
            found[band, filled] = mixed(np.full(len(filled), band, np.uint64), *least)
        return found

    def _least(self, number: np.uint64, filled: Places) -> Numbers:
        factor, more = mixed(number, np.uint64(1)) | np.uint64(1), mixed(number, np.uint64(2))
        with np.errstate(over="ignore"):
            return np.minimum.reduceat(self._runs * factor + more, self._starts[filled])

    def hashes(self) -> Numbers:
        """(captions,): a hash of each set; 0 of an empty one."""
        filled = np.flatnonzero(self.sizes)
        found = np.zeros(len(self.sizes), np.uint64)
        if len(filled):
            folded = [np.add.reduceat(mixed(self._runs, np.uint64(salt)), self._starts[filled]) for salt in (3, 4)]
            found[filled] = mixed(*folded)
        return found

    def bits(self) -> Numbers:
        """(captions, _WORDS): bits that stand for runs; a run sets one, by a hash."""
        filled = np.flatnonzero(self.sizes)
        found = np.zeros((len(self.sizes), _WORDS), np.uint64)
        number = mixed(self._runs, np.uint64(5))
        bit = np.uint64(1) << (number >> np.uint64(58))
        for word in range(_WORDS if len(filled) else 0):
            in_word = np.where(number % np.uint64(_WORDS) == word, bit, np.uint64(0))
            found[filled, word] = np.bitwise_or.reduceat(in_word, self._starts[filled])
        return found

    def shared(self, left: Places, right: Places) -> npt.NDArray[np.int64]:
        """(pairs,): runs that both of two sets have."""
        pairs = np.tile(np.arange(len(left)), 2)
        sets = np.concatenate([left, right])
        sizes = self.sizes[sets]
        ends = np.cumsum(sizes)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self._starts[sets] - ends + sizes, sizes)
        # A run that stands twice under a pair stands in both of its sets.
        both = np.repeat(pairs, sizes) * (len(self._dense) + 1) + self._dense[at]
        both.sort()
        twice = both[1:][both[1:] == both[:-1]]
        return np.bincount(twice // (len(self._dense) + 1), minlength=len(left))


def _runs(captions: pa.ChunkedArray | pa.Array, words: int) -> tuple[Numbers, Places]:
    """A hash of every run of words, and the number of its caption."""
    if isinstance(captions, pa.ChunkedArray):
        captions = captions.combine_chunks()
    text = pc.utf8_lower(captions.cast(pa.large_string()))
    if not pc.all(pc.string_is_ascii(text)).as_py():
        text = pc.replace_substring_regex(text, _NO_BLANKS, r" \1 ")
    text = pc.split_pattern(pc.replace_substring_regex(text, _WORDLESS, " "), " ")
    caption = np.asarray(pc.list_parent_indices(text), np.int64)
    flat = pc.list_flatten(text)
    kept = np.asarray(pc.not_equal(flat, ""))
    caption, known = caption[kept], flat.filter(pa.array(kept)).dictionary_encode()
    number = np.asarray(known.indices)
    word = np.array([_hashed(one) for one in known.dictionary.to_pylist()], np.uint64)[number]
    place = np.arange(len(word))
    counts = np.bincount(caption, minlength=len(captions))
    begin = np.repeat(np.cumsum(counts) - counts, counts)
    length = np.minimum(counts[caption], words)
    starts = np.flatnonzero(place + length <= begin + counts[caption])
    run = mixed(length[starts].astype(np.uint64))
    for further in range(words):
        longer = length[starts] > further
        run[longer] = mixed(run[longer], word[starts[longer] + further])
    return run, caption[starts]


def _hashed(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")
