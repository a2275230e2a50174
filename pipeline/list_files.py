"""The files that URL lists come in: csv, tsv, json lines and parquet, and the layouts of the public lists.

Every row of a file comes out, also one that cannot be read: what is not in the dataset has to be counted.
"""

from __future__ import annotations

import contextlib
import gzip
import json
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

    kind: Kind
    header: tuple[str, ...] | None = None
    """Column names of a file that has no first line with them."""
    url: str = "url"
    caption: str = "caption"
    rows: int | None = None
    """As published."""
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
    # DeCLIP's list ("V2"). OpenAI's ("V1") has neither addresses nor captions, and less than half of the same pictures.
    "yfcc15m": Layout(
        "jsonl",
        rows=15_388_848,
        reachable=0.98,  # about 300,000 links dead, by its authors in 2021; nobody has published a newer count
        origin="yfcc15m_clean_open_data.json, the label file of github.com/Sense-GVT/DeCLIP docs/dataset_prepare.md",
    ),
}
"""Formats by the name that a job uses: four kinds of file and three public lists."""

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


class Columns(Settings):
    """What the columns are called."""

    url: str | None = None
    """Null: as the format has it (`url`)."""
    caption: str | None = None
    """Null: as the format has it (`caption`)."""
    source: str | None = None
    """A column that names each row's source; null: all rows have the list's own."""


class UrlList(Settings):
    """One URL list."""

    path: str
    """File on disk or s3://; `.gz` is unpacked while reading."""
    source: str | None = None
    """Name of the list in every pair; null: the file's name without its suffix."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "cc3m", "cc12m", "yfcc15m"] | None = None
    """Null: by the file's suffix."""
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _has_a_format(self) -> UrlList:
        if self.format is None and self._suffix not in _SUFFIXES:
            raise ValueError(f"expected a format, or a file that ends in {', '.join(_SUFFIXES)}; came '{self.path}'")
        return self

    @property
    def _suffix(self) -> str:
        return PurePosixPath(self.path.removesuffix(".gz")).suffix

    @property
    def layout(self) -> Layout:
        """How the file is laid out."""
        return LAYOUTS[self.format or _SUFFIXES[self._suffix]]

    @property
    def source_name(self) -> str:
        """The source of rows that do not name one."""
        return self.source or PurePosixPath(self.path.removesuffix(".gz")).stem


class RawRow(NamedTuple):
    """A row as it stands in the file."""

    url: bytes | None
    caption: bytes | None
    source: bytes | None = None
    broken: str = ""
    """The text of a row that has not the columns it should have."""


_REST = (None, None, None, "")


def read_rows(one: UrlList) -> Iterator[RawRow]:
    """Every row of the list, streamed; DatasetError when the file is not what its format says."""
    try:
        with _opened(one.path) as file:
            yield from _READERS[one.layout.kind](file, one)
    except (pa.ArrowException, EOFError) as error:
        first = str(error).splitlines()[0]
        raise DatasetError(f"{one.path}: cannot be read as a URL list ({one.layout.kind}): {first}") from None


def files_of(one: UrlList) -> list[UrlList]:
    """The list itself, a file at a time."""
    return [one]


def count_rows(one: UrlList) -> int:
    """Rows of the list without decoding them: the parquet footer, or the number of lines."""
    with _opened(one.path) as file:
        if one.layout.kind == "parquet":
            with contextlib.suppress(pa.ArrowInvalid):
                return int(pq.ParquetFile(file).metadata.num_rows)
            raise DatasetError(f"{one.path}: cannot be read as a URL list (parquet)")
        lines = 0
        last = b"\n"
        while block := file.read(1 << 22):
            lines += block.count(b"\n")
            last = block
        has_header = one.layout.kind in ("csv", "tsv") and one.layout.header is None
        return lines + (not last.endswith(b"\n")) - has_header


def _wanted(one: UrlList) -> list[str]:
    """The columns to read: url, caption and, where the job names one, source."""
    columns, layout = one.columns, one.layout
    return [columns.url or layout.url, columns.caption or layout.caption, *([columns.source] if columns.source else [])]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    parent, _, name = path.rpartition("/")
    with folder(parent or ".").open(name) as file:
        if name.endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def _csv_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    broken: list[str] = []

    def remember(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(row.text or f"{row.actual_columns} columns")
        return "skip"

    tabs = one.layout.kind == "tsv"
    wanted = _wanted(one)
    batches = pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=one.layout.header, use_threads=False),
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
    for batch in batches:
        yield from map(RawRow, *(batch.column(name).to_pylist() for name in wanted))
    yield from (RawRow(None, None, broken=text) for text in broken)


def _jsonl_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    wanted = _wanted(one)
    good = 0
    for line in file:
        try:
            # surrogateescape carries bytes that are not UTF-8 through to the check of the caption
            content = json.loads(line.decode("utf-8", "surrogateescape"))
            row = RawRow._make([*(_json_text(content.get(name)) for name in wanted), *_REST[len(wanted) :]])
        except (ValueError, AttributeError):
            row = RawRow(None, None, broken=line[:1000].decode("utf-8", "replace").strip() or "an empty line")
        good += not row.broken and (row.url is not None or row.caption is not None)
        yield row
    if not good:
        raise pa.ArrowInvalid(f"no line is an object with the keys {', '.join(wanted)}")


def _json_text(value: Any) -> bytes | None:
    if isinstance(value, list):  # DeCLIP's list has captions of several parts
        value = " ".join(str(part) for part in value)
    return None if value is None else str(value).encode("utf-8", "surrogateescape")


def _parquet_rows(file: BinaryIO, one: UrlList) -> Iterator[RawRow]:
    parquet = pq.ParquetFile(file)
    wanted = _wanted(one)
    missing = [name for name in wanted if name not in parquet.schema_arrow.names]
    if missing:
        raise pa.ArrowInvalid(f"no column '{missing[0]}'; it has {', '.join(parquet.schema_arrow.names)}")
    for batch in parquet.iter_batches(columns=wanted, use_threads=False):
        # As bytes: parquet promises UTF-8, and what writers put there is checked row by row.
        yield from map(RawRow, *(batch.column(name).cast(pa.binary()).to_pylist() for name in wanted))


_READERS = {"csv": _csv_rows, "tsv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
