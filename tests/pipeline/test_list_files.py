"""Lists in one file or many, of every kind, on disk and on s3://: every row comes out once, at its place, and none of
the files is ever in memory as a whole.
"""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_s3 import bucket
from pydantic import ValidationError

from pipeline.list_files import LAYOUTS, Columns, RawRow, UrlList, count_rows, files_of, read_rows
from pipeline.manifest import DatasetError
from pipeline.storage import StorageError, folder

MEGABYTE = 1 << 20


def rows(first: int, count: int = 2) -> list[tuple[str, str]]:
    return [(f"http://a.example/{number}", f"picture {number}") for number in range(first, first + count)]


def csv_bytes(pairs: list[tuple[str, str]], tab: str = ",") -> bytes:
    return "".join(f"{tab.join(pair)}\n" for pair in [("url", "caption"), *pairs]).encode()


def jsonl_bytes(pairs: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"url": url, "caption": caption}) + "\n" for url, caption in pairs).encode()


def parquet_bytes(pairs: list[tuple[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    urls, captions = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": urls, "caption": captions}), sink)
    return sink.getvalue().to_pybytes()


FILES: dict[str, Callable[[list[tuple[str, str]]], bytes]] = {
    "a.csv": csv_bytes,
    "b.csv.gz": lambda pairs: gzip.compress(csv_bytes(pairs)),
    "c/a.tsv": lambda pairs: csv_bytes(pairs, "\t"),
    "c/b.TSV.GZ": lambda pairs: gzip.compress(csv_bytes(pairs, "\t")),
    "d.jsonl": jsonl_bytes,
    "e.jsonl.gz": lambda pairs: gzip.compress(jsonl_bytes(pairs)),
    "f.json": jsonl_bytes,
    "g.parquet": parquet_bytes,
}
IGNORED = {
    "README.md": b"x",
    "_SUCCESS": b"",
    "_delta_log/0.json": b"{}",
    ".cache/x.parquet": b"x",
    "h.npz": b"x",
    "i.parquet.gz": b"x",
}


def fill(place: str) -> list[tuple[str, str]]:
    """Writes a file of two rows of each kind and some others; the rows in the order of the names."""
    content = {name: write(rows(2 * number)) for number, (name, write) in enumerate(FILES.items())}
    for name, data in (content | IGNORED).items():
        folder(place).child("").write_bytes(name, data)
    return rows(0, 2 * len(FILES))


def pairs_of(one: UrlList) -> list[tuple[str, str]]:
    return [((row.url or b"").decode(), (row.caption or b"").decode()) for row in read_rows(one)]


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    expected = fill(str(tmp_path / "mine"))
    one = UrlList(path=f"{tmp_path}/mine/", columns=Columns(url="url"))
    files = files_of(one)
    assert [Path(file.path).relative_to(tmp_path / "mine").as_posix() for file in files] == sorted(FILES)
    assert {file.source_name for file in files} == {one.source_name} == {"mine"}
    assert {file.columns for file in files} == {one.columns}
    assert pairs_of(one) == expected
    assert [pair for file in files for pair in pairs_of(file)] == expected
    assert count_rows(one) == sum(map(count_rows, files)) == len(expected)
    assert [files_of(file) for file in files] == [[file] for file in files]


def test_a_folder_on_s3_is_the_same(tmp_path: Path) -> None:
    with bucket("lists") as address:
        expected = fill(f"{address}/mine")
        for path in (f"{address}/mine/", f"{address}/mine"):
            one = UrlList(path=path, format=None if path.endswith("/") else "parquet", source="zoo")
            files = files_of(one)
            names = [file.path.removeprefix(f"{address}/mine/") for file in files]
            assert names == (sorted(FILES) if path.endswith("/") else ["g.parquet"])
            assert {file.source_name for file in files} == {"zoo"}
            assert pairs_of(one) == (expected if path.endswith("/") else expected[-2:])
            assert count_rows(one) == len(pairs_of(one))
        alone = UrlList(path=f"{address}/mine/e.jsonl.gz")
        assert files_of(alone) == [alone]
        assert pairs_of(alone) == rows(10)
        with pytest.raises(DatasetError, match="no such file, and no folder with files"):
            files_of(UrlList(path=f"{address}/nothing/"))


def test_a_relative_path_gets_its_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    for path, count in (("mine/a.csv", 1), ("mine/c/../a.csv", 1), ("mine/", len(FILES)), ("./mine//c/", 2)):
        found = [file.path for file in files_of(UrlList(path=path))]
        assert len(found) == count
        assert all(Path(file).is_absolute() and Path(file).is_file() for file in found)


def test_a_format_picks_the_files_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.table({"url": ["u"], "text": ["c"], "uid": [1]}), tmp_path / "meta/1.parquet")
    (tmp_path / "meta/1.npz").write_bytes(b"x")
    (tmp_path / "meta/0.json").write_text("[]")
    assert pairs_of(UrlList(path=str(tmp_path / "meta"), format="datacomp")) == [("u", "c")]


def test_a_folder_that_ends_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "spark.parquet").mkdir()
    (tmp_path / "spark.parquet/part-0.parquet").write_bytes(parquet_bytes(rows(0)))
    one = UrlList(path=str(tmp_path / "spark.parquet"))
    assert pairs_of(one) == rows(0)
    assert files_of(one)[0].source_name == "spark"


def test_folders_and_files_that_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README.md").write_text("x")
    (tmp_path / "plain").write_text("x")
    for path, kind, message in (
        ("empty/", None, "no such file, and no folder with files"),
        ("missing/", None, "no such file, and no folder with files"),
        ("missing.csv", None, "no such file, and no folder with files"),
        ("other/", None, r"expected files that end in \.csv, .*\.parquet, found 1 others"),
        ("other", "datacomp", r"expected files that end in \.parquet, found 1 others"),
        ("plain/", None, "expected a folder, found a file, which needs a format"),
    ):
        one = UrlList(path=f"{tmp_path}/{path}", format=kind)  # type: ignore[arg-type]
        for use in (files_of, count_rows, lambda one: list(read_rows(one))):
            with pytest.raises(DatasetError, match=message):
                use(one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "lists/mine"}, "or a folder that ends in /; came 'lists/mine'"),
        ({"path": "lists/mine.txt"}, "expected a format, or a file that ends in .csv"),
        ({"path": "mine.parquet.gz"}, "packs its own columns; came 'mine.parquet.gz'"),
        ({"path": "mine.gz", "format": "coyo700m"}, "packs its own columns"),
        ({"path": "mine.csv", "format": "laion5b"}, "'laion400m', 'laion2b', 'relaion2b'"),
    ],
)
def test_what_no_list_can_be_is_said_while_the_job_is_read(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        UrlList.model_validate(settings)
    assert message in str(caught.value)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(jsonl_bytes(rows(0, 500)))
    spoilt = bytearray(whole)
    spoilt[len(spoilt) // 2] ^= 0xFF
    for name, data in {
        "cut.jsonl.gz": whole[:-20],
        "spoilt.jsonl.gz": bytes(spoilt),
        "no.jsonl.gz": b"url",
        "cut.parquet": parquet_bytes(rows(0, 500))[:-20],
        "no.parquet": b"url",
    }.items():
        (tmp_path / name).write_bytes(data)
        for use in (count_rows, lambda one: list(read_rows(one))):
            with pytest.raises((DatasetError, StorageError), match=f"{name}: cannot be read") as caught:
                use(UrlList(path=str(tmp_path / name)))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [True, False])
def test_broken_rows_of_a_csv_come_out_at_their_place(tmp_path: Path, header: bool) -> None:
    chosen, expected, text = random.Random(0), list[RawRow](), b"url,caption\n" if header else b""
    stretches = [*(chosen.random() for _ in range(2000)), *[0.1] * 20_000, *[0.9] * 2000]
    for number, kind in enumerate(stretches):
        name = b"%d" % number
        if kind < 0.3:
            expected.append(RawRow(None, None, broken=name.decode()))
            text += name + b"\n"
        elif kind < 0.4:
            text += b"\n"  # a blank line is no row
        else:
            value = b'"a\nb"' if header else b'"a'
            expected.append(RawRow(name, b"a\nb" if header else b'"a'))
            text += (name + b"," + value if header else value + b"\t" + name) + b"\n"
    path = tmp_path / ("a.csv" if header else "a.tsv")
    path.write_bytes(text)
    assert list(read_rows(UrlList(path=str(path), format=None if header else "cc3m"))) == expected


def test_a_tsv_of_which_no_row_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a,b\n" * 1000)
    found = list(read_rows(UrlList(path=str(tmp_path / "a"), format="cc12m")))
    assert found == [RawRow(None, None, broken="a,b")] * 1000
    (tmp_path / "a").write_bytes(b"a,b\n" * 100_001)
    with pytest.raises(DatasetError, match=r"\(tsv\): CSV parse error: .*Expected 2 columns, got 1"):
        list(read_rows(UrlList(path=str(tmp_path / "a"), format="cc12m")))


def test_lines_of_json_that_no_row_can_be(tmp_path: Path) -> None:
    good = b'{"url": "u", "caption": "%s"}\n'
    (tmp_path / "a.jsonl").write_bytes(
        b"".join([b"[" * 200_000, b"\n", good % b"c", good % (b"c" * 3 * MEGABYTE), good % b"d", b"\n", good % b"e"])
    )
    found = list(read_rows(UrlList(path=str(tmp_path / "a.jsonl"))))
    assert [row.caption for row in found] == [None, b"c", None, b"d", None, b"e"]
    assert [len(row.broken) for row in found] == [1000, 0, 1000, 0, len("an empty line"), 0]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.csv.gz"])
def test_what_is_read_at_once_is_little_of_a_file(tmp_path: Path, name: str) -> None:
    # One row group of captions that do not compress; a csv of which every second row is broken.
    noise = random.Random(0).randbytes
    pairs = [(f"http://a.example/{number}", noise(200).hex()) for number in range(50_000)]
    path = tmp_path / name
    if name.endswith("parquet"):
        urls, captions = zip(*pairs, strict=True)
        table = pa.table({"url": urls, "caption": captions})
        pq.write_table(table, path, row_group_size=len(pairs), compression="none", use_dictionary=False)
        del table
    elif name.endswith("jsonl"):
        path.write_bytes(jsonl_bytes(pairs))
    else:
        tab = "," if ".csv" in name else "\t"
        content = csv_bytes([(f"{url}\n{url}", caption) for url, caption in pairs], tab)
        path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    del pairs
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for number, _ in enumerate(read_rows(UrlList(path=str(path)))):
            if number % 1000 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
        _, python_most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most + python_most < 16 * MEGABYTE, f"{most:,} of Arrow, {python_most:,} of Python"


def test_a_file_without_a_line_end_is_not_read_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_bytes(b"[" + b'{"url": "u"}, ' * (2 * MEGABYTE))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="no line is an object with the keys url, caption"):
            list(read_rows(UrlList(path=str(tmp_path / "array.json"))))
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_public_lists_have_the_columns_that_are_published(tmp_path: Path) -> None:
    named = {
        "yfcc15m_v1": ("downloadurl", "title_clean"),
        "laion400m": ("URL", "TEXT"),
        "laion2b": ("URL", "TEXT"),
        "relaion2b": ("url", "caption"),
        "coyo700m": ("url", "text"),
        "datacomp": ("url", "text"),
    }
    for name, (url, caption) in named.items():
        place = tmp_path / name
        place.mkdir()
        content = {url: "u", caption: "c", "similarity": 0.3}
        if LAYOUTS[name].kind == "jsonl":
            (place / "metadata_000.jsonl.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
        else:
            pq.write_table(pa.Table.from_pylist([content]), place / "part-00000-c000.snappy.parquet")
        assert pairs_of(UrlList(path=str(place), format=name)) == [("u", "c")]  # type: ignore[arg-type]


def test_every_layout_is_a_format_and_says_where_it_comes_from() -> None:
    for name, layout in LAYOUTS.items():
        one = UrlList(path="lists/somewhere", format=name)  # type: ignore[arg-type]
        assert one.layout is layout
        assert bool(layout.origin) == (name != layout.kind)
