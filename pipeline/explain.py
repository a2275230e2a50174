"""What happened to one pair, and why: `python -m pipeline.build JOB.yaml --explain PAIR_ID`.

Ledger, snapshot and shards are sorted by pair_id: of a dataset of any size a few footers and row groups are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from pipeline.annotation_columns import annotated, annotation_file
from pipeline.build_job import BuildJob
from pipeline.funnel import KEPT
from pipeline.jobfile import InputError, JobError
from pipeline.look import Look
from pipeline.manifest import MANIFEST, DatasetError, Manifest, read_manifest
from pipeline.pool import METADATA
from pipeline.snapshot import shard_file
from pipeline.sorted_rows import file_of, find_rows, read_row
from pipeline.storage import Folder, folder
from pipeline.url_lists import parts_of

_PAIR_ID = re.compile(r"[0-9a-f]{16}")
_SHOWN = 32
"""Numbers or bytes of a value that are printed."""


def read_pair_id(text: str) -> str:
    """The name as datasets have it; JobError where it is none."""
    if not _PAIR_ID.fullmatch(text.lower()):
        raise JobError(f"explain: expected a pair_id, which is 16 hex digits, came '{text}'")
    return text.lower()


@dataclass(frozen=True)
class _Build:
    """A build that has got as far as its ledger."""

    job: BuildJob
    target: Folder
    ledger: tuple[str, ...]
    manifest: Manifest | None
    """None where no dataset came of it."""

    @property
    def snapshot(self) -> Folder:
        return folder(self.job.snapshot) if self.job.snapshot else self.target.child("snapshot")


def explain(job: BuildJob, pair_id: str) -> Table:
    """What became of the pair at every step, a line a fact; DatasetError if there is no build or no such pair."""
    build = _opened(job)
    rows = _ledger_rows(build, pair_id)
    if not rows:
        raise DatasetError(
            f"explain: no row of the lists has the pair_id {pair_id}, says {build.target.join('ledger')}"
        )
    table = Table("", "", title=f"pair {pair_id}", title_justify="left", box=None, show_header=False)
    table.columns[0].no_wrap = True
    table.columns[1].overflow = "fold"

    def say(name: str, what: str) -> None:
        table.add_row(name, Text(what))  # brackets in captions are no markup

    for row in rows:
        say("row", f"{row['row']:,}, of {row['source']}")
        say("  url", row["url"])
        say("  caption", row["caption"])
        for step, what in _steps(build, row):
            say(f"  {step}", what)
    return table


def _opened(job: BuildJob) -> _Build:
    target = folder(job.out)
    ledger = tuple(target.child("ledger").names(suffix=".parquet"))
    if not ledger:
        raise DatasetError(f"{target.join('ledger')}: expected the ledger of a build, found none; build it first")
    manifest = read_manifest(target.root) if target.exists(MANIFEST) else None
    if manifest is not None:
        try:
            builder = BuildJob.model_validate(manifest.job)
        except ValidationError:
            pass  # an older version's job: what the command was given has to do
        else:
            # Built from, and not meanwhile: other filters or sizes of shards say nothing of this dataset.
            job = builder.model_copy(update={"out": job.out})
    return _Build(job, target, ledger, manifest)


def _ledger_rows(build: _Build, pair_id: str) -> list[dict[str, Any]]:
    name = build.ledger[int(parts_of(pa.array([pair_id]), len(build.ledger))[0])]
    place = build.target.child("ledger")
    return [read_row(place, name, row) for _, row in find_rows(place, name, pair_id)]


def _steps(build: _Build, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every step and what it said, in order, with what is known of the pair by then."""
    fetched = _fetched(build, row["pair_id"]) if row["step"] != "list" else None
    settings = {one.step: one for one in build.job.filters}
    for step in build.job.steps:
        rule = settings.get(step)
        said = f" ({_said(rule.model_dump(exclude={'name', 'column'}))})" if rule is not None else ""
        if rule is not None and fetched is not None and (values := {n: fetched[n] for n in rule.needs if n in fetched}):
            said += f", {_said(values)}"
        if step == row["step"]:
            yield step, f"refused: {row['reason']}{said}{_detail(row['detail'])}"
            yield from _stays(build, row["detail"])
        else:
            yield step, f"passed{said}"
        if step == "download" and row["step"] != "list":
            yield from _download_facts(build, fetched)
        if step == row["step"]:
            return
    if row["step"] == KEPT and build.manifest is not None:
        yield KEPT, _place(build, build.manifest, row["pair_id"])
    else:
        yield row["step"], "no dataset came of this build"


def _detail(detail: str | None) -> str:
    return f": {detail}" if detail else ""


def _stays(build: _Build, detail: str | None) -> Iterator[tuple[str, str]]:
    """The pair beside which it was refused, where the detail names one."""
    named = re.search(rf"\bof ({_PAIR_ID.pattern})\b", detail or "")
    for row in _ledger_rows(build, named[1])[:1] if named else []:
        yield "  stays", f"{named[1] if named else ''} {row['url']}"
        yield "  its caption", row["caption"]


def _fetched(build: _Build, pair_id: str) -> dict[str, Any] | None:
    """What snapshot and annotations say of the pair, and `shard`; None where they are not there any more."""
    names = build.snapshot.names(suffix=".parquet")
    shards = [name for name in names if "/" not in name][: _shards(build)]
    number = file_of(build.snapshot, shards, pair_id)
    found = find_rows(build.snapshot, shard_file(number), pair_id) if number is not None else []
    if number is None or not found:
        return None
    (_, row) = found[0]
    values = {"shard": shard_file(number), "row_of_shard": row}
    values |= read_row(build.snapshot, shard_file(number), row, [*METADATA, "reason", "detail"])
    for annotation in (*build.job.annotations, *([Look()] if build.job.looks else [])):
        try:
            file = annotation_file(annotated(annotation.ready()).folder, number)
        except InputError:
            continue  # the table that it joined is not here any more
        if file in names:
            values |= read_row(build.snapshot, file, row)
    return values


def _shards(build: _Build) -> int | None:
    """Shards of the snapshot that are of this build: one that stood there before may have had more."""
    if build.manifest is None:
        return None
    fetched: int = build.manifest.funnel[0]["came_out"]
    return -(-fetched // build.job.download.rows_per_task)


def _download_facts(build: _Build, fetched: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if fetched is None:
        yield "  snapshot", f"{build.snapshot.root} does not have this pair (any more)"
        return
    yield "  snapshot", f"{build.snapshot.join(fetched['shard'])}, row {fetched['row_of_shard']:,}"
    if fetched["reason"] is not None:
        return
    size = f"{fetched['original_width']} x {fetched['original_height']} px, {fetched['original_bytes']:,} bytes"
    yield "  picture", f"{fetched['original_format']}, {size}; stored {fetched['width']} x {fetched['height']} px"
    yield "  sha256", fetched["image_sha256"]
    known = {*METADATA, "reason", "detail", "shard", "row_of_shard"}
    for name, value in fetched.items():
        if name not in known:
            yield f"  {name}", _value(value)


def _place(build: _Build, manifest: Manifest, pair_id: str) -> str:
    shards = [shard.path for shard in manifest.shards]
    number = file_of(build.target, shards, pair_id)
    found = find_rows(build.target, shards[number], pair_id) if number is not None else []
    if number is None or not found:
        return f"the ledger says so, and no shard has it; --check says more about {build.target.root}"
    group, row = found[0]
    return (
        f"{build.target.join(shards[number])}, row group {group}, row {row:,} "
        f"(row {number * manifest.pairs_per_shard + row:,} of the dataset)"
    )


def _said(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(_value(one) for one in value[:_SHOWN])
        return f"[{shown}{', …' if len(value) > _SHOWN else ''}]"
    return "null" if value is None else str(value)
