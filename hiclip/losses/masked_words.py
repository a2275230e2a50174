"""Masked words (DeCLIP's text self-supervision; BERT's loss): guess the tokens that a caption's masks hide.

In DeCLIP's code the text tower stays causal, so a word is guessed from the words before it. Here that is as
`model.causal` says, and under the text hierarchy the affinities look at the next words too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiclip.batch import NOT_PREDICTED
from hiclip.distributed import mean_over_ranks, world
from hiclip.model.affinity import at_least_float32

PLACES_AT_ONCE = 1024
"""Places whose logits are held at once: 0.2 GB of float32 with CLIP's vocabulary."""


def logit_bytes(places: int, vocabulary: int) -> int:
    """Bytes of logits at most where so many words are guessed: float32, kept, and two more in the backward."""
    return 4 * 3 * min(places, PLACES_AT_ONCE) * vocabulary


class MaskedWords(nn.Module):
    """A linear head over the vocabulary, and the cross-entropy of what it guesses.

    It reads only the places where something is to be guessed: a seventh of the tokens, so a seventh of the logits and
    of their time (DeCLIP computes all, 1.95 GMAC a caption at 77 tokens). Their memory does not grow with the batch:
    beyond `PLACES_AT_ONCE` a block's logits are dropped and computed again in the backward.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        """(b, L', D) tokens of the tower and (b, L) targets, L' <= L -> scalar in nats.

        The sum over this rank's places, divided by the places of a rank on average: its mean over ranks is the mean
        over all places of the global batch. 0 where nothing is to be guessed.
        """
        rows, places = (targets != NOT_PREDICTED).nonzero(as_tuple=True)
        words, wanted = states[rows, places], targets[rows, places]
        if len(rows) <= PLACES_AT_ONCE:
            total = self._summed(words, wanted)
        else:
            blocks = (slice(first, first + PLACES_AT_ONCE) for first in range(0, len(rows), PLACES_AT_ONCE))
            parts = [checkpoint(self._summed, words[block], wanted[block], use_reentrant=False) for block in blocks]
            total = torch.stack(parts).sum()
        count = mean_over_ranks(torch.tensor(float(len(rows)), dtype=total.dtype, device=total.device))
        return total / count.clamp(min=1 / world())

    def _summed(self, words: Tensor, wanted: Tensor) -> Tensor:
        """(n, D) and (n,) -> scalar: cross-entropies, added up."""
        return F.cross_entropy(at_least_float32(self.head(words)), wanted, reduction="sum")
