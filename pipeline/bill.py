"""The bill of a build before anything is fetched: rows, pairs to expect, hours, storage and money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from rich.table import Table

from pipeline.jobfile import Number, Settings
from pipeline.list_files import UrlList, count_rows
from pipeline.manifest import DatasetError
from pipeline.storage import folder


class BillSettings(Settings):
    """Assumptions, each with where its default comes from."""

    reachable: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Share of addresses that still give a picture; null: what was last counted for a public list, else 0.85."""
    kept: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of the pictures that filters and duplicates leave: a guess until a build has counted it."""
    cpus: Annotated[int, Field(gt=0)] = 16
    """CPUs that download."""
    pictures_per_s_per_cpu: Annotated[Number, Field(gt=0)] = 40.0
    """img2dataset's CC12M page: 630 a second on 16 cores."""
    kilobytes_per_picture: Annotated[Number, Field(gt=0)] = 34.0
    """Stored, at 256 px and quality 95: CC12M took 331 GB for 9.8 million."""
    price_per_cpu_hour: Annotated[Number, Field(ge=0)] = 0.05
    """In `currency`."""
    price_per_gb_month: Annotated[Number, Field(ge=0)] = 0.023
    """Of storage, in `currency` a gigabyte and month."""
    currency: str = "USD"
    """What the two prices are in."""


@dataclass(frozen=True)
class Bill:
    """What a build will take."""

    rows: int
    pictures: float
    pairs: float
    download_hours: float
    storage_gb: float
    """Snapshot and shards."""
    cpu_money: float
    storage_money_per_month: float


def make_bill(rows: Sequence[tuple[UrlList, int]], settings: BillSettings) -> Bill:
    """The bill for lists of so many rows."""
    total = sum(count for _, count in rows)
    pictures = sum(count * _reachable(one, settings) for one, count in rows)
    pairs = pictures * settings.kept
    # A dead address costs about as much of a worker's time as a live one: the wait for its time-out.
    hours = total / (settings.cpus * settings.pictures_per_s_per_cpu) / 3600
    gigabytes = (pictures + pairs) * settings.kilobytes_per_picture / 1e6
    return Bill(
        total,
        pictures,
        pairs,
        hours,
        gigabytes,
        hours * settings.cpus * settings.price_per_cpu_hour,
        gigabytes * settings.price_per_gb_month,
    )


def rows_of(lists: Sequence[UrlList]) -> list[tuple[UrlList, int]]:
    """Every list with its number of rows: counted where the file is here, as published where it is not.

    DatasetError for a list that is not here and that nobody has published a number for.
    """
    counted = []
    for one in lists:
        here = folder(one.path).exists()
        if not here and one.layout.rows is None:
            raise DatasetError(f"{one.path}: expected a URL list, found no such file")
        counted.append((one, count_rows(one) if here else one.layout.rows or 0))
    return counted


def bill_table(name: str, lists: Sequence[UrlList], settings: BillSettings) -> Table:
    """The bill as a table for the terminal, with the assumption beside each number."""
    rows = rows_of(lists)
    bill = make_bill(rows, settings)
    table = Table("", "", "reckoned from", title=f"bill of {name}", title_justify="left", box=None)
    table.columns[1].justify = "right"
    for one, count in rows:
        where = "counted" if folder(one.path).exists() else "as published; the file is not here yet"
        table.add_row(f"rows of {one.source_name}", f"{count:,}", f"{where}: {one.path}")
        table.add_row("  reachable", f"{_reachable(one, settings):.0%}", _reachable_from(one, settings))
    table.add_row("pictures", f"{bill.pictures:,.0f}", "rows x reachable")
    table.add_row("pairs kept", f"{bill.pairs:,.0f}", f"pictures x {settings.kept:.0%}, a guess before the first build")
    rate = settings.cpus * settings.pictures_per_s_per_cpu
    table.add_row("download", _duration(bill.download_hours), f"{settings.cpus} CPUs, {rate:,.0f} addresses a second")
    table.add_row(
        "storage", f"{bill.storage_gb:,.1f} GB", f"snapshot and shards, {settings.kilobytes_per_picture:g} kB a picture"
    )
    table.add_row(
        "money",
        f"{bill.cpu_money:,.2f} {settings.currency}",
        f"CPUs at {settings.price_per_cpu_hour:g} an hour; egress and requests not counted",
    )
    table.add_row(
        "  and a month",
        f"{bill.storage_money_per_month:,.2f} {settings.currency}",
        f"storage at {settings.price_per_gb_month:g} a GB",
    )
    return table


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _reachable_from(one: UrlList, settings: BillSettings) -> str:
    if settings.reachable is not None:
        return "bill.reachable"
    known = one.layout.reachable is not None
    return "last count known, see pipeline/list_files.py" if known else "a guess: nobody has counted this list"


def _reachable(one: UrlList, settings: BillSettings) -> float:
    if settings.reachable is not None:
        return settings.reachable
    return one.layout.reachable if one.layout.reachable is not None else 0.85
