"""Whether a dataset can be built again from its snapshot, byte for byte: `JOB.yaml --rebuild-check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotation_columns import annotated, annotation_file
from pipeline.build_job import BuildJob
from pipeline.command import console
from pipeline.finished_build import finished_build
from pipeline.look import Look
from pipeline.manifest import MANIFEST, DatasetError, Manifest, Shard
from pipeline.snapshot import SnapshotShard, shard_file, snapshot_hash, snapshot_record
from pipeline.storage import Folder, folder
from pipeline.url_lists import check_lists

_AT_ONCE = 8
_SHOWN = 10
"""Shards that differ and are looked into."""


def rebuild_check(job: BuildJob, build: Callable[[BuildJob, Folder, list[SnapshotShard]], Manifest]) -> None:
    """Builds the dataset of `job` again into a folder beside it, compares, and removes that folder.

    `build` builds from shards of a snapshot without asking the web. What annotations said of the snapshot is taken as
    it is there. DatasetError where there is no dataset, its snapshot is not whole, or the two differ.
    """
    target = folder(job.out)
    manifest = finished_build(target, job)
    if manifest is None:
        raise DatasetError(f"{target.join(MANIFEST)}: expected a dataset to compare with, found none; build it first")
    # As it was built: with another rows_per_task no shard of the snapshot would be the expected one.
    job = BuildJob.model_validate(manifest.job).model_copy(update={"out": job.out, "ray": job.ray})
    check_lists(job.lists)
    snapshot = folder(job.snapshot or target.join("snapshot"))
    shards = _whole(snapshot, job, manifest)
    beside = Folder(f"{target.root.rstrip('/')}.rebuild-check")
    beside.remove()  # of a check that was killed
    try:
        again = build(job.model_copy(update={"out": beside.root, "snapshot": snapshot.root}), beside, shards)
        faults = list(_differences(target, manifest, beside, again))
    finally:
        beside.remove()
    for fault in faults:
        console.print(fault, markup=False)
    if faults:
        raise DatasetError(f"{target.root}: built again it is another dataset; the first difference: {faults[0]}")
    console.print(
        f"{target.root}: built again from the snapshot it is the same, fingerprint {again.fingerprint}", markup=False
    )


def _whole(snapshot: Folder, job: BuildJob, manifest: Manifest) -> list[SnapshotShard]:
    """The records of the snapshot that the dataset was built from; DatasetError says what is missing or altered."""
    there = frozenset(snapshot.names())
    count = -(-manifest.funnel[0]["came_out"] // job.download.rows_per_task)
    places = [annotated(one.ready()) for one in job.annotations] + ([annotated(Look())] if job.looks else [])
    wanted = [shard_file(number) for number in range(count)]
    wanted += [annotation_file(place.folder, number) for place in places for number in range(count)]
    missing = next((name for name in wanted if name not in there), None)
    if missing is not None:
        raise DatasetError(f"{snapshot.join(missing)}: the dataset was built from this file, and it is not there")
    records = [record for record in (snapshot_record(snapshot, number) for number in range(count)) if record]
    if (found := snapshot_hash(records)) != manifest.snapshot:
        raise DatasetError(
            f"{snapshot.root}: expected the snapshot {manifest.snapshot[:16]}..., found {found[:16]}...; "
            "another build has written to it since"
        )
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for record, sha256 in zip(records, threads.map(lambda one: snapshot.sha256(one.file), records), strict=True):
            if record.sha256 != sha256:
                raise DatasetError(f"{snapshot.join(record.file)}: its sha256 is not that of its record; it is damaged")
    return records


def _differences(target: Folder, manifest: Manifest, beside: Folder, again: Manifest) -> Iterator[str]:
    if again.fingerprint == manifest.fingerprint:
        # The manifest says the same; are the bytes there still what it says?
        for ours, theirs in zip(manifest.shards, again.shards, strict=True):
            if target.sha256(ours.path) != theirs.sha256:
                yield f"{target.join(ours.path)}: {_rows(target, ours, beside, theirs)}"
        return
    yield f"fingerprint {manifest.fingerprint}, built again {again.fingerprint}"
    if again.pairs != manifest.pairs:
        yield f"pairs: {manifest.pairs:,}, built again {again.pairs:,}"
    if manifest.versions != again.versions:
        names = [
            n for n in {**manifest.versions, **again.versions} if manifest.versions.get(n) != again.versions.get(n)
        ]
        yield "versions: " + ", ".join(f"{n} {manifest.versions.get(n)}, now {again.versions.get(n)}" for n in names)
    pairs = zip_longest(manifest.shards, again.shards)
    for one, other in islice((both for both in pairs if both[0] != both[1]), _SHOWN):
        if one is None or other is None:
            yield f"{(one or other).path}: only {'the first' if other is None else 'the second'} build has it"
        else:
            yield f"{target.join(one.path)}: {_rows(target, one, beside, other)}"


def _rows(target: Folder, one: Shard, beside: Folder, other: Shard) -> str:
    """In which columns two shards differ, and in which row first."""
    try:
        tables = [_read(place, shard.path) for place, shard in ((target, one), (beside, other))]
    except pa.ArrowInvalid as error:
        return f"is not parquet: {str(error).splitlines()[0]}"
    first, second = tables
    columns = [name for name in first.column_names if name in second.column_names]
    if lacks := sorted(set(first.column_names) ^ set(second.column_names)):
        return f"columns that one of them has: {', '.join(lacks)}"
    rows = min(first.num_rows, second.num_rows)
    unlike: dict[str, int] = {}
    for name in columns:
        a, b = first[name].slice(0, rows), second[name].slice(0, rows)
        if a.type != b.type:
            return f"column {name}: {a.type} and {b.type}"
        found = next((at for at, (x, y) in enumerate(zip(a, b, strict=True)) if not x.equals(y)), None)
        if found is not None:
            unlike[name] = found
    if not unlike:
        more = (
            f"{first.num_rows:,} and {second.num_rows:,} rows" if first.num_rows != second.num_rows else "other bytes"
        )
        return f"the rows that both have are the same; {more}"
    at = min(unlike.values())
    names = " and ".join(dict.fromkeys(table["pair_id"][at].as_py() for table in tables))
    return f"columns {', '.join(unlike)} differ, first in row {at:,}, pair {names}"


def _read(place: Folder, name: str) -> pa.Table:
    with place.open(name) as file:
        return pq.read_table(file, use_threads=False)
