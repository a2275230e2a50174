"""DeCLIP's objective (Li et al. 2022), and with the hierarchy on HiDeCLIP's: two pictures and two texts of a pair find
each other, and each side learns from itself and from its neighbours.

    L = clip * mean of four contrastive losses + image_self * SimSiam + masked_words * MLM + neighbours * NN

The four are {view_1, view_2} x {caption, EDA of the caption}; DeCLIP's code computes them as one term, which merges its
paper's L_CLIP and L_MVS. The code also holds the logarithm of the logit scale to at least 3 by moving the parameter,
for which there is no key: `model.initial_temperature: 0.0498` starts there, and nothing holds it there later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from hiclip.batch import TARGETS, Batch, Views
from hiclip.losses.contrastive import contrastive_loss
from hiclip.losses.contrastive import logit_bytes as contrastive_logit_bytes
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.objective import Objective, check_counts
from hiclip.objectives.self_supervision import (
    SelfSupervision,
    check_self_supervision,
    check_weights,
    mean,
    self_supervision_bytes,
)

_IMAGES = ("view_1", "view_2")


@dataclass(frozen=True)
class DeclipWeights:
    """Weights of the four parts."""

    clip: float
    image_self: float
    masked_words: float
    neighbours: float


PRESETS = {
    "code_yfcc15m": DeclipWeights(clip=0.4, image_self=0.2, masked_words=0.2, neighbours=0.2),
    "code_88m": DeclipWeights(clip=0.6, image_self=0.2, masked_words=0.2, neighbours=0.2),
    "paper": DeclipWeights(clip=0.6, image_self=0.2, masked_words=0.2, neighbours=0.2),
}
"""Of DeCLIP's code for YFCC15M (and for ResNet-50 on 88M pairs), of its code for ViT-B/32 on 88M, and of its paper,
whose 0.4 for the pair itself and 0.2 for the other views come to the same as the second in one term."""


@dataclass(frozen=True)
class DeclipSettings:
    """Keys of the objective `declip`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["declip"] = "declip"
    """Chooses this objective."""
    weights: Literal["code_yfcc15m", "code_88m", "paper"] = "code_yfcc15m"
    """Named weights, see `PRESETS`, behind the four below. A part of weight 0 is not computed and has no head."""
    clip: float | None = None
    """Weight of the mean of the four contrastive losses."""
    image_self: float | None = None
    """Weight of the agreement of the picture's two views (SimSiam)."""
    masked_words: float | None = None
    """Weight of the guessing of masked words."""
    neighbours: float | None = None
    """Weight of pictures against the nearest neighbours of their texts."""
    masked_text: Literal["caption", "eda"] = "caption"
    """Which of the two texts is masked, if words are guessed. It is contrasted nevertheless, so that guessing costs no
    text pass of its own. DeCLIP's code masks the caption; with `eda` the caption's own vector stays clean."""
    queue: int = 65_536
    """Texts seen lately among which neighbours are looked for, over all workers."""
    block_pairs: int | None = None
    """See `clip`."""

    def __post_init__(self) -> None:
        check_counts(queue=self.queue, block_pairs=self.block_pairs)
        check_weights(("clip", "neighbours"), **vars(self.numbers))

    @property
    def numbers(self) -> DeclipWeights:
        """The weights as numbers."""
        given = {name: getattr(self, name) for name in ("clip", "image_self", "masked_words", "neighbours")}
        return replace(PRESETS[self.weights], **{name: value for name, value in given.items() if value is not None})

    @property
    def masked(self) -> str | None:
        """The view whose words are guessed, None if none are."""
        if not self.numbers.masked_words:
            return None
        return "masked" if self.masked_text == "caption" else "masked_eda"

    @property
    def texts(self) -> tuple[str, str]:
        """The views in the places of the caption and of its EDA."""
        return (
            "masked" if self.masked == "masked" else "caption",
            "masked_eda" if self.masked == "masked_eda" else "eda",
        )

    @property
    def views(self) -> Views:
        """What the objective wants to be shown of a pair."""
        return Views(_IMAGES, self.texts if self.masked is None else (*self.texts, self.masked + TARGETS))

    @property
    def compares_a_workers_pairs(self) -> bool:
        """Whether a batch norm sees the pairs of one worker alone: then the number of workers changes the losses."""
        return bool(self.numbers.image_self)

    def check(self, model: ModelSettings, pairs: int) -> None:
        """ValueError, beginning with the key, if towers of these settings or `pairs` pairs a worker will not do."""
        check_self_supervision(self.name, self.numbers, model, pairs)

    def logit_bytes(self, model: ModelSettings, pairs: int, batch: int) -> int:
        """Bytes of logits that a worker with `pairs` of `batch` pairs holds at most."""
        ways = len(_IMAGES) * len(self.texts)
        losses = 2 * ways * bool(self.numbers.clip) + ways * bool(self.numbers.neighbours)
        contrast = contrastive_logit_bytes(losses, pairs, batch, 0.0, self.block_pairs)
        return contrast + self_supervision_bytes(self.numbers, model, pairs, self.queue)

    def build(self, model: ModelSettings) -> DeclipObjective:
        """The objective's module for towers of these settings."""
        return DeclipObjective(self, model)


class DeclipObjective(Objective):
    """DeCLIP's four parts over two views of the picture and two of the text."""

    def __init__(self, settings: DeclipSettings, model: ModelSettings) -> None:
        super().__init__(settings.views)
        self.settings = settings
        self.self_supervision = SelfSupervision(settings.numbers, settings.queue, settings.block_pairs, model)

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """-> each view's vector (b, E), and `words` (b, L, D), the tokens of the masked text."""
        encoded = {view: towers.image_tower(batch.images[view]).vector for view in _IMAGES}
        for view in self.settings.texts:
            output = towers.text_tower(batch.tokens[view], all_tokens=view == self.settings.masked)
            encoded[view] = output.vector
            if output.tokens is not None:
                encoded["words"] = output.tokens
        return encoded

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """-> clip, image_self, masked_words, neighbours, as far as they have a weight; see `SelfSupervision`."""
        first, second = (encoded[view] for view in _IMAGES)
        texts = [encoded[view] for view in self.settings.texts]
        losses, block = {}, self.settings.block_pairs
        if weight := self.settings.numbers.clip:
            four = [
                contrastive_loss(image, text, logit_scale, block=block) for image in (first, second) for text in texts
            ]
            losses["clip"] = weight * mean(four)
        targets = batch.tokens.get(f"{self.settings.masked}{TARGETS}")
        words = encoded.get("words")
        return losses | self.self_supervision.losses((first, second), texts, words, targets, logit_scale)
