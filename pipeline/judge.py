"""Filters over the whole pool: tasks over spans of metadata and annotation columns, without a picture.

A threshold that is a share of the pool ("the best 30 % by clip score") is first turned into a value, exactly: two
passes of counts over the score's bits, half a megabyte each, whatever the size of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.filters import Filter
from pipeline.filters.score import threshold_place
from pipeline.pool import Pool
from pipeline.progress import Advance
from pipeline.task_window import RETRIES, in_window

_HALF = 16
"""Bits of a score that one pass counts."""


def judge(pool: Pool, filters: Sequence[Filter], done: Advance) -> None:
    """Writes every span's verdict: the download's refusals, and each filter's in order. `done` is told of rows."""
    task = ray.remote(max_retries=RETRIES)(_judge_task)
    calls = (partial(task.remote, pool, span, tuple(filters)) for span in range(pool.spans))
    for rows in in_window(calls):
        done(rows)


def _judge_task(pool: Pool, span: int, filters: tuple[Filter, ...]) -> int:
    rows = pool.metadata(span)
    steps, reasons = refusals(rows, filters)
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reasons).append_column("step", steps)
    pool.write_judged(span, rows)
    return int(rows.num_rows)


def refusals(rows: pa.Table, filters: Sequence[Filter]) -> tuple[pa.Array, pa.Array]:
    """(rows,) step and (rows,) reason of the first refusal of every row, null where it stays: the download's, then each
    filter's in order. A filter sees only the rows that are left, and every column but the picture.
    """
    reasons = np.array(rows["reason"].to_pylist(), dtype=object)
    fetched = np.asarray(pc.is_null(rows["reason"]))
    steps = np.full(rows.num_rows, "download", dtype=object)
    steps[fetched] = None
    left = np.flatnonzero(fetched)
    pairs = rows.take(left)
    for one in filters:
        found = one.reasons(pairs)
        refused = np.asarray(found.is_valid())
        if refused.any():
            steps[left[refused]] = one.step
            reasons[left[refused]] = found.filter(found.is_valid()).to_pylist()
            left, pairs = left[~refused], pairs.filter(pa.array(~refused))
    return pa.array(steps, pa.string()), pa.array(reasons, pa.string())


def with_thresholds(pool: Pool, filters: Sequence[Filter]) -> list[Filter]:
    """The filters with every share of the pool turned into the value at that rank."""
    return [one if one.quantile is None else one.with_threshold(_value_at(pool, *one.quantile)) for one in filters]


def _value_at(pool: Pool, column: str, share: float) -> float | None:
    """The score at `threshold_place` among all scores of the pool from the greatest down; None if there is none."""
    high = _counted(pool, column, None)
    scores = int(high.sum())
    if not scores:
        return None
    place = threshold_place(share, scores)
    above, high_bits = _from_the_top(high, place)
    _, low_bits = _from_the_top(_counted(pool, column, high_bits), place - above)
    return float(_score(np.array([high_bits << _HALF | low_bits], np.uint32))[0])


def _counted(pool: Pool, column: str, high_bits: int | None) -> npt.NDArray[np.int64]:
    """(65536,): scores of the pool by their upper bits, or by the lower ones of those with these upper bits."""
    task = ray.remote(max_retries=RETRIES)(_count_task)
    counts = np.zeros(1 << _HALF, np.int64)
    for more in in_window(partial(task.remote, pool, span, column, high_bits) for span in range(pool.spans)):
        counts += more
    return counts


def _count_task(pool: Pool, span: int, column: str, high_bits: int | None) -> npt.NDArray[np.int64]:
    scores = pool.metadata(span)[column].cast(pa.float32()).drop_null()
    bits = ordered_bits(np.asarray(scores)[~np.isnan(np.asarray(scores))]).astype(np.int64)
    if high_bits is not None:
        bits = bits[bits >> _HALF == high_bits] & ((1 << _HALF) - 1)
    else:
        bits = bits >> _HALF
    return np.bincount(bits, minlength=1 << _HALF)


def _from_the_top(counts: npt.NDArray[np.int64], place: int) -> tuple[int, int]:
    """How many lie above the bin that holds the `place`-th from the top, and that bin."""
    from_top = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_top, place, side="right"))
    return int(from_top[at] - counts[::-1][at]), len(counts) - 1 - at


def ordered_bits(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """(scores,): whole numbers in the order of the scores, which must not be NaN; -0 counts as 0."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _score(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    return np.where(bits >> 31, bits & np.uint32((1 << 31) - 1), ~bits).astype(np.uint32).view(np.float32)
