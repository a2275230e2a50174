"""Whether a dataset is what its manifest says: every shard, byte by byte, and the ledger row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.command import console
from pipeline.funnel import KEPT, refused_counts
from pipeline.manifest import DatasetError, Manifest, Shard, read_manifest, shard_fault
from pipeline.progress import progress
from pipeline.storage import Folder, folder

_AT_ONCE = 8


def check_build(out: str) -> None:
    """Prints every fault of the dataset at `out`, a line each, and raises DatasetError that counts them; else says that
    it is whole."""
    target = folder(out)
    manifest = read_manifest(target.root)  # says whether it fits its own fingerprint
    faults = [*_of_shards(target, manifest), *_of_ledger(target, manifest)]
    for fault in faults:
        console.print(fault, markup=False)
    if faults:
        raise DatasetError(f"{target.root}: {len(faults)} fault{'s' * (len(faults) > 1)}; the first: {faults[0]}")
    console.print(
        f"{target.root}: whole; {manifest.pairs:,} pairs in {len(manifest.shards):,} shards and the ledger are as the "
        f"manifest says, fingerprint {manifest.fingerprint}",
        markup=False,
    )


def _of_shards(target: Folder, manifest: Manifest) -> list[str]:
    def fault(shard: Shard) -> list[str]:
        altered = shard_fault(target, shard)
        return [altered] if altered is not None else list(_unlike(target, shard, manifest.columns))

    with progress("check", len(manifest.shards), "shards") as advance:
        found = _in_threads(fault, manifest.shards, lambda: advance(1))
    listed = {shard.path for shard in manifest.shards}
    more = [name for name in target.names("shards/") if name not in listed]
    return [*found, *(f"{target.join(name)}: the manifest does not list this file" for name in more)]


def _unlike(target: Folder, shard: Shard, columns: dict[str, str]) -> Iterator[str]:
    """What the manifest says of the inside of a shard, and is not so."""
    where = target.join(shard.path)
    if (size := target.size(shard.path)) != shard.bytes:
        yield f"{where}: expected {shard.bytes:,} bytes, found {size:,}"
    try:
        with target.open(shard.path) as file:
            footer = pq.ParquetFile(file)
            rows, found = footer.metadata.num_rows, {field.name: str(field.type) for field in footer.schema_arrow}
    except pa.ArrowInvalid as error:
        yield f"{where}: is not parquet: {str(error).splitlines()[0]}"
        return
    if rows != shard.pairs:
        yield f"{where}: expected {shard.pairs:,} pairs, found {rows:,}"
    if found != columns:
        wrong = next(name for name in (*columns, *found) if columns.get(name) != found.get(name))
        yield f"{where}: column {wrong}: expected {columns.get(wrong, 'none')}, found {found.get(wrong, 'none')}"


def _of_ledger(target: Folder, manifest: Manifest) -> list[str]:
    place = target.child("ledger")
    names = place.names(suffix=".parquet")
    if not names:
        return [f"{place.root}: expected the ledger, found no file"]
    counts: list[Counter[tuple[str, str | None]]] = []

    def count(name: str) -> list[str]:
        try:
            with place.open(name) as file:
                table = pq.read_table(file, columns=["step", "reason"], use_threads=False)
        except pa.ArrowInvalid as error:
            return [f"{place.join(name)}: is not parquet: {str(error).splitlines()[0]}"]
        counted = table.group_by(["step", "reason"]).aggregate([([], "count_all")]).to_pylist()
        counts.append(Counter({(one["step"], one["reason"]): one["count_all"] for one in counted}))
        return []

    with progress("check", len(names), "parts of the ledger") as advance:
        faults = _in_threads(count, names, lambda: advance(1))
    ends = sum(counts, Counter[tuple[str, str | None]]())
    expected: dict[tuple[str, str | None], int] = {(KEPT, None): manifest.pairs}
    for step, reasons in refused_counts(manifest.funnel).items():
        expected |= {(step, reason): rows for reason, rows in reasons.items()}
    for end in sorted({*expected, *ends}, key=str):
        if ends[end] != expected.get(end, 0):
            what = " ".join(filter(None, end))
            faults.append(f"{place.root}: {what}: the manifest counts {expected.get(end, 0):,}, found {ends[end]:,}")
    return faults


def _in_threads(check: Callable[[Any], list[str]], what: Sequence[Any], done: Callable[[], None]) -> list[str]:
    """What the checks found, in order, several at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        running = [threads.submit(check, one) for one in what]
        for _ in as_completed(running):
            done()
        return [fault for one in running for fault in one.result()]
