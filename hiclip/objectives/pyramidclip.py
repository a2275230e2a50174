"""PyramidCLIP's objective (Gao et al. 2022): three views of the picture and three of the text, from global to objects,
find each other in six softened contrastive losses.

    peer level           global_crop with summary, local_crop with caption          (1 - cross_global - cross_local) / 2
    across, global       global_crop with tags, regions with summary                cross_global / 2
    across, local        local_crop with tags, regions with caption                 cross_local / 2

With the paper's thirds each of the six weighs a sixth. All share one temperature and one projection a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hiclip.batch import Batch, Views
from hiclip.losses.contrastive import contrastive_loss
from hiclip.losses.contrastive import logit_bytes as contrastive_logit_bytes
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.objective import Objective, check_counts

Pair = tuple[str, str]
"""Names of a view of the picture and of one of the text."""

_REGIONS = "regions"


def pair_weights(cross_global: float, cross_local: float, regions: bool) -> dict[Pair, float]:
    """Weights of the pairs that have one; they sum to 1.

    `regions` false leaves out the two pairs of regions, whose share goes to the others in proportion: ours, for
    datasets that no detector has seen.
    """
    peer = 1 - cross_global - cross_local
    weights = {
        ("global_crop", "summary"): peer / 2,
        ("local_crop", "caption"): peer / 2,
        ("global_crop", "tags"): cross_global / 2,
        (_REGIONS, "summary"): cross_global / 2,
        ("local_crop", "tags"): cross_local / 2,
        (_REGIONS, "caption"): cross_local / 2,
    }
    kept = {pair: weight for pair, weight in weights.items() if weight > 1e-9 and (regions or pair[0] != _REGIONS)}
    return {pair: weight / sum(kept.values()) for pair, weight in kept.items()}


def views_of(pairs: dict[Pair, float]) -> Views:
    """The views that some pair needs."""
    images = dict.fromkeys(image for image, _ in pairs)
    texts = dict.fromkeys(text for _, text in pairs)
    shown = tuple(view for view in images if view != _REGIONS)
    return Views(shown, tuple(texts), (_REGIONS,) if _REGIONS in images else ())


def encode_views(towers: TwoTowers, batch: Batch, views: Views) -> dict[str, Tensor]:
    """-> each view's vector (b, E). Regions enter the image tower behind its front layers."""
    encoded = {view: towers.image_tower(batch.images[view]).vector for view in views.images}
    encoded |= {view: towers.image_tower.embed_regions(batch.regions[view]).vector for view in views.regions}
    return encoded | {view: towers.text_tower(batch.tokens[view]).vector for view in views.captions}


def pair_losses(
    encoded: dict[str, Tensor],
    pairs: dict[Pair, float],
    logit_scale: Tensor,
    smoothing: float,
    block: int | None = None,
) -> dict[str, Tensor]:
    """-> weighted softened contrastive losses by the names of their views."""
    return {
        f"{image}_{text}": weight * contrastive_loss(encoded[image], encoded[text], logit_scale, smoothing, block)
        for (image, text), weight in pairs.items()
    }


def check_shares(cross_global: float, cross_local: float, smoothing: float) -> None:
    """ValueError, beginning with the key, for numbers out of their range."""
    if cross_global < 0 or cross_local < 0 or cross_global + cross_local > 1:
        raise ValueError(
            f"cross_global, cross_local: expected 0 or more, at most 1 together, came {cross_global}, {cross_local}"
        )
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing: expected 0 to below 1, came {smoothing}")


def check_regions(name: str, views: Views, model: ModelSettings) -> None:
    """ValueError, beginning with the job's key, if the image tower has no place for the regions that are shown."""
    if views.regions and model.region_width is None:
        raise ValueError(
            f"model.region_width: expected the numbers of a region's vector with objective {name} "
            "(2052 in PyramidCLIP), came null; objective.regions: false leaves regions out"
        )


@dataclass(frozen=True)
class PyramidclipSettings:
    """Keys of the objective `pyramidclip`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["pyramidclip"] = "pyramidclip"
    """Chooses this objective."""
    smoothing: float = 0.2
    """Share of the target that the other pairs of the batch divide among them; the paper's alpha."""
    cross_global: float = 1 / 3
    """Share of the pairs across levels on the global side; the paper's lambda."""
    cross_local: float = 1 / 3
    """Share of the pairs across levels on the local side; the paper's mu."""
    regions: bool = True
    """Whether regions are shown. Off is ours: their two pairs are left out, the others weigh more in proportion."""
    block_pairs: int | None = None
    """See `clip`."""

    def __post_init__(self) -> None:
        check_shares(self.cross_global, self.cross_local, self.smoothing)
        check_counts(block_pairs=self.block_pairs)

    @property
    def pairs(self) -> dict[Pair, float]:
        """Weights of the pairs of views."""
        return pair_weights(self.cross_global, self.cross_local, self.regions)

    @property
    def views(self) -> Views:
        """What the objective wants to be shown of a pair."""
        return views_of(self.pairs)

    @property
    def compares_a_workers_pairs(self) -> bool:
        """Whether a batch norm sees the pairs of one worker alone: then the number of workers changes the losses."""
        return False

    def check(self, model: ModelSettings, pairs: int) -> None:
        """ValueError, beginning with the key, if towers of these settings will not do."""
        check_regions(self.name, self.views, model)

    def logit_bytes(self, model: ModelSettings, pairs: int, batch: int) -> int:
        """Bytes of logits that a worker with `pairs` of `batch` pairs holds at most."""
        return contrastive_logit_bytes(2 * len(self.pairs), pairs, batch, self.smoothing, self.block_pairs)

    def build(self, model: ModelSettings) -> PyramidclipObjective:
        """The objective's module for towers of these settings."""
        return PyramidclipObjective(self)


class PyramidclipObjective(Objective):
    """Softened contrastive losses between views of both sides; no parameters of its own."""

    def __init__(self, settings: PyramidclipSettings) -> None:
        super().__init__(settings.views)
        self.pairs = settings.pairs
        self.smoothing, self.block_pairs = settings.smoothing, settings.block_pairs

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """-> each view's vector (b, E)."""
        return encode_views(towers, batch, self.views)

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """-> a loss for each pair of views, by both names."""
        return pair_losses(encoded, self.pairs, logit_scale, self.smoothing, self.block_pairs)
