"""The job of a build: from URL lists to a filtered, reproducible dataset."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.annotation_resources import Resources
from pipeline.annotations import AnyAnnotation
from pipeline.balance import Balance
from pipeline.bill_settings import BillSettings
from pipeline.decontaminate import Decontaminate
from pipeline.download_settings import SAMPLE_CRAWL, DownloadSettings
from pipeline.duplicates import DuplicateSettings
from pipeline.filters import AnyFilter
from pipeline.jobfile import Job, Settings, job_fingerprint
from pipeline.list_files import UrlList

DECIDES_NOTHING = ("name", "out", "ray", "mlflow", "snapshot", "bill", "tasks", "card")
"""Keys of a build job that leave the dataset as it is."""


class ShardSettings(Settings):
    """How the dataset is cut."""

    pairs_per_shard: Annotated[int, Field(gt=0)] = 10_000
    """Rows of every shard but the last."""
    rows_per_group: Annotated[int, Field(gt=0)] = 100
    """Rows of every parquet row group, the least that a loader reads; divides pairs_per_shard."""

    @model_validator(mode="after")
    def _divides(self) -> ShardSettings:
        if self.pairs_per_shard % self.rows_per_group:
            raise ValueError(f"rows_per_group {self.rows_per_group} must divide pairs_per_shard {self.pairs_per_shard}")
        return self


class CardSettings(Settings):
    """What the dataset's card says that no build can count."""

    description: str = ""
    """What the dataset is and what it is for, in Markdown."""
    licences: dict[str, str] = Field(default_factory=dict)
    """Source to its licence, as a reader should cite it."""
    contact: str = ""
    """Whom to ask, and to tell of a picture that has to go."""


class TaskSettings(Settings):
    """How much one task holds at a time; changes speed and memory, never the dataset."""

    rows: Annotated[int, Field(gt=0)] = 1_000_000
    """Rows of lists or of the pool, without their pictures: some 500 bytes each, and what an embedding takes."""


class BuildJob(Job):
    """A build. Steps run in the order of these keys."""

    lists: Annotated[tuple[UrlList, ...], Field(min_length=1)]
    """The URL lists, read one after the other."""
    download: DownloadSettings = DownloadSettings()
    snapshot: str | None = None
    """Folder or s3:// of the downloaded pictures; null: below `out`. Jobs that differ in filters only may share one."""
    sample_crawl: str | None = None
    """Folder of the sample crawl to serve on this machine while the build runs, for `connect_to`."""
    annotations: tuple[AnyAnnotation, ...] = ()
    """Columns that are added to every downloaded pair, for filters and training to read."""
    filters: tuple[AnyFilter, ...] = ()
    """In this order; a pair is refused by the first that does not like it."""
    decontaminate: Decontaminate | None = None
    """Refuse pictures of evaluation sets; null: nobody looks."""
    duplicates: DuplicateSettings = DuplicateSettings()
    balance: Balance | None = None
    """Thin out what is common in captions, last of all; null: nothing is."""
    shards: ShardSettings = ShardSettings()
    tasks: TaskSettings = TaskSettings()
    card: CardSettings = CardSettings()
    """For `card.md`, which every build writes."""
    bill: BillSettings = BillSettings()
    """What `--dry-run` reckons with; changes nothing else."""

    @model_validator(mode="after")
    def _fits_together(self) -> BuildJob:
        names = [one.step for one in self.filters]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"filters: {twice} stands there twice; the funnel could not tell them apart")
        columns = {name for one in self.annotations for name in one.columns.names}
        for one in self.filters:
            if missing := [column for column in one.needs if column not in columns]:
                raise ValueError(f"filters.{one.name}: reads the column {missing[0]}, which no annotation adds")
        if self.decontaminate is not None and (named := self.decontaminate.embedding) not in (None, *columns):
            raise ValueError(f"decontaminate.embedding: reads the column {named}, which no annotation adds")
        if (semantic := self.duplicates.semantic) is not None and semantic.column not in columns:
            raise ValueError(f"duplicates.semantic: reads the column {semantic.column}, which no annotation adds")
        if SAMPLE_CRAWL in self.download.connect_to.values() and self.sample_crawl is None:
            raise ValueError(f"sample_crawl: expected its folder, because download.connect_to names {SAMPLE_CRAWL}")
        return self

    def ready(self) -> BuildJob:
        """Itself with every file that its steps read looked at: a fault in one is said before anything is fetched."""
        checked = {
            "annotations": tuple(one.ready() for one in self.annotations),
            "filters": tuple(one.ready() for one in self.filters),
            "decontaminate": None if self.decontaminate is None else self.decontaminate.ready(),
            "balance": None if self.balance is None else self.balance.ready(),
        }
        return self.model_copy(update=checked)

    @property
    def looks(self) -> bool:
        """Whether a step compares how pictures look."""
        by_hash = self.duplicates.exact == "look_and_caption"
        return self.duplicates.near is not None or by_hash or self.decontaminate is not None

    @property
    def steps(self) -> list[str]:
        """The steps that can refuse a row, in order."""
        before = [] if self.decontaminate is None else ["decontaminate"]
        after = [] if self.balance is None else ["balance"]
        return ["list", "download", *(one.step for one in self.filters), *before, "duplicates", *after]

    def fingerprint(self) -> str:
        """Hex sha256 of the keys that decide what is in the dataset."""
        at_any_pace = self.model_copy(
            update={
                "download": DownloadSettings(**self.download.deciding()),
                "annotations": tuple(one.model_copy(update={"resources": Resources()}) for one in self.annotations),
            }
        )
        return job_fingerprint(at_any_pace, leave_out=DECIDES_NOTHING)
