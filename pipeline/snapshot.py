"""The snapshot: what the web gave on the day of the download, a parquet file a task with its record written after it.

The web cannot be asked twice for the same answer. Everything after the snapshot can: it is a pure function of the
snapshot and the job. A shard counts as done when its record is there and fits what is wanted now. A worker writes the
shard, the driver its record: a worker that outlives its driver by a second sees the network, and with it every address,
fail, and nobody shall believe it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence, Set

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.jobfile import Settings
from pipeline.storage import Folder

SNAPSHOT_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # resized and encoded; null, like all below it, where there is no picture
        pa.field("width", pa.int32()),  # px, stored
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),  # px, upright, as downloaded
        pa.field("original_height", pa.int32()),
        pa.field("original_bytes", pa.int64()),  # as downloaded
        pa.field("original_format", pa.string()),  # JPEG, PNG, WEBP, GIF or BMP, by the bytes, whatever the server says
        pa.field("image_sha256", pa.string()),  # hex, of the bytes as downloaded
        pa.field("reason", pa.string()),  # why there is no picture; null where there is one
        pa.field("detail", pa.string()),
    ]
)
"""A row of the list and what became of it on the web."""


class SnapshotShard(Settings):
    """The record of one shard."""

    number: int
    rows: int
    pictures: int
    unreached: int
    """Rows without an answer of any kind: names that did not resolve, connections that failed, time that ran out."""
    sha256: str
    """Hex, of the parquet file."""
    wanted: str
    """Hex sha256 of the rows and the settings that it answers."""

    @property
    def file(self) -> str:
        """The shard's file in the snapshot's folder."""
        return shard_file(self.number)


def shard_file(number: int) -> str:
    """The name of shard `number` in the folder of a snapshot."""
    return f"{number:06d}.parquet"


def _record(number: int) -> str:
    return f"{number:06d}.json"


def wanted_hash(pair_ids: Sequence[str], settings: object) -> str:
    """Hex sha256 of the names of a shard's rows in order and of everything that decides what is stored for them."""
    return hashlib.sha256(json.dumps([list(pair_ids), settings], sort_keys=True).encode()).hexdigest()


def write_snapshot_shard(place: Folder, number: int, rows: pa.Table, unreached: int, wanted: str) -> SnapshotShard:
    """Writes the shard and returns its record, which `commit_shard` makes count."""
    buffer = io.BytesIO()
    pq.write_table(rows.combine_chunks(), buffer, compression="zstd", use_dictionary=["source", "reason"])
    content = buffer.getvalue()
    shard = SnapshotShard(
        number=number,
        rows=rows.num_rows,
        pictures=rows.num_rows - rows["image"].null_count,
        unreached=unreached,
        sha256=hashlib.sha256(content).hexdigest(),
        wanted=wanted,
    )
    place.write_bytes(shard_file(number), content)
    return shard


def commit_shard(place: Folder, shard: SnapshotShard) -> None:
    """Writes the shard's record: from now on it is done."""
    place.write_text(_record(shard.number), shard.model_dump_json() + "\n")


def has_record(there: Set[str], number: int) -> bool:
    """Whether a shard and its record are among the files of a snapshot."""
    return {_record(number), shard_file(number)} <= there


def finished_shard(place: Folder, number: int, wanted: str) -> SnapshotShard | None:
    """The record of a shard that has one, if it is done.

    A shard of which more than half was never reached is not done: the line was dead.
    """
    shard = snapshot_record(place, number)
    return shard if shard is not None and shard.wanted == wanted and 2 * shard.unreached <= shard.rows else None


def snapshot_record(place: Folder, number: int) -> SnapshotShard | None:
    """The record of a shard that has one; None if it is no such record."""
    try:
        return SnapshotShard.model_validate_json(place.read_text(_record(number)))
    except ValidationError:
        return None


def read_snapshot_shard(place: Folder, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a shard, in order."""
    with place.open(shard_file(number)) as file:
        return pq.read_table(file, columns=None if columns is None else list(columns), use_threads=False)


def snapshot_hash(shards: Sequence[SnapshotShard]) -> str:
    """Hex sha256 over the hashes of all shards in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()
