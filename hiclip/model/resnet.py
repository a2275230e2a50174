"""CLIP's ResNet as image tower: three convolutions for a stem, averages in place of strides, and attention to pool.

A ResNet has no patches that attend, so there is no hierarchy in it: HiCLIP with a ResNet is a hierarchy of words alone.
Modules stand in the order of OpenAI's: stem (conv1 to conv3, bn1 to bn3), stages (layer1 to layer4) of blocks, and the
attention pool. Batch norms run over the global batch, so that the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiclip.model.affinity import PatchLinks
from hiclip.model.batch_norm import GlobalBatchNorm
from hiclip.model.hierarchy import hierarchy_attention
from hiclip.model.regions import RegionProjection, mean_of_present, present_regions
from hiclip.model.sizes import ResNetSize, Sizes
from hiclip.model.tower_output import TowerOutput

_EXPANSION = 4  # channels out of a block, times those it works in


class Stem(nn.Module):
    """Three convolutions and an average: a quarter of the picture's side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.norm1 = GlobalBatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.norm2 = GlobalBatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.norm3 = GlobalBatchNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H/4, W/4)."""
        maps = F.relu(self.norm1(self.conv1(images)))
        maps = F.relu(self.norm2(self.conv2(maps)))
        return F.avg_pool2d(F.relu(self.norm3(self.conv3(maps))), 2)


class Shortcut(nn.Module):
    """Around a block that changes the shape: an average in place of the stride, then a convolution of single places."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = GlobalBatchNorm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, R, C) -> (B, outputs, R/stride, C/stride)."""
        maps = F.avg_pool2d(maps, self.stride) if self.stride > 1 else maps
        shortened: Tensor = self.norm(self.conv(maps))
        return shortened


class Block(nn.Module):
    """A bottleneck: 1 x 1, 3 x 3, 1 x 1; its stride is an average before the last, so that no place is skipped."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = GlobalBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = GlobalBatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = GlobalBatchNorm(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride) if stride > 1 or inputs != outputs else None
        nn.init.zeros_(self.norm3.weight)  # a fresh block adds nothing

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, R, C) -> (B, 4 * width, R/stride, C/stride)."""
        inner = F.relu(self.norm1(self.conv1(maps)))
        inner = F.relu(self.norm2(self.conv2(inner)))
        inner = F.avg_pool2d(inner, self.stride) if self.stride > 1 else inner
        inner = self.norm3(self.conv3(inner))
        return F.relu(inner + (maps if self.shortcut is None else self.shortcut(maps)))


class AttentionPool(nn.Module):
    """What the first token, the mean of the others, reads from all of them by one attention layer.

    Weights are drawn with the deviation of the features' width, as in CLIP; biases stay as PyTorch draws them.
    """

    def __init__(self, size: ResNetSize, grid: int, embedding: int) -> None:
        super().__init__()
        features = size.features
        self.heads = size.heads
        self.positions = nn.Parameter(torch.randn(1 + grid**2, features) * features**-0.5)
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.output = nn.Linear(features, embedding)
        for linear in (self.query, self.key, self.value, self.output):
            nn.init.normal_(linear.weight, std=features**-0.5)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """(B, N, features), their mean first, and which of them are there (B, N) -> (B, embedding)."""
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(tokens[:, :1]), self.key(tokens), self.value(tokens))
        )
        allowed = None if present is None else present[:, None, None, :]
        read = hierarchy_attention(query, key, value, None, allowed)
        pooled: Tensor = self.output(read.transpose(1, 2).flatten(1))
        return pooled


class ResNetTower(nn.Module):
    """Stem, stages and attention pool; regions enter at the pool, as in PyramidCLIP."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        size = sizes.image
        assert isinstance(size, ResNetSize)
        self.stem = Stem(size.width)
        self.stages = nn.Sequential(*_stages(size))
        self.pool = AttentionPool(size, sizes.grid, sizes.embedding)
        self.regions = RegionProjection(sizes.region_width, size.features) if sizes.region_width else None
        self.region_norm = nn.LayerNorm(size.features) if sizes.region_width else None

    def forward(
        self, images: Tensor, given: Sequence[PatchLinks] | None = None, *, all_tokens: bool = False
    ) -> TowerOutput[PatchLinks]:
        """(B, 3, H, W) normalised pictures -> the tower's output, its tokens (B, 1 + R*C, features) the last map's
        places behind their mean. There are no affinities, so none may be `given`.
        """
        assert not given, "a ResNet has no affinities"
        maps = self.stages(self.stem(images.to(self.stem.conv1.weight.dtype)))
        places = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat((places.mean(dim=1, keepdim=True), places), dim=1)
        return TowerOutput(self.pool(tokens + self.pool.positions), tokens if all_tokens else None, [])

    def embed_regions(self, regions: Tensor, *, all_tokens: bool = False) -> TowerOutput[PatchLinks]:
        """(B, M, F) vectors of regions -> the tower's output, its tokens (B, 1 + M, features) with their mean first.

        Regions have no positions, their order changes nothing; one of zeros is absent. PyramidCLIP's released model.
        """
        assert self.regions is not None, "region_width is null"
        assert self.region_norm is not None
        present = present_regions(regions)
        tokens = self.regions(regions)
        tokens = self.region_norm(torch.cat((mean_of_present(tokens, present[:, 1:]), tokens), dim=1))
        return TowerOutput(self.pool(tokens, present), tokens if all_tokens else None, [])


def _stages(size: ResNetSize) -> list[nn.Sequential]:
    """Every stage but the first halves the map's side in its first block."""
    stages, inputs = [], size.width
    for number, count in enumerate(size.stages):
        width = size.width * 2**number
        blocks = [Block(inputs, width, stride=1 if number == 0 else 2)]
        blocks += [Block(_EXPANSION * width, width, stride=1) for _ in range(count - 1)]
        stages.append(nn.Sequential(*blocks))
        inputs = _EXPANSION * width
    return stages
