"""The bill of a build before anything is fetched: rows, pairs to expect, hours, storage and money."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from pipeline.bill_settings import BillSettings
from pipeline.build_job import BuildJob
from pipeline.list_files import UrlList, count_rows
from pipeline.manifest import DatasetError
from pipeline.storage import folder

_WORK_BYTES_A_ROW = 400
"""Of a row of the lists in work/: twice in the listing, once with its verdict; 346 on the walk."""
_PIECE_MB = 52.4
"""Of s3fs, 50 MiB."""
_GETS_A_SHARD = 30
"""HEAD and GET of a snapshot shard and of its rows of the list, as counted on the walk."""
_GETS_AN_ANNOTATION = 8


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


def bill_table(job: BuildJob) -> Table:
    """The bill as a table for the terminal, with the assumption beside each number."""
    settings = job.bill
    rows = rows_of(job.lists)
    bill = make_bill(rows, settings)
    table = Table("", "", "reckoned from", title=f"bill of {job.name}", title_justify="left", box=None)
    table.columns[1].justify = "right"
    for one, count in rows:
        where = "counted" if folder(one.path).exists() else "as published; the file is not here yet"
        table.add_row(f"rows of {one.source_name}", f"{count:,}", f"{where}: {one.path}")
        table.add_row("  reachable", f"{_reachable(one, settings):.0%}", _reachable_from(one, settings))
    table.add_row("pictures", f"{bill.pictures:,.0f}", "rows x reachable")
    table.add_row("pairs kept", f"{bill.pairs:,.0f}", f"pictures x {settings.kept:.0%}, a guess before the first build")
    rate = settings.cpus * settings.pictures_per_s_per_cpu
    table.add_row("download", _duration(bill.download_hours), f"{settings.cpus} CPUs, {rate:,.0f} addresses a second")
    for name in (annotation.name for annotation in job.annotations):
        speed = settings.annotation_pictures_per_s.get(name)
        hours = "?" if speed is None else _duration(bill.pictures / speed / 3600)
        why = (
            f"no rate in bill.annotation_pictures_per_s.{name}" if speed is None else f"{speed:,.0f} pictures a second"
        )
        table.add_row(f"annotation {name}", hours, why)
    table.add_row(
        "storage", f"{bill.storage_gb:,.1f} GB", f"snapshot and shards, {settings.kilobytes_per_picture:g} kB a picture"
    )
    table.add_row(
        "  while it runs",
        f"{bill.rows * _WORK_BYTES_A_ROW / 1e9:,.2f} GB",
        f"work/ in {folder(job.out).root}, {_WORK_BYTES_A_ROW} bytes a row",
    )
    requests = s3_requests(job, bill)
    if requests != (0, 0):
        puts, gets = requests
        cost = puts / 1000 * settings.price_per_1000_puts + gets / 1000 * settings.price_per_1000_gets
        table.add_row("S3 requests", f"{puts + gets:,}", f"{puts:,} to write, {gets:,} to read")
        table.add_row("  money", f"{cost:,.2f} {settings.currency}", "bill.price_per_1000_puts, _gets")
    table.add_row(
        "money",
        f"{bill.cpu_money:,.2f} {settings.currency}",
        f"CPUs at {settings.price_per_cpu_hour:g} an hour; egress not counted",
    )
    table.add_row(
        "  and a month",
        f"{bill.storage_money_per_month:,.2f} {settings.currency}",
        f"storage at {settings.price_per_gb_month:g} a GB",
    )
    return table


def s3_requests(job: BuildJob, bill: Bill) -> tuple[int, int]:
    """Requests that write and that read, of the places among `out` and snapshot that are on s3://."""
    shards = -(-bill.rows // job.download.rows_per_task)
    writers = len(job.annotations) + job.looks
    puts = gets = 0
    if (job.snapshot or job.out).startswith("s3://"):
        shard_mb = job.download.rows_per_task * bill.pictures / bill.rows * job.bill.kilobytes_per_picture / 1e3
        puts += shards * (_puts(shard_mb) + 1 + writers)  # the shard, its record, a file an annotation
        gets += shards * (_GETS_A_SHARD + _GETS_AN_ANNOTATION * writers)
    if job.out.startswith("s3://"):
        shard_mb = job.shards.pairs_per_shard * job.bill.kilobytes_per_picture / 1e3
        # Of every run of rows that a task holds: two files of the list, the verdict, what is kept, the ledger.
        puts += int(-(-bill.pairs // job.shards.pairs_per_shard)) * _puts(shard_mb) + 5 * -(
            -bill.rows // job.tasks.rows
        )
    return puts, gets


def _puts(megabytes: float) -> int:
    """Requests that one file takes: s3fs cuts what is larger than two of its pieces."""
    pieces = math.ceil(megabytes / _PIECE_MB)
    return 1 if pieces <= 2 else pieces + 2


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
