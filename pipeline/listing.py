"""All rows of all URL lists in the order of their names, on disk: lists of any length are sorted in bounded memory.

A task a file cuts its rows into parts by the first digits of pair_id; a task a part sorts the rows of all files that
fell into it. Parts follow one another, so the whole is sorted.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from pipeline.exchange import read_bucket, write_buckets
from pipeline.list_files import UrlList, files_of, list_sha256
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder
from pipeline.task_window import RETRIES, in_window
from pipeline.url_lists import LISTED, fetchable, in_order, listed_rows, parts_of

_BYTES_A_ROW = 200
"""Of a list's file, roughly: only decides into how many parts the rows are cut."""
_PACKED = 4
"""How much a packed file grows, roughly."""
_MOST_PARTS = 4096
_ROWS_A_GROUP = 2048


class ListPart(NamedTuple):
    """Rows of one part."""

    rows: int
    fetchable: int


@dataclass(frozen=True)
class Listing:
    """Sorted lists on disk. `num_rows` and `slice` are about the rows to fetch, as a table of them would have it."""

    place: Folder
    parts: tuple[ListPart, ...]
    lists: dict[str, str]
    """Path of every list, as the job has it, and its `list_sha256`."""

    @property
    def rows(self) -> int:
        """Rows of all lists."""
        return sum(part.rows for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Rows that the lists do not refuse."""
        return sum(part.fetchable for part in self.parts)

    def begins(self) -> list[int]:
        """Where each part begins among the rows to fetch; the last number is where the last one ends."""
        return list(accumulate((part.fetchable for part in self.parts), initial=0))

    def slice(self, start: int, length: int) -> pa.Table:
        """Rows to fetch (LISTED) number `start` and the `length - 1` that follow; fewer at the end."""
        begins = self.begins()
        stop = min(start + length, begins[-1])
        found = [
            _read_rows(self.place, part, max(start - begins[part], 0), stop - begins[part])
            for part in range(len(self.parts))
            if begins[part] < stop and begins[part + 1] > start
        ]
        return pa.concat_tables(found).combine_chunks() if found else LISTED.empty_table()

    def part(self, number: int) -> pa.Table:
        """All rows of a part (LISTED), the refused ones too."""
        with self.place.open(_all_of(number)) as file:
            return pq.read_table(file)


def make_listing(lists: Sequence[UrlList], place: Folder, rows_at_once: int) -> Listing:
    """Reads and sorts the lists into `place`; a task holds some `rows_at_once` rows. What lay in `place` is removed.

    Raises DatasetError in one line when a list is missing, is not what its format says, or all of them have no row.
    """
    place.remove()
    files = [file for one in lists for file in files_of(one)]
    parts = _parts_for(files, rows_at_once)
    read = ray.remote(max_retries=RETRIES)(_read_task)
    calls = (
        partial(read.remote, number, one, parts, rows_at_once, place.child(f"files/{number:05d}"))
        for number, one in enumerate(files)
    )
    cut = sorted(in_window(calls))
    if not any(rows for _, rows, _, _ in cut):
        raise DatasetError(f"{', '.join(one.path for one in lists)}: expected rows, found none")
    begins = accumulate((rows for _, rows, _, _ in cut), initial=0)
    pieces = [(number, begin, count) for (number, _, count, _), begin in zip(cut, begins, strict=False)]
    sort = ray.remote(max_retries=RETRIES)(_sort_task)
    sorted_parts = dict(in_window(partial(sort.remote, part, pieces, place) for part in range(parts)))
    place.remove("files")
    hashes = {one.path: sha256 for one, (_, _, _, sha256) in zip(files, cut, strict=True)}
    by_list = {one.path: list_sha256(one, hashes) for one in lists}
    return Listing(place, tuple(sorted_parts[part] for part in range(parts)), by_list)


def _parts_for(files: Sequence[UrlList], rows_at_once: int) -> int:
    size = sum(folder(one.path).size() * (_PACKED if one.path.endswith((".gz", ".parquet")) else 1) for one in files)
    return min(_MOST_PARTS, max(1, size // (_BYTES_A_ROW * rows_at_once)))


def _read_task(number: int, one: UrlList, parts: int, rows_at_once: int, place: Folder) -> tuple[int, int, int, str]:
    """Number of the file, its rows, the pieces that they were written in, and its sha256."""
    waiting: list[pa.Table] = []
    rows = pieces = 0
    for batch in listed_rows(one):
        waiting.append(batch)
        rows += batch.num_rows
        if sum(table.num_rows for table in waiting) >= rows_at_once:
            _cut(pa.concat_tables(waiting), parts, place, pieces)
            waiting, pieces = [], pieces + 1
    if waiting:
        _cut(pa.concat_tables(waiting), parts, place, pieces)
        pieces += 1
    return number, rows, pieces, folder(one.path).sha256()


def _cut(rows: pa.Table, parts: int, place: Folder, piece: int) -> None:
    write_buckets(place, piece, rows, parts_of(rows["pair_id"], parts), parts)


def _sort_task(part: int, pieces: Sequence[tuple[int, int, int]], place: Folder) -> tuple[int, ListPart]:
    found = []
    for number, begin, count in pieces:
        rows = read_bucket(place.child(f"files/{number:05d}"), range(count), part) if count else LISTED.empty_table()
        found.append(rows.set_column(0, LISTED.field("row"), pc.add(rows["row"], begin)))
    rows = in_order(pa.concat_tables(found))
    to_fetch = fetchable(rows)
    _write_rows(place, _all_of(part), rows)
    _write_rows(place, _to_fetch_of(part), to_fetch)
    return part, ListPart(rows.num_rows, to_fetch.num_rows)


def _all_of(part: int) -> str:
    return f"all/{part:05d}.parquet"


def _to_fetch_of(part: int) -> str:
    return f"to_fetch/{part:05d}.parquet"


def _write_rows(place: Folder, name: str, rows: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd", row_group_size=_ROWS_A_GROUP)
    place.write_bytes(name, content.getvalue())


def _read_rows(place: Folder, part: int, start: int, stop: int) -> pa.Table:
    """Rows to fetch `start` to `stop` of a part; only the row groups that hold them are read."""
    with place.open(_to_fetch_of(part)) as file:
        parquet = pq.ParquetFile(file)
        stop = min(stop, parquet.metadata.num_rows)
        first, last = start // _ROWS_A_GROUP, -(-stop // _ROWS_A_GROUP)
        rows = parquet.read_row_groups(list(range(first, last)), use_threads=False)
    return rows.slice(start - first * _ROWS_A_GROUP, stop - start)
