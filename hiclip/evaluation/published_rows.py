"""What papers and repositories print, row by row, to stand beside what was measured: `published/rows.json`.

Numbers are as printed, in percent, without intervals: nobody published any. A cell that could not be read is null; what
is uncertain about a row is its note. Set and metric names are ours; `eleven_sets` and `linear_probe/ten_sets` are
averages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from pipeline.jobfile import InputError, Settings

DEFAULT_ENCODER, DEFAULT_DATA = "ViT-B/32", "YFCC15M"


class PublishedRow(Settings):
    """One row of a published table."""

    source: str
    """The paper or repository."""
    table: str
    """Which of its tables, or what is in it."""
    method: str
    data: str | None
    """Training data: YFCC15M-V1 (OpenAI's list), YFCC15M-V2 (DeCLIP's), YFCC15M (which of them is not said), 30M
    (YFCC15M-V2, CC3M and CC12M), 88M, 143M, 400M; null for what is not trained on pairs."""
    encoder: str | None
    """Image tower."""
    note: str
    """What is uncertain about the row; empty if nothing is."""
    values: dict[str, dict[str, float | None]]
    """Set, metric, value in percent (`rsum`: of 600)."""


@lru_cache(maxsize=1)
def published_rows() -> tuple[PublishedRow, ...]:
    """All of them, in the order of the file."""
    content = (files("hiclip.evaluation") / "published" / "rows.json").read_text(encoding="utf-8")
    return tuple(PublishedRow.model_validate(row) for row in json.loads(content))


def chosen_rows(encoder: str, data: str) -> tuple[PublishedRow, ...]:
    """The rows of an encoder and of data whose name begins with `data`. InputError lists what there is."""
    rows = [row for row in published_rows() if row.encoder and row.data]
    found = [row for row in rows if _same(row.encoder, encoder) and _folded(row.data).startswith(_folded(data))]
    if not found:
        there = sorted({f"{row.encoder} {row.data}" for row in rows})
        raise InputError(f"--published: expected one of {', '.join(there)}, came {encoder} {data}")
    return tuple(found)


def rows_with(rows: Sequence[PublishedRow], columns: Sequence[tuple[str, str]]) -> list[PublishedRow]:
    """The rows that have a number in any of the columns (set, metric).

    Tables of one source are joined into one row of a model; a source that only repeats another's numbers is left out.
    """
    joined: dict[tuple[str, str, str | None, str | None], PublishedRow] = {}
    for row in rows:
        if _numbers(row, columns):
            key = (row.source, row.method, row.data, row.encoder)
            joined[key] = _joined(joined[key], row) if key in joined else row
    found: list[PublishedRow] = []
    for row in joined.values():
        same = [one for one in found if (one.method, one.data, one.encoder) == (row.method, row.data, row.encoder)]
        if not any(_numbers(row, columns).items() <= _numbers(one, columns).items() for one in same):
            found.append(row)
    return found


def _numbers(row: PublishedRow, columns: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    cells = {(name, metric): row.values.get(name, {}).get(metric) for name, metric in columns}
    return {cell: value for cell, value in cells.items() if value is not None}


def _joined(first: PublishedRow, second: PublishedRow) -> PublishedRow:
    """Two tables' rows of one model as one; where both have a cell they agree, which a test holds."""
    values = {name: dict(metrics) for name, metrics in first.values.items()}
    for name, metrics in second.values.items():
        values.setdefault(name, {}).update({metric: one for metric, one in metrics.items() if one is not None})
    table = "; ".join(dict.fromkeys((first.table, second.table)))
    note = "; ".join(note for note in dict.fromkeys((first.note, second.note)) if note)
    return first.model_copy(update={"values": values, "table": table, "note": note})


def _folded(name: str | None) -> str:
    return (name or "").casefold()


def _same(name: str | None, other: str) -> bool:
    return _folded(name) == _folded(other)
