"""Hierarchy masks: from affinities between neighbours to a weight C between every two tokens, and attention under it.

C of two tokens is the product of the affinities along the path between them (HiCLIP eq. 2 and 9), computed as the
exponential of a difference of prefix sums of logarithms. It multiplies attention after the softmax, is shared by all
heads, and its rows are not normalised again: a token in a small group attends less, not elsewhere.

A layer hands on its links with the switches they are read by (`SentenceLinks`, `GridLinks`), not C: a kernel takes
their tables, the reference path their dense C, and a layer that is read at one place only the rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hiclip.model.affinity import WordLinks, at_least_float32
from hiclip.model.sizes import ClsLink, PathMerge, SelfLink


@dataclass(frozen=True)
class SentenceLinks:
    """Links of a layer's words, and how they become C."""

    affinity: WordLinks
    """(B, N-1)."""
    chain: Tensor
    """(B, N) bool: the words that are nodes of the chain."""
    special_tokens_in_chain: bool = True
    """If not, a word outside the chain is linked to all words by 1."""
    self_link: SelfLink = "one"

    def tables(self) -> tuple[Tensor, Tensor]:
        """Heights (B, N), whose differences are ln C, and segments (B, N) int32: -1 outside the chain, C = 1 to all."""
        height, segment = _heights_and_segments(self.affinity)
        return height, segment if self.special_tokens_in_chain else segment.masked_fill(~self.chain, -1)

    def dense(self) -> Tensor:
        """C (B, N, N)."""
        mask = sentence_mask(self.affinity)
        if not self.special_tokens_in_chain:
            mask = mask.masked_fill(~(self.chain[:, :, None] & self.chain[:, None, :]), 1.0)
        return with_self_link(mask, self.self_link)

    def rows(self, places: Tensor) -> Tensor:
        """C (B, M, N) of the words at `places` (B, M) alone."""
        height, segment = self.tables()
        here, there = height.gather(1, places)[:, :, None], height[:, None, :]
        own, other = segment.gather(1, places)[:, :, None], segment[:, None, :]
        rows = (-(here - there).abs()).exp().masked_fill(own != other, 0.0)
        return _emptied_at(places, rows.masked_fill((own < 0) | (other < 0), 1.0), self.self_link)


@dataclass(frozen=True)
class GridLinks:
    """Links of a layer's patches behind one CLS token, and how they become C."""

    right: Tensor
    """(B, R, C-1)."""
    down: Tensor
    """(B, R-1, C)."""
    merge: PathMerge = "max"
    cls_link: ClsLink = "one"
    self_link: SelfLink = "one"

    def tables(self) -> tuple[Tensor, Tensor]:
        """Heights along each row and along each column, (B, R, C) both: their differences are ln C on it."""
        along_column = _heights(at_least_float32(self.down).transpose(1, 2)).transpose(1, 2)
        return _heights(at_least_float32(self.right)).contiguous(), along_column.contiguous()

    def dense(self) -> Tensor:
        """C (B, 1 + R*C, 1 + R*C), CLS first."""
        return with_self_link(
            with_cls(grid_mask(self.right, self.down, merge=self.merge), self.cls_link), self.self_link
        )

    def rows(self, places: Tensor) -> Tensor:
        """C (B, M, 1 + R*C) of the tokens at `places` (B, M) alone."""
        if self.cls_link != "one":
            dense = self.dense()
            return dense.gather(1, places[:, :, None].expand(-1, -1, dense.shape[-1]))
        along_row, along_column = self.tables()
        patch = (places - 1).clamp_min(0)
        rows = self._patch_rows(along_row, along_column, patch // along_row.shape[2], patch % along_row.shape[2])
        rows = F.pad(rows.masked_fill((places == 0)[:, :, None], 1.0), (1, 0), value=1.0)
        return _emptied_at(places, rows, self.self_link)

    def _patch_rows(self, along_row: Tensor, along_column: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(B, R, C) heights and the patches at row, column (B, M) -> C (B, M, R*C)."""
        batch = torch.arange(len(row), device=row.device)[:, None]
        turned = along_row[batch, row] - along_row[batch, row, column][..., None]  # (B, M, C)
        row_first = turned.abs()[:, :, None] + (along_column[:, None] - along_column[batch, row][:, :, None]).abs()
        turned = along_column[batch, :, column] - along_column[batch, row, column][..., None]  # (B, M, R)
        column_first = turned.abs()[..., None] + (along_row[:, None] - along_row[batch, :, column][..., None]).abs()
        if self.merge == "mean":
            return (((-row_first).exp() + (-column_first).exp()) / 2).flatten(2)
        return (-torch.minimum(row_first, column_first)).exp().flatten(2)


HierarchyLinks: TypeAlias = SentenceLinks | GridLinks


def sentence_mask(affinity: WordLinks) -> Tensor:
    """(B, N-1) affinities -> C (B, N, N): C_ij is the product of the links between words i and j, C_ii is 1 (eq. 2).

    A link of affinity 0 (padding) separates exactly: C is 0 across it, and no gradient flows into it.
    """
    height, segment = _heights_and_segments(affinity)
    return _products(height).masked_fill(segment[:, :, None] != segment[:, None, :], 0.0)


def grid_mask(right: Tensor, down: Tensor, *, merge: PathMerge = "max") -> Tensor:
    """right (B, R, C-1), down (B, R-1, C) -> C (B, R*C, R*C) in row-major order of patches (eq. 9).

    Of the two paths with one turn between two patches, one goes along a column first and the other along a row first;
    the larger product counts (`merge="max"`) or their mean.
    """
    right, down = at_least_float32(right), at_least_float32(down)
    batch, rows, columns = right.shape[0], right.shape[1], down.shape[2]
    along_row = _path_products(right)  # (B, R, C, C): row i, from column j1 to j2
    along_column = _path_products(down.transpose(1, 2)).permute(0, 2, 3, 1)  # (B, R, R, C): from row i1 to i2, column j
    # Down column j1 from i1 to i2, then along row i2 from j1 to j2: axes i1, j1, i2, j2.
    turned = along_column.transpose(2, 3)[..., None] * along_row.transpose(1, 2)[:, None]
    column_first = turned.reshape(batch, rows * columns, rows * columns)
    row_first = column_first.transpose(1, 2)  # the same path, walked from the other end
    if merge == "mean":
        return (column_first + row_first) / 2
    return torch.maximum(column_first, row_first)


def with_cls(patch_mask: Tensor, cls_link: ClsLink = "one") -> Tensor:
    """C of patches (B, P, P) -> C (B, 1+P, 1+P) with the CLS token first.

    "one": CLS and patches read each other fully. "column_only": patches read CLS fully, and CLS reads a patch by the
    mean of that patch's links. The paper does not say; the first is the default.
    """
    if cls_link == "one":
        return F.pad(patch_mask, (1, 0, 1, 0), value=1.0)
    from_cls = F.pad(patch_mask.mean(dim=1, keepdim=True), (1, 0), value=1.0)
    return torch.cat((from_cls, F.pad(patch_mask, (1, 0), value=1.0)), dim=1)


def with_self_link(mask: Tensor, self_link: SelfLink = "one") -> Tensor:
    """C (B, N, N) with its diagonal left at 1, the empty product, or emptied as in Tree Transformer's code ("zero")."""
    if self_link == "one":
        return mask
    return mask.masked_fill(torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device), 0.0)


def hierarchy_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, allowed: Tensor | None = None
) -> Tensor:
    """Three (B, H, N, d) and C (B, N, N) -> (B, H, N, d): (C * softmax(QK' / sqrt d)) V (eq. 2).

    `mask` None is plain attention. `allowed`: bool, broadcast to (B, H, N, N), true where row i may read column j;
    every row needs one.
    """
    if mask is None and query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    # Not so on a CPU, where in bf16 its backward is six times slower than these products (65 tokens, width 192).
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if allowed is not None:
        scores = scores + torch.zeros_like(allowed, dtype=scores.dtype).masked_fill(~allowed, float("-inf"))
    weights = scores.softmax(dim=-1).to(scores.dtype)  # CUDA's autocast answers in float32
    if mask is not None:
        weights = weights * mask.unsqueeze(1).to(weights.dtype)
    attended: Tensor = weights @ value
    return attended


def _path_products(affinity: Tensor) -> Tensor:
    """(..., N-1) links of a chain -> (..., N, N) products of the links between every two of its places."""
    return _products(_heights(affinity))


def _products(height: Tensor) -> Tensor:
    """(..., N) heights -> (..., N, N)."""
    return (-(height.unsqueeze(-1) - height.unsqueeze(-2)).abs()).exp()


def _heights(affinity: Tensor) -> Tensor:
    """(..., N-1) links of a chain -> (..., N) prefix sums of their logarithms, from 0."""
    # Clamped so that a link of 0 stays finite: far below any affinity, which is at least 3e-5.
    steps = affinity.clamp_min(torch.finfo(affinity.dtype).tiny).log()
    return F.pad(steps.cumsum(dim=-1), (1, 0))


def _heights_and_segments(affinity: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N-1) -> (B, N) heights that stay level over a link of 0, and (B, N) int32 numbers of what it separates."""
    affinity = at_least_float32(affinity)
    apart = affinity <= 0
    segment = F.pad(apart.cumsum(dim=-1, dtype=torch.int32), (1, 0))
    return _heights(affinity.masked_fill(apart, 1.0)), segment


def _emptied_at(places: Tensor, rows: Tensor, self_link: SelfLink) -> Tensor:
    """Rows of C (B, M, N) at `places` (B, M), the weight of each token to itself as `self_link` says."""
    if self_link == "one":
        return rows
    itself = torch.arange(rows.shape[-1], device=rows.device) == places[:, :, None]
    return rows.masked_fill(itself, 0.0)
