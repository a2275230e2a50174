"""Shards are cut by count alone, their bytes follow from their rows alone, and arithmetic finds every row again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_dataset import small_dataset

from pipeline.manifest import DatasetError
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.shards import DatasetReader, write_shards
from pipeline.storage import Folder


def pairs(count: int) -> pa.Table:
    rows = [
        {
            "pair_id": pair_id(f"http://x/{number}", "a"),
            "url": f"http://x/{number}",
            "caption": "a",
            "source": "s",
            "image": bytes([number % 256]) * 50,
            "width": 1,
            "height": 1,
            "image_sha256": "0",
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def pieces(table: pa.Table, cuts: Sequence[int]) -> list[pa.Table]:
    edges = [0, *sorted(cut % (table.num_rows + 1) for cut in cuts), table.num_rows]
    return [table.slice(low, high - low) for low, high in pairwise(edges)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 60),
    groups=st.integers(1, 4),
    rows_per_group=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)
def test_how_rows_arrive_cannot_be_seen(
    tmp_path: Path, count: int, groups: int, rows_per_group: int, cuts: list[int]
) -> None:
    table, per_shard = pairs(count), groups * rows_per_group
    whole = write_shards([table], Folder(str(tmp_path / "whole")), per_shard, rows_per_group)
    pieced = write_shards(iter(pieces(table, cuts)), Folder(str(tmp_path / "pieced")), per_shard, rows_per_group)
    assert whole == pieced
    assert [shard.pairs for shard in whole] == [min(per_shard, count - at) for at in range(0, count, per_shard)]
    for shard in whole:
        footer = pq.read_metadata(tmp_path / "whole" / shard.path)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        assert sizes[:-1] == [rows_per_group] * (math.ceil(shard.pairs / rows_per_group) - 1)


def test_groups_are_numbered_over_the_whole_dataset(tmp_path: Path) -> None:
    manifest = small_dataset(tmp_path, pairs=50, pairs_per_shard=16, rows_per_group=8)
    reader = DatasetReader(str(tmp_path))
    assert (reader.pairs, reader.groups, reader.rows_per_group) == (50, 7, 8)
    found = [name for group in range(7) for name in reader.read_group(group, ["pair_id"])["pair_id"].to_pylist()]
    tables = [pq.read_table(tmp_path / shard.path, columns=["pair_id"]) for shard in manifest.shards]
    assert found == pa.concat_tables(tables)["pair_id"].to_pylist()
    assert reader.read_group(6, ["caption", "image"]).column_names == ["caption", "image"]
    with pytest.raises(IndexError):
        reader.read_group(7, ["pair_id"])


def test_what_cannot_be_read_names_the_shard(tmp_path: Path) -> None:
    small_dataset(tmp_path)
    reader = DatasetReader(str(tmp_path))
    with pytest.raises(
        DatasetError, match=r"00000\.parquet: row group 0 cannot be read: no column 'no_such_column'; it has pair_id"
    ):
        reader.read_group(0, ["no_such_column"])
    (tmp_path / "shards" / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"00001\.parquet"):
        reader.read_group(4, ["pair_id"])


def test_groups_must_fill_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        write_shards([pairs(3)], Folder(str(tmp_path)), 10, 3)
    assert write_shards([], Folder(str(tmp_path)), 10, 5) == []
