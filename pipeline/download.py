"""Rows of a URL list become snapshot shards: Ray tasks around img2dataset's downloader and resizer.

Each row ends in exactly one place, a picture or a reason. Failed addresses, and only those, are asked for again with a
growing pause. A task's shard counts whole or not at all, so a build that is killed repeats the tasks in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from pipeline.download_settings import DownloadSettings
from pipeline.fetch import Route
from pipeline.fetch_rows import UNREACHED, fetch_rows
from pipeline.jobfile import InputError
from pipeline.progress import Advance
from pipeline.snapshot import (
    SNAPSHOT_SCHEMA,
    SnapshotShard,
    commit_shard,
    finished_shard,
    wanted_hash,
    write_snapshot_shard,
)
from pipeline.storage import Folder


def download(
    rows: pa.Table,
    settings: DownloadSettings,
    routes: Sequence[Route],
    place: Folder,
    done: Advance,
) -> list[SnapshotShard]:
    """Fetches `rows` (pair_id, url, caption, source) into shards at `place`, in order, and returns their records.

    `done` is told of the rows of each shard as it comes: at once of those that an earlier build left whole.
    """
    shards: dict[int, SnapshotShard] = {}
    to_do: list[tuple[int, pa.Table, str]] = []
    there = frozenset(place.names())  # asked once: on s3:// each question is a request
    for number, start in enumerate(range(0, rows.num_rows, settings.rows_per_task)):
        part = rows.slice(start, settings.rows_per_task)
        wanted = wanted_hash(part["pair_id"].to_pylist(), settings.deciding())
        finished = finished_shard(place, there, number, wanted)
        if finished is None:
            to_do.append((number, part, wanted))
        else:
            shards[number] = finished
            done(finished.rows, from_before=True)
    task = ray.remote(num_cpus=settings.cpus_per_task, max_retries=3)(_download_task)
    calls = (
        partial(task.remote, part, number, wanted, settings, tuple(routes), place) for number, part, wanted in to_do
    )
    for shard in in_window(calls, settings.window(ray.cluster_resources().get("CPU", 1))):
        commit_shard(place, shard)
        shards[shard.number] = shard
        done(shard.rows)
    return [shards[number] for number in sorted(shards)]


def in_window(calls: Iterable[Callable[[], Any]], width: int) -> Iterator[Any]:
    """The results of remote calls as they come; at most `width` are submitted and not yet yielded.

    Never one task a shard all at once, which is what makes a scheduler stall. An error of a task ends the iteration
    with that error; what is in flight then is cancelled.
    """
    to_do = iter(calls)
    running = [call() for call in islice(to_do, width)]
    try:
        while running:
            finished, running = ray.wait(running, num_returns=1)
            running.extend(call() for call in islice(to_do, 1))
            yield _result(finished[0])
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None  # a full disk in a worker is said as plainly as one here
        raise


def _download_task(
    rows: pa.Table,
    number: int,
    wanted: str,
    settings: DownloadSettings,
    routes: tuple[Route, ...],
    place: Folder,
) -> SnapshotShard:
    fates = fetch_rows(rows["url"].to_pylist(), settings, routes)
    columns = {name: rows[name] for name in ("pair_id", "url", "caption", "source")}
    columns |= {name: [getattr(fate, name) for fate in fates] for name in SNAPSHOT_SCHEMA.names[len(columns) :]}
    unreached = sum(fate.reason in UNREACHED for fate in fates)
    return write_snapshot_shard(place, number, pa.table(columns, schema=SNAPSHOT_SCHEMA), unreached, wanted)
