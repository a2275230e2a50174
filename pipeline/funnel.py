"""The ledger says where every row of the lists ended, the funnel how many ended where. Nothing is ever just gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pool import VERDICT

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
_EXAMPLES = 3


def make_ledger(listed: pa.Table, verdicts: pa.Table) -> pa.Table:
    """One LEDGER row for every row of `listed` (url_lists.LISTED), in its order.

    `verdicts` (pool.VERDICT) are about the fetched rows: those that the list did not refuse, in the same order.
    """
    fetched = np.asarray(pc.is_null(listed["reason"]))
    assert int(fetched.sum()) == verdicts.num_rows, "a row was lost between list and verdict"
    kept = verdicts.select(["step", "reason", "detail"])
    kept = kept.set_column(0, VERDICT.field("step"), pc.fill_null(verdicts["step"], KEPT))
    by_list = pa.table({"step": pa.repeat(pa.scalar("list"), len(listed)), **_named(listed, ("reason", "detail"))})
    places = np.arange(len(listed))
    places[fetched] = len(listed) + np.arange(len(kept))
    ends = pa.concat_tables([by_list, kept]).combine_chunks().take(places)
    columns = _named(listed, ("row", "pair_id", "url", "caption", "source")) | _named(ends, ends.schema.names)
    return pa.table({name: columns[name] for name in LEDGER.names}, schema=LEDGER)


def _named(table: pa.Table, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in names}


@dataclass
class Tally:
    """How many rows ended where, and the first few of each kind as examples; tallies of neighbouring parts add up."""

    rows: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(step, reason) -> rows."""
    examples: dict[tuple[str, str], list[dict[str, str]]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    """Source -> rows, refused ones too."""

    def __iadd__(self, other: Tally) -> Tally:
        """Adds a tally of rows that come after these."""
        self.rows += other.rows
        self.refused += other.refused
        self.sources += other.sources
        for end, examples in other.examples.items():
            self.examples[end] = [*self.examples.get(end, ()), *examples][:_EXAMPLES]
        return self


def tally(ledger: pa.Table) -> Tally:
    """The tally of a ledger's rows, which are in the order of pair_id."""
    found = Tally(ledger.num_rows)
    found.sources.update({one["values"]: one["counts"] for one in pc.value_counts(ledger["source"]).to_pylist()})
    refused = ledger.filter(pc.not_equal(ledger["step"], KEPT)).combine_chunks()
    for end in refused.group_by(["step", "reason"]).aggregate([([], "count_all")]).to_pylist():
        key = end["step"], end["reason"]
        found.refused[key] = end["count_all"]
        rows = refused.filter(pc.and_(pc.equal(refused["step"], key[0]), pc.equal(refused["reason"], key[1])))
        found.examples[key] = [
            {name: (row[name] or "")[:300] for name in ("pair_id", "url", "caption", "detail")}
            for row in rows.slice(0, _EXAMPLES).to_pylist()
        ]
    return found


def total(tallies: Iterable[Tally]) -> Tally:
    """The tally of all, which come in the order of pair_id."""
    whole = Tally()
    for one in tallies:
        whole += one
    return whole


def make_funnel(whole: Tally, steps: Sequence[str]) -> list[dict[str, Any]]:
    """For every step in order: pairs that went in and came out, refusals by reason, and an example or three of each."""
    funnel = []
    left = whole.rows
    for step in steps:
        refused = {reason: count for (of, reason), count in whole.refused.items() if of == step}
        reasons = dict(sorted(refused.items(), key=lambda item: (-item[1], item[0])))
        out = left - sum(reasons.values())
        examples = {reason: whole.examples[step, reason] for reason in sorted(reasons)}
        funnel.append({"step": step, "went_in": left, "came_out": out, "refused": reasons, "examples": examples})
        left = out
    assert left == whole.rows - whole.refused.total(), "kept and refused are not all rows of the lists"
    return funnel


def refused_counts(funnel: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """{step: {reason: rows}} of the steps that refused anything."""
    return {one["step"]: one["refused"] for one in funnel if one["refused"]}
