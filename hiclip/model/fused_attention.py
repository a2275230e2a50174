"""Attention under a hierarchy as one operator of torch, over the kernels of `hiclip.model.attention_kernels`.

Takes the place of `hierarchy_attention` on CUDA: same values and gradients, but C goes in as its tables of prefix sums
and no N x N tensor is written. As a custom operator it is opaque to torch.compile (no graph break), and autograd turns
what comes back for the tables into gradients of the affinities, by the suffix sums of torch's own cumsum.

Importing it needs Triton, which comes with torch's CUDA builds. Held to the reference in Triton's interpreter; the
speed on a GPU is unmeasured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiclip.model.attention_kernels import attend, key_gradients, query_gradients, triton
from hiclip.model.hierarchy import GridLinks, HierarchyLinks, SentenceLinks

_OWN, _OTHER = 64, 32
"""Places that a program owns, and those it reads at a time. Not tuned."""
_SMALLEST_TILE = 16
"""Least side of a matrix that Triton's dot takes."""


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, links: HierarchyLinks, allowed: Tensor | None = None
) -> Tensor:
    """Three (B, H, N, d) and the links of a layer -> (B, H, N, d), as `hierarchy_attention` with their dense C.

    allowed: bool (B, N, N), true where row i may read column j; an expanded view stays a view. See `can_fuse`.
    """
    mean, self_link, columns = False, links.self_link == "one", 0
    if isinstance(links, GridLinks):
        mean, columns = links.merge == "mean", links.down.shape[2]
    first, second = links.tables()
    output: Tensor = _attend(query, key, value, first, second, allowed, columns, mean, self_link)[0]
    return output


def can_fuse(query: Tensor, links: HierarchyLinks) -> bool:
    """Whether the kernels know this head width, this precision and these switches."""
    width = query.shape[-1]
    known = isinstance(links, SentenceLinks) or (isinstance(links, GridLinks) and links.cls_link == "one")
    return known and query.dtype in (torch.float32, torch.bfloat16, torch.float16) and width in (16, 32, 64, 128)


@torch.library.custom_op("hiclip::hierarchy_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: Tensor,
    second: Tensor,
    allowed: Tensor | None,
    columns: int,
    mean: bool,
    self_link: bool,
) -> tuple[Tensor, Tensor]:
    """-> output (B, H, N, d) and each row's log-sum-exp (B, H, N). columns 0: the tables are a chain's."""
    query, key, value = _rows(query), _rows(key), _rows(value)
    output, logsum = _heads_inside(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    attend[_programs(query)](
        query, key, value, output, logsum, first, second, *_limits(allowed, first),
        *_strides(query), *_strides(key), *_strides(value), *_strides(output), *_limit_strides(allowed),
        first[0].numel(), *_sizes(query, columns),
        **_switches(query, columns, mean, self_link, allowed),
    )  # fmt: skip
    return output, logsum


@torch.library.custom_op("hiclip::hierarchy_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: Tensor,
    second: Tensor,
    allowed: Tensor | None,
    output: Tensor,
    logsum: Tensor,
    columns: int,
    mean: bool,
    self_link: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> gradients of query, key, value and the tables: (B, N) of a chain's heights, (B, 2, R, C) of a grid's."""
    gradient, query, key, value = _rows(gradient), _rows(query), _rows(key), _rows(value)
    into_query, into_key, into_value = _heads_inside(query), _heads_inside(query), _heads_inside(query)
    delta = (gradient.float() * output.float()).sum(dim=-1)
    rows, across = _padded_grid(first, columns)
    batch, heads, tokens, _ = query.shape
    tables = (heads, tokens) if columns == 0 else (heads * triton.cdiv(tokens, _OWN), 2, rows, across)
    into_tables = query.new_empty((2, batch, *tables), dtype=torch.float32)
    inputs = (*_strides(query), *_strides(key), *_strides(value), *_strides(gradient), *_strides(into_query))
    rest = (*inputs, *_limit_strides(allowed), first[0].numel(), *_sizes(query, columns))
    switches = _switches(query, columns, mean, self_link, allowed) | {"ROWS": rows, "COLUMNS": across}
    given = (query, key, value, gradient, logsum, delta)
    links = (first, second, *_limits(allowed, first))
    query_gradients[_programs(query)](*given, into_query, into_tables[0], *links, *rest, **switches)
    key_gradients[_programs(query)](*given, into_key, into_value, into_tables[1], *links, *rest, **switches)
    summed = into_tables.sum(dim=(0, 2))
    if columns:
        summed = summed[..., : first.shape[1], :columns].clone(memory_format=torch.contiguous_format)
    return into_query, into_key, into_value, summed


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, first: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _heads_inside(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@_attend_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chain = first.ndim == 2
    into_tables = torch.empty_like(first) if chain else first.new_empty((first.shape[0], 2, *first.shape[1:]))
    return _heads_inside(query), _heads_inside(query), _heads_inside(query), into_tables


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, columns, mean, self_link = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)
    ctx.switches = (columns, mean, self_link)


def _gradients(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 9
    columns, mean, self_link = ctx.switches
    *into, into_tables = _attend_backward(gradient, *ctx.saved_tensors, columns, mean, self_link)
    into_first, into_second = into_tables.unbind(dim=1) if columns else (into_tables, None)
    return (*into, into_first, into_second, None, None, None, None)


_attend.register_autograd(_gradients, setup_context=_keep)


def _rows(tensor: Tensor) -> Tensor:
    """The same with its channels side by side, which the kernels count on."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads_inside(like: Tensor) -> Tensor:
    """Empty (B, H, N, d) laid out as (B, N, H, d): joining the heads afterwards needs no copy."""
    batch, heads, tokens, width = like.shape
    return like.new_empty((batch, tokens, heads, width)).transpose(1, 2)


def _programs(query: Tensor) -> tuple[int]:
    batch, heads, tokens, _ = query.shape
    return (batch * heads * triton.cdiv(tokens, _OWN),)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


def _limits(allowed: Tensor | None, unused: Tensor) -> tuple[Tensor]:
    return (unused if allowed is None else allowed.view(torch.uint8),)


def _limit_strides(allowed: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if allowed is None else _strides(allowed)


def _sizes(query: Tensor, columns: int) -> tuple[int, int, int, float]:
    _, heads, tokens, width = query.shape
    return tokens, heads, max(columns, 1), width**-0.5


def _switches(query: Tensor, columns: int, mean: bool, self_link: bool, allowed: Tensor | None) -> dict[str, Any]:
    return {
        "HEAD": query.shape[3],
        "OWN": _OWN,
        "OTHER": _OTHER,
        "GRID": columns > 0,
        "MEAN": mean,
        "SELF_LINK": self_link,
        "LIMITED": allowed is not None,
        "num_warps": 8,  # of a grid's backward, 4 warps would spill more than twice as much (ptxas for sm_80)
        "num_stages": 1,
    }


def _padded_grid(first: Tensor, columns: int) -> tuple[int, int]:
    """Rows and columns of the tile that the kernels sum a grid's gradients in; least tiles where there is no grid."""
    if columns == 0:
        return _SMALLEST_TILE, _SMALLEST_TILE
    rows: int = triton.next_power_of_2(max(first.shape[1], _SMALLEST_TILE))
    return rows, triton.next_power_of_2(max(columns, _SMALLEST_TILE))
