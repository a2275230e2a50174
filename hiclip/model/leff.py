"""LeFF: PyramidCLIP's locally enhanced feed-forward, in place of the MLP of the image tower's front layers.

Patches are laid out on their grid between the two maps of an MLP and mixed with their neighbours by a convolution of
each channel, with a batch norm and an activation after every step. CLS is not on the grid and passes by.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.model.batch_norm import GlobalBatchNorm
from hiclip.model.transformer import QUICK_GELU, FeedForward, ScaledLinear


class Leff(FeedForward):
    """[c; P] -> [c; w]: u = act(BN(P W1 + b1)), v = act(BN(depthwise 3 x 3 of u)), w = act(BN(v W2 + b2)).

    Batch norms run over the pairs and patches of the global batch. As what comes out is added to the stream, CLS gets
    its own normed self and no MLP. QuickGELU's constants stand in the norms before it and the weights behind it, as in
    `Mlp`.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.widen = nn.Linear(width, 4 * width)
        self.wide_norm = GlobalBatchNorm(4 * width, gain=QUICK_GELU)
        self.mix = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width, bias=False)
        self.mixed_norm = GlobalBatchNorm(4 * width, gain=QUICK_GELU)
        self.narrow = ScaledLinear(4 * width, width, 1 / QUICK_GELU, 1.0)
        self.narrow_norm = GlobalBatchNorm(width, gain=QUICK_GELU)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + R*C, D), CLS first -> the same shape."""
        batch, places, width = tokens.shape
        patches = tokens[:, 1:].reshape(-1, width)
        wide = F.silu(self.wide_norm(self.widen(patches)))
        # A view, channels last: what is a matrix of patches by channels is also a map.
        maps = wide.view(batch, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        maps = F.conv2d(maps, self.mix.weight / QUICK_GELU, padding=1, groups=len(self.mix.weight))
        mixed = F.silu(self.mixed_norm(maps.permute(0, 2, 3, 1).reshape(len(patches), -1)))
        narrow = F.silu(self.narrow_norm(self.narrow(mixed))) / QUICK_GELU
        return torch.cat((tokens[:, :1].to(narrow.dtype), narrow.view(batch, places - 1, width)), dim=1)
