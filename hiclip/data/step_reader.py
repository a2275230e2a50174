"""One rank's part of one step, from shards to arrays: read row groups, decode, draw views, tokenise.

The same plan, step, rank and world give the same bytes in any process, at any time. What a reader keeps between steps,
the row groups of the current window, only saves it from reading them again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from hiclip.batch import TARGETS, Batch, trim_padding
from hiclip.data.chance import Chance
from hiclip.data.image_views import IMAGE_VIEWS
from hiclip.data.images import ImageError, Picture, Pixels, normalise
from hiclip.data.region_views import REGION_VIEWS, Regions
from hiclip.data.stream_plan import Source, StreamPlan
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.tokenizer import Tokenizer, Tokens
from pipeline.manifest import DatasetError, read_manifest
from pipeline.shards import DatasetReader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankStep:
    """What one rank computes at one step, before it is a `Batch`: pictures as bytes, an eighth of the memory."""

    step: int
    images: dict[str, Pixels]
    """View -> (b, px, px, 3) red, green, blue."""
    tokens: dict[str, Tokens]
    """View -> (b, L)."""
    pair_ids: list[str]
    broken: int
    """Pictures that could not be decoded; the next row of the dataset stands in for each."""
    regions: dict[str, Regions] = field(default_factory=dict)
    """View -> (b, M, F)."""

    def to_batch(self, device: torch.device | str = "cpu") -> Batch:
        """Normalised tensors on `device`; pictures travel there as bytes and become floats when they have arrived.

        Captions lose the padding that all of them have: most are far shorter than the context. Targets, which name
        places before a caption's end, keep it.
        """
        # Copied first: what Ray hands out is memory that must not be written, and torch has no name for that.
        images = {view: torch.tensor(pixels).to(device, non_blocking=True) for view, pixels in self.images.items()}
        tokens = {view: torch.tensor(ids) for view, ids in self.tokens.items()}
        tokens = {view: ids if view.endswith(TARGETS) else trim_padding(ids) for view, ids in tokens.items()}
        regions = {view: torch.tensor(vectors).to(device, non_blocking=True) for view, vectors in self.regions.items()}
        return Batch(
            {view: normalise(pixels) for view, pixels in images.items()},
            {view: ids.to(device, non_blocking=True) for view, ids in tokens.items()},
            self.pair_ids,
            {view: vectors.float() for view, vectors in regions.items()},
            self.broken,
        )


class _Shown(NamedTuple):
    """A pair, and what its views' chance is keyed by beside its name."""

    pair: Mapping[str, Any]
    seed: int
    epoch: int

    def chance(self, view: str) -> Chance:
        return Chance(self.seed, str(self.pair["pair_id"]), self.epoch, view)


class StepReader:
    """Computes the steps of a plan for any rank of any world. Asking for steps in ascending order reads least."""

    def __init__(self, plan: StreamPlan) -> None:
        """Raises DatasetError if a dataset is no longer the one that the plan was made for."""
        self._plan = plan
        self._readers = [_reader(source) for source in plan.sources]
        self._columns = plan.columns
        self._tokenizer = Tokenizer(plan.context)
        self._lifetimes = plan.window_steps
        self._groups: dict[tuple[int, int], tuple[int, pa.Table]] = {}

    def read(self, step: int, rank: int, world: int) -> RankStep:
        """The pairs that `StreamPlan.pairs_of_rank` gives for this step, in that order. ValueError as there."""
        plan = self._plan
        places = zip(*(each.tolist() for each in plan.pairs_of_rank(step, rank, world)), strict=True)
        self._forget_past_windows(step)
        shape = (plan.batch // world, plan.image_px, plan.image_px, 3)
        images = {view: np.empty(shape, dtype=np.uint8) for view in plan.image_views}
        pairs: list[_Shown] = []
        broken = 0
        for place, (source, row, epoch) in enumerate(places):
            shown, views, tries = self._draw_images(step, source, row, epoch)
            for view, pixels in views.items():
                images[view][place] = pixels
            pairs.append(shown._replace(pair={name: value for name, value in shown.pair.items() if name != "image"}))
            broken += tries
        tokens = {view: self._draw_tokens(view, pairs) for view in plan.text_views}
        regions = {
            view: np.stack([REGION_VIEWS[view].draw(shown.pair, *plan.region_shape) for shown in pairs])
            for view in plan.region_views
        }
        return RankStep(step, images, tokens, [str(shown.pair["pair_id"]) for shown in pairs], broken, regions)

    def _draw_tokens(self, view: str, pairs: list[_Shown]) -> Tokens:
        """Pairs -> (b, L)."""
        drawn, settings = TEXT_VIEWS[view], self._plan.view_settings
        chances = [shown.chance(view) for shown in pairs]
        texts = [drawn.draw(shown.pair, chance, settings) for shown, chance in zip(pairs, chances, strict=True)]
        tokens = self._tokenizer.encode(texts)
        if drawn.change is None:
            return tokens
        return np.stack([drawn.change(row, chance, settings) for row, chance in zip(tokens, chances, strict=True)])

    def _draw_images(self, step: int, source: int, row: int, epoch: int) -> tuple[_Shown, dict[str, Pixels], int]:
        """The pair at `row`, or the first one after it whose picture can be decoded; its views; how many could not."""
        plan = self._plan
        dataset, order = plan.sources[source].dataset, plan.sources[source].order
        sound = plan.sources[source].sound_row
        for tries in range(order.pairs):
            at = sound((row + tries) % order.pairs)
            shown = _Shown(self._pair(step, source, at), order.seed, epoch)
            try:
                picture = Picture(shown.pair["image"])
                views = {
                    view: IMAGE_VIEWS[view].draw(
                        picture, shown.pair, plan.image_px, shown.chance(view), plan.view_settings
                    )
                    for view in plan.image_views
                }
            except ImageError as error:
                log.warning("%s: picture of pair %s cannot be decoded: %s", dataset, shown.pair["pair_id"], error)
                continue
            return shown, views, tries + (at != (row + tries) % order.pairs)
        raise DatasetError(f"{dataset}: not one of {order.pairs} pictures can be decoded")

    def _pair(self, step: int, source: int, row: int) -> dict[str, Any]:
        group, inside = divmod(row, self._plan.sources[source].order.rows_per_group)
        if (source, group) not in self._groups:
            self._groups[source, group] = step, self._readers[source].read_group(group, self._columns)
        table = self._groups[source, group][1]
        return {name: table.column(name)[inside].as_py() for name in self._columns}

    def _forget_past_windows(self, step: int) -> None:
        """Drops row groups first read a whole window ago: their window is over, they come again in the next epoch."""
        self._groups = {
            (source, group): kept
            for (source, group), kept in self._groups.items()
            if 0 <= step - kept[0] <= self._lifetimes[source]
        }


def local_stream(
    plan: StreamPlan, first_step: int, last_step: int, rank: int = 0, world: int = 1
) -> Iterator[RankStep]:
    """Steps `first_step` to `last_step` (not included) of one rank, read in this process, without Ray."""
    reader = StepReader(plan)
    for step in range(first_step, last_step):
        yield reader.read(step, rank, world)


def _reader(source: Source) -> DatasetReader:
    manifest = read_manifest(source.dataset)
    if manifest.fingerprint != source.fingerprint:
        raise DatasetError(
            f"{source.dataset}: expected the dataset with fingerprint {source.fingerprint[:16]}..., "
            f"came {manifest.fingerprint[:16]}...; it was built anew since this run began"
        )
    return DatasetReader(source.dataset, manifest)
