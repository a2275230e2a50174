"""A real pool for tests: snapshot shards and annotation files of a few rows, judged without filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotation_columns import Annotated
from pipeline.judge import refusals
from pipeline.pool import Pool
from pipeline.snapshot import SNAPSHOT_SCHEMA, write_snapshot_shard
from pipeline.storage import Folder

_REST = {"url": "http://a.example/1", "caption": "a", "source": "s", "image": b"-", "original_format": "JPEG",
         "width": 64, "height": 64, "original_width": 64, "original_height": 64, "original_bytes": 9999}  # fmt: skip


def small_pool(
    folder: Path, rows: Sequence[dict[str, Any]], columns: pa.Schema, per_shard: int = 3, shards_per_span: int = 2
) -> Pool:
    """The pool of `rows`, in the order of their pair_id; `columns` are those that an annotation gave them.

    A row has what its test is about; a `step` and `reason` stand for a filter that has refused it.
    """
    rows = sorted(rows, key=lambda row: row["pair_id"])
    snapshot, place = Folder(str(folder / "snapshot")), Annotated("made-for-a-test", columns)
    for number, start in enumerate(range(0, len(rows), per_shard)):
        part = rows[start : start + per_shard]
        whole = [{name: (_REST | row).get(name) for name in SNAPSHOT_SCHEMA.names} | {"reason": None} for row in part]
        write_snapshot_shard(snapshot, number, pa.Table.from_pylist(whole, schema=SNAPSHOT_SCHEMA), 0, "")
        annotations = pa.Table.from_pylist([{name: row.get(name) for name in columns.names} for row in part], columns)
        place.write(snapshot, number, annotations)
    pool = Pool(snapshot, Folder(str(folder / "work")), len(rows), per_shard, shards_per_span, (place,))
    for span in range(pool.spans):
        table = pool.metadata(span)
        steps, reasons = (np.array(column.to_pylist(), object) for column in refusals(table, ()))
        for at, row in enumerate(rows[pool.span_rows(span).start : pool.span_rows(span).stop]):
            steps[at], reasons[at] = row.get("step"), row.get("reason")
        at_reason = table.schema.get_field_index("reason")
        table = table.set_column(at_reason, "reason", pa.array(reasons, pa.string()))
        pool.write_judged(span, table.append_column("step", pa.array(steps, pa.string())))
    return pool


def verdicts_by_name(pool: Pool) -> dict[str, tuple[str | None, str | None]]:
    """pair_id -> reason and detail of its refusal, None and None for a row that stays."""
    table = pool.judged_rows(0, pool.rows, ["pair_id"])
    columns = (table[name].to_pylist() for name in ("pair_id", "reason", "detail"))
    return {name: (reason, detail) for name, reason, detail in zip(*columns, strict=True)}
