"""Which rows repeat a better one: the rule "refused only beside one that stays", for rows that are told apart by keys.

Read from the best row to the worst, a row is refused when it is alike to one that stays. So no chain of likenesses ever
carries a row away. Done here in rounds, so that rows may lie in many tasks: every row asks its keys for the best row
that it is alike to and that is not refused; where that one stays the row is refused, where that one turns out to be
refused the row asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Places = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.uint64]


class Comparison(Protocol):
    """Compares rows of a table, which it was made of."""

    def __call__(self, left: Places, right: Places) -> npt.NDArray[np.bool_]:
        """(pairs,): whether the rows at `left` and at `right` are alike."""

    def split(self, places: Places) -> tuple[Places, Places] | None:
        """Two parts of many rows, in order, such that rows that are alike share one; None where that does not help."""


Alike = Callable[[pa.Table], Comparison]
"""From a table to the comparison of its rows."""

EDGE = np.dtype([("rank", np.uint64), ("best", np.uint64), ("pair", np.uint64)])
"""A row, the best row that it is alike to, and that one's pair_id as a number."""

RANKED = ("pair_id", "original_width", "original_height")
"""Columns that say which of several rows is the best."""

_ROW_BITS = 37
_MOST_PIXELS = (1 << (64 - _ROW_BITS)) - 1
_FEW = 64
"""Rows that are compared each with each; more are split before."""
_UNDECIDED, _REFUSED, _STAYS = 0, 1, 2


class Among(NamedTuple):
    """A later round's question."""

    searching: Ranks
    """Rows that ask, ascending."""
    refused: Ranks
    """Rows that are out, ascending."""


def ranks(pixels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Ranks:
    """(rows,): smaller is better, more pixels before fewer (up to 134 million), then the earlier row.

    It holds the row itself (`row_of`), of up to 137 billion.
    """
    fewer = _MOST_PIXELS - np.minimum(pixels, _MOST_PIXELS)
    return fewer.astype(np.uint64) << np.uint64(_ROW_BITS) | rows.astype(np.uint64)


def ranks_of(pairs: pa.Table) -> npt.NDArray[np.uint64]:
    """(pairs,): `ranks` of pairs by RANKED and `row`."""
    sides = (np.asarray(pairs[name], np.int64) for name in ("original_width", "original_height"))
    width, height = sides
    return ranks(width * height, np.asarray(pairs["row"]))


def row_of(rank: Ranks) -> npt.NDArray[np.int64]:
    """The rows that `ranks` was given."""
    return (rank & np.uint64((1 << _ROW_BITS) - 1)).astype(np.int64)


def best_alike(met: pa.Table, alike: Alike, among: Among | None) -> npt.NDArray[np.void]:
    """EDGEs of the rows of `met` (key, rank, pair, same, ...) that are alike to a better row with the same key.

    A row that stands under several keys may have several edges. Rows with one `same` are alike, and compared once.
    """
    key, rank = np.asarray(met["key"], np.uint64), np.asarray(met["rank"], np.uint64)
    asks = np.ones(len(rank), np.bool_)
    if among is not None:
        asks = _in(rank, among.searching)
        keep = np.flatnonzero(np.isin(key, np.unique(key[asks])) & ~_in(rank, among.refused))
        met, key, rank, asks = met.take(keep), key[keep], rank[keep], asks[keep]
    first, at = _first_of_same(key, np.asarray(met["same"], np.uint64), rank)
    found = _best_earlier(met.take(first), key[first], rank[first], alike, _any_of(asks, at, len(first)))
    # A row beside its equals: what the first of them is alike to, else that first one.
    best = np.where(found[at] >= 0, found[at], at)
    edge = asks & (rank[first][best] < rank)
    edges = np.empty(int(edge.sum()), EDGE)
    edges["rank"], edges["best"] = rank[edge], rank[first][best[edge]]
    edges["pair"] = np.asarray(met["pair"], np.uint64)[first][best[edge]]
    return edges


def _in(values: Ranks, ascending: Ranks) -> npt.NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(values), np.bool_)
    return np.asarray(ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values)


def _first_of_same(key: npt.NDArray[np.uint64], same: npt.NDArray[np.uint64], rank: Ranks) -> tuple[Places, Places]:
    """(groups,) the best row of each (key, same), by key and rank; (rows,) the group of each row."""
    order = np.lexsort((rank, same, key))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (key[order][1:] != key[order][:-1]) | (same[order][1:] != same[order][:-1])
    first = order[begins]
    by_rank = np.lexsort((rank[first], key[first]))
    group = np.empty(len(order), np.int64)
    group[order] = np.argsort(by_rank)[np.cumsum(begins) - 1]
    return first[by_rank], group


def _any_of(asks: npt.NDArray[np.bool_], group: Places, groups: int) -> npt.NDArray[np.bool_]:
    asked = np.zeros(groups, np.bool_)
    asked[group[asks]] = True
    return asked


def _best_earlier(
    rows: pa.Table, key: npt.NDArray[np.uint64], rank: Ranks, alike: Alike, asked: npt.NDArray[np.bool_]
) -> Places:
    """(rows,): the place of the first row with its key that a row is alike to, -1 for none; rows by key and rank."""
    compare = alike(rows)
    found = np.full(len(key), len(key), np.int64)
    borders = np.flatnonzero(np.diff(key, prepend=key[:1] + np.uint64(1), append=key[-1:] + np.uint64(1)))
    small: list[Places] = []
    for begin, end in zip(borders[:-1][np.diff(borders) > 1], borders[1:][np.diff(borders) > 1], strict=True):
        for part in _parts(np.arange(begin, end), compare, asked):
            if len(part) <= _FEW:
                small.append(part)
            else:
                _best_first(part, compare, asked, found)
    if small:
        _all_at_once(small, compare, asked, found)
    return np.where(found < len(key), found, -1)


def _parts(group: Places, compare: Comparison, asked: npt.NDArray[np.bool_]) -> Iterator[Places]:
    """Parts of a group that are small or cannot be split; rows that are alike share one. None that nobody asks of."""
    waiting = [group]
    while waiting:
        part = waiting.pop()
        if not asked[part].any():
            continue
        halves = compare.split(part) if len(part) > _FEW else None
        if halves is None:
            yield part
        else:
            waiting.extend(halves)


def _best_first(part: Places, compare: Comparison, asked: npt.NDArray[np.bool_], found: Places) -> None:
    """For many rows that are much alike: the best row finds all its likes at once, and they need not look further."""
    looking = part[asked[part]]
    for best in part:
        looking = looking[looking > best]
        if not len(looking):
            return
        near = compare(np.full(len(looking), best), looking)
        found[looking[near]] = np.minimum(found[looking[near]], best)
        looking = looking[~near]


def _all_at_once(parts: Sequence[Places], compare: Comparison, asked: npt.NDArray[np.bool_], found: Places) -> None:
    """For many small parts: each row with the one before it, with the one before that, and so on, in all parts."""
    row, part = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(one) for one in parts])
    at, back = np.flatnonzero(asked[row]), 1
    while len(at := at[at >= back]):
        at = at[part[at - back] == part[at]]
        near = at[compare(row[at - back], row[at])]
        np.minimum.at(found, row[near], row[near - back])
        back += 1


def refuse_the_alike(ask: Callable[[Among | None], npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """EDGEs of all rows that are refused, by rank, each to the one beside which it is; `ask` gives a round's edges."""
    edges = _best_of_each(ask(None))
    state = np.full(len(edges), _UNDECIDED, np.int8)
    while True:
        searching = _resolved(edges, state)
        if not len(searching):
            return np.asarray(edges[state == _REFUSED])
        again = _best_of_each(ask(Among(edges["rank"][searching], edges["rank"][state == _REFUSED])))
        answered = _in(edges["rank"][searching], again["rank"])
        state[searching[~answered]] = _STAYS
        edges[searching[answered]] = again


def _best_of_each(edges: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    edges = edges[np.lexsort((edges["best"], edges["rank"]))]
    first = np.ones(len(edges), np.bool_)
    first[1:] = edges["rank"][1:] != edges["rank"][:-1]
    return np.asarray(edges[first])


def _resolved(edges: npt.NDArray[np.void], state: npt.NDArray[np.int8]) -> Places:
    """Fills in what follows from the edges; the rows that have to ask again, because their best row is refused."""
    if not len(edges):
        return np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(edges["rank"], edges["best"]), len(edges) - 1)
    has_edge = edges["rank"][at] == edges["best"]
    while True:
        of_best = np.where(has_edge, state[at], _STAYS)
        refused = (state == _UNDECIDED) & (of_best == _STAYS)
        if not refused.any():
            return np.flatnonzero((state == _UNDECIDED) & (of_best == _REFUSED))
        state[refused] = _REFUSED
