"""What a report tells of all pairs, added up a span at a time: counts for its bars, and a few rows to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pool import Pool
from pipeline.rules import word_counts

KEPT_SHOWN = 64
REFUSED_SHOWN = 8
"""Of each reason."""
SHOWN = ("pair_id", "caption", "source", "original_width", "original_height", "width")
"""Columns of a row that is shown, beside those of the language where they are there, and its verdict."""
LANGUAGE = ("language", "language_score")
_UNSAFE = "unsafe_score"
"""0 to 1, where an annotation gives it: how likely the picture is not safe for work."""

_WORDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 50)
_SIDES_PX = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


@dataclass
class Facts:
    """Of the pairs that stay: counts by name of the bar. Of those and of the refused: the first ones, by pair_id."""

    words: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    rated: int = 0
    """Pairs with an `unsafe_score`."""
    unsafe: int = 0
    """Of those, with one of 0.5 or more."""
    kept: list[pa.Table] = field(default_factory=list)
    refused: dict[tuple[str, str], list[pa.Table]] = field(default_factory=dict)
    """(step, reason) -> rows that have a picture."""

    def __iadd__(self, other: Facts) -> Facts:
        """Adds the facts of rows that come after these."""
        for name in ("words", "sides", "sources", "languages"):
            getattr(self, name).update(getattr(other, name))
        self.rated, self.unsafe = self.rated + other.rated, self.unsafe + other.unsafe
        self.kept = _first([*self.kept, *other.kept], KEPT_SHOWN)
        for end, rows in other.refused.items():
            self.refused[end] = _first([*self.refused.get(end, ()), *rows], REFUSED_SHOWN)
        return self


def facts_of(pool: Pool, span: int) -> tuple[Facts, np.ndarray]:
    """The facts of a span, and (pairs,) the rows of it that stay."""
    there = {name for place in pool.annotations for name in place.columns.names}
    language = [name for name in LANGUAGE if name in there]
    rows = pool.judged(span, [*SHOWN, *language, *({_UNSAFE} & there)])
    kept = rows.filter(pc.is_null(rows["step"])).combine_chunks()
    shorter = pc.min_element_wise(kept["original_width"], kept["original_height"])
    found = Facts(
        words=_binned(word_counts(kept["caption"]), _WORDS),
        sides=_binned(shorter, _SIDES_PX),
        sources=_counted(kept["source"]),
        languages=_counted(kept["language"]) if "language" in language else Counter(),
        kept=[kept.slice(0, KEPT_SHOWN)],
    )
    if _UNSAFE in there:
        scores = kept[_UNSAFE].drop_null()
        found.rated, found.unsafe = len(scores), pc.sum(pc.greater_equal(scores, 0.5)).as_py() or 0
    fetched = rows.filter(pc.and_(pc.is_valid(rows["step"]), pc.is_valid(rows["width"]))).combine_chunks()
    for end in fetched.group_by(["step", "reason"]).aggregate([]).to_pylist():
        mask = pc.and_(pc.equal(fetched["step"], end["step"]), pc.equal(fetched["reason"], end["reason"]))
        found.refused[end["step"], end["reason"]] = [fetched.filter(mask).slice(0, REFUSED_SHOWN)]
    return found, np.asarray(kept["row"])


def _first(tables: Sequence[pa.Table], most: int) -> list[pa.Table]:
    return [pa.concat_tables(tables).slice(0, most).combine_chunks()] if tables else []


def bin_names(edges: Sequence[int]) -> list[str]:
    """Below the first edge, from each edge to the next, and from the last on."""
    between = [f"{low}" if high - low == 1 else f"{low}+" for low, high in pairwise(edges)]
    return [f"<{edges[0]}", *between, f"{edges[-1]}+"]


def _binned(values: pa.Array, edges: Sequence[int]) -> Counter[str]:
    places = np.searchsorted(np.array(edges), np.asarray(values), side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    return Counter({name: int(count) for name, count in zip(bin_names(edges), counts, strict=True) if count})


def _counted(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({one["values"] or "none": one["counts"] for one in pc.value_counts(values).to_pylist()})


def bars(counts: Counter[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """(name, count) in the order of `names`, empty ends left out."""
    used = [place for place, name in enumerate(names) if counts[name]]
    return [(name, counts[name]) for name in names[used[0] : used[-1] + 1]] if used else []


def word_bars(facts: Facts) -> list[tuple[str, int]]:
    """Captions by their number of words."""
    return bars(facts.words, bin_names(_WORDS))


def side_bars(facts: Facts) -> list[tuple[str, int]]:
    """Pictures by their shorter side in px."""
    return bars(facts.sides, bin_names(_SIDES_PX))


def most_frequent(counts: Counter[str], most: int = 9) -> list[tuple[str, int]]:
    """The most frequent values, and the rest as one."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in ordered[most:])
    return ordered[:most] + ([("others", rest)] if rest else [])


def total_facts(parts: Iterable[Facts]) -> Facts:
    """The facts of all, which come in the order of pair_id."""
    whole = Facts()
    for one in parts:
        whole += one
    return whole
