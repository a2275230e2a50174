"""Finds pictures that are in the dataset already: the same bytes, or the same to the eye.

A difference hash alone takes flat drawings for copies of each other: a cross in a square is a hospital, a first-aid
kit and the Swiss flag. A copy differs a little everywhere, two drawings differ somewhere much. So two pictures are near
only when their hashes differ in a few bits, no cell of their 8 x 8 colour thumbnails differs much, and all differences
together are small beside the contrast. On the sample crawl that finds 9 of 10 rescaled JPEG copies; of the 23 other
pairs that it found among 6,200 pictures 15 were copies to the eye as well. A picture is refused only beside one that
stays, never through a chain of likenesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number, Settings
from pipeline.keyed_hash import mixed, text_keys
from pipeline.look import LOOK_BYTES, LOOK_SIDE
from pipeline.near_captions import NearCaptions
from pipeline.nearness import RANKED, Places, ranks_of
from pipeline.pair import pair_numbers
from pipeline.pool import REFUSED
from pipeline.semantic_duplicates import SemanticDuplicates


class NearDuplicates(Settings):
    """When two pictures count as one: all three must hold."""

    max_bits: Annotated[int, Field(ge=0, le=15)] = 6
    """Of the 64 bits of the difference hash, those that may differ."""
    max_cell: Annotated[int, Field(ge=0, le=255)] = 15
    """Greatest difference of a colour in any cell of the thumbnails, 0..255."""
    max_share: Annotated[Number, Field(ge=0)] = 0.05
    """Sum of the squared differences, divided by the thumbnails' mean sum of squares about their mean colours."""


class DuplicateSettings(Settings):
    """Which repeated pictures are refused. Of several the largest stays, then the one with the smallest pair_id."""

    exact: Literal["image", "image_and_caption", "look_and_caption"] | None = "image"
    """Refuse pictures of the same bytes whatever their caption, or only beside the same caption, or pictures with the
    same difference hash beside the same caption (COYO's rule); null: keep them."""
    near: NearDuplicates | None = NearDuplicates()
    """Refuse pictures that look the same; null: keep them."""
    near_captions: NearCaptions | None = None
    """Refuse pairs whose captions say nearly the same, whatever their pictures; null: keep them."""
    semantic: SemanticDuplicates | None = None
    """Refuse pairs whose embeddings mean the same (SemDeDup); null: keep them."""
    common_captions: Annotated[int, Field(ge=1)] | None = None
    """Refuse all pairs whose caption, letter for letter, more than so many pairs have (COYO: 10); null: keep them."""


_AT_ONCE = 16_384
_SAMPLE = 64
"""Thumbnails of a group that are looked at to find where it is cut."""
_HELPS = 0.85
"""A cut helps where neither half has more than this share of the group."""
_DEEPEST = 40
"""Cuts below each other, for crowds of any size."""


def exact_columns(settings: DuplicateSettings) -> tuple[str, ...]:
    """What `exact_keys` reads."""
    return (*RANKED, "hash" if settings.exact == "look_and_caption" else "image_sha256", "caption")


def exact_keys(pairs: pa.Table, settings: DuplicateSettings) -> pa.Table:
    """Rows (key, value, rank, pair_id, row): those with one `value` are exact duplicates, and have one key."""
    if settings.exact == "look_and_caption":
        key = mixed(np.asarray(pairs["hash"], np.uint64))
        value = pairs["hash"].cast(pa.string())
    else:
        key = pair_numbers(pc.utf8_slice_codeunits(pairs["image_sha256"], 0, 16))
        value = pairs["image_sha256"]
    if settings.exact != "image":
        value = pc.binary_join_element_wise(value, pairs["caption"], " ")
    columns = {"key": key, "value": value, "rank": ranks_of(pairs), "pair_id": pairs["pair_id"], "row": pairs["row"]}
    return pa.table(columns)


def repeated(met: pa.Table) -> pa.Table:
    """The rows (of `exact_keys`) with a value that a better row has, as REFUSED: `duplicate_image`, `of PAIR_ID`."""
    value = met["value"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((np.asarray(met["rank"]), value))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = value[order][1:] != value[order][:-1]
    first = order[begins][np.cumsum(begins) - 1]
    worse, better = met.take(order[~begins]), met.take(first[~begins])
    columns = {
        "row": worse["row"],
        "reason": pa.repeat(pa.scalar("duplicate_image"), worse.num_rows),
        "detail": pc.binary_join_element_wise("of", better["pair_id"], " "),
        "of": better["row"],
    }
    return pa.table(columns).cast(REFUSED)


def whole_captions(pairs: pa.Table) -> pa.Table:
    """Rows (key, caption, row): those with one caption have one key."""
    return pa.table({"key": text_keys(pairs["caption"].to_pylist()), "caption": pairs["caption"], "row": pairs["row"]})


def too_common(met: pa.Table, most: int) -> pa.Table:
    """The rows (of `whole_captions`) whose caption more than `most` rows have, as REFUSED: `common_caption`."""
    value = met["caption"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    times = np.bincount(value)[value] if len(value) else value
    out = np.flatnonzero(times > most)
    columns = {
        "row": met["row"].take(out),
        "reason": pa.repeat(pa.scalar("common_caption"), len(out)),
        "detail": pa.array([f"{count:,} times" for count in times[out].tolist()], pa.string()),
        "of": pa.nulls(len(out), pa.int64()),
    }
    return pa.table(columns).cast(REFUSED)


Crowds = Mapping[int, "Cut"]
"""Key -> how its rows are parted."""
NO_CROWDS: Crowds = MappingProxyType({})


def look_keys(pairs: pa.Table, settings: NearDuplicates, crowds: Crowds = NO_CROWDS) -> pa.Table:
    """Rows (key, rank, pair, same, hash, thumbnail), several for each pair: two that look the same share a key.

    Where no cell of two thumbnails differs by more than c, no mean of cells does. So a key is a cell of a grid over
    seven means (the brightness of the quarters and the colour of the middle), and a pair near the edge of its cell
    stands in the next one too. Keys of very many pairs are cut up further, as `crowds` says (see `part_looks`). What
    shares a key in the end is parted by the thumbnails themselves (`LooksAlike.split`).
    """
    hashes, thumbnails = np.asarray(pairs["hash"], np.uint64), _pixels(pairs)
    cells, row = _grid_cells(thumbnails, settings.max_cell)
    key = mixed(*cells.T)
    for crowd in np.intersect1d(key, np.fromiter(crowds, np.uint64, len(crowds))).tolist():
        inside = key == crowd
        crowded = row[inside]
        place, leaf = crowds[crowd].leaves(thumbnails[crowded])
        row = np.concatenate([row[~inside], crowded[place]])
        key = np.concatenate([key[~inside], mixed(np.uint64(crowd), leaf)])
    same = mixed(hashes, *np.ascontiguousarray(thumbnails).view(np.uint64).T)
    columns = {
        "key": key,
        "rank": ranks_of(pairs)[row],
        "pair": pair_numbers(pairs["pair_id"])[row],
        "same": same[row],
        "hash": hashes[row],
        "thumbnail": pairs["thumbnail"].combine_chunks().take(row),
    }
    return pa.table(columns)


LOOK_KEYS_A_ROW = 4
"""Keys that a pair has, on the average: 2 to 5 on the sample crawl."""


@dataclass(frozen=True)
class Cut:
    """Where thumbnails are parted: what is near the cut is on both sides, so that likes share a side."""

    cell: int
    """Of the LOOK_BYTES values of a thumbnail."""
    middle: float
    """Twice the value at which they are parted."""
    reach: int
    left: Cut | None
    """How the darker side is parted further; None if it is not."""
    right: Cut | None

    def sides(self, thumbnails: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(rows,) whether each is on the darker and on the brighter side."""
        values = 2 * thumbnails[:, self.cell].astype(np.int32)
        return values <= self.middle + self.reach, values >= self.middle - self.reach

    def leaves(self, thumbnails: npt.NDArray[np.uint8]) -> tuple[Places, npt.NDArray[np.uint64]]:
        """(places,) rows, and (places,) the name of the part that each is in; a row is in one or more."""
        places, names = list[Places](), list[npt.NDArray[np.uint64]]()
        waiting: list[tuple[Cut | None, Places, int]] = [(self, np.arange(len(thumbnails)), 1)]
        while waiting:
            cut, rows, name = waiting.pop()
            if cut is None:
                places.append(rows)
                names.append(np.full(len(rows), name, np.uint64))
            else:
                dark, bright = cut.sides(thumbnails[rows])
                waiting += [(cut.left, rows[dark], 2 * name), (cut.right, rows[bright], 2 * name + 1)]
        return np.concatenate(places), np.concatenate(names)


def part_looks(sample: pa.Table, share: float, settings: NearDuplicates) -> Cut | None:
    """How to part rows of `look_keys` that are like these into parts of at most a share of them; None: in no way."""
    return _cut(_pixels(sample), share * sample.num_rows, settings.max_cell, _DEEPEST)


def _cut(thumbnails: npt.NDArray[np.uint8], most: float, reach: int, depth: int) -> Cut | None:
    found = _best_cut(thumbnails, reach) if len(thumbnails) > most and depth else None
    if found is None:
        return None
    cell, middle = found
    cut = Cut(cell, middle, reach, None, None)
    sides = [thumbnails[side] for side in cut.sides(thumbnails)]
    if max(map(len, sides)) >= _HELPS * len(thumbnails):
        return None
    left, right = (_cut(side, most, reach, depth - 1) for side in sides)
    return replace(cut, left=left, right=right)


def _best_cut(thumbnails: npt.NDArray[np.uint8], reach: int) -> tuple[int, float]:
    """(cell, middle): the cell of the thumbnails whose middle parts a few of them best."""
    some = 2 * thumbnails[:: max(1, len(thumbnails) // _SAMPLE)].astype(np.int32)
    middle = np.median(some, axis=0)
    larger = np.maximum((some <= middle + reach).mean(axis=0), (some >= middle - reach).mean(axis=0))
    cell = int(np.argmin(larger))
    return cell, float(middle[cell])


class LooksAlike:
    """Compares rows of `look_keys`."""

    def __init__(self, rows: pa.Table, settings: NearDuplicates) -> None:
        self._settings = settings
        self._hashes = np.asarray(rows["hash"], np.uint64)
        self._thumbnails = _pixels(rows)
        self._contrasts = _contrast(self._thumbnails)

    def __call__(self, left: Places, right: Places) -> npt.NDArray[np.bool_]:
        """(pairs,): whether the rows at `left` and at `right` look the same."""
        alike = np.bitwise_count(self._hashes[left] ^ self._hashes[right]) <= self._settings.max_bits
        # Each test costs more than the one before it, and leaves fewer pairs.
        close = np.flatnonzero(alike)
        ours, theirs = self._thumbnails[left[close]], self._thumbnails[right[close]]
        difference = np.maximum(ours, theirs) - np.minimum(ours, theirs)
        alike[close] = small = difference.max(axis=1, initial=0) <= self._settings.max_cell
        close = close[small]
        squares = (difference[small].astype(np.int32) ** 2).sum(axis=1)
        contrast = (self._contrasts[left[close]] + self._contrasts[right[close]]) / 2
        alike[close] = squares <= self._settings.max_share * contrast
        return np.asarray(alike)

    def split(self, places: Places) -> tuple[Places, Places] | None:
        """Cut at the middle of the thumbnails' cell that parts them best, with what is near the cut in both halves."""
        sample = self._thumbnails[places[:: max(1, len(places) // _SAMPLE)]]
        cut = Cut(*_best_cut(sample, self._settings.max_cell), self._settings.max_cell, None, None)
        left, right = (places[side] for side in cut.sides(self._thumbnails[places]))
        return (left, right) if max(len(left), len(right)) < _HELPS * len(places) else None


def _pixels(rows: pa.Table) -> npt.NDArray[np.uint8]:
    """(rows, LOOK_BYTES)."""
    return np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8).reshape(-1, LOOK_BYTES)


def _grid_cells(thumbnails: npt.NDArray[np.uint8], max_cell: int) -> tuple[npt.NDArray[np.uint64], Places]:
    """(places, 7) cells of the grid, and (places,) the row that is in each; a row is in one or more."""
    cells = thumbnails.reshape(-1, LOOK_SIDE, LOOK_SIDE, 3).astype(np.float64)
    half, quarter = LOOK_SIDE // 2, LOOK_SIDE // 4
    corners = [cells[:, down : down + half, across : across + half].mean(axis=(1, 2, 3))
               for down in (0, half) for across in (0, half)]  # fmt: skip
    middle = cells[:, quarter:-quarter, quarter:-quarter].mean(axis=(1, 2))
    # White, the ground of so many pictures, is in the middle of a cell. A little more reach, for means are rounded.
    means = np.column_stack([*corners, middle]) - 255
    wide, reach = 6 * max(max_cell, 4), max_cell + 1e-6
    low, high = np.floor((means - reach / 2) / wide + 0.5), np.floor((means + reach / 2) / wide + 0.5)
    row, found = np.arange(len(means)), low
    for column in range(means.shape[1]):
        beside = np.flatnonzero(low[row, column] != high[row, column])
        also = found[beside]
        also[:, column] = high[row[beside], column]
        row, found = np.concatenate([row, row[beside]]), np.concatenate([found, also])
    return (found + 1024).astype(np.uint64), row


def _contrast(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(rows,): sum of squares about each thumbnail's mean colour."""
    found = np.empty(len(thumbnails))
    for start in range(0, len(thumbnails), _AT_ONCE):
        some = thumbnails[start : start + _AT_ONCE]
        cells = some.reshape(len(some), LOOK_SIDE * LOOK_SIDE, 3).astype(np.int32)
        found[start : start + _AT_ONCE] = ((cells - cells.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2))
    return found
