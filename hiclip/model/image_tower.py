"""The image tower: CLIP's vision transformer, with HiCLIP's Group Transformer over the grid of its patches.

Patches attend under affinities between adjacent patches, so that groups of them merge layer by layer into objects. The
CLS token stands outside the grid and reads all groups.

As PyramidCLIP's, the tower can have LeFF in its front layers, and let regions (vectors of detected objects) in behind
them: they share CLS, the norms, the rear layers and the projection with pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hiclip.model.affinity import NeighbourProjection, PatchLinks, grid_affinity
from hiclip.model.hierarchy import GridLinks
from hiclip.model.leff import Leff
from hiclip.model.regions import RegionProjection, present_regions
from hiclip.model.sizes import ModelSettings, Sizes, TowerSize
from hiclip.model.tower_output import TowerOutput
from hiclip.model.transformer import FeedForward, Hierarchy, Mlp, Transformer


class GridHierarchy(Hierarchy[PatchLinks]):
    """Affinities of a grid of patches behind one CLS token, and the mask they give."""

    def __init__(self, settings: ModelSettings, size: TowerSize, grid: int) -> None:
        super().__init__()
        self.settings = settings
        self.grid = grid
        self.projection = NeighbourProjection(size.width, size.affinity_width)

    def affinities(self, tokens: Tensor, chain: Tensor | None, previous: PatchLinks | None) -> PatchLinks:
        """Layer input (B, 1 + R*C, D), CLS first -> right (B, R, C-1) and down (B, R-1, C)."""
        query, key = (side.unflatten(1, (self.grid, self.grid)) for side in self.projection(tokens[:, 1:]))
        return grid_affinity(query, key, previous, scale=self.settings.affinity_scale)

    def mask(self, links: PatchLinks, chain: Tensor | None) -> GridLinks:
        """Affinities -> what gives C (B, 1 + R*C, 1 + R*C)."""
        right, down = links
        return GridLinks(right, down, self.settings.path_merge, self.settings.cls_link, self.settings.self_link)


class ImageTower(nn.Module):
    """Patches, CLS and positions, layers, then a projection of the CLS token."""

    def __init__(self, settings: ModelSettings, sizes: Sizes) -> None:
        super().__init__()
        size, grid = sizes.image, sizes.grid
        assert isinstance(size, TowerSize)
        width = size.width
        self.front_layers = sizes.front_layers
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch_px, stride=sizes.patch_px, bias=False)
        # Left as PyTorch draws it, as in CLIP; frozen, it is DeCLIP's (the stability trick of MoCo v3).
        self.patch_embedding.weight.requires_grad_(not settings.frozen_patch_embedding)
        self.cls_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + grid**2, width) * width**-0.5)
        self.stream_norm = nn.LayerNorm(width)

        def make_mlp(layer: int) -> FeedForward:
            return Leff(width, grid) if layer < size.leff_layers else Mlp(width)

        self.transformer = Transformer[PatchLinks](size, lambda: GridHierarchy(settings, size, grid), make_mlp)
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, sizes.embedding, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        self.regions = RegionProjection(sizes.region_width, width) if sizes.region_width else None

    def forward(
        self, images: Tensor, given: Sequence[PatchLinks] | None = None, *, all_tokens: bool = False
    ) -> TowerOutput[PatchLinks]:
        """(B, 3, H, W) normalised pictures -> the tower's output, its tokens (B, 1 + R*C, D) with CLS first.

        `given` replaces the affinities of the layers that compute some, bottom first: all ones make plain CLIP of this
        tower, another picture's affinities show what the hierarchy alone does. `all_tokens`: see `TowerOutput`.
        """
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        cls_token = self.cls_token.expand(len(images), 1, -1).to(patches.dtype)
        tokens = self.stream_norm(torch.cat((cls_token, patches), dim=1) + self.positions)
        read = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        tokens, affinities = self.transformer(tokens, given=given, places=None if all_tokens else read)
        tokens = self.final_norm(tokens)
        return TowerOutput(self.projection(tokens[:, 0]), tokens if all_tokens else None, affinities)

    def embed_regions(self, regions: Tensor, *, all_tokens: bool = False) -> TowerOutput[PatchLinks]:
        """(B, M, F) vectors of regions -> the tower's output, its tokens (B, 1 + M, D) with CLS first.

        Regions have no positions and no neighbours: their order changes nothing, no layer has affinities, and only the
        layers behind the front see them. A region of zeros is absent and read by none. PyramidCLIP's released model.
        """
        assert self.regions is not None, "region_width is null"
        assert self.front_layers is not None
        cls_token = self.cls_token.expand(len(regions), 1, -1)
        tokens = self.regions(regions)
        tokens = self.stream_norm(torch.cat((cls_token.to(tokens.dtype), tokens), dim=1))
        allowed = present_regions(regions)[:, None, :].expand(-1, tokens.shape[1], -1)
        read = torch.zeros(len(regions), 1, dtype=torch.long, device=regions.device)
        tokens = self.transformer.enter(tokens, self.front_layers, allowed, None if all_tokens else read)
        tokens = self.final_norm(tokens)
        return TowerOutput(self.projection(tokens[:, 0]), tokens if all_tokens else None, [])
