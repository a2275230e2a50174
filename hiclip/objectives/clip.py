"""CLIP's objective, and with the hierarchy on HiCLIP's: a picture and its caption find each other in the batch."""

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


@dataclass(frozen=True)
class ClipSettings:
    """Keys of the objective `clip`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["clip"] = "clip"
    """Chooses this objective."""
    smoothing: float = 0.0
    """Share of the target that the other pairs of the batch divide among them, 0 to below 1; 0 is CLIP."""
    block_pairs: int | None = None
    """Pairs of a worker whose logits are held at once; null: all. The loss is the same, nothing is computed
    twice. With b pairs a worker of a batch of B it holds 8 * block_pairs * B bytes of logits instead of 16 * b * B."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing: expected 0 to below 1, came {self.smoothing}")
        check_counts(block_pairs=self.block_pairs)

    @property
    def views(self) -> Views:
        """What the objective wants to be shown of a pair."""
        return Views(images=("crop",), texts=("caption",))

    @property
    def compares_a_workers_pairs(self) -> bool:
        """Whether a batch norm sees the pairs of one worker alone: then the number of workers changes the losses."""
        return False

    def check(self, model: ModelSettings, pairs: int) -> None:
        """Towers of any settings and any number of pairs a worker will do."""

    def logit_bytes(self, model: ModelSettings, pairs: int, batch: int) -> int:
        """Bytes of logits that a worker with `pairs` of `batch` pairs holds at most."""
        return contrastive_logit_bytes(2, pairs, batch, self.smoothing, self.block_pairs)

    def build(self, model: ModelSettings) -> ClipObjective:
        """The objective's module for towers of these settings."""
        return ClipObjective(self)


class ClipObjective(Objective):
    """Symmetric contrastive loss between a crop of the picture and its caption."""

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__(settings.views)
        self.smoothing, self.block_pairs = settings.smoothing, settings.block_pairs

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """-> image and text, each (b, E)."""
        return {
            "image": towers.image_tower(batch.images["crop"]).vector,
            "text": towers.text_tower(batch.tokens["caption"]).vector,
        }

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """-> {"contrastive": scalar}."""
        sides = encoded["image"], encoded["text"]
        return {"contrastive": contrastive_loss(*sides, logit_scale, self.smoothing, self.block_pairs)}
