"""Rows of a URL list become snapshot shards: a Ray task a shard.

Each row ends in exactly one place, a picture or a reason. A task's shard counts whole or not at all, so a build that is
killed repeats the tasks in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import pyarrow as pa
import ray

from pipeline.annotation_columns import annotation_files
from pipeline.download_settings import DownloadSettings
from pipeline.fetch import Route
from pipeline.fetch_rows import UNREACHED, fetch_rows
from pipeline.host_slots import SharedSlots, shared_slots
from pipeline.progress import Advance
from pipeline.snapshot import (
    SNAPSHOT_SCHEMA,
    SnapshotShard,
    commit_shard,
    finished_shard,
    has_record,
    wanted_hash,
    write_snapshot_shard,
)
from pipeline.storage import Folder
from pipeline.task_window import RETRIES, in_window


class Rows(Protocol):
    """Rows to fetch: a table of (pair_id, url, caption, source), or something on disk that gives slices of one."""

    @property
    def num_rows(self) -> int:
        """How many there are."""

    def slice(self, start: int, length: int) -> pa.Table:
        """Rows `start` to `start + length`, fewer at the end."""


def download(
    rows: Rows,
    settings: DownloadSettings,
    routes: Sequence[Route],
    place: Folder,
    done: Advance,
) -> list[SnapshotShard]:
    """Fetches `rows` into shards at `place`, in order, and returns their records.

    `done` is told of the rows of each shard as it comes, also of those that an earlier build left whole.
    """
    size = settings.rows_per_task
    there = frozenset(place.names())  # asked once: on s3:// each question is a request
    annotated = annotation_files(there)
    task = ray.remote(num_cpus=settings.cpus_per_task, max_retries=RETRIES)(_download_task)
    shared = ray.put(rows)  # once for all tasks
    slots = shared_slots(settings.connections_per_host)
    calls = (
        partial(task.remote, shared, number, has_record(there, number), settings, tuple(routes), place, slots)
        for number in range(-(-rows.num_rows // size))
    )
    shards: dict[int, SnapshotShard] = {}
    for shard, from_before in in_window(calls, settings.window(ray.cluster_resources().get("CPU", 1))):
        if not from_before:
            # What was computed of an earlier shard of this number is not about this one.
            for name in annotated.get(shard.number, ()):
                place.remove(name)
            commit_shard(place, shard)
        shards[shard.number] = shard
        done(shard.rows, from_before=from_before)
    return [shards[number] for number in sorted(shards)]


def _download_task(
    rows: Rows,
    number: int,
    recorded: bool,
    settings: DownloadSettings,
    routes: tuple[Route, ...],
    place: Folder,
    slots: SharedSlots,
) -> tuple[SnapshotShard, bool]:
    """The shard's record, and whether it was there already."""
    part = rows.slice(number * settings.rows_per_task, settings.rows_per_task)
    wanted = wanted_hash(part["pair_id"].to_pylist(), settings.deciding())
    if recorded and (finished := finished_shard(place, number, wanted)) is not None:
        return finished, True
    fates = fetch_rows(part["url"].to_pylist(), settings, routes, slots)
    columns = {name: part[name] for name in ("pair_id", "url", "caption", "source")}
    columns |= {name: [getattr(fate, name) for fate in fates] for name in SNAPSHOT_SCHEMA.names[len(columns) :]}
    unreached = sum(fate.reason in UNREACHED for fate in fates)
    return write_snapshot_shard(place, number, pa.table(columns, schema=SNAPSHOT_SCHEMA), unreached, wanted), False
