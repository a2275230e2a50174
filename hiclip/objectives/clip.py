"""CLIP's objective, and with the hierarchy on HiCLIP's: a picture and its caption find each other in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hiclip.batch import Batch, Views
from hiclip.losses.contrastive import contrastive_loss
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.objective import Objective


@dataclass(frozen=True)
class ClipSettings:
    """Keys of the objective `clip`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["clip"] = "clip"
    """Chooses this objective."""
    smoothing: float = 0.0
    """Share of the target that the other pairs of the batch divide among them, 0 to below 1; 0 is CLIP."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing: expected 0 to below 1, got {self.smoothing}")

    @property
    def views(self) -> Views:
        """What the objective wants to be shown of a pair."""
        return Views(images=("crop",), texts=("caption",))

    def check(self, model: ModelSettings) -> None:
        """Any model will do."""

    def build(self, model: ModelSettings) -> ClipObjective:
        """The objective's module for towers of these settings."""
        return ClipObjective(self)


class ClipObjective(Objective):
    """Symmetric contrastive loss between a crop of the picture and its caption."""

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__(settings.views)
        self.smoothing = settings.smoothing

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """-> image and text, each (b, E)."""
        return {
            "image": towers.image_tower(batch.images["crop"]).vector,
            "text": towers.text_tower(batch.tokens["caption"]).vector,
        }

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """-> {"contrastive": scalar}."""
        return {"contrastive": contrastive_loss(encoded["image"], encoded["text"], logit_scale, self.smoothing)}
