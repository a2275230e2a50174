"""The pool: all downloaded pairs, a span at a time, and what every step so far has refused of them.

A pair is known by its row, its place in the order of names: snapshot shard `row // rows_per_shard`, place
`row % rows_per_shard` in it. A span is a run of neighbouring shards that one task holds, without its pictures. Nothing
here changes: a step that refuses rows writes them as a new exchange by span, and the pool after it is one step longer.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.annotation_columns import Annotated, read_annotations
from pipeline.exchange import read_bucket, write_buckets
from pipeline.snapshot import SNAPSHOT_SCHEMA, read_snapshot_shard
from pipeline.storage import Folder

VERDICT = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("step", pa.string()),  # the step that refused the row, null where none has yet
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("of", pa.int64()),  # the row beside which it was refused, where there is one
    ]
)
"""What became of a row."""

REFUSED = pa.schema([field for field in VERDICT if field.name != "step"])
"""A row that a step refuses."""

METADATA = [name for name in SNAPSHOT_SCHEMA.names if name not in ("image", "reason", "detail")]
"""What is known of a pair without its picture, annotations aside."""


@dataclass(frozen=True)
class Pool:
    """What tasks need to know to read any pair and to tell whether it is still in."""

    snapshot: Folder
    work: Folder
    """Files of this build, gone when it is done."""
    rows: int
    rows_per_shard: int
    shards_per_span: int
    annotations: tuple[Annotated, ...] = ()
    refusals: tuple[tuple[str, int], ...] = ()
    """Steps after the filters that have refused rows, in order, with the number of files that say which. What stands
    before a point in a name is the step in the ledger: `duplicates.exact`, `duplicates.near`."""

    @property
    def spans(self) -> int:
        """How many spans there are."""
        return -(-self.rows // self.rows_per_span)

    @property
    def rows_per_span(self) -> int:
        """Rows of every span but the last."""
        return self.rows_per_shard * self.shards_per_span

    def span_rows(self, span: int) -> range:
        """The rows of a span."""
        return range(span * self.rows_per_span, min((span + 1) * self.rows_per_span, self.rows))

    def shards(self, span: int) -> range:
        """The snapshot shards of a span."""
        rows = self.span_rows(span)
        return range(rows.start // self.rows_per_shard, -(-rows.stop // self.rows_per_shard))

    def metadata(self, span: int) -> pa.Table:
        """All rows of a span before any filter: METADATA, the download's `reason` and `detail`, `row`, and all
        annotation columns but large ones."""
        light = [name for place in self.annotations for name in light_columns(place)]
        tables = []
        for shard in self.shards(span):
            table = read_snapshot_shard(self.snapshot, shard, [*METADATA, "reason", "detail"])
            for name, column in read_annotations(self.snapshot, shard, self.annotations, light).items():
                table = table.append_column(name, column)
            tables.append(table)
        rows = np.asarray(self.span_rows(span), np.int64)
        return pa.concat_tables(tables).combine_chunks().append_column(VERDICT.field("row"), pa.array(rows))

    def write_judged(self, span: int, judged: pa.Table) -> None:
        """Keeps what `metadata` gave and the filters made of it: the same rows with `step`."""
        content = io.BytesIO()
        pq.write_table(judged, content, compression="zstd", use_dictionary=["source", "step", "reason"])
        self.work.write_bytes(_judged_file(span), content.getvalue())

    def judged(self, span: int, columns: Sequence[str]) -> pa.Table:
        """All rows of a span after the filters: VERDICT, with the refusals of every later step, and the columns of
        METADATA and annotations asked for, large ones too."""
        large = [name for name in columns if name in self._large()]
        plain = [name for name in columns if name not in large and name not in VERDICT.names]
        with self.work.open(_judged_file(span)) as file:
            table = pq.read_table(file, columns=[*plain, "row", "step", "reason", "detail"], use_threads=False)
        if large:
            found = [read_annotations(self.snapshot, shard, self.annotations, large) for shard in self.shards(span)]
            for name in large:
                table = table.append_column(name, pa.chunked_array([c for one in found for c in one[name].chunks]))
        return self._with_refusals(table.combine_chunks(), span)

    def left(self, span: int, columns: Sequence[str]) -> pa.Table:
        """The rows of a span that no step has refused: `row` and the columns asked for."""
        table = self.judged(span, columns)
        return table.filter(pc.is_null(table["step"])).select(["row", *columns]).combine_chunks()

    def refused(self, step: str, number: int, rows: pa.Table) -> None:
        """Writes file `number` of what `step` refuses (REFUSED)."""
        spans = np.asarray(rows["row"]) // self.rows_per_span
        write_buckets(self.work.child(f"refused/{step}"), number, rows.cast(REFUSED), spans, self.spans)

    def after(self, step: str, files: int) -> Pool:
        """The pool without what the `files` files of `step` refuse."""
        return replace(self, refusals=(*self.refusals, (step, files)))

    def _large(self) -> set[str]:
        return {name for place in self.annotations for name in place.columns.names} - {
            name for place in self.annotations for name in light_columns(place)
        }

    def _with_refusals(self, table: pa.Table, span: int) -> pa.Table:
        verdict = table.select(["row", "step", "reason", "detail"]).append_column(
            "of", pa.nulls(len(table), pa.int64())
        )
        found = [verdict.cast(VERDICT)]
        for step, files in self.refusals:
            rows = read_bucket(self.work.child(f"refused/{step}"), range(files), span)
            steps = pa.repeat(pa.scalar(step.partition(".")[0]), rows.num_rows)
            found.append(rows.append_column("step", steps).select(VERDICT.names).cast(VERDICT))
        stacked = pa.concat_tables(found)
        # Each row's last word: its own line, or that of the one step that has refused it.
        words = np.arange(table.num_rows)
        words[np.asarray(stacked["row"])[len(words) :] - self.span_rows(span).start] = np.arange(
            len(words), len(stacked)
        )
        stacked = stacked.combine_chunks().take(words)
        for field in VERDICT:
            if field.name in table.schema.names:
                table = table.set_column(table.schema.get_field_index(field.name), field, stacked[field.name])
        return table.append_column(VERDICT.field("of"), stacked["of"])

    def verdicts(self, start: int, stop: int) -> pa.Table:
        """What became of rows `start` to `stop` (VERDICT), in order."""
        return self.judged_rows(start, stop, []).select(VERDICT.names)

    def judged_rows(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """`judged`, of any run of rows."""
        found = [_cut(self.judged(span, columns), self.span_rows(span).start, start, stop)
                 for span in range(start // self.rows_per_span, -(-stop // self.rows_per_span))]  # fmt: skip
        return pa.concat_tables(found) if found else self.judged(0, columns).slice(0, 0)

    def pairs(self, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The pairs of some rows (ascending), a table a shard: columns of the snapshot and annotations."""
        shards = rows // self.rows_per_shard
        in_snapshot = [name for name in columns if name in SNAPSHOT_SCHEMA.names]
        for shard in np.unique(shards):
            table = read_snapshot_shard(self.snapshot, int(shard), in_snapshot)
            for name, column in read_annotations(self.snapshot, int(shard), self.annotations, columns).items():
                table = table.append_column(name, column)
            yield table.take(rows[shards == shard] % self.rows_per_shard).select(columns)


def light_columns(place: Annotated) -> list[str]:
    """The columns of an annotation that are as small as a caption is: no bytes or lists of any length."""
    large = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_list, pa.types.is_fixed_size_list)
    return [field.name for field in place.columns if not any(kind(field.type) for kind in large)]


def _cut(table: pa.Table, begin: int, start: int, stop: int) -> pa.Table:
    first = max(start - begin, 0)
    return table.slice(first, max(stop - begin - first, 0))


def _judged_file(span: int) -> str:
    return f"judged/{span:05d}.parquet"
