"""Lists are sorted on disk as they would be in memory, however many parts, files and tasks there are."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.list_files import UrlList
from pipeline.listing import Listing, make_listing
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder
from pipeline.url_lists import LISTED, fetchable, in_order, listed_rows

pytestmark = pytest.mark.usefixtures("ray_session")


def some_lists(place: Path) -> list[UrlList]:
    chance = random.Random(0)
    rows = [f"http://a.example/{number % 300},a dog {number % 280}" for number in range(400)]
    rows += ["ftp://x,a cat", "http://b.example/1,", "http://b.example/1,,,"]
    chance.shuffle(rows)
    (place / "a.csv").write_text("\n".join(["url,caption", *rows[:250]]) + "\n")
    (place / "b.csv.gz").write_bytes(gzip.compress("\n".join(["url,caption", *rows[250:]]).encode()))
    (place / "empty.csv").write_text("url,caption\n")
    return [UrlList(path=str(place / name), source="s") for name in ("a.csv", "empty.csv", "b.csv.gz")]


def in_memory(lists: list[UrlList]) -> pa.Table:
    parts, begin = [], 0
    for one in lists:
        rows = pa.concat_tables([LISTED.empty_table(), *listed_rows(one)])
        parts.append(rows.set_column(0, LISTED.field("row"), pc.add(rows["row"], begin)))
        begin += rows.num_rows
    return in_order(pa.concat_tables(parts))


def whole(listing: Listing) -> pa.Table:
    return pa.concat_tables(listing.part(number) for number in range(len(listing.parts)))


@pytest.mark.parametrize("rows_at_once", [3, 9, 1_000_000])
def test_parts_one_after_the_other_are_the_sorted_lists(tmp_path: Path, rows_at_once: int) -> None:
    lists = some_lists(tmp_path)
    listing = make_listing(lists, Folder(str(tmp_path / "work")), rows_at_once)
    expected = in_memory(lists)
    assert (len(listing.parts) > 1) == (rows_at_once < 1000)
    assert whole(listing).combine_chunks() == expected
    assert listing.rows == expected.num_rows == 403
    to_fetch = fetchable(expected)
    assert listing.num_rows == to_fetch.num_rows < 403
    for start in range(0, to_fetch.num_rows + 5, 13):
        assert listing.slice(start, 13) == to_fetch.slice(start, 13)
    assert listing.files == {one.path: folder(one.path).sha256() for one in lists}
    assert not [name for name in Folder(str(tmp_path / "work")).names() if name.endswith(".arrow")]


def test_lists_without_a_row_are_no_lists(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"empty\.csv: expected rows, found none"):
        make_listing(some_lists(tmp_path)[1:2], Folder(str(tmp_path / "work")), 100)


def test_a_mistake_in_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("link,caption\nx,y\n")
    with pytest.raises(DatasetError, match=r"bad\.csv: cannot be read as a URL list \(csv\)") as caught:
        make_listing([UrlList(path=str(tmp_path / "bad.csv"))], Folder(str(tmp_path / "work")), 100)
    assert "\n" not in str(caught.value)
