"""Finds pictures that are in the dataset already: the same bytes, or the same to the eye.

A difference hash alone takes flat drawings for copies of each other: a cross in a square is a hospital, a first-aid
kit and the Swiss flag. A copy differs a little everywhere, two drawings differ somewhere much. So two pictures are near
only when their hashes differ in a few bits, no cell of their 8 x 8 colour thumbnails differs much, and all differences
together are small beside the contrast. On the sample crawl that finds 9 of 10 rescaled JPEG copies; of the 23 other
pairs that it found among 6,200 pictures 15 were copies to the eye as well. A picture is refused only beside one that
stays, never through a chain of likenesses.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pydantic import Field

from pipeline.jobfile import Number, Settings

LOOK_SIDE = 8  # px, of the colour thumbnail
LOOK_BYTES = LOOK_SIDE * LOOK_SIDE * 3
_STEP = 3  # of 255: smaller steps between neighbours are noise of the encoder, which would set bits by chance


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

    exact: Literal["image", "image_and_caption"] | None = "image"
    """Refuse pictures of the same bytes whatever their caption, or only beside the same caption; null: keep them."""
    near: NearDuplicates | None = NearDuplicates()
    """Refuse pictures that look the same; null: keep them."""


def look(image: bytes) -> tuple[int, bytes]:
    """A picture's difference hash (64 bits) and its colour thumbnail (LOOK_BYTES, RGB rows of 8 x 8 px)."""
    with Image.open(io.BytesIO(image)) as picture:
        colour = picture.convert("RGB")
    grey = np.asarray(colour.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] - grey[:, :-1]) > _STEP
    number = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return number, colour.resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX).tobytes()


def refuse_duplicates(judged: pa.Table, settings: DuplicateSettings) -> pa.Table:
    """`judged` (stages.JUDGED) with step, reason and detail filled in for every duplicate.

    Reasons: `duplicate_image` for the same bytes, `near_duplicate` for the same looks; the detail names the pair that
    stays, as `of PAIR_ID`.
    """
    columns = {name: np.array(judged[name].to_pylist(), dtype=object) for name in ("step", "reason", "detail")}
    rows = _best_first(judged)
    if settings.exact is not None:
        also = [""] * judged.num_rows if settings.exact == "image" else judged["caption"].to_pylist()
        images = judged["image_sha256"].to_pylist()
        first = repeated_of([f"{images[row]}{also[row]}" for row in rows])
        rows = _refuse(rows, first, "duplicate_image", judged, columns)
    if settings.near is not None and len(rows):
        hashes = np.asarray(judged["hash"].take(rows))
        thumbnails = np.frombuffer(b"".join(judged["thumbnail"].take(rows).to_pylist()), np.uint8)
        first = near_of(hashes, thumbnails.reshape(-1, LOOK_BYTES), settings.near)
        _refuse(rows, first, "near_duplicate", judged, columns)
    for name, values in columns.items():
        judged = judged.set_column(judged.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return judged


def _best_first(judged: pa.Table) -> npt.NDArray[np.int64]:
    """The rows that no step has refused: the largest original first, equally large ones by pair_id."""
    left = np.flatnonzero(np.asarray(pc.is_null(judged["step"])))
    pixels = pc.multiply(judged["original_width"].cast(pa.int64()), judged["original_height"].cast(pa.int64()))
    pixels_left = np.asarray(pixels.take(left))
    names = np.array(judged["pair_id"].take(left).to_pylist(), dtype=str)
    return left[np.lexsort((names, -pixels_left))] if len(left) else left


def _refuse(
    rows: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    reason: str,
    judged: pa.Table,
    columns: dict[str, npt.NDArray[np.object_]],
) -> npt.NDArray[np.int64]:
    """Writes the refusal of every row with a `first`, a place in `rows`; returns the rows without one."""
    names = judged["pair_id"]
    for row, at in zip(rows, first, strict=True):
        if at >= 0:
            columns["step"][row], columns["reason"][row] = "duplicates", reason
            columns["detail"][row] = f"of {names[int(rows[at])].as_py()}"
    return rows[first < 0]


def repeated_of(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """(rows,): the first earlier row with the same key, -1 where there is none. Rows come best first."""
    first: dict[str, int] = {}
    return np.array([-1 if (at := first.setdefault(key, row)) == row else at for row, key in enumerate(keys)], np.int64)


def near_of(
    hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8], settings: NearDuplicates
) -> npt.NDArray[np.int64]:
    """(rows,): an earlier row that stays and looks the same, -1 where the row itself stays. Rows come best first.

    hashes (rows,), thumbnails (rows, LOOK_BYTES). Two hashes that differ in at most b bits agree in at least one of
    b + 1 bands (pigeonhole), so only rows that share a band are compared.
    """
    found = np.full(len(hashes), -1, np.int64)
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(settings.max_bits + 1)]
    for row, bands in enumerate(_bands(hashes, settings.max_bits + 1)):
        others = sorted({other for band, value in enumerate(bands) for other in kept[band].get(value, ())})
        near = _near_rows(row, np.array(others, np.int64), hashes, thumbnails, settings)
        if len(near):
            found[row] = near[0]
        else:
            for band, value in enumerate(bands):
                kept[band][value].append(row)
    return found


def _bands(hashes: npt.NDArray[np.uint64], bands: int) -> list[list[int]]:
    """(rows, bands): the 64 bits cut into bands of nearly equal width."""
    edges = [64 * band // bands for band in range(bands + 1)]
    columns = [(hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in pairwise(edges)]
    return [[int(value) for value in row] for row in np.stack(columns, axis=1)]


def _near_rows(
    row: int,
    others: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
    settings: NearDuplicates,
) -> npt.NDArray[np.int64]:
    others = others[np.bitwise_count(hashes[others] ^ hashes[row]) <= settings.max_bits]
    ours, theirs = thumbnails[row].astype(np.int32), thumbnails[others].astype(np.int32)
    difference = theirs - ours
    contrast = (_contrast(theirs) + _contrast(ours[None])) / 2
    near = np.abs(difference).max(axis=1, initial=0) <= settings.max_cell
    near &= (difference**2).sum(axis=1) <= settings.max_share * contrast
    return np.asarray(others[near])


def _contrast(thumbnails: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """(rows,): sum of squares about each thumbnail's mean colour."""
    cells = thumbnails.reshape(len(thumbnails), LOOK_SIDE * LOOK_SIDE, 3)
    return np.asarray(((cells - cells.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)))
