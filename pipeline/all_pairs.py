"""Steps that need all pairs, on Ray, without all pairs in one memory: three ways for rows to be judged together.

`each` judges a span by itself, `meet` brings rows with a common key into one task, and `nearest` finds rows that are
alike and refuses all but the best, exactly as one process would that goes through all rows from the best to the worst.
What a step is given are pure functions over Arrow tables; the result does not depend on how many tasks there were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pipeline.exchange import read_bucket, write_buckets
from pipeline.keyed_hash import mixed
from pipeline.nearness import Alike, Among, best_alike, refuse_the_alike, row_of
from pipeline.pool import REFUSED, Pool
from pipeline.progress import Advance, progress
from pipeline.task_window import RETRIES, in_turn, in_window

Spread = Callable[[pa.Table], pa.Table]
"""From rows of the pool to rows with a column `key` (uint64, a hash): several for a row, or none."""
Decide = Callable[[pa.Table], pa.Table]
"""From rows to those of them that are refused, as REFUSED."""

_REFUSED_A_FILE = 1_000_000
_SAMPLED_A_PART = 64
"""Rows of a sample for each part that a crowd is cut into."""


def over_spans(pool: Pool, columns: Sequence[str], function: Callable[[pa.Table], Any]) -> Iterator[Any]:
    """`function` of the rows that are left in every span (`row` and `columns`), in the order of spans."""
    shared = ray.put(function)  # it may hold much
    return in_turn(_span_task, ((pool, span, tuple(columns), shared) for span in range(pool.spans)))


def _span_task(pool: Pool, span: int, columns: Sequence[str], function: Callable[[pa.Table], Any]) -> tuple[int, Any]:
    return span, function(pool.left(span, columns))


def each(pool: Pool, step: str, columns: Sequence[str], decide: Decide) -> Pool:
    """The pool without the rows that `decide` refuses, which looks at a span (`row` and `columns`) at a time."""
    pool.work.remove(f"refused/{step}")
    shared = ray.put(decide)  # it may hold much
    with progress(step, pool.spans, "spans") as advance:
        _run(_each_task, ((pool, step, span, tuple(columns), shared) for span in range(pool.spans)), advance)
    return pool.after(step, pool.spans)


def _run(function: Callable[..., None], arguments: Iterable[tuple[Any, ...]], done: Advance) -> None:
    task = ray.remote(max_retries=RETRIES)(function)
    for _ in in_window(partial(task.remote, *one) for one in arguments):
        done(1)


def _each_task(pool: Pool, step: str, span: int, columns: Sequence[str], decide: Decide) -> None:
    pool.refused(step, span, decide(pool.left(span, columns)))


def meet(pool: Pool, step: str, columns: Sequence[str], spread: Spread, decide: Decide) -> Pool:
    """The pool without the rows that `decide` refuses, which is given all rows with one key, of many keys at a time.

    `spread` is given `row` and `columns` of a span and says what travels.
    """
    pool.work.remove(f"refused/{step}")
    buckets = _buckets(pool)
    with progress(step, pool.spans + buckets, "tasks") as advance:
        _spread(pool, step, columns, spread, buckets, advance)
        _run(_meet_task, ((pool, step, bucket, decide) for bucket in range(buckets)), advance)
    pool.work.remove(f"met/{step}")
    return pool.after(step, buckets)


def _meet_task(pool: Pool, step: str, bucket: int, decide: Decide) -> None:
    pool.refused(step, bucket, decide(_met(pool, step, bucket)))


def _buckets(pool: Pool, keys_a_row: int = 1) -> int:
    """So many that a bucket holds the rows of two spans: with more keys than rows, or uneven ones, it must fit too."""
    return -(-pool.rows * keys_a_row // (2 * pool.rows_per_span))


def _spread(pool: Pool, step: str, columns: Sequence[str], spread: Spread, buckets: int, done: Advance) -> None:
    """Every span's rows into the exchange `met/STEP`."""
    pool.work.remove(f"met/{step}")
    _run(_spread_task, ((pool, step, span, tuple(columns), spread, buckets) for span in range(pool.spans)), done)


def _spread_task(pool: Pool, step: str, span: int, columns: Sequence[str], spread: Spread, buckets: int) -> None:
    rows = spread(pool.left(span, columns))
    bucket = (np.asarray(rows["key"], np.uint64) % np.uint64(buckets)).astype(np.int64)
    write_buckets(pool.work.child(f"met/{step}"), span, rows, bucket, buckets)


def _met(pool: Pool, step: str, bucket: int) -> pa.Table:
    return read_bucket(pool.work.child(f"met/{step}"), range(pool.spans), bucket).combine_chunks()


Cut = TypeVar("Cut", covariant=True)


class Part(Protocol[Cut]):
    """Says how a crowd of rows with one key is cut up."""

    def __call__(self, sample: pa.Table, share: float) -> Cut | None:
        """From some of the rows, a cut into parts of at most a share of them all; None if there is none."""
        ...


def crowds(
    pool: Pool, columns: Sequence[str], spread: Spread, part: Part[Cut], most: int | None = None
) -> dict[int, Cut]:
    """Cuts for the keys that more than `most` rows have; null: a quarter of a span's.

    With them a bucket is about as large as the others however many pairs look nearly the same. Two passes: one
    counts, the other takes a sample of each crowd by hash, so that the cuts do not depend on spans.
    """
    limit = pool.rows_per_span // 4 if most is None else most
    # A key of more than `limit` rows has more than its share of them in one span at least.
    count = partial(_counted, spread=spread, least=limit // pool.spans)
    counts = np.concatenate(list(over_spans(pool, columns, count)))
    keys, place = np.unique(counts["key"], return_inverse=True)
    rows = np.bincount(place, weights=counts["rows"], minlength=len(keys))
    keys, rows = keys[rows > limit], rows[rows > limit]
    if not len(keys):
        return {}
    sample = partial(_sampled, spread=spread, keys=keys, share=_SAMPLED_A_PART / limit)
    some = pa.concat_tables(list(over_spans(pool, columns, sample))).combine_chunks()
    key = np.asarray(some["key"], np.uint64)
    # In an order of their own: spans of another size give the same cuts.
    order = np.lexsort((np.asarray(some["pair"], np.uint64), key))
    found: dict[int, Cut] = {}
    for crowd, size in zip(keys.tolist(), rows.tolist(), strict=True):
        cut = part(some.take(order[key[order] == crowd]), limit / size)
        if cut is not None:
            found[crowd] = cut
    return found


def _counted(rows: pa.Table, spread: Spread, least: int) -> npt.NDArray[np.void]:
    """(key, rows) of the keys that more than `least` rows of a span have."""
    keys, count = np.unique(np.asarray(spread(rows)["key"], np.uint64), return_counts=True)
    found = np.empty(int((count > least).sum()), np.dtype([("key", np.uint64), ("rows", np.int64)]))
    found["key"], found["rows"] = keys[count > least], count[count > least]
    return found


def _sampled(rows: pa.Table, spread: Spread, keys: npt.NDArray[np.uint64], share: float) -> pa.Table:
    """A share of the rows of the keys (ascending), chosen by hash of their pair."""
    spread_out = spread(rows)
    key = np.asarray(spread_out["key"], np.uint64)
    place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    drawn = (mixed(key, np.asarray(spread_out["pair"], np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return spread_out.take(np.flatnonzero((keys[place] == key) & (drawn < share)))


def nearest(
    pool: Pool, step: str, reason: str, columns: Sequence[str], spread: Spread, keys_a_row: int, alike: Alike
) -> Pool:
    """The pool without the rows that are alike to a better one which stays; the detail names that one.

    `spread` gives, for about `keys_a_row` keys of every row, `key`, `rank` (see `nearness.ranks`), `pair` (its name as
    a number), `same` (a hash of all that `alike` looks at) and what `alike` needs; rows that are alike share a key.
    The driver holds 32 bytes for every row that is alike to a better one, and nothing of the others.
    """
    pool.work.remove(f"refused/{step}")
    buckets = _buckets(pool, keys_a_row)
    with progress(step, pool.spans + buckets, "tasks") as advance:
        _spread(pool, step, columns, spread, buckets, advance)
        refused = refuse_the_alike(lambda among: _best(pool, step, buckets, alike, among, advance))
    pool.work.remove(f"met/{step}")
    files = range(0, max(len(refused), 1), _REFUSED_A_FILE)
    for number, start in enumerate(files):
        pool.refused(step, number, _as_refused(refused[start : start + _REFUSED_A_FILE], reason))
    return pool.after(step, len(files))


def _best(
    pool: Pool, step: str, buckets: int, alike: Alike, among: Among | None, done: Advance
) -> npt.NDArray[np.void]:
    task = ray.remote(max_retries=RETRIES)(_best_task)
    shared, found = ray.put(among), []
    for edges in in_window(partial(task.remote, pool, step, bucket, alike, shared) for bucket in range(buckets)):
        found.append(edges)
        if among is None:  # how many more rounds there will be nobody knows
            done(1)
    return np.concatenate(found)


def _best_task(pool: Pool, step: str, bucket: int, alike: Alike, among: Among | None) -> npt.NDArray[np.void]:
    return best_alike(_met(pool, step, bucket), alike, among)


def _as_refused(edges: npt.NDArray[np.void], reason: str) -> pa.Table:
    columns = {
        "row": row_of(edges["rank"]),
        "reason": pa.repeat(pa.scalar(reason), len(edges)),
        "detail": pa.array([f"of {number:016x}" for number in edges["pair"].tolist()], pa.string()),
        "of": row_of(edges["best"]),
    }
    return pa.table(columns, schema=REFUSED)
