"""What DeCLIP adds to the contrastive losses, for the objectives that have it: each side learns from itself, and
pictures learn from the neighbours of their texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hiclip.batch import MASK_TOKEN
from hiclip.losses.masked_words import MaskedWords, logit_bytes
from hiclip.losses.neighbour_queue import NeighbourQueue, neighbour_loss, score_bytes
from hiclip.losses.self_agreement import SelfAgreement
from hiclip.model.sizes import ModelSettings, resolve


class SelfWeights(Protocol):
    """The part of an objective's weights that is read here."""

    @property
    def image_self(self) -> float:
        """Agreement of the two views of the picture."""
        ...

    @property
    def masked_words(self) -> float:
        """Guessing of masked words."""
        ...

    @property
    def neighbours(self) -> float:
        """Pictures against the nearest neighbours of their texts."""
        ...


class SelfSupervision(nn.Module):
    """Heads and queue, only of what has a weight."""

    def __init__(self, weights: SelfWeights, queue: int, block: int | None, model: ModelSettings) -> None:
        super().__init__()
        sizes = resolve(model)
        self.weights, self.block = weights, block
        self.self_agreement = SelfAgreement(sizes.embedding) if weights.image_self else None
        self.masked_words = MaskedWords(sizes.text.width, sizes.vocabulary) if weights.masked_words else None
        self.queue = NeighbourQueue(queue, sizes.embedding) if weights.neighbours else None

    def losses(
        self,
        images: tuple[Tensor, Tensor],
        texts: Sequence[Tensor],
        words: Tensor | None,
        targets: Tensor | None,
        logit_scale: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted losses of what has a weight; in training the texts enter the queue.

        images: vectors (b, E) of two views. texts: vectors (b, E) whose neighbours are looked for. words (b, L', D) and
        targets (b, L): see `MaskedWords`, None if no words are guessed.
        """
        losses = {}
        if self.self_agreement is not None:
            losses["image_self"] = self.weights.image_self * self.self_agreement(*images)
        if self.masked_words is not None:
            losses["masked_words"] = self.weights.masked_words * self.masked_words(words, targets)
        if self.queue is not None:
            losses["neighbours"] = self.weights.neighbours * self._neighbours(self.queue, images, texts, logit_scale)
        return losses

    def _neighbours(
        self, queue: NeighbourQueue, images: Sequence[Tensor], texts: Sequence[Tensor], logit_scale: Tensor
    ) -> Tensor:
        """Mean over pictures and texts. DeCLIP's order: all texts ask, then they enter, the last one first."""
        neighbours = [queue.nearest(text) for text in texts]
        if self.training:
            for text in reversed(texts):
                queue.push(text)
        return mean([neighbour_loss(image, near, logit_scale, self.block) for image in images for near in neighbours])


def mean(losses: Sequence[Tensor]) -> Tensor:
    """Of scalars."""
    return torch.stack(list(losses)).mean()


def self_supervision_bytes(weights: SelfWeights, model: ModelSettings, pairs: int, queue: int) -> int:
    """Bytes at most of the logits of guessed words and the scores of neighbours, of a worker with so many pairs."""
    sizes = resolve(model)
    words = logit_bytes(pairs * sizes.context, sizes.vocabulary) if weights.masked_words else 0
    return words + (score_bytes(pairs, queue) if weights.neighbours else 0)


def check_weights(meeting: Collection[str], **weights: float) -> None:
    """ValueError, beginning with the key, unless all are 0 or more and one by which the towers meet is more."""
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"{name}: expected 0 or more, came {value}")
    if not any(weights[name] for name in meeting):
        raise ValueError(f"{', '.join(meeting)}: expected one above 0, for without it pictures and texts never meet")


def check_self_supervision(name: str, weights: SelfWeights, model: ModelSettings, pairs: int) -> None:
    """ValueError, beginning with the job's key, if a model or `pairs` pairs a worker will not do for the objective."""
    vocabulary = resolve(model).vocabulary
    if weights.masked_words and vocabulary <= MASK_TOKEN:
        raise ValueError(
            f"model.vocabulary: expected {MASK_TOKEN + 1} with objective {name}, whose masks are token {MASK_TOKEN}, "
            f"came {vocabulary}"
        )
    if weights.image_self and pairs < 2:
        raise ValueError(
            f"data.batch: expected two pairs or more a worker with objective {name}, whose batch norm compares them, "
            f"came {pairs}"
        )
