"""Parquet tables with a key column, read only where the wanted keys can be: what bounds the memory of a join.

Parquet notes the least and the greatest key of every row group. In a table that is in the order of its keys, as
everything is that this project writes by pair_id, a run of keys lies in a few row groups; in any other order all are
read.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.manifest import UNFINISHED, DatasetError
from pipeline.storage import folder


class _Group(NamedTuple):
    file: str
    number: int
    least: str | None
    """Key; None where the file does not say."""
    greatest: str | None


def table_files(path: str) -> list[str]:
    """The file itself, or every parquet file of a folder, by name; DatasetError where there is none or not yet all."""
    place = folder(path)
    if place.names() == [place.root.removeprefix("s3://")]:
        return [path]
    names = place.names()
    if UNFINISHED in names:
        raise DatasetError(
            f"{path}: expected a whole table, found {UNFINISHED}: the command that writes it has not ended"
        )
    found = [place.join(name) for name in names if name.endswith(".parquet")]
    if not found:
        raise DatasetError(f"{path}: expected a parquet file or a folder of them, found none")
    return found


def table_identity(path: str) -> str:
    """Hex sha256 over the size and footer of every file: what is in them, without reading all of it."""
    digest = hashlib.sha256()
    for file in table_files(path):
        place = folder(file)
        size = place.size()
        with place.open("") as opened:
            opened.seek(max(0, size - 8))
            footer = int.from_bytes(opened.read(4), "little") + 8
            opened.seek(max(0, size - footer))
            digest.update(f"{size} ".encode() + opened.read())
    return digest.hexdigest()


def check_table(path: str, wanted: pa.Schema) -> None:
    """DatasetError unless every file of the table has the columns of `wanted`, in types that become theirs."""
    for file in table_files(path):
        with folder(file).open("") as opened:
            found = _schema(file, opened)
        missing = [name for name in wanted.names if name not in found.names]
        if missing:
            raise DatasetError(f"{file}: expected a column {missing[0]}, found {', '.join(found.names)}")
        for field in wanted:
            if _kind(found.field(field.name).type) != _kind(field.type):
                came = found.field(field.name).type
                raise DatasetError(f"{file}: expected {field.type} in the column {field.name}, found {came}")


def _kind(of: pa.DataType) -> str:
    """Within a kind a cast loses nothing but precision."""
    if pa.types.is_dictionary(of):
        return _kind(of.value_type)
    if pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of):
        return f"list of {_kind(of.value_type)}"
    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string),
        "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
        "truth": (pa.types.is_boolean,),
        "number": (pa.types.is_integer, pa.types.is_floating),
    }
    return next((name for name, tests in kinds.items() if any(test(of) for test in tests)), str(of))


def rows_of_keys(path: str, keys: pa.Array, wanted: pa.Schema) -> pa.Table:
    """The columns of `wanted`, whose first is the key, of the rows whose key is among `keys`."""
    bounds = pc.min_max(keys).as_py()
    found = [wanted.empty_table()]
    for group in _groups(path, wanted.names[0]) if len(keys) else ():
        known = group.least is not None and group.greatest is not None
        if not known or (group.least <= bounds["max"] and group.greatest >= bounds["min"]):
            with folder(group.file).open("") as file:
                rows = pq.ParquetFile(file).read_row_group(group.number, columns=wanted.names, use_threads=False)
            rows = rows.filter(pc.is_in(rows[wanted.names[0]].cast(wanted.types[0]), keys))
            found.append(rows.select(wanted.names).cast(wanted))
    return pa.concat_tables(found).combine_chunks()


def all_rows(path: str, wanted: pa.Schema) -> pa.Table:
    """The columns of `wanted` of all rows, file after file."""
    found = []
    for file in table_files(path):
        with folder(file).open("") as opened:
            found.append(pq.read_table(opened, columns=wanted.names).select(wanted.names).cast(wanted))
    return pa.concat_tables(found).combine_chunks()


@lru_cache(maxsize=8)
def _groups(path: str, key: str) -> tuple[_Group, ...]:
    groups = []
    for file in table_files(path):
        with folder(file).open("") as opened:
            footer = pq.ParquetFile(opened).metadata
        leaf = next(at for at in range(footer.num_columns) if footer.schema.column(at).path == key)
        for number in range(footer.num_row_groups):
            known = footer.row_group(number).column(leaf).statistics
            bounds = (known.min, known.max) if known is not None and known.has_min_max else (None, None)
            groups.append(_Group(file, number, *bounds))
    return tuple(groups)


def _schema(path: str, file: object) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path}: expected a parquet table: {str(error).splitlines()[0]}") from None
