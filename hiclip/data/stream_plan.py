"""What a stream of training data is: datasets, orders, views, sizes. A process that has a plan can compute any step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from hiclip.batch import Views
from hiclip.data.image_views import IMAGE_VIEWS
from hiclip.data.mixture import MixedDataset, Mixture, datasets_of, fingerprint_of, interleaved, mixture_of
from hiclip.data.order import Order, Rows, slice_of_rank
from hiclip.data.permutation import derive_key
from hiclip.data.region_views import REGION_VIEWS
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.view_settings import ViewSettings
from pipeline.manifest import DatasetError, read_manifest


@dataclass(frozen=True)
class LoaderSettings:
    """How a rank's pairs are read under Ray. Nothing here changes what is read of a sound dataset."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tasks: int = 1
    """Processes that read and decode for each worker."""
    cpus_per_task: float = 0.25
    """Ray CPUs that each of them takes; they need room beside the workers. 0 takes none and always fits."""
    steps_per_task: int | None = None
    """Steps that a process makes in one go. Null: as many as a window spans (the longest, of several datasets), so that
    its groups are read once, or as make 256 MB."""
    prefetched_steps: int = 4
    """Batches that lie ready in the worker."""
    late_after_s: float = 60.0
    """The log says what is waited for when the first batch takes longer than this."""
    stall_timeout_s: float = 1800.0
    """The run fails when for this long no batch was made and none was taken."""
    broken_share: float = 0.01
    """Share of the pictures that may turn out to be broken; the next pair stands in for each, more fail the run."""
    unsound_shards: Literal["refuse", "skip"] = "refuse"
    """What is done where a shard is missing or its sha256 is not the manifest's: refuse the dataset, or have pairs of
    the next shard stand in for its own, which count as broken."""

    def __post_init__(self) -> None:
        for name in ("tasks", "steps_per_task", "prefetched_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, came {value}")
        for name in ("late_after_s", "stall_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, came {getattr(self, name)}")
        if not 0 <= self.broken_share <= 1:
            raise ValueError(f"broken_share: expected a share from 0 to 1, came {self.broken_share}")
        if self.cpus_per_task < 0:
            raise ValueError(f"cpus_per_task: expected 0 or more, came {self.cpus_per_task}")


@dataclass(frozen=True)
class Source:
    """A dataset that a stream shows, in an order of its own: its epochs are its own as well."""

    dataset: str
    """Folder or s3:// address of a built dataset."""
    fingerprint: str
    """Of its manifest: a dataset that was rebuilt differently is refused."""
    order: Order
    pairs_per_shard: int
    unsound: frozenset[int] = frozenset()
    """Numbers of shards that are not read."""

    def sound_row(self, row: int) -> int:
        """The row that is read for `row`: itself, or the one at its place in the next shard that is sound."""
        shards = -(-self.order.pairs // self.pairs_per_shard)
        for _ in range(shards):
            if row // self.pairs_per_shard not in self.unsound:
                return row
            row = (row + self.pairs_per_shard) % self.order.pairs
        raise DatasetError(f"{self.dataset}: none of its {shards} shards is sound")


@dataclass(frozen=True)
class StreamPlan:
    """A stream of global batches: step t shows the pairs that mixture and orders give it, each in all views."""

    sources: tuple[Source, ...]
    mixture: Mixture
    """How positions are split among the sources."""
    batch: int
    """Pairs of a global batch."""
    image_px: int
    """Pixels a side of every image view."""
    context: int
    """Tokens of every text view."""
    image_views: tuple[str, ...] = ("crop",)
    """Names in `IMAGE_VIEWS`."""
    text_views: tuple[str, ...] = ("caption",)
    """Names in `TEXT_VIEWS`."""
    view_settings: ViewSettings = field(default_factory=ViewSettings)
    region_views: tuple[str, ...] = ()
    """Names in `REGION_VIEWS`."""
    region_width: int | None = None
    """Numbers of a region's vector; needed where there are region views."""

    def __post_init__(self) -> None:
        _check_names(self.image_views, IMAGE_VIEWS)
        _check_names(self.text_views, TEXT_VIEWS)
        _check_names(self.region_views, REGION_VIEWS)
        if self.region_views and not self.region_width:
            raise ValueError(f"region_width: expected a number with the views {', '.join(self.region_views)}")

    @property
    def fingerprint(self) -> str:
        """What stands for the bytes of all datasets and their weights; one dataset's is its manifest's."""
        return fingerprint_of(self.mixture, [source.fingerprint for source in self.sources])

    @property
    def window_steps(self) -> tuple[int, ...]:
        """Of each source, steps after which the row groups of a window are done with."""
        windows = [source.order.window_groups * source.order.rows_per_group for source in self.sources]
        return tuple(math.ceil(rows / (self.batch * self.mixture.share(place))) for place, rows in enumerate(windows))

    def pairs_of_rank(self, step: int, rank: int, world: int) -> tuple[Rows, Rows, Rows]:
        """What `rank` of `world` shows at `step`, three (batch // world,): source, row in it, that source's epoch.

        All ranks together show the same whatever `world` is. ValueError if `world` does not divide the batch.
        """
        mine = slice_of_rank(self.batch, rank, world)
        first, last = (self.mixture.counts(one * self.batch) for one in (step, step + 1))
        owners, numbers = (
            places[mine] for places in interleaved([after - before for before, after in zip(first, last, strict=True)])
        )
        rows, epochs = np.empty_like(numbers), np.empty_like(numbers)
        for place, source in enumerate(self.sources):
            own = owners == place
            if own.any():
                shown, their_epochs = source.order.rows_between(first[place], last[place])
                rows[own], epochs[own] = shown[numbers[own]], their_epochs[numbers[own]]
        return owners, rows, epochs

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the dataset that the views read."""
        views = [IMAGE_VIEWS[name].columns for name in self.image_views]
        views += [TEXT_VIEWS[name].columns for name in self.text_views]
        views += [REGION_VIEWS[name].columns for name in self.region_views]
        return tuple(dict.fromkeys(("pair_id", "image", *(column for columns in views for column in columns))))

    @property
    def region_shape(self) -> tuple[int, int]:
        """M and F of every region view."""
        return self.view_settings.most_regions, self.region_width or 0

    def step_bytes(self, world: int) -> int:
        """Bytes of one rank's part of a step, as it comes from a loader's process."""
        pair = len(self.image_views) * 3 * self.image_px**2 + len(self.text_views) * 8 * self.context
        pair += len(self.region_views) * 2 * math.prod(self.region_shape)
        return self.batch // world * pair


def plan_stream(
    datasets: str | Sequence[MixedDataset],
    batch: int,
    window_groups: int,
    seed: int,
    views: Views,
    image_px: int,
    context: int,
    view_settings: ViewSettings | None = None,
    region_width: int | None = None,
    asked_by: str = "the stream has the views",
    unique_pairs: int | None = None,
) -> StreamPlan:
    """The plan for a dataset, or a mixture of several; with `unique_pairs`, for the first so many of the only one.

    Raises DatasetError if one is missing, comes twice, has too few pairs, or lacks a column that a view reads;
    `asked_by` says who wants to see the views.
    """
    datasets = datasets_of(datasets)
    manifests = [read_manifest(dataset.path) for dataset in datasets]
    if unique_pairs is not None and unique_pairs > manifests[0].pairs:
        raise DatasetError(
            f"{datasets[0].path}: expected at least {unique_pairs:,} pairs (data.unique_pairs), "
            f"has {manifests[0].pairs:,}"
        )
    sources = [
        Source(
            dataset.path,
            manifest.fingerprint,
            Order(
                unique_pairs or manifest.pairs,
                manifest.rows_per_group,
                window_groups,
                _seed(seed, place, len(datasets)),
            ),
            manifest.pairs_per_shard,
        )
        for place, (dataset, manifest) in enumerate(zip(datasets, manifests, strict=True))
    ]
    plan = StreamPlan(
        tuple(sources),
        mixture_of(datasets, manifests),
        batch,
        image_px,
        context,
        views.images,
        views.texts,
        view_settings or ViewSettings(),
        views.regions,
        region_width,
    )
    for place, (source, manifest) in enumerate(zip(sources, manifests, strict=True)):
        for earlier in sources[:place]:
            if source.fingerprint == earlier.fingerprint:
                raise DatasetError(
                    f"{source.dataset}: is the same dataset as {earlier.dataset}; name it once, with a greater weight"
                )
        missing = [column for column in plan.columns if column not in manifest.columns]
        if missing:
            raise DatasetError(
                f"{source.dataset}: {asked_by} {', '.join(views.images + views.texts + views.regions)}, "
                f"which need the columns {', '.join(missing)}; the dataset has {', '.join(manifest.columns)}; "
                "an annotation in the job of pipeline.build makes columns"
            )
    return plan


def _seed(seed: int, place: int, datasets: int) -> int:
    """Of one dataset's order: two of a mixture are not permuted alike, and one alone is as it always was."""
    return seed if datasets == 1 else derive_key(seed, "mixture", place)


def _check_names(names: tuple[str, ...], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no view {name!r}; there are {', '.join(known)}")
