"""Finds pictures that are in the dataset already: the same bytes, or the same to the eye.

A difference hash alone takes flat drawings for copies of each other: a cross in a square is a hospital, a first-aid
kit and the Swiss flag. A copy differs a little everywhere, two drawings differ somewhere much. So two pictures are near
only when their hashes differ in a few bits, no cell of their 8 x 8 colour thumbnails differs much, and all differences
together are small beside the contrast. On the sample crawl that finds 9 of 10 rescaled JPEG copies; of the 23 other
pairs that it found among 6,200 pictures 15 were copies to the eye as well. A picture is refused only beside one that
stays, never through a chain of likenesses.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number, Settings
from pipeline.keyed_hash import mixed
from pipeline.look import LOOK_BYTES, LOOK_SIDE
from pipeline.nearness import Places, ranks
from pipeline.pair import pair_numbers
from pipeline.pool import REFUSED


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


RANKED = ("pair_id", "original_width", "original_height")
"""Columns that say which of several rows is the best."""


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


def ranks_of(pairs: pa.Table) -> npt.NDArray[np.uint64]:
    """(pairs,): see `nearness.ranks`."""
    sides = (np.asarray(pairs[name], np.int64) for name in ("original_width", "original_height"))
    width, height = sides
    return ranks(width * height, np.asarray(pairs["row"]))


def look_keys(pairs: pa.Table, settings: NearDuplicates) -> pa.Table:
    """Rows (key, rank, pair, same, hash, thumbnail), several for each pair: two that look the same share a key.

    Hashes that differ in at most b bits agree in at least one of b + 1 bands (pigeonhole). Where no cell differs by
    more than c, the mean of each colour differs by at most c, so pairs are also parted by cells of colour; one near the
    edge of its cell stands in the next one too. Without these a band's value is too common: many drawings have the
    same nine bits of nothing.
    """
    hashes = np.asarray(pairs["hash"], np.uint64)
    thumbnails = _pixels(pairs)
    bands = _bands(hashes, settings.max_bits + 1)
    cells, row_of_cell = _colour_cells(thumbnails, settings.max_cell)
    keys = [mixed(np.uint64(band), values[row_of_cell], *cells.T) for band, values in enumerate(bands)]
    rows = np.tile(row_of_cell, len(keys))
    same = mixed(hashes, *np.ascontiguousarray(thumbnails).view(np.uint64).T)
    columns = {
        "key": np.concatenate(keys) if keys else hashes,
        "rank": ranks_of(pairs)[rows],
        "pair": pair_numbers(pairs["pair_id"])[rows],
        "same": same[rows],
        "hash": hashes[rows],
        "thumbnail": pairs["thumbnail"].combine_chunks().take(rows),
    }
    return pa.table(columns)


def look_keys_a_row(settings: NearDuplicates) -> int:
    """Keys that a pair has, on the average, rounded up."""
    return 2 * (settings.max_bits + 1)


class LooksAlike:
    """Compares rows of `look_keys`."""

    def __init__(self, rows: pa.Table, settings: NearDuplicates) -> None:
        self._settings = settings
        self._hashes = np.asarray(rows["hash"], np.uint64)
        self._thumbnails = _pixels(rows)

    def __call__(self, left: Places, right: Places) -> npt.NDArray[np.bool_]:
        """(pairs,): whether the rows at `left` and at `right` look the same."""
        alike = np.bitwise_count(self._hashes[left] ^ self._hashes[right]) <= self._settings.max_bits
        close = np.flatnonzero(alike)
        alike[close] = self._near(self._thumbnails[left[close]], self._thumbnails[right[close]])
        return np.asarray(alike)

    def _near(self, ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        difference = theirs.astype(np.int32) - ours
        contrast = (_contrast(ours) + _contrast(theirs)) / 2
        near = np.abs(difference).max(axis=1, initial=0) <= self._settings.max_cell
        return np.asarray(near & ((difference**2).sum(axis=1) <= self._settings.max_share * contrast))


def _pixels(rows: pa.Table) -> npt.NDArray[np.uint8]:
    """(rows, LOOK_BYTES)."""
    return np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8).reshape(-1, LOOK_BYTES)


def _bands(hashes: npt.NDArray[np.uint64], bands: int) -> list[npt.NDArray[np.uint64]]:
    """(rows,) for each band: the 64 bits cut into bands of nearly equal width."""
    edges = [64 * band // bands for band in range(bands + 1)]
    return [(hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in pairwise(edges)]


def _colour_cells(thumbnails: npt.NDArray[np.uint8], max_cell: int) -> tuple[npt.NDArray[np.uint64], Places]:
    """(places, 3) cells of the mean colour, and (places,) the row that is in each: a row is in one to eight."""
    sums = thumbnails.reshape(-1, LOOK_SIDE * LOOK_SIDE, 3).sum(axis=1, dtype=np.int64)
    reach = LOOK_SIDE * LOOK_SIDE * max_cell  # two rows that are near are no further apart in a sum
    wide = 4 * max(reach, LOOK_SIDE * LOOK_SIDE * 4)
    low, high = (sums - reach // 2) // wide, (sums + (reach + 1) // 2) // wide
    cells, rows = [], []
    for upper in product((False, True), repeat=3):
        there = np.flatnonzero((~np.array(upper) | (low != high)).all(axis=1))
        cells.append(np.where(upper, high, low)[there])
        rows.append(there)
    # Sums below the reach fall into cell -1.
    return (np.concatenate(cells) + 1).astype(np.uint64), np.concatenate(rows)


def _contrast(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(rows,): sum of squares about each thumbnail's mean colour."""
    cells = thumbnails.reshape(len(thumbnails), LOOK_SIDE * LOOK_SIDE, 3).astype(np.int32)
    return np.asarray(((cells - cells.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)))
