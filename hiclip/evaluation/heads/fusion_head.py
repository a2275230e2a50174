"""A small head that answers from the vectors of a picture and a text: joined, multiplied and subtracted."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn


class FusionHead(nn.Module):
    """[image, text, image · text, |image - text|] -> layer norm of each -> hidden layer, GELU, dropout -> C logits.

    The product and the difference are InferSent's (Conneau et al. 2017). Shown one side only, the head has that side's
    vector alone.
    """

    def __init__(
        self, embedding: int, hidden: int, dropout: float, classes: int, inputs: Literal["both", "text", "image"]
    ) -> None:
        super().__init__()
        self.inputs = inputs
        parts = 4 if inputs == "both" else 1
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(parts))
        self.hidden = nn.Linear(parts * embedding, hidden)
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(hidden, classes)

    def forward(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        """(B, E) unit vectors, the side that is not shown None -> (B, C) logits."""
        # Of length sqrt(E): products of unit vectors would be as small as what a norm adds against dividing by 0.
        sides = [side * math.sqrt(side.shape[-1]) for side in (image, text) if side is not None]
        if self.inputs == "both":
            one, other = sides
            sides = [one, other, one * other, (one - other).abs()]
        joined = torch.cat([norm(side) for norm, side in zip(self.norms, sides, strict=True)], dim=-1)
        logits: Tensor = self.answer(self.dropout(nn.functional.gelu(self.hidden(joined))))
        return logits
