"""Self-agreement of two views of a picture (SimSiam, Chen and He 2020; DeCLIP's image self-supervision): each view's
vector should tell the other's, without any negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.model.affinity import at_least_float32

_PROJECTED, _BOTTLENECK = 1024, 512


class SelfAgreement(nn.Module):
    """Projector and predictor of DeCLIP, and SimSiam's loss. Arithmetic is fp32, also under autocast.

    Batch norm sees the pairs of its rank, as in DeCLIP: with another number of ranks the same global batch gives
    slightly other numbers. It is the one loss here of which that is true. Every rank needs two pairs or more.
    """

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            *_normed(embedding, _PROJECTED), nn.ReLU(), *_normed(_PROJECTED, _PROJECTED), nn.ReLU(),
            *_normed(_PROJECTED, _PROJECTED),
        )  # fmt: skip
        self.predictor = nn.Sequential(*_normed(_PROJECTED, _BOTTLENECK), nn.ReLU(), nn.Linear(_BOTTLENECK, _PROJECTED))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (b, E), the towers' vectors of two views, not normalised -> scalar from -1 (agreement) to 1.

        -(cos(p1, z2) + cos(p2, z1)) / 2, where z is projected, p predicted from it, and z gets no gradient as a goal.
        """
        with torch.autocast(first.device.type, enabled=False):
            projected = [self.projector(at_least_float32(view)) for view in (first, second)]
            told = [self.predictor(view) for view in projected]
            agreement = [
                F.cosine_similarity(told[0], projected[1].detach()).mean(),
                F.cosine_similarity(told[1], projected[0].detach()).mean(),
            ]
            return -(agreement[0] + agreement[1]) / 2


def _normed(inputs: int, outputs: int) -> tuple[nn.Linear, nn.BatchNorm1d]:
    """A linear layer, without the bias that batch norm would take away again. The head never runs outside training, so
    no running statistics are kept."""
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, track_running_stats=False)
