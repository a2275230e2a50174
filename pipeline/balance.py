"""MetaCLIP's balancing: what is common is thinned out, what is rare stays, by the words that captions are made of.

Xu et al. 2023 ("Demystifying CLIP Data", arXiv 2309.16671) and their code: a caption is matched with the entries of a
metadata list, an entry that n captions of the pool have is given p = min(1, t / n), and a caption stays when the draw
of any of its entries succeeds: P(stays) = 1 - prod(1 - p). Here a draw is a keyed hash of (pair, entry), so that it
depends on nothing else: not on the order of the pairs, the number of workers, or other draws.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.jobfile import Settings
from pipeline.keyed_hash import mixed
from pipeline.manifest import DatasetError
from pipeline.pair import pair_numbers
from pipeline.pool import REFUSED
from pipeline.storage import absolute, folder

READS = ("pair_id", "caption")
"""What `refused` looks at."""
_WRAPPED = ",.;:?!`"
_SHOWN = 4  # entries in a detail
_LINE_END = re.compile(r"\r?\n")  # splitlines would also cut entries at marks such as U+2028


class Balance(Settings):
    """How often an entry may be heard. MetaCLIP: 20,000 for its 400 million pairs, 170,000 for 2.5 billion."""

    entries: Annotated[str, Field(min_length=1)]
    """The metadata, a path or s3://: text with an entry a line, or a JSON list of them; `.gz` is unpacked."""
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """Of the file. With it other entries are refused."""
    most_per_entry: Annotated[int, Field(gt=0)] = 20_000
    """t: pairs that an entry alone would keep, on the average; rarer entries keep all of theirs."""
    seed: int = 0
    """Of the draws."""

    def ready(self) -> Balance:
        """Reads the entries once, so that a fault in them is said before anything is fetched."""
        path = absolute(self.entries)
        if self.sha256 is not None and (found := folder(path).sha256()) != self.sha256:
            raise DatasetError(f"{path}: expected the file with sha256 {self.sha256[:16]}..., found {found[:16]}...")
        read_entries(path)
        return self.model_copy(update={"entries": path})


class Entries(NamedTuple):
    """A metadata list, made for matching."""

    texts: Sequence[str]
    numbers: dict[str, int]
    """Entry to its place in `texts`."""
    words: dict[str, tuple[int, ...]]
    """First word of entries to how many words they have."""


@lru_cache(maxsize=2)
def read_entries(path: str) -> Entries:
    """The entries of a file, once a process; DatasetError in one line if it holds none or is no list of texts."""
    content = folder(path).read_bytes("")
    try:
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8")
        found = json.loads(text) if path.removesuffix(".gz").endswith(".json") else _LINE_END.split(text)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of entries: {str(error).splitlines()[0]}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise DatasetError(f"{path}: expected a list of texts")
    return make_entries(found, path)


def make_entries(found: Sequence[str], where: str = "entries") -> Entries:
    """Entries without blank ones and repetitions; DatasetError where none is left."""
    texts = list(dict.fromkeys(entry for entry in found if entry.strip()))
    if not texts:
        raise DatasetError(f"{where}: expected entries, found none")
    words: dict[str, set[int]] = {}
    for entry in texts:
        first, *rest = entry.split(" ")
        words.setdefault(first, set()).add(1 + len(rest))
    by_first = {first: tuple(sorted(lengths)) for first, lengths in words.items()}
    return Entries(texts, {entry: number for number, entry in enumerate(texts)}, by_first)


def matched(caption: str, entries: Entries) -> set[int]:
    """The entries in a caption: as MetaCLIP's substring search of ` entry ` in the caption with its marks spaced apart.

    A text between blanks is found in another where its words, as single blanks part them, are a run of the other's.
    """
    words = _spaced(caption).split(" ")
    found = set()
    for place, first in enumerate(words):
        for length in entries.words.get(first, ()):
            number = entries.numbers.get(first if length == 1 else " ".join(words[place : place + length]))
            if number is not None:
                found.add(number)
    return found


def _spaced(caption: str) -> str:
    for mark in _WRAPPED:
        if mark in caption:
            caption = caption.replace(mark, f" {mark} ")
    return caption.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def matches(captions: pa.ChunkedArray, entries: Entries) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(matches,) place of the caption, ascending, and (matches,) its entry; some 100,000 captions a second."""
    found = [sorted(matched(caption, entries)) for caption in captions.to_pylist()]
    at = np.repeat(np.arange(len(found)), [len(one) for one in found])
    return at, np.array([number for one in found for number in one], np.int64)


def entry_counts(pairs: pa.Table, path: str) -> npt.NDArray[np.int64]:
    """(entries,): how many of the captions have each entry of the file."""
    entries = read_entries(path)
    return np.bincount(matches(pairs["caption"], entries)[1], minlength=len(entries.texts))


def refused(pairs: pa.Table, settings: Balance, counts: npt.NDArray[np.int64]) -> pa.Table:
    """The pairs (`row` and READS) that do not stay, as REFUSED: `no_entry`, or `balanced_away` with the rarest entries.

    counts (entries,): captions of the whole pool that have each entry.
    """
    entries = read_entries(settings.entries)
    at, number = matches(pairs["caption"], entries)
    chances = np.minimum(1.0, settings.most_per_entry / np.maximum(counts, 1))
    draws = mixed(pair_numbers(pairs["pair_id"])[at], _entry_keys(settings.entries, settings.seed)[number])
    # 53 bits: what a float tells apart
    lucky = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53 < chances[number]
    has_entry, stays = np.zeros(pairs.num_rows, np.bool_), np.zeros(pairs.num_rows, np.bool_)
    has_entry[at] = True
    stays[at[lucky]] = True
    out = np.flatnonzero(~stays)
    begins = np.searchsorted(at, np.arange(pairs.num_rows + 1))
    details = [_rarest(number[begins[row] : begins[row + 1]], counts, entries) for row in out]
    columns = {
        "row": pairs["row"].take(out),
        "reason": pa.array(np.where(has_entry[out], "balanced_away", "no_entry"), pa.string()),
        "detail": pa.array(details, pa.string()),
        "of": pa.nulls(len(out), pa.int64()),
    }
    return pa.table(columns).cast(REFUSED)


@lru_cache(maxsize=2)
def _entry_keys(path: str, seed: int) -> npt.NDArray[np.uint64]:
    texts = read_entries(path).texts
    hashes = (hashlib.blake2b(f"{seed}/{entry}".encode(), digest_size=8, person=b"hiclip.balance").digest()
              for entry in texts)  # fmt: skip
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def _rarest(numbers: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], entries: Entries) -> str | None:
    """`dog 1,200, red 80,000`: the entries that gave the pair its best chances."""
    ordered = sorted(numbers.tolist(), key=lambda number: (counts[number], number))[:_SHOWN]
    return ", ".join(_told(entries.texts[number], int(counts[number])) for number in ordered) or None


def _told(entry: str, count: int) -> str:
    return f"{entry[:60]} {count:,}"
