"""PyramidCLIP's and DeCLIP's objectives as one. Ours: neither paper has it.

    L = pyramid * mean of the six softened pairs + multi_view * mean of {global_crop, local_crop} with the EDA text
      + image_self * SimSiam(global_crop, local_crop) + masked_words * MLM + neighbours * NN(both crops, caption)

The EDA text is the masked one, so that guessing words costs no text pass and the caption's vector stays clean. Crops
are two views to agree on only where colours change too: turn on `data.views.colours`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hiclip.batch import TARGETS, Batch, Views
from hiclip.losses.contrastive import contrastive_loss
from hiclip.losses.contrastive import logit_bytes as contrastive_logit_bytes
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.objective import Objective, check_counts
from hiclip.objectives.pyramidclip import (
    Pair,
    check_regions,
    check_shares,
    encode_views,
    pair_losses,
    pair_weights,
    views_of,
)
from hiclip.objectives.self_supervision import (
    SelfSupervision,
    check_self_supervision,
    check_weights,
    mean,
    self_supervision_bytes,
)

_CROPS = ("global_crop", "local_crop")
_EDA, _MASKED = "eda", "masked_eda"


@dataclass(frozen=True)
class PyramidDeclipSettings:
    """Keys of the objective `pyramid_declip`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["pyramid_declip"] = "pyramid_declip"
    """Chooses this objective."""
    pyramid: float = 0.4
    """Weight of PyramidCLIP's pairs, whose own weights sum to 1. With the next it is DeCLIP's 0.6 of contrast."""
    multi_view: float = 0.2
    """Weight of both crops with the EDA text, softened like the pairs."""
    image_self: float = 0.2
    """Weight of the agreement of the two crops (SimSiam). A part of weight 0 is not computed and has no head."""
    masked_words: float = 0.2
    """Weight of the guessing of masked words."""
    neighbours: float = 0.2
    """Weight of both crops against the nearest neighbour of the caption."""
    smoothing: float = 0.2
    """See `pyramidclip`."""
    cross_global: float = 1 / 3
    """See `pyramidclip`."""
    cross_local: float = 1 / 3
    """See `pyramidclip`."""
    regions: bool = True
    """See `pyramidclip`."""
    queue: int = 65_536
    """See `declip`; one text of a pair enters it here."""
    block_pairs: int | None = None
    """See `clip`."""

    def __post_init__(self) -> None:
        check_shares(self.cross_global, self.cross_local, self.smoothing)
        check_counts(queue=self.queue, block_pairs=self.block_pairs)
        check_weights(
            ("pyramid", "multi_view", "neighbours"),
            pyramid=self.pyramid,
            multi_view=self.multi_view,
            image_self=self.image_self,
            masked_words=self.masked_words,
            neighbours=self.neighbours,
        )

    @property
    def pairs(self) -> dict[Pair, float]:
        """Weights of the pairs of views; they sum to `pyramid`."""
        shares = pair_weights(self.cross_global, self.cross_local, self.regions) if self.pyramid else {}
        return {pair: self.pyramid * share for pair, share in shares.items()}

    @property
    def eda(self) -> str:
        """The view in the place of the EDA text."""
        return _MASKED if self.masked_words else _EDA

    @property
    def views(self) -> Views:
        """What the objective wants to be shown of a pair."""
        paired = views_of(self.pairs)
        targets = [_MASKED + TARGETS] if self.masked_words else []
        return Views(_CROPS, tuple(dict.fromkeys((*paired.texts, "caption", self.eda, *targets))), paired.regions)

    @property
    def compares_a_workers_pairs(self) -> bool:
        """Whether a batch norm sees the pairs of one worker alone: then the number of workers changes the losses."""
        return bool(self.image_self)

    def check(self, model: ModelSettings, pairs: int) -> None:
        """ValueError, beginning with the key, if towers of these settings or `pairs` pairs a worker will not do."""
        check_regions(self.name, self.views, model)
        check_self_supervision(self.name, self, model, pairs)

    def logit_bytes(self, model: ModelSettings, pairs: int, batch: int) -> int:
        """Bytes of logits that a worker with `pairs` of `batch` pairs holds at most."""
        crops = len(_CROPS)
        losses = 2 * len(self.pairs) + 2 * crops * bool(self.multi_view) + crops * bool(self.neighbours)
        contrast = contrastive_logit_bytes(losses, pairs, batch, self.smoothing, self.block_pairs)
        return contrast + self_supervision_bytes(self, model, pairs, self.queue)

    def build(self, model: ModelSettings) -> PyramidDeclipObjective:
        """The objective's module for towers of these settings."""
        return PyramidDeclipObjective(self, model)


class PyramidDeclipObjective(Objective):
    """Six pairs of views, the EDA text, and DeCLIP's self-supervision over the two crops and the caption."""

    def __init__(self, settings: PyramidDeclipSettings, model: ModelSettings) -> None:
        super().__init__(settings.views)
        self.settings = settings
        self.self_supervision = SelfSupervision(settings, settings.queue, settings.block_pairs, model)

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """-> each view's vector (b, E), and `words` (b, L, D), the tokens of the masked text."""
        eda = self.settings.eda
        whole = tuple(view for view in self.views.captions if view != eda)
        encoded = encode_views(towers, batch, Views(self.views.images, whole, self.views.regions))
        output = towers.text_tower(batch.tokens[eda], all_tokens=eda == _MASKED)
        return encoded | {eda: output.vector} | ({} if output.tokens is None else {"words": output.tokens})

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """-> a loss for each pair of views, multi_view, image_self, masked_words, neighbours; see `SelfSupervision`."""
        settings, smoothing, block = self.settings, self.settings.smoothing, self.settings.block_pairs
        first, second = (encoded[view] for view in _CROPS)
        losses = pair_losses(encoded, settings.pairs, logit_scale, smoothing, block)
        if settings.multi_view:
            eda = encoded[settings.eda]
            both = [contrastive_loss(crop, eda, logit_scale, smoothing, block) for crop in (first, second)]
            losses["multi_view"] = settings.multi_view * mean(both)
        targets = batch.tokens.get(_MASKED + TARGETS)
        words = encoded.get("words")
        return losses | self.self_supervision.losses((first, second), [encoded["caption"]], words, targets, logit_scale)
