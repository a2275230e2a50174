"""The transformer of both towers: pre-norm layers of attention and MLP, each optionally under a hierarchy of its own.

CLIP's layer (LayerNorm first, QuickGELU, heads of 64 channels) with one addition of HiCLIP: a layer that has a
hierarchy first updates the affinities from its input, and then attends under the mask they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from hiclip.model.hierarchy import hierarchy_attention
from hiclip.model.sizes import TowerSize

Links = TypeVar("Links")
"""Affinities of one layer: `WordLinks` or `PatchLinks`."""


class Hierarchy(nn.Module, Generic[Links]):
    """What a layer needs to attend under a hierarchy; each tower brings its own."""

    def affinities(self, tokens: Tensor, chain: Tensor | None, previous: Links | None) -> Links:
        """Layer input (B, N, D), its linked tokens (B, N) and the affinities of the layer below -> this layer's."""
        raise NotImplementedError

    def mask(self, links: Links, chain: Tensor | None) -> Tensor:
        """Affinities -> hierarchy mask C (B, N, N) of the whole sequence, special tokens included."""
        raise NotImplementedError


class Attention(nn.Module):
    """Multi-head self-attention under an optional hierarchy mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, allowed: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D); `allowed` and `mask` as in `hierarchy_attention`."""
        batch, places, width = tokens.shape
        split = self.inputs(tokens).view(batch, places, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = hierarchy_attention(query, key, value, mask, allowed)
        joined: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, places, width))
        return joined


class Mlp(nn.Module):
    """Four times wider and back, with QuickGELU x * sigmoid(1.702 x) between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = self.widen(tokens)
        narrowed: Tensor = self.narrow(hidden * (1.702 * hidden).sigmoid())
        return narrowed


class Layer(nn.Module, Generic[Links]):
    """Attention and MLP, each added to the stream; `hierarchy` is None where the layer attends as plain CLIP does."""

    def __init__(self, width: int, heads: int, hierarchy: Hierarchy[Links] | None) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, allowed: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D); `allowed` and `mask` as in `hierarchy_attention`."""
        tokens = tokens + self.attention(self.attention_norm(tokens), allowed, mask)
        mixed: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return mixed


class Transformer(nn.Module, Generic[Links]):
    """A stack of layers that hands affinities upwards; initialised as CLIP's."""

    def __init__(self, size: TowerSize, make_hierarchy: Callable[[], Hierarchy[Links]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(size.width, size.heads, make_hierarchy() if layer in size.hierarchy_layers else None)
            for layer in range(size.depth)
        )
        self._initialise(size.width, size.depth)

    def forward(
        self,
        tokens: Tensor,
        allowed: Tensor | None = None,
        chain: Tensor | None = None,
        given: Sequence[Links] | None = None,
    ) -> tuple[Tensor, list[Links]]:
        """(B, N, D) -> (B, N, D) and the affinities of the layers that have any, bottom first.

        `chain` (B, N) says which tokens are linked to their neighbours, where not all are.
        `given`: affinities that take the place of those the layers would compute, one entry for each such layer.
        """
        found: list[Links] = []
        for layer in self._stack():
            mask = None
            if layer.hierarchy is not None:
                if given is None:
                    links = layer.hierarchy.affinities(tokens, chain, found[-1] if found else None)
                else:
                    links = given[len(found)]
                mask = layer.hierarchy.mask(links, chain)
                found.append(links)
            tokens = layer(tokens, allowed, mask)
        return tokens, found

    def _stack(self) -> Iterable[Layer[Links]]:
        return cast("Iterable[Layer[Links]]", self.layers)

    def _initialise(self, width: int, depth: int) -> None:
        """CLIP's: every branch that is added to the stream starts smaller the deeper the stack is."""
        into_stream = width**-0.5 * (2 * depth) ** -0.5
        for layer in self._stack():
            for linear, std in (
                (layer.attention.inputs, width**-0.5),
                (layer.attention.output, into_stream),
                (layer.mlp.widen, (2 * width) ** -0.5),
                (layer.mlp.narrow, into_stream),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
