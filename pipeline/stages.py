"""From snapshot to shards on Ray: one Ray Data stream that annotates, filters and looks, and tasks that write shards.

Both keep the snapshot's order, so that neither the number of CPUs nor who was first can be seen in the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipeline.annotations import Annotation
from pipeline.build_job import ShardSettings
from pipeline.download import in_window
from pipeline.duplicates import LOOK_BYTES, look
from pipeline.filters import Filter
from pipeline.manifest import Shard
from pipeline.pair import PAIR_SCHEMA
from pipeline.progress import Advance
from pipeline.shards import write_shard
from pipeline.snapshot import SnapshotShard, read_snapshot_shard
from pipeline.storage import Folder

JUDGED = pa.schema(
    [
        pa.field("pair_id", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("source", pa.string()),
        pa.field("shard", pa.int32()),  # of the snapshot
        pa.field("place", pa.int32()),  # row within that shard
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("original_bytes", pa.int64()),
        pa.field("original_format", pa.string()),
        pa.field("image_sha256", pa.string()),
        pa.field("step", pa.string()),  # the step that refused the row, null where none has yet
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("hash", pa.uint64()),  # see duplicates.look; null where the row is refused or nobody asks
        pa.field("thumbnail", pa.binary(LOOK_BYTES)),
    ]
)
"""What is known of every fetched row but its picture; annotation columns follow."""


def judge(
    shards: Sequence[SnapshotShard],
    snapshot: Folder,
    annotations: Sequence[Annotation],
    filters: Sequence[Filter],
    looks: bool,
    done: Advance,
) -> pa.Table:
    """JUDGED with annotation columns for every row of the snapshot, in order; `done` is told how many rows more.

    `looks` asks for hash and thumbnail of the pictures that pass all filters.
    """
    columns = pa.schema([*JUDGED, *(field for one in annotations for field in one.columns)])
    if not shards:
        return columns.empty_table()
    stream = ray.data.from_items([{"shard": shard.number} for shard in shards], override_num_blocks=len(shards))
    context = stream.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    # batch_size=None: whole blocks, each a snapshot shard, so that neighbouring stages run in one task without a copy.
    stream = stream.map_batches(partial(_read, snapshot=snapshot), batch_format="pyarrow", batch_size=1)
    for annotation in annotations:
        stream = stream.map_batches(annotation.annotate, batch_format="pyarrow", batch_size=None)
    last = partial(_judged, filters=tuple(filters), looks=looks, columns=columns)
    stream = stream.map_batches(last, batch_format="pyarrow", batch_size=None)
    blocks = []
    for block in stream.iter_batches(batch_format="pyarrow", batch_size=None):
        blocks.append(block.cast(columns))
        done(block.num_rows)
    return pa.concat_tables(blocks).combine_chunks()


def _read(batch: pa.Table, snapshot: Folder) -> pa.Table:
    (number,) = batch["shard"].to_pylist()
    rows = read_snapshot_shard(snapshot, number)
    rows = rows.append_column("shard", pa.array(np.full(rows.num_rows, number, np.int32)))
    return rows.append_column("place", pa.array(np.arange(rows.num_rows, dtype=np.int32)))


def _judged(rows: pa.Table, filters: Sequence[Filter], looks: bool, columns: pa.Schema) -> pa.Table:
    steps, reasons = refusals(rows, filters)
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reasons).append_column("step", steps)
    hashes, thumbnails = _looks(rows) if looks else (pa.nulls(rows.num_rows), pa.nulls(rows.num_rows))
    rows = rows.append_column("hash", hashes).append_column("thumbnail", thumbnails)
    return rows.select(columns.names).cast(columns)


def refusals(rows: pa.Table, filters: Sequence[Filter]) -> tuple[pa.Array, pa.Array]:
    """(rows,) step and (rows,) reason of the first refusal of every row, null where it stays: the download's, then each
    filter's in order. A filter sees only the rows that are left, and every column but the picture.
    """
    reasons = np.array(rows["reason"].to_pylist(), dtype=object)
    fetched = np.asarray(pc.is_null(rows["reason"]))
    steps = np.full(rows.num_rows, "download", dtype=object)
    steps[fetched] = None
    left = np.flatnonzero(fetched)
    pairs = rows.drop_columns(["image"]).take(left)
    for one in filters:
        found = one.reasons(pairs)
        refused = np.asarray(found.is_valid())
        steps[left[refused]] = one.name
        reasons[left[refused]] = found.filter(found.is_valid()).to_pylist()
        left, pairs = left[~refused], pairs.filter(pa.array(~refused))
    return pa.array(steps, pa.string()), pa.array(reasons, pa.string())


def _looks(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    stays = pc.is_null(rows["reason"]).to_pylist()
    found = [look(image.as_py()) if stay else (None, None) for image, stay in zip(rows["image"], stays, strict=True)]
    hashes, thumbnails = zip(*found, strict=True) if found else ((), ())
    return pa.array(hashes, pa.uint64()), pa.array(thumbnails, pa.binary(LOOK_BYTES))


def kept_rows(judged: pa.Table) -> pa.Table:
    """The rows that no step has refused, in order."""
    return judged.filter(pc.is_null(judged["step"])).combine_chunks()


def dataset_columns(annotations: Sequence[Annotation]) -> dict[str, str]:
    """Name and type of every column of the dataset."""
    return {field.name: str(field.type) for field in [*PAIR_SCHEMA, *(f for one in annotations for f in one.columns)]}


def write_kept(kept: pa.Table, snapshot: Folder, target: Folder, cut: ShardSettings, done: Advance) -> list[Shard]:
    """Writes the rows of `kept` (JUDGED with annotations), in order, as shards: a task a shard, that gathers its rows.

    Rows keep the snapshot's order, so a shard needs a few neighbouring snapshot shards; no picture passes the driver.
    """
    target.child("shards").remove()  # what an unfinished build left there nobody shall take for ours
    parts = (kept.slice(start, cut.pairs_per_shard) for start in range(0, kept.num_rows, cut.pairs_per_shard))
    task = ray.remote(max_retries=3)(_write_task)
    calls = (
        partial(task.remote, part, number, snapshot, target, cut.rows_per_group) for number, part in enumerate(parts)
    )
    shards: list[Shard] = []
    for shard in in_window(calls, int(ray.cluster_resources().get("CPU", 1)) + 2):
        shards.append(shard)
        done(shard.pairs)
    return sorted(shards, key=lambda shard: shard.path)


def _write_task(part: pa.Table, number: int, snapshot: Folder, target: Folder, rows_per_group: int) -> Shard:
    pairs = pa.concat_tables(_pairs_of(part, snapshot))
    assert pairs["pair_id"].equals(part["pair_id"]), "the snapshot's order changed under the build"
    for name in part.schema.names[len(JUDGED) :]:
        pairs = pairs.append_column(part.schema.field(name), part[name])
    return write_shard(pairs, target, number, rows_per_group)


def _pairs_of(part: pa.Table, snapshot: Folder) -> Iterator[pa.Table]:
    shards, places = (np.asarray(part[name]) for name in ("shard", "place"))
    for shard in np.unique(shards):
        rows = read_snapshot_shard(snapshot, int(shard), PAIR_SCHEMA.names)
        yield rows.take(places[shards == shard]).select(PAIR_SCHEMA.names).cast(PAIR_SCHEMA)
