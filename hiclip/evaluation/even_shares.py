"""What a picture's links have beyond those of a grid whose patches all share their attention evenly.

A patch inside a grid has four neighbours, one at its border three, one in a corner two: so links at the border are
stronger by nature, and groups read off the affinities as they are mostly find the border. Even shares are what scores
of zero give; what is left when they are divided out is the picture's doing, or the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hiclip.model.affinity import PatchLinks, grid_affinity
from hiclip.model.trees import Array, PatchGroups, PatchLinkArrays, patch_groups, quantile_thresholds


def beyond_even_shares(links: Sequence[PatchLinkArrays]) -> list[PatchLinkArrays]:
    """Affinities of every layer of one picture -> strength of each link over its strength under even shares; 1 is even.

    The strength of a link is -ln(1 - a): 1 - a is a product over layers (paper, eq. 5), so strengths add up. Links
    still grow from layer to layer, but the ratio compares each with its own place in the grid.
    """
    rows, columns = links[0][0].shape[0], links[0][1].shape[1]
    even = even_shares(rows, columns, len(links))
    return [
        (_strength(right) / _strength(even_right), _strength(down) / _strength(even_down))
        for (right, down), (even_right, even_down) in zip(links, even, strict=True)
    ]


def relative_groups(links: Sequence[PatchLinkArrays]) -> PatchGroups:
    """Groups by what links have beyond even shares, a fixed share of them cut at each layer.

    The share falls from 0.8 at the bottom to 0.45 at the top: about half the links of a square grid hold it together,
    so that the top layer is left with a few groups and not with one.
    """
    beyond = beyond_even_shares(links)
    return patch_groups(beyond, quantile_thresholds(beyond, np.linspace(0.8, 0.45, len(links)).tolist()))


def even_shares(rows: int, columns: int, layers: int) -> list[PatchLinkArrays]:
    """Affinities of `layers` layers of an R x C grid whose scores are all zero: right (R, C-1) and down (R-1, C)."""
    nothing = torch.zeros(1, rows, columns, 1, dtype=torch.float64)
    found: list[PatchLinkArrays] = []
    previous: PatchLinks | None = None
    for _ in range(layers):
        previous = grid_affinity(nothing, nothing, previous, scale=1.0)
        found.append((previous[0][0].numpy(), previous[1][0].numpy()))
    return found


def _strength(affinity: Array) -> Array:
    # A link of exactly 1 would be infinitely strong; float32 reaches it after many layers.
    return -np.log(np.maximum(1.0 - affinity, 1e-12))
