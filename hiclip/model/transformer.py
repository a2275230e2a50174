"""The transformer of both towers: pre-norm layers of attention and MLP, each optionally under a hierarchy of its own.

CLIP's layer (LayerNorm first, QuickGELU, heads of 64 channels) with one addition of HiCLIP: a layer that has a
hierarchy first updates the affinities from its input, and then attends under the mask they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiclip.model.hierarchy import HierarchyLinks, hierarchy_attention
from hiclip.model.sizes import TowerSize
from hiclip.model.tower_output import Links

# Triton comes with torch's CUDA builds, and on a CPU its kernels only run interpreted.
_HAS_KERNEL = torch.version.cuda is not None and find_spec("triton") is not None
if _HAS_KERNEL:
    from hiclip.model.fused_attention import can_fuse, fused_attention

Result = TypeVar("Result")

QUICK_GELU = 1.702
"""Slope of CLIP's activation, x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702."""


class Hierarchy(nn.Module, Generic[Links]):
    """What a layer needs to attend under a hierarchy; each tower brings its own."""

    def affinities(self, tokens: Tensor, chain: Tensor | None, previous: Links | None) -> Links:
        """Layer input (B, N, D), its linked tokens (B, N) and the affinities of the layer below -> this layer's."""
        raise NotImplementedError

    def mask(self, links: Links, chain: Tensor | None) -> HierarchyLinks:
        """Affinities -> what gives the hierarchy mask C of the whole sequence, special tokens included."""
        raise NotImplementedError


class Attention(nn.Module):
    """Multi-head self-attention under an optional hierarchy mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self, readers: Tensor, tokens: Tensor, allowed: Tensor | None, mask: HierarchyLinks | Tensor | None
    ) -> Tensor:
        """What M readers (B, M, D) read from the tokens (B, N, D): (B, M, D). `allowed` is (B, M, N), and so is a C.

        `mask`: the layer's links where all tokens read, the readers' own rows of C where only some do.
        """
        query = self.query(readers).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # Cut before the heads are told apart: the backward then joins both halves in one copy.
        sides = self.key_value(tokens).chunk(2, dim=-1)
        key, value = (side.unflatten(-1, (self.heads, -1)).transpose(1, 2) for side in sides)
        read = _read(query, key, value, mask, allowed)
        joined: Tensor = self.output(read.transpose(1, 2).flatten(2))
        return joined


class ScaledLinear(nn.Linear):
    """A linear layer with a constant multiplied into its weight, and one into its bias."""

    def __init__(self, inputs: int, outputs: int, weight_scale: float, bias_scale: float) -> None:
        super().__init__(inputs, outputs)
        self.weight_scale = weight_scale
        self.bias_scale = bias_scale

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.weight_scale, self.bias * self.bias_scale)


class FeedForward(nn.Module):
    """What a layer does after attention, (B, N, D) -> (B, N, D): linear maps to more channels and back, and between."""

    widen: nn.Linear
    narrow: nn.Linear


class Mlp(FeedForward):
    """Four times wider and back, with QuickGELU between, as SiLU(1.702 x) / 1.702.

    SiLU is one kernel that keeps one tensor for the backward, where QuickGELU's own formula takes three and keeps two,
    over the largest activations of the model. Its constants go into the weights, which are far smaller.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = ScaledLinear(width, 4 * width, QUICK_GELU, QUICK_GELU)
        self.narrow = ScaledLinear(4 * width, width, 1 / QUICK_GELU, 1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        narrowed: Tensor = self.narrow(F.silu(self.widen(tokens)))
        return narrowed


class Layer(nn.Module, Generic[Links]):
    """Attention and MLP, each added to the stream; `hierarchy` is None where the layer attends as plain CLIP does."""

    def __init__(self, width: int, heads: int, hierarchy: Hierarchy[Links] | None, mlp: FeedForward) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp

    def forward(
        self, tokens: Tensor, allowed: Tensor | None, links: HierarchyLinks | None, places: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, M, D) for the `places` (B, M) alone. `allowed` is (B, N, N)."""
        normed = self.attention_norm(tokens)
        readers, stream = normed, tokens
        mask: HierarchyLinks | Tensor | None = links
        if places is not None:
            readers, stream = take(normed, places), take(tokens, places)
            allowed = None if allowed is None else take(allowed, places)
            mask = None if links is None else links.rows(places)
        stream = stream + self.attention(readers, normed, allowed, mask)
        mixed: Tensor = stream + self.mlp(self.mlp_norm(stream))
        return mixed


class Transformer(nn.Module, Generic[Links]):
    """A stack of layers that hands affinities upwards; initialised as CLIP's."""

    def __init__(
        self,
        size: TowerSize,
        make_hierarchy: Callable[[], Hierarchy[Links]],
        make_mlp: Callable[[int], FeedForward] | None = None,
    ) -> None:
        """`make_mlp` makes what the layer of a number has after attention; None: an `Mlp` in every layer."""
        super().__init__()
        self.recomputes = False
        """Whether a layer keeps nothing but what enters it for the backward, which computes the rest again."""
        self.layers = nn.ModuleList(
            Layer(
                size.width,
                size.heads,
                make_hierarchy() if layer in size.hierarchy_layers else None,
                make_mlp(layer) if make_mlp else Mlp(size.width),
            )
            for layer in range(size.depth)
        )
        self._initialise(size.width, size.depth)

    def forward(
        self,
        tokens: Tensor,
        allowed: Tensor | None = None,
        chain: Tensor | None = None,
        given: Sequence[Links] | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Links]]:
        """(B, N, D) -> (B, N, D) and the affinities of the layers that have any, bottom first.

        `allowed` (B, N, N): true where a token may read another. `chain` (B, N): which tokens are linked to their
        neighbours, where not all are. `given`: affinities that take the place of those the layers would compute.
        `places` (B, M): the last layer answers for these tokens only, (B, M, D), and does not compute the others.
        """
        found: list[Links] = []
        last = len(self.layers) - 1
        for number, layer in enumerate(self._stack()):
            below = found[-1] if found else None
            known = None if given is None or layer.hierarchy is None else given[len(found)]
            read = places if number == last else None
            tokens, links = self._pass(_climb, layer, tokens, allowed, chain, below, known, read)
            if links is not None:
                found.append(links)
        return tokens, found

    def enter(self, tokens: Tensor, first_layer: int, allowed: Tensor | None, places: Tensor | None = None) -> Tensor:
        """A stream that skips the layers below `first_layer` and has no hierarchy: its tokens have no neighbours.

        (B, N, D) -> (B, N, D), or (B, M, D) for the `places` (B, M); `allowed` (B, N, N) as in `forward`.
        """
        rear = list(self._stack())[first_layer:]
        for layer in rear:
            read = places if layer is rear[-1] else None
            tokens = self._pass(layer, tokens, allowed, None, read)
        return tokens

    def _pass(self, work: Callable[..., Result], *arguments: Any) -> Result:
        if not (self.recomputes and torch.is_grad_enabled()):
            return work(*arguments)
        # Nothing in a layer is drawn at random, so there is no generator to put back.
        again: Result = checkpoint(work, *arguments, use_reentrant=False, preserve_rng_state=False)
        return again

    def _stack(self) -> Iterable[Layer[Links]]:
        return cast("Iterable[Layer[Links]]", self.layers)

    def _initialise(self, width: int, depth: int) -> None:
        """CLIP's: every branch that is added to the stream starts smaller the deeper the stack is."""
        into_stream = width**-0.5 * (2 * depth) ** -0.5
        for layer in self._stack():
            for linear, std in (
                (layer.attention.query, width**-0.5),
                (layer.attention.key_value, width**-0.5),
                (layer.attention.output, into_stream),
                (layer.mlp.widen, (2 * width) ** -0.5),
                (layer.mlp.narrow, into_stream),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """(B, N, X) and (B, M) indices -> (B, M, X): the rows at these places."""
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _climb(
    layer: Layer[Links],
    tokens: Tensor,
    allowed: Tensor | None,
    chain: Tensor | None,
    below: Links | None,
    known: Links | None,
    places: Tensor | None,
) -> tuple[Tensor, Links | None]:
    """A layer's tokens and its affinities: those `known`, or its own on top of those of the layer `below`."""
    if layer.hierarchy is None:
        return layer(tokens, allowed, None, places), None
    links = layer.hierarchy.affinities(tokens, chain, below) if known is None else known
    return layer(tokens, allowed, layer.hierarchy.mask(links, chain), places), links


def _read(
    query: Tensor, key: Tensor, value: Tensor, mask: HierarchyLinks | Tensor | None, allowed: Tensor | None
) -> Tensor:
    """Three (B, H, N, d) -> what the queries read, (B, H, N, d), by the kernel that suits the device and the links."""
    if isinstance(mask, HierarchyLinks):
        if _HAS_KERNEL and query.is_cuda and can_fuse(query, mask):
            return fused_attention(query, key, value, mask, allowed)
        mask = mask.dense()
    return hierarchy_attention(query, key, value, mask, None if allowed is None else allowed.unsqueeze(1))
