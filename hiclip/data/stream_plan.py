"""What a stream of training data is: dataset, order, views, sizes. A process that has a plan can compute any step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hiclip.batch import Views
from hiclip.data.image_views import IMAGE_VIEWS
from hiclip.data.order import Order
from hiclip.data.region_views import REGION_VIEWS
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.view_settings import ViewSettings
from pipeline.manifest import DatasetError, read_manifest


@dataclass(frozen=True)
class LoaderSettings:
    """How a rank's pairs are read under Ray. Nothing here changes what is read."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tasks: int = 1
    """Processes that read and decode for each worker."""
    cpus_per_task: float = 0.25
    """Ray CPUs that each of them takes; they need room beside the workers. 0 takes none and always fits."""
    steps_per_task: int | None = None
    """Steps that a process makes in one go. Null: as many as a window spans, so that its groups are read once, or as
    make 256 MB."""
    prefetched_steps: int = 4
    """Batches that lie ready in the worker."""
    late_after_s: float = 60.0
    """The log says what is waited for when the first batch takes longer than this."""
    stall_timeout_s: float = 1800.0
    """The run fails when for this long no batch was made and none was taken."""
    broken_share: float = 0.01
    """Share of the pictures that may turn out to be broken; the next pair stands in for each, more fail the run."""

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
class StreamPlan:
    """A stream of global batches: step t shows the pairs that `order` gives it, each in all views."""

    dataset: str
    """Folder or s3:// address of a built dataset."""
    fingerprint: str
    """Of its manifest: a dataset that was rebuilt differently is refused."""
    order: Order
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
    def window_steps(self) -> int:
        """Steps after which the row groups of a window are done with."""
        return -(-self.order.window_groups * self.order.rows_per_group // self.batch)

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
    dataset: str,
    batch: int,
    window_groups: int,
    seed: int,
    views: Views,
    image_px: int,
    context: int,
    view_settings: ViewSettings | None = None,
    region_width: int | None = None,
    asked_by: str = "the stream has the views",
) -> StreamPlan:
    """The plan for a dataset that is there. Raises DatasetError if it is not, or lacks a column that a view reads.

    `asked_by` says in the error who wants to see the views.
    """
    manifest = read_manifest(dataset)
    plan = StreamPlan(
        dataset,
        manifest.fingerprint,
        Order(manifest.pairs, manifest.rows_per_group, window_groups, seed),
        batch,
        image_px,
        context,
        views.images,
        views.texts,
        view_settings or ViewSettings(),
        views.regions,
        region_width,
    )
    missing = [column for column in plan.columns if column not in manifest.columns]
    if missing:
        raise DatasetError(
            f"{dataset}: {asked_by} {', '.join(views.images + views.texts + views.regions)}, "
            f"which need the columns {', '.join(missing)}; the dataset has {', '.join(manifest.columns)}; "
            "an annotation in the job of pipeline.build makes columns"
        )
    return plan


def _check_names(names: tuple[str, ...], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no view {name!r}; there are {', '.join(known)}")
