"""URL lists of every kind become the same rows, every row comes out, and the order of the lists does not matter."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bill import bill_table, make_bill, rows_of
from pipeline.bill_settings import BillSettings
from pipeline.build_job import BuildJob
from pipeline.captions import clean_caption
from pipeline.list_files import LAYOUTS, Columns, UrlList, count_rows
from pipeline.manifest import DatasetError
from pipeline.pair import pair_id
from pipeline.url_lists import LISTED, check_lists, fetchable, in_order, listed_rows

ROWS = [("http://a.example/1.jpg", 'a "quoted" dog'), ("https://b.example/2.png?x=1", "café, au lait")]


def read_lists(lists: list[UrlList]) -> pa.Table:
    """All rows in order, in one process."""
    check_lists(lists)
    parts = [LISTED.empty_table(), *(part for one in lists for part in listed_rows(one))]
    return in_order(pa.concat_tables(parts))


def listed(one: UrlList) -> list[tuple[str, str]]:
    rows = fetchable(read_lists([one])).sort_by("row")
    return list(zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True))


def write(path: Path, text: str) -> UrlList:
    path.write_text(text, encoding="utf-8")
    return UrlList(path=str(path))


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"url": url, "caption": caption, "other": 1}) for url, caption in ROWS]
    quoted = [f'{url},"{caption.replace(chr(34), chr(34) * 2)}"' for url, caption in ROWS]
    lists = [
        write(tmp_path / "a.csv", "\n".join(["url,caption", *quoted]) + "\n"),
        write(tmp_path / "a.tsv", "\n".join(["caption\turl", *(f"{caption}\t{url}" for url, caption in ROWS)])),
        write(tmp_path / "a.jsonl", "\n".join(lines)),
    ]
    (tmp_path / "cc3m").write_text("".join(f"{caption}\t{url}\n" for url, caption in ROWS), encoding="utf-8")
    lists.append(UrlList(path=str(tmp_path / "cc3m"), format="cc3m"))
    (tmp_path / "cc12m").write_text("".join(f"{url}\t{caption}\n" for url, caption in ROWS), encoding="utf-8")
    lists.append(UrlList(path=str(tmp_path / "cc12m"), format="cc12m"))
    (tmp_path / "yfcc.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    lists.append(UrlList(path=str(tmp_path / "yfcc.json.gz"), format="yfcc15m"))
    table = pa.table({"where": [url for url, _ in ROWS], "what": [caption for _, caption in ROWS]})
    pq.write_table(table, tmp_path / "a.parquet")
    lists.append(UrlList(path=str(tmp_path / "a.parquet"), columns=Columns(url="where", caption="what")))
    for one in lists:
        assert listed(one) == ROWS, one.path


def test_rows_are_counted_without_decoding_them(tmp_path: Path) -> None:
    assert count_rows(write(tmp_path / "a.csv", "url,caption\nu,c\nu,c")) == 2
    assert count_rows(write(tmp_path / "a.jsonl", "{}\n{}\n{}\n")) == 3
    (tmp_path / "cc3m").write_text("c\tu\n")
    assert count_rows(UrlList(path=str(tmp_path / "cc3m"), format="cc3m")) == 1
    pq.write_table(pa.table({"url": ["u"] * 5, "caption": ["c"] * 5}), tmp_path / "a.parquet")
    assert count_rows(UrlList(path=str(tmp_path / "a.parquet"))) == 5


def reasons(one: UrlList) -> Counter[str | None]:
    table = read_lists([one])
    assert table.schema.equals(LISTED)
    assert sorted(table["row"].to_pylist()) == list(range(table.num_rows)), "each row once"
    return Counter(table["reason"].to_pylist())


def test_rows_that_cannot_be_used_come_out_with_their_reason(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b"a dog\thttp://a.example/1",
            b"a dog\thttp://a.example/1",  # again
            b"a  dog \thttp://a.example/1",  # again, once it is cleaned
            b"no tab",
            b"one\ttoo\tmany",
            b"caf\xe9\thttp://a.example/2",
            b" \x07 \thttp://a.example/3",
            b"a cat\tftp://a.example/4",
            b"a cat\thttp://",
            b"a cat\t",
        ]
    )
    (tmp_path / "cc3m").write_bytes(content)
    assert reasons(UrlList(path=str(tmp_path / "cc3m"), format="cc3m")) == {
        None: 1,
        "duplicate_row": 2,
        "malformed_row": 2,
        "caption_not_utf8": 1,
        "caption_missing": 1,
        "malformed_url": 3,
    }


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    text = '{"url": "http://a.example/1", "caption": ["a", "dog"]}\n[1]\nnope\n\n{"url": null, "caption": "x"}\n'
    found = reasons(write(tmp_path / "a.jsonl", text))
    assert found == {None: 1, "malformed_row": 3, "malformed_url": 1}
    assert listed(UrlList(path=str(tmp_path / "a.jsonl"))) == [("http://a.example/1", "a dog")]


def test_bytes_of_a_parquet_are_checked_row_by_row(tmp_path: Path) -> None:
    captions = pa.array([b"good", b"b\xffd", None], pa.binary())
    table = pa.table({"url": ["http://a.example/1"] * 3, "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet")
    assert reasons(UrlList(path=str(tmp_path / "a.parquet"))) == {
        None: 1,
        "caption_not_utf8": 1,
        "caption_missing": 1,
    }


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [f"http://a.example/{number % 40},a dog {number % 40}" for number in range(60)]
    one = read_lists([write(tmp_path / "a.csv", "\n".join(["url,caption", *rows]))])
    random.Random(0).shuffle(rows)
    other = read_lists([write(tmp_path / "a.csv", "\n".join(["url,caption", *rows]))])
    assert one.drop_columns(["row"]) == other.drop_columns(["row"])
    names = fetchable(one)["pair_id"].to_pylist()
    assert names == sorted(names)
    assert len(names) == 40
    assert pair_id("http://a.example/7", "a dog 7") in names


def test_sources_are_the_lists_or_a_column(tmp_path: Path) -> None:
    one = write(tmp_path / "mine.csv", "url,caption,from\nhttp://a.example/1,a dog,zoo\nhttp://a.example/2,a cat,\n")
    assert set(read_lists([one])["source"].to_pylist()) == {"mine"}
    by_column = UrlList(path=one.path, columns=Columns(source="from"), source="else")
    assert read_lists([by_column]).sort_by("row")["source"].to_pylist() == ["zoo", "else"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "link,caption\nx,y\n", "Column 'url' in include_columns does not exist"),
        ("a.csv", "", "Empty CSV file"),
        ("a.jsonl", '{"link": 1}\n', "no line is an object with the keys url, caption"),
        ("a.parquet", "url,caption\nx,y\n", "cannot be read as a URL list (parquet)"),
        ("a.csv.gz", "url,caption\nx,y\n", "a.csv.gz: cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.") as caught:
        read_lists([write(tmp_path / name, text)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"URL": ["u"], "TEXT": ["c"]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="no column 'url'; it has URL, TEXT"):
        read_lists([UrlList(path=str(tmp_path / "a.parquet"))])


def test_all_missing_lists_are_named_with_where_they_come_from(tmp_path: Path) -> None:
    lists = [UrlList(path=str(tmp_path / name), format=name) for name in ("cc3m", "cc12m", "yfcc15m")]  # type: ignore[arg-type]
    with pytest.raises(DatasetError) as caught:
        read_lists(lists)
    for one in lists:
        assert one.path in str(caught.value)
        assert one.layout.origin in str(caught.value)


def test_the_bill_counts_what_is_here_and_trusts_the_published_number_else(tmp_path: Path) -> None:
    here = write(tmp_path / "a.csv", "url,caption\nu,c\n")
    away = UrlList(path=str(tmp_path / "cc12m.tsv"), format="cc12m")
    rows = rows_of([here, away])
    assert [count for _, count in rows] == [1, LAYOUTS["cc12m"].rows]
    bill = make_bill(rows[1:], BillSettings(kept=0.5, cpus=10, pictures_per_s_per_cpu=50, kilobytes_per_picture=10))
    assert bill.pictures == pytest.approx(12_423_374 * 0.623)
    assert bill.pairs == pytest.approx(bill.pictures / 2)
    assert bill.download_hours == pytest.approx(12_423_374 / 500 / 3600)
    assert bill.storage_gb == pytest.approx(bill.pictures * 1.5 * 10e3 / 1e9)
    job = BuildJob(name="a", out=str(tmp_path), lists=(here, away), bill=BillSettings(cpus=1))
    shown = list(bill_table(job).columns[2].cells)
    assert sum("counted: " in str(cell) for cell in shown) == 1
    assert sum("as published; the file is not here yet" in str(cell) for cell in shown) == 1
    assert sum("nobody has counted this list" in str(cell) for cell in shown) == 1
    with pytest.raises(DatasetError, match=r"b\.csv: expected a URL list"):
        rows_of([UrlList(path=str(tmp_path / "b.csv"))])


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a  plain\tcaption\n", "a plain caption"),
        ("fish &amp; chips &ndash; &quot;hot&quot;&nbsp;!", 'fish & chips – "hot" !'),
        ("\ufeffa\x07 b\x1b\t\x00\u200bc", "a b c"),
        ("a <b>bold</b> <a href='x'>dog</a><br/>runs", "a bold dog runs"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("Cafe\u0301", "Café"),
        ("family: \U0001f468\u200d\U0001f469", "family: \U0001f468\u200d\U0001f469"),
        (" \u3000 ", ""),
    ],
)
def test_captions_say_what_the_page_meant(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


@given(st.text())
def test_cleaned_captions_are_plain(text: str) -> None:
    clean = clean_caption(text)
    assert clean == " ".join(clean.split())
    assert not any(character < " " for character in clean)
