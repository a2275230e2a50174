"""Brings columns that were made elsewhere into the dataset: a detector's tags, a summariser's summaries, a score.

What a GPU machine or another project computed is a parquet table with a column that names the pair (`pair_id`) or its
address (`url`). PyramidCLIP's three annotations (caption_summary, object_tags, regions) come in this way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.annotation_resources import Resources
from pipeline.jobfile import Settings
from pipeline.keyed_tables import all_rows, check_table, rows_of_keys, table_identity
from pipeline.manifest import DatasetError
from pipeline.storage import absolute, folder

_TYPES = {
    "string": pa.string(),
    "binary": pa.binary(),
    "float": pa.float32(),
    "floats": pa.list_(pa.float32()),
    "int": pa.int64(),
    "bool": pa.bool_(),
}
Type = Literal["string", "binary", "float", "floats", "int", "bool"]


class JoinedColumnsAnnotation(Settings):
    """The columns of `adds`, from the row of a table that has the pair's key; null where the table has no such row."""

    version: ClassVar[int] = 1
    name: Literal["joined_columns"] = "joined_columns"
    table: Annotated[str, Field(min_length=1)]
    """Parquet file or a folder of them, a path or s3://."""
    key: Literal["pair_id", "url"] = "pair_id"
    """Column of both; the first of several rows with one key counts. A table of pair_ids in their order, as
    `python -m hiclip.evaluate` writes it, is read only where it is wanted; one of urls every process holds whole."""
    adds: Annotated[dict[str, Type], Field(min_length=1)]
    """Columns to take and their types: `{object_tags: string, caption_summary: string}`."""
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """Of the file. With it the job says which bytes the dataset is made from, and other bytes are refused."""
    resources: Resources = Resources()
    """What a worker of it takes; decides nothing of the dataset."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the snapshot that it needs."""
        return (self.key,)

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        return pa.schema([pa.field(name, _TYPES[kind]) for name, kind in self.adds.items()])

    def deciding(self) -> dict[str, Any]:
        """All that its values follow from: the table by what is in it, wherever it lies."""
        return {"table": table_identity(self.table), "key": self.key, "adds": self.adds}

    def ready(self) -> JoinedColumnsAnnotation:
        """Looks into the table, so that a fault in it is said before anything is fetched."""
        path = absolute(self.table)
        if self.sha256 is not None and (found := folder(path).sha256()) != self.sha256:
            raise DatasetError(f"{path}: expected the file with sha256 {self.sha256[:16]}..., found {found[:16]}...")
        check_table(path, self._wanted)
        return self.model_copy(update={"table": path})

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks every pair's key up. DatasetError if the table is not there or is not what the job says."""
        keys = pairs[self.key].combine_chunks()
        table = (
            rows_of_keys(self.table, keys, self._wanted) if self.key == "pair_id" else _whole(self.table, self._wanted)
        )
        found = table.drop_columns([self.key]).take(pc.index_in(keys, table[self.key].combine_chunks()))
        for field in self.columns:
            pairs = pairs.append_column(field, found[field.name])
        return pairs

    @property
    def _wanted(self) -> pa.Schema:
        return pa.schema([pa.field(self.key, pa.string()), *self.columns])


@lru_cache(maxsize=4)
def _whole(table: str, wanted: pa.Schema) -> pa.Table:
    """Key and columns of the whole table, once a process."""
    return all_rows(table, wanted)
