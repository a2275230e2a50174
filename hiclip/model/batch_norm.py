"""Batch norm over the global batch: several ranks train what one rank with all their pairs would.

Torch's own synchronised batch norm is for CUDA only, and a batch norm of each rank's pairs alone would make the number
of workers part of the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.distributed import gather_with_gradient, world
from hiclip.model.affinity import at_least_float32

_MOMENTUM, _EPS = 0.1, 1e-5
"""Torch's, CLIP's and PyramidCLIP's."""


class GlobalBatchNorm(nn.Module):
    """Channels at mean 0 and variance 1 over the pairs and places of all ranks, then a learnt scale and shift.

    In evaluation the means and variances are the running ones of training. `gain` multiplies what comes out, for an
    activation that wants it so. Every rank must bring as many pairs.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))

    def forward(self, places: Tensor) -> Tensor:
        """(X, channels) or (B, channels, R, C) -> the same shape."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.gain != 1:
            weight, bias = weight * self.gain, bias * self.gain
        if self.training and world() > 1:
            return self._over_ranks(places, weight, bias)
        running = self.running_mean, self.running_variance
        return F.batch_norm(places, *running, weight, bias, self.training, _MOMENTUM, _EPS)

    def _over_ranks(self, places: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        axes = [axis for axis in range(places.ndim) if axis != 1]
        variance, mean = torch.var_mean(at_least_float32(places), axes, correction=0)
        means, variances = gather_with_gradient(torch.stack((mean, variance))[None]).unbind(1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        self._remember(mean, variance, places.numel() // places.shape[1] * world())
        scale = weight * (variance + _EPS).rsqrt()
        shift = bias - mean * scale
        along = [-1 if axis == 1 else 1 for axis in range(places.ndim)]
        return (places * scale.view(along) + shift.view(along)).to(places.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics as torch keeps them: the variance is the unbiased one."""
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), _MOMENTUM)
        unbiased = variance * (count / max(1, count - 1))
        self.running_variance.lerp_(unbiased.to(self.running_variance.dtype), _MOMENTUM)
