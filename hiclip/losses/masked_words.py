"""Masked words (DeCLIP's text self-supervision; BERT's loss): guess the tokens that a caption's masks hide.

In DeCLIP's code the text tower stays causal, so a word is guessed from the words before it. Here that is as
`model.causal` says, and under the text hierarchy the affinities look at the next words too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.batch import NOT_PREDICTED
from hiclip.distributed import mean_over_ranks, world
from hiclip.model.affinity import at_least_float32


class MaskedWords(nn.Module):
    """A linear head over the vocabulary, and the cross-entropy of what it guesses.

    It reads only the places where something is to be guessed: a seventh of the tokens, so a seventh of the logits and
    of their time (DeCLIP computes all, 1.95 GMAC a caption at 77 tokens).
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
        logits = self.head(states[rows, places])
        total = F.cross_entropy(at_least_float32(logits), targets[rows, places], reduction="sum")
        count = mean_over_ranks(torch.tensor(float(len(rows)), dtype=total.dtype, device=total.device))
        return total / count.clamp(min=1 / world())
