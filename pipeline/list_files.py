"""The files that URL lists come in: csv, tsv, json lines and parquet, and the layouts of the public lists.

Every row of a file comes out, also one that cannot be read: what is not in the dataset has to be counted. A file is
never held in memory: what is read at once is bounded for every kind.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import model_validator

from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import folder

Kind = Literal["csv", "tsv", "jsonl", "parquet"]


@dataclass(frozen=True)
class Layout:
    """How a list's file is laid out."""

    kind: Kind | None
    """Null: a folder whose files each say it by their suffix."""
    header: tuple[str, ...] | None = None
    """Column names of a file that has no first line with them."""
    url: str = "url"
    caption: str = "caption"
    rows: int | None = None
    """As published; where that is a rounded number, so is this."""
    reachable: float | None = None
    """Share of the addresses that still gave a picture when somebody last counted, 0..1."""
    origin: str = ""
    """Where a person gets the file."""


LAYOUTS = {
    "csv": Layout("csv"),
    "tsv": Layout("tsv"),
    "jsonl": Layout("jsonl"),
    "parquet": Layout("parquet"),
    "cc3m": Layout(
        "tsv",
        ("caption", "url"),
        rows=3_318_333,
        reachable=0.70,  # January 2024, rom1504/img2dataset issue 391
        origin="Train_GCC-training.tsv of ai.google.com/research/ConceptualCaptions/download",
    ),
    "cc12m": Layout(
        "tsv",
        ("url", "caption"),
        rows=12_423_374,
        reachable=0.623,  # October 2025, google-research-datasets/conceptual-12m issue 9
        origin="cc12m.tsv of github.com/google-research-datasets/conceptual-12m",
    ),
    # DeCLIP's list ("V2"). OpenAI's ("V1") has less than half of the same pictures.
    "yfcc15m": Layout(
        "jsonl",
        rows=15_388_848,
        reachable=0.98,  # about 300,000 links dead, by its authors in 2021; nobody has published a newer count
        origin="yfcc15m_clean_open_data.json, the label file of github.com/Sense-GVT/DeCLIP docs/dataset_prepare.md",
    ),
    # OpenAI's own list has neither addresses nor captions; this is the table that others joined to it. Its README names
    # these columns and the 14,825,233 pictures that they could get, of OpenAI's 14,829,396. A photo has a title and a
    # description, either may be empty; `columns: {caption: description_clean}` takes the other one. Not verified: that
    # the files of the folder hold the two `_clean` columns, and not only the loading script's output.
    "yfcc15m_v1": Layout(
        "jsonl",
        url="downloadurl",
        caption="title_clean",
        rows=14_825_233,
        origin="folder metadata of huggingface.co/datasets/dalle-mini/YFCC100M_OpenAI_subset",
    ),
    # Capital letters: img2dataset's page for this list reads URL and TEXT.
    "laion400m": Layout(
        "parquet",
        url="URL",
        caption="TEXT",
        rows=413_000_000,
        origin="32 parquet files, laion400m-meta of laion.ai/blog/laion-400-open-dataset",
    ),
    # The English part as it was in 2022, no longer given out by its authors; img2dataset's page reads URL and TEXT.
    "laion2b": Layout(
        "parquet",
        url="URL",
        caption="TEXT",
        rows=2_300_000_000,
        origin="128 parquet files of huggingface.co/datasets/laion/laion2B-en, withdrawn: take relaion2b",
    ),
    # Small letters, by public code that reads it; its card could not be seen, and no count of its rows was found.
    "relaion2b": Layout(
        "parquet",
        caption="caption",
        origin="parquet files of huggingface.co/datasets/laion/relaion2B-en-research-safe",
    ),
    "coyo700m": Layout(
        "parquet",
        caption="text",
        rows=746_972_269,
        origin="128 parquet files, folder data of huggingface.co/datasets/kakaobrain/coyo-700m",
    ),
    # CommonPool at any of its four scales (12.8 million, 128 million, 1.28 billion, 12.8 billion rows), or DataComp-1B
    # (1.39 billion): the columns are the same, the number of rows is not.
    "datacomp": Layout(
        "parquet",
        caption="text",
        origin="parquet files of huggingface.co/datasets/mlfoundations/datacomp_pools, or of datacomp_1b beside it",
    ),
}
"""Formats by the name that a job uses: four kinds of file and the public lists."""

_SUFFIXES: dict[str, Kind] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}

_LONGEST_LINE = 1 << 20
"""Bytes of a line of json; a longer one is no row of a list (a file of a single array, say)."""
_LONGEST_TEXT = 1000
"""Characters that are kept of a row that cannot be read."""
_CSV_BLOCK = 1 << 18
"""Bytes that Arrow parses at once; it reads up to 32 of these ahead. No row may be longer."""
_PARQUET_BUFFER = 1 << 20
"""Bytes of a column that are read at once; Arrow's own default is all of the column that a row group has."""
_PARQUET_ROWS = 8192
_BROKEN_AT_THE_START = 100_000
"""A file that begins with so many rows of the wrong number of columns is not what its format says."""


class Columns(Settings):
    """What the columns are called."""

    url: str | None = None
    """Null: as the format has it (`url`)."""
    caption: str | None = None
    """Null: as the format has it (`caption`)."""
    source: str | None = None
    """A column that names each row's source; null: all rows have the list's own."""


class UrlList(Settings):
    """One URL list, in a file or in a folder of files."""

    path: str
    """File or folder, on disk or s3://. Of a folder all files below it with a known suffix; `.gz` is unpacked."""
    source: str | None = None
    """Name of the list in every pair; null: the file's or folder's name without its suffix."""
    format: (
        Literal[
            "csv",
            "tsv",
            "jsonl",
            "parquet",
            "cc3m",
            "cc12m",
            "yfcc15m",
            "yfcc15m_v1",
            "laion400m",
            "laion2b",
            "relaion2b",
            "coyo700m",
            "datacomp",
        ]
        | None
    ) = None
    """Null: by each file's suffix. A folder without a format is written with a `/` at its end."""
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _has_a_format(self) -> UrlList:
        kind = self.layout.kind
        if kind is None and not self.path.endswith("/"):
            known = f"or a file that ends in {', '.join(_SUFFIXES)}, or a folder that ends in /"
            raise ValueError(f"expected a format, {known}; came '{self.path}'")
        if kind == "parquet" and self.path.lower().endswith(".gz"):
            raise ValueError(f"expected parquet as it is, because it packs its own columns; came '{self.path}'")
        return self

    @property
    def layout(self) -> Layout:
        """How the file is laid out, or every file of the folder."""
        name = self.format or _kind_of(self.path)
        return LAYOUTS[name] if name else Layout(None)

    @property
    def source_name(self) -> str:
        """The source of rows that do not name one."""
        return self.source or PurePosixPath(self.path.removesuffix(".gz")).stem


def _kind_of(name: str) -> Kind | None:
    """By the suffix."""
    return _SUFFIXES.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)


def files_of(one: UrlList) -> list[UrlList]:
    """The files of a list, sorted by name, each a list with the same settings and source; a file is its own only one.

    In a folder these are all files below it with a known suffix, and of the format's kind where it has a format; names
    that begin with `.` or `_` are left out, as Spark and Hadoop mean them. Paths are as every machine means them.
    DatasetError where there is none.
    """
    place = folder(one.path)
    names = place.names()
    if names == [place.root.removeprefix("s3://")]:
        if one.layout.kind is None:
            raise DatasetError(f"{one.path}: expected a folder, found a file, which needs a format")
        return [one.model_copy(update={"path": place.root})]
    if not names:
        raise DatasetError(f"{one.path}: expected a URL list, found no such file, and no folder with files")
    found = [name for name in names if _is_list(name, one.layout.kind)]
    if not found:
        suffixes = [suffix for suffix, kind in _SUFFIXES.items() if one.layout.kind in (None, kind)]
        raise DatasetError(f"{one.path}: expected files that end in {', '.join(suffixes)}, found {len(names)} others")
    return [one.model_copy(update={"path": place.join(name), "source": one.source_name}) for name in found]


def _is_list(name: str, kind: Kind | None) -> bool:
    found = _kind_of(name)
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    fits = found is not None and kind in (None, found) and not (found == "parquet" and name.lower().endswith(".gz"))
    return fits and not hidden


class RawRow(NamedTuple):
    """A row as it stands in the file."""

    url: bytes | None
    caption: bytes | None
    source: bytes | None = None
    broken: str = ""
    """The text of a row that has not the columns it should have."""


_REST = (None, None, None, "")


def read_rows(one: UrlList) -> Iterator[RawRow]:
    """Every row of the list, streamed, file after file; DatasetError when a file is not what its format says."""
    for file in files_of(one):
        with _explained(file), _opened(file.path) as content:
            assert file.layout.kind is not None, "a file has a format, as `files_of` has made sure"
            yield from _READERS[file.layout.kind](content, file)


def count_rows(one: UrlList) -> int:
    """Rows of the list without decoding them, by the footers of parquet files and the number of lines of others.

    Exact but for a csv with line breaks in its values (too many) and for blank lines, which are no rows (likewise).
    """
    return sum(map(_count_file, files_of(one)))


def _count_file(one: UrlList) -> int:
    with _explained(one), _opened(one.path) as file:
        if one.layout.kind == "parquet":
            return int(pq.ParquetFile(file).metadata.num_rows)
        lines = 0
        last = b"\n"
        while block := file.read(1 << 22):
            lines += block.count(b"\n")
            last = block
        has_header = one.layout.kind in ("csv", "tsv") and one.layout.header is None
        return lines + (not last.endswith(b"\n")) - has_header


@contextlib.contextmanager
def _explained(one: UrlList) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, EOFError, zlib.error) as error:
        first = str(error).splitlines()[0]
        raise DatasetError(f"{one.path}: cannot be read as a URL list ({one.layout.kind}): {first}") from None


def _wanted(one: UrlList) -> list[str]:
    """The columns to read: url, caption and, where the job names one, source."""
    columns, layout = one.columns, one.layout
    return [columns.url or layout.url, columns.caption or layout.caption, *([columns.source] if columns.source else [])]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    parent, _, name = path.rpartition("/")
    with folder(parent or ".").open(name, to_the_end=not name.endswith(".parquet")) as file:
        if name.lower().endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def _csv_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    broken: dict[int, str] = {}
    rows = 0

    def remember(row: pyarrow.csv.InvalidRow) -> str:
        if not rows and len(broken) == _BROKEN_AT_THE_START:
            return "error"
        broken[row.number] = (row.text or f"{row.actual_columns} columns")[:_LONGEST_TEXT]
        return "skip"

    tabs = one.layout.kind == "tsv"
    header = one.layout.header
    wanted = _wanted(one)
    batches = pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=header, use_threads=False, block_size=_CSV_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if tabs else ",",
            quote_char=False if tabs else '"',  # a quotation mark in a tsv is a quotation mark
            newlines_in_values=not tabs,
            invalid_row_handler=remember,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=wanted, column_types={name: pa.binary() for name in wanted}, strings_can_be_null=False
        ),
    )
    # Arrow counts the rows from 1, the line of names too, so each broken one comes out at its own place. That also
    # makes the order of the rows one that does not depend on how far ahead Arrow reads.
    rows = 1 if header else 2

    def due() -> Iterator[RawRow]:
        nonlocal rows
        while rows in broken:
            yield RawRow(None, None, broken=broken.pop(rows))
            rows += 1

    for batch in batches:
        for row in map(RawRow, *(batch.column(name).to_pylist() for name in wanted)):
            yield from due()
            yield row
            rows += 1
        yield from due()
    yield from due()


def _jsonl_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    wanted = _wanted(one)
    lines = good = 0
    for line in _lines(file):
        try:
            if len(line) > _LONGEST_LINE:
                raise ValueError("no row")
            # surrogateescape carries bytes that are not UTF-8 through to the check of the caption
            content = json.loads(line.decode("utf-8", "surrogateescape"))
            row = RawRow._make([*(_json_text(content.get(name)) for name in wanted), *_REST[len(wanted) :]])
        except (ValueError, AttributeError, RecursionError):
            text = line[:_LONGEST_TEXT].decode("utf-8", "replace").strip()
            row = RawRow(None, None, broken=text or "an empty line")
        lines += 1
        good += not row.broken and (row.url is not None or row.caption is not None)
        yield row
    if lines and not good:
        raise pa.ArrowInvalid(f"no line is an object with the keys {', '.join(wanted)}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines without their ends; one that is longer than _LONGEST_LINE is cut, and still longer than that."""
    rest = b""
    while block := file.read(_LONGEST_LINE):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        rest = rest[: _LONGEST_LINE + 1]
    if rest:
        yield rest


def _json_text(value: Any) -> bytes | None:
    if isinstance(value, list):  # DeCLIP's list has captions of several parts
        value = " ".join(str(part) for part in value)
    return None if value is None else str(value).encode("utf-8", "surrogateescape")


def _parquet_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    parquet = pq.ParquetFile(file, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
    wanted = _wanted(one)
    missing = [name for name in wanted if name not in parquet.schema_arrow.names]
    if missing:
        raise pa.ArrowInvalid(f"no column '{missing[0]}'; it has {', '.join(parquet.schema_arrow.names)}")
    for batch in parquet.iter_batches(_PARQUET_ROWS, columns=wanted, use_threads=False):
        # As bytes: parquet promises UTF-8, and what writers put there is checked row by row.
        yield from map(RawRow, *(batch.column(name).cast(pa.binary()).to_pylist() for name in wanted))


_READERS = {"csv": _csv_rows, "tsv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
