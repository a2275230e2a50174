"""Of a table in the order of its keys only the row groups that can hold the wanted ones are read; of others, all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations import JoinedColumnsAnnotation
from pipeline.keyed_tables import rows_of_keys, table_files
from pipeline.manifest import DatasetError

WANTED = pa.schema([pa.field("pair_id", pa.string()), pa.field("regions", pa.binary())])


def folder_of(place: Path, names: list[str], rows_a_file: int, **options: object) -> str:
    place.mkdir()
    for number, start in enumerate(range(0, len(names), rows_a_file)):
        part = names[start : start + rows_a_file]
        table = pa.table({"other": part, "pair_id": part, "regions": [name.encode() * 2 for name in part]})
        pq.write_table(table, place / f"part-{number:05d}.parquet", row_group_size=5, **options)
    return str(place)


def test_rows_come_from_the_row_groups_that_can_hold_them(tmp_path: Path) -> None:
    names = [f"{number * 3:016x}" for number in range(100)]
    path = folder_of(tmp_path / "table", names, 40)
    keys = pa.array([names[33], names[35], "f" * 16])
    found = rows_of_keys(path, keys, WANTED)
    assert found.schema == WANTED
    assert found["pair_id"].to_pylist() == [names[33], names[35]]
    assert found["regions"].to_pylist() == [names[33].encode() * 2, names[35].encode() * 2]
    # Whatever lies outside the keys' run need not even be readable any more.
    (tmp_path / "table" / "part-00002.parquet").write_bytes(b"PAR1")
    assert rows_of_keys(path, keys.slice(0, 2), WANTED) == found


@pytest.mark.parametrize("options", [{"write_statistics": False}, {}])
def test_a_table_in_any_order_gives_the_same(tmp_path: Path, options: dict[str, object]) -> None:
    names = [f"{number * 7919 % 101:016x}" for number in range(101)]
    path = folder_of(tmp_path / "table", names, 30, **options)
    wanted = pa.array(names[10:20])
    found = rows_of_keys(path, wanted, WANTED)
    assert sorted(found["pair_id"].to_pylist()) == sorted(names[10:20])
    assert rows_of_keys(path, wanted.slice(0, 0), WANTED).num_rows == 0


def test_a_folder_is_joined_like_a_file(tmp_path: Path) -> None:
    names = [f"{number:016x}" for number in range(30)]
    path = folder_of(tmp_path / "table", names[:20], 7)
    joined = JoinedColumnsAnnotation(table=path, adds={"regions": "binary"}).ready()
    found = joined.annotate(pa.table({"pair_id": names[15:25]}))
    assert found["regions"].to_pylist() == [*(name.encode() * 2 for name in names[15:20]), *[None] * 5]


def test_an_empty_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected a parquet file or a folder of them, found none"):
        table_files(str(tmp_path))
