"""How a build ends, on Ray: the ledger, what a report tells, and the shards, a task for each part of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.build_job import ShardSettings
from pipeline.facts import Facts, facts_of, total_facts
from pipeline.funnel import Tally, make_ledger, tally, total
from pipeline.listing import Listing
from pipeline.manifest import Shard
from pipeline.pair import PAIR_SCHEMA
from pipeline.pool import Pool
from pipeline.progress import Advance
from pipeline.shards import write_shard
from pipeline.storage import Folder
from pipeline.task_window import RETRIES, in_turn, in_window

_LEDGER_GROUP = 16_384


def write_ledger(listing: Listing, pool: Pool, target: Folder) -> Tally:
    """Writes every row of the lists and where it ended to `ledger/`, by pair_id, a file a list part; counts them."""
    target.child("ledger").remove()
    begins = listing.begins()
    return total(
        in_turn(_ledger_task, ((part, begins[part], listing, pool, target) for part in range(len(listing.parts))))
    )


def _ledger_task(part: int, begin: int, listing: Listing, pool: Pool, target: Folder) -> tuple[int, Tally]:
    fetchable = listing.parts[part].fetchable
    ledger = make_ledger(listing.part(part), pool.verdicts(begin, begin + fetchable))
    content = io.BytesIO()
    pq.write_table(ledger, content, compression="zstd", row_group_size=_LEDGER_GROUP)
    target.write_bytes(f"ledger/{part:05d}.parquet", content.getvalue())
    return part, tally(ledger)


def gather_facts(pool: Pool) -> tuple[Facts, list[int]]:
    """What a report tells, and how many pairs stay in each span; their rows are noted in the work folder."""
    pool.work.child("kept").remove()
    found = list(in_turn(_facts_task, ((span, pool) for span in range(pool.spans))))
    return total_facts(facts for facts, _ in found), [count for _, count in found]


def _facts_task(span: int, pool: Pool) -> tuple[int, tuple[Facts, int]]:
    facts, kept = facts_of(pool, span)
    content = io.BytesIO()
    np.save(content, kept, allow_pickle=False)
    pool.work.write_bytes(_kept_file(span), content.getvalue())
    return span, (facts, len(kept))


def _kept_file(span: int) -> str:
    return f"kept/{span:05d}.npy"


def write_kept(
    pool: Pool, kept: Sequence[int], columns: pa.Schema, target: Folder, cut: ShardSettings, done: Advance
) -> list[Shard]:
    """Writes the pairs that stay, in order, as shards with `columns`; `kept` says how many stay in each span.

    A task a shard gathers its rows: they keep the snapshot's order, so a shard needs a few neighbouring snapshot
    shards, and no picture passes the driver.
    """
    target.child("shards").remove()  # what an unfinished build left there nobody shall take for ours
    begins = list(accumulate(kept, initial=0))
    numbers = range(-(-begins[-1] // cut.pairs_per_shard))
    task = ray.remote(max_retries=RETRIES)(_shard_task)
    shards: list[Shard] = []
    for shard in in_window(partial(task.remote, number, begins, pool, columns, target, cut) for number in numbers):
        shards.append(shard)
        done(shard.pairs)
    return sorted(shards, key=lambda shard: shard.path)


def _shard_task(
    number: int, begins: Sequence[int], pool: Pool, columns: pa.Schema, target: Folder, cut: ShardSettings
) -> Shard:
    start = number * cut.pairs_per_shard
    rows = _kept_rows(pool, begins, start, min(start + cut.pairs_per_shard, begins[-1]))
    pairs = pa.concat_tables(table.cast(columns) for table in pool.pairs(rows, columns.names))
    return write_shard(pairs, target, number, cut.rows_per_group)


def _kept_rows(pool: Pool, begins: Sequence[int], start: int, stop: int) -> npt.NDArray[np.int64]:
    """The rows of the pairs that stay, from the `start`-th to the `stop`-th."""
    found = []
    for span in range(pool.spans):
        if begins[span] < stop and begins[span + 1] > start:
            with pool.work.open(_kept_file(span)) as file:
                rows = np.load(file, allow_pickle=False)
            found.append(rows[max(start - begins[span], 0) : stop - begins[span]])
    return np.concatenate(found)


def dataset_schema(annotations: Sequence[Any]) -> pa.Schema:
    """Columns of the dataset: the pair's, then the annotations'."""
    return pa.schema([*PAIR_SCHEMA, *(field for one in annotations for field in one.columns)])
