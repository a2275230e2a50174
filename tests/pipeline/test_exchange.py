"""Rows of a bucket meet in order, none is lost, and numbers mix the same way everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.exchange import read_bucket, write_buckets
from pipeline.keyed_hash import mixed
from pipeline.storage import Folder


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=4))
def test_every_row_arrives_in_its_bucket_once_and_in_order(tmp_path_factory: object, files: list[list[int]]) -> None:
    place = Folder(str(tmp_path_factory.mktemp("exchange")))  # type: ignore[attr-defined]
    for number, buckets in enumerate(files):
        names = pa.array([f"{number}.{at}" for at in range(len(buckets))], pa.string())
        rows = pa.table({"bucket": pa.array(buckets, pa.int64()), "name": names})
        write_buckets(place, number, rows, np.array(buckets, np.int64), 5)
    for bucket in range(5):
        found = read_bucket(place, range(len(files)), bucket)["name"].to_pylist()
        assert found == [f"{number}.{at}" for number, buckets in enumerate(files)
                         for at, one in enumerate(buckets) if one == bucket]  # fmt: skip


def test_an_empty_file_has_empty_buckets(tmp_path: Path) -> None:
    schema = pa.schema([("bucket", pa.int64())])
    write_buckets(Folder(str(tmp_path)), 0, schema.empty_table(), np.empty(0, np.int64), 3)
    assert read_bucket(Folder(str(tmp_path)), [0], 2).schema == schema


def test_mixed_numbers_are_splitmix64s() -> None:
    # The first output of Steele, Lea and Flood's generator with seed 0.
    assert int(mixed(np.array([0], np.uint64))[0]) == 0xE220A8397B1DCDAF
    numbers = np.arange(100_000, dtype=np.uint64)
    found = mixed(np.uint64(7), numbers)
    assert len(np.unique(found)) == len(numbers)
    bits = np.bitwise_count(found)
    assert abs(bits.mean() - 32) < 0.1
    assert not np.array_equal(found, mixed(numbers, np.uint64(7)))
