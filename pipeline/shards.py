"""Shards: parquet files of pairs cut at fixed counts, so that arithmetic alone says where a row lies.

Row index `i` of a dataset lies in row group `i // rows_per_group` and in shard `i // pairs_per_shard`. Bytes depend on
the rows and on pyarrow's version alone: no timestamps, no writer threads, no dictionary decided by chance.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import DatasetError, Manifest, Shard, read_manifest
from pipeline.storage import Folder, folder


def write_shards(rows: Iterable[pa.Table], target: Folder, pairs_per_shard: int, rows_per_group: int) -> list[Shard]:
    """Cuts a stream of tables of one schema into shards `shards/00000.parquet`, ... and returns their records in order.

    Raises ValueError when `rows_per_group` does not divide `pairs_per_shard`. An empty stream gives no shard.
    """
    if pairs_per_shard % rows_per_group:
        raise ValueError(f"rows_per_group {rows_per_group} does not divide pairs_per_shard {pairs_per_shard}")
    return [
        write_shard(table, target, number, rows_per_group) for number, table in enumerate(_cut(rows, pairs_per_shard))
    ]


def _cut(rows: Iterable[pa.Table], pairs_per_shard: int) -> Iterator[pa.Table]:
    waiting: pa.Table | None = None
    for table in rows:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= pairs_per_shard:
            yield waiting.slice(0, pairs_per_shard)
            waiting = waiting.slice(pairs_per_shard)
    if waiting is not None and waiting.num_rows:
        yield waiting


def write_shard(table: pa.Table, target: Folder, number: int, rows_per_group: int) -> Shard:
    """Writes one shard of a dataset and returns its record; the way for tasks that each write a shard of their own."""
    # One chunk a column, or parquet's page borders would follow how the rows happened to arrive.
    table = table.combine_chunks().replace_schema_metadata(None)
    buffer = io.BytesIO()
    # Pictures are compressed already: a dictionary or statistics over them only cost time and bytes.
    texts = [field.name for field in table.schema if not pa.types.is_binary(field.type)]
    pq.write_table(
        table,
        buffer,
        row_group_size=rows_per_group,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in texts if name in ("source", "language")],
        write_statistics=texts,
        store_schema=False,
    )
    content = buffer.getvalue()
    name = f"shards/{number:05d}.parquet"
    target.write_bytes(name, content)
    return Shard(path=name, pairs=table.num_rows, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class DatasetReader:
    """Reads a whole dataset by row group, in any order; opens each shard's footer once."""

    def __init__(self, path: str, manifest: Manifest | None = None) -> None:
        """`manifest` spares reading it again in every worker; DatasetError if there is none at `path`."""
        self._folder = folder(path)
        self._manifest = manifest or read_manifest(path)
        self._footers: dict[int, pq.FileMetaData] = {}

    @property
    def pairs(self) -> int:
        """Pairs in the dataset."""
        return self._manifest.pairs

    @property
    def rows_per_group(self) -> int:
        """Rows of every row group but the dataset's last."""
        return self._manifest.rows_per_group

    @property
    def groups(self) -> int:
        """Row groups in the dataset."""
        return -(-self.pairs // self.rows_per_group)

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Row group number `group` of the whole dataset, the named columns only.

        Raises IndexError outside `range(groups)`, DatasetError when a column is not there or the shard cannot be read.
        """
        if not 0 <= group < self.groups:
            raise IndexError(f"row group {group} of {self.groups}")
        shard, inside = divmod(group, self._manifest.pairs_per_shard // self.rows_per_group)
        name = self._manifest.shards[shard].path
        try:
            with self._folder.open(name) as file:
                parquet = pq.ParquetFile(file, metadata=self._footers.get(shard))
                self._footers[shard] = parquet.metadata
                missing = [name for name in columns if name not in parquet.schema_arrow.names]
                if missing:  # pyarrow would leave it out in silence
                    raise pa.ArrowKeyError(f"no column '{missing[0]}'; it has {', '.join(parquet.schema_arrow.names)}")
                return parquet.read_row_group(inside, columns=list(columns), use_threads=False)
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            first = str(error).splitlines()[0]
            raise DatasetError(f"{self._folder.join(name)}: row group {inside} cannot be read: {first}") from None
