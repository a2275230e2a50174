"""The ledger says where every row of the lists ended, the funnel how many ended where. Nothing is ever just gone."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Folder

LEDGER = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # place in the lists, all of them one after the other
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),  # KEPT, or the step that refused it
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""A row of the lists and where it ended."""

KEPT = "kept"
_ROWS_A_FILE = 1_000_000
_EXAMPLES = 3


def make_ledger(listed: pa.Table, judged: pa.Table) -> pa.Table:
    """One LEDGER row for every row of `listed` (url_lists.LISTED), in the order of the lists.

    `judged` has the fetched rows, which are those that the list did not refuse, in the same order.
    """
    fetched = np.flatnonzero(np.asarray(pc.is_null(listed["reason"])))
    assert listed["pair_id"].take(fetched).equals(judged["pair_id"]), "a row was lost or moved between list and verdict"
    columns = {}
    for name in ("reason", "detail"):
        values = np.array(listed[name].to_pylist(), dtype=object)
        values[fetched] = judged[name].to_pylist()
        columns[name] = pa.array(values, pa.string())
    steps = np.full(listed.num_rows, "list", dtype=object)
    steps[fetched] = pc.fill_null(judged["step"], KEPT).to_pylist()
    columns["step"] = pa.array(steps, pa.string())
    columns |= {name: listed[name] for name in ("row", "pair_id", "url", "caption", "source")}
    return pa.table({name: columns[name] for name in LEDGER.names}, schema=LEDGER).sort_by("row")


def make_funnel(ledger: pa.Table, steps: Sequence[str]) -> list[dict[str, Any]]:
    """For every step in order: pairs that went in and came out, refusals by reason, and an example or three of each."""
    by_step: dict[str, Counter[str]] = {step: Counter() for step in steps}
    examples: dict[str, dict[str, list[dict[str, str]]]] = {step: {} for step in steps}
    refused = ledger.filter(pc.not_equal(ledger["step"], KEPT)).sort_by("pair_id")
    for row in refused.to_pylist():
        by_step[row["step"]][row["reason"]] += 1
        shown = examples[row["step"]].setdefault(row["reason"], [])
        if len(shown) < _EXAMPLES:
            shown.append({name: (row[name] or "")[:300] for name in ("pair_id", "url", "caption", "detail")})
    funnel = []
    left = ledger.num_rows
    for step in steps:
        out = left - by_step[step].total()
        reasons = dict(sorted(by_step[step].items(), key=lambda item: (-item[1], item[0])))
        funnel.append({"step": step, "went_in": left, "came_out": out, "refused": reasons, "examples": examples[step]})
        left = out
    assert left == ledger.num_rows - refused.num_rows, "kept and refused are not all rows of the lists"
    return funnel


def refused_counts(funnel: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """{step: {reason: rows}} of the steps that refused anything."""
    return {one["step"]: one["refused"] for one in funnel if one["refused"]}


def write_ledger(target: Folder, ledger: pa.Table) -> None:
    """Writes the ledger as parquet files of a million rows below `ledger/`."""
    target.child("ledger").remove()
    for number, start in enumerate(range(0, ledger.num_rows, _ROWS_A_FILE)):
        buffer = io.BytesIO()
        pq.write_table(ledger.slice(start, _ROWS_A_FILE), buffer, compression="zstd")
        target.write_bytes(f"ledger/{number:05d}.parquet", buffer.getvalue())
