"""Regions of a picture as tokens: vectors of detected objects, mapped to the channels of the image tower they enter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RegionProjection(nn.Linear):
    """(B, M, F) -> (B, M, D) without bias, so that a region of zeros stays one; PyramidCLIP's phi, drawn as there."""

    def __init__(self, region_width: int, width: int) -> None:
        super().__init__(region_width, width, bias=False)
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, regions: Tensor) -> Tensor:
        return F.linear(regions.to(self.weight.dtype), self.weight)


def present_regions(regions: Tensor) -> Tensor:
    """(B, M, F) -> (B, 1 + M) bool: the token that reads them, always there, and the regions that are not all zeros."""
    return F.pad((regions != 0).any(dim=-1), (1, 0), value=True)


def mean_of_present(tokens: Tensor, present: Tensor) -> Tensor:
    """(B, M, D) and (B, M) -> (B, 1, D): the mean of the present ones; zeros if there is none."""
    shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bmd,bm->bd", tokens, shares.to(tokens.dtype)).unsqueeze(1)
