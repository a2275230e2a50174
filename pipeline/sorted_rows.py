"""Rows are found by pair_id in parquet files that are sorted by it: footers say where, so that little is read."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.parquet as pq

from pipeline.storage import Folder

_KEY = "pair_id"


def file_of(place: Folder, names: Sequence[str], pair_id: str) -> int | None:
    """Number of the only one of `names` that may hold the pair; None where it lies before all of them.

    The files, each with a row at least, follow one another in order; a few footers are read.
    """
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if _least(place, names[middle]) <= pair_id:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low else None


def find_rows(place: Folder, name: str, pair_id: str) -> list[tuple[int, int]]:
    """(row group, row in the file) of every row of a file with this name; only groups that may hold it are read."""
    found = []
    with place.open(name) as file:
        parquet = pq.ParquetFile(file)
        begin = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            least, most = _bounds(parquet.metadata, group) if rows else ("", "")
            if least <= pair_id <= most:
                names = parquet.read_row_group(group, columns=[_KEY], use_threads=False)[_KEY].to_pylist()
                found += [(group, begin + at) for at, one in enumerate(names) if one == pair_id]
            begin += rows
    return found


def read_row(place: Folder, name: str, row: int, columns: Sequence[str] | None = None) -> dict[str, object]:
    """One row of a file; only its row group is read."""
    with place.open(name) as file:
        parquet = pq.ParquetFile(file)
        group = 0
        while row >= (rows := parquet.metadata.row_group(group).num_rows):
            row, group = row - rows, group + 1
        table = parquet.read_row_group(group, columns=None if columns is None else list(columns), use_threads=False)
    found: dict[str, object] = table.slice(row, 1).to_pylist()[0]
    return found


def _least(place: Folder, name: str) -> str:
    with place.open(name) as file:
        return _bounds(pq.read_metadata(file), 0)[0]


def _bounds(footer: pq.FileMetaData, group: int) -> tuple[str, str]:
    """The least and the greatest name of a row group."""
    columns = footer.row_group(group)
    of_names = next(
        column for column in map(columns.column, range(columns.num_columns)) if column.path_in_schema == _KEY
    )
    return of_names.statistics.min, of_names.statistics.max
