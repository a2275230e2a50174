"""The queue of texts seen lately, in which a text finds its nearest neighbour (DeCLIP's nearest-neighbour supervision).

DeCLIP keeps a queue on every rank, leaves it out of checkpoints, and drops what would cross its end. Here all ranks
hold one and the same queue of everybody's texts, so a neighbour does not depend on which rank asks; it is a buffer, so
a checkpoint has it and a run resumes exactly; and it is a ring that loses nothing. One queue for all turns over faster:
with 4,096 pairs a step, two texts each, 65,536 places hold the last 8 steps, where a rank's own of 128 pairs held 256.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.distributed import gather_with_gradient
from hiclip.losses.contrastive import directed_loss, unit_vectors

_ASKED_AT_ONCE = 1024  # of a rank's texts: the scores of 1,024 against 65,536 are 268 MB in fp32


def score_bytes(texts: int, size: int) -> int:
    """Bytes of float32 scores at most while so many texts of a rank look for neighbours in a queue of `size`."""
    return 4 * min(texts, _ASKED_AT_ONCE) * size


class NeighbourQueue(nn.Module):
    """First in, first out: `size` unit vectors (size, E), at the start random ones, the same on every rank."""

    vectors: Tensor
    oldest: Tensor

    def __init__(self, size: int, embedding: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(size, embedding), dim=-1))
        # With an axis: engines send a module's tensors as bytes, which torch only allows along one.
        self.register_buffer("oldest", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def nearest(self, texts: Tensor) -> Tensor:
        """(b, E), not normalised -> (b, E): for each the vector of the queue with the greatest cosine, no gradient."""
        texts = texts.to(self.vectors.dtype)  # a text's own length changes no order
        with torch.autocast(texts.device.type, enabled=False):
            parts = (texts[first : first + _ASKED_AT_ONCE] for first in range(0, len(texts), _ASKED_AT_ONCE))
            places = torch.cat([(part @ self.vectors.T).argmax(dim=1) for part in parts])
        return self.vectors[places]

    @torch.no_grad()
    def push(self, texts: Tensor) -> None:
        """Takes in the texts (b, E) of all ranks, in rank order, for those that are in it longest."""
        everyone = gather_with_gradient(unit_vectors(texts.detach()))
        size = len(self.vectors)
        places = (self.oldest + torch.arange(len(everyone), device=everyone.device)) % size
        # Of more texts than there are places the last ones stay: no place may be written twice.
        self.vectors[places[-size:]] = everyone[-size:].to(self.vectors.dtype)
        self.oldest.copy_((self.oldest + len(everyone)) % size)


def neighbour_loss(image_vectors: Tensor, neighbours: Tensor, logit_scale: Tensor, block: int | None = None) -> Tensor:
    """Two (b, E) -> scalar in nats: each picture finds its text's neighbour among the neighbours of the global batch.

    Pictures look for texts alone, as in DeCLIP: a neighbour is a row of the queue, which learns nothing. The mean over
    ranks is the loss of the global batch. `block`: see `directed_loss`.
    """
    return directed_loss(unit_vectors(image_vectors), gather_with_gradient(neighbours), logit_scale, block=block)
