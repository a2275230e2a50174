"""Fused attention beside the reference, in Triton's interpreter; and its kernels compiled for a GPU that is not there.

A program of its own, for Triton decides at its import whether it interprets:
    TRITON_INTERPRET=1 python tests/attention_cases.py     says {case: {result: [largest difference, largest value]}}
    python tests/attention_cases.py --compile              says {kernel: bytes of shared memory}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiclip.model.fused_attention import can_fuse, fused_attention
from hiclip.model.hierarchy import GridLinks, HierarchyLinks, SentenceLinks, hierarchy_attention


@dataclass(frozen=True)
class Case:
    """Links made from the drawn affinities, and who may read whom."""

    affinities: tuple[Tensor, ...]
    links: Callable[..., HierarchyLinks]
    tokens: int
    allowed: Tensor | None = None
    dtype: torch.dtype = torch.float32
    width: int = 64
    heads: int = 1
    compiled: bool = False


def _captions(*lengths: int, specials: bool = True, causal: bool = True, **more: Any) -> Case:
    tokens = max(lengths)
    place, end = torch.arange(tokens), torch.tensor(lengths)[:, None] - 1
    chain = place <= end if specials else (place > 0) & (place < end)
    affinity = _drawn(len(lengths), tokens - 1).masked_fill(~(chain[:, 1:] & chain[:, :-1]), 0.0)
    past = (place <= place[:, None]).expand(len(lengths), -1, -1)
    whole = (place <= end)[:, None, :].expand(-1, tokens, -1)
    self_link = more.pop("self_link", "one")
    return Case(
        (affinity,), lambda a: SentenceLinks(a, chain, specials, self_link), tokens, past if causal else whole, **more
    )


def _grid(rows: int, columns: int, merge: str = "max", self_link: str = "one", **more: Any) -> Case:
    affinities = _drawn(2, rows, columns - 1), _drawn(2, rows - 1, columns)
    return Case(affinities, lambda r, d: GridLinks(r, d, merge, "one", self_link), 1 + rows * columns, **more)  # type: ignore[arg-type]


def _drawn(*shape: int) -> Tensor:
    return 0.3 + 0.69 * torch.rand(*shape)


def cases() -> dict[str, Case]:
    """By name; those in bf16 say so."""
    return {
        "caption of 77, causal, with captions of 1 and 2": _captions(77, 1, 2, width=32),
        "captions read whole": _captions(20, 1, 2, 9, causal=False, heads=2),
        "caption of one token": _captions(1, 1),
        "specials outside the chain, no self link": _captions(12, 4, specials=False, self_link="zero", causal=False),
        "grid of B/32": _grid(7, 7),
        "grid of B/32, mean": _grid(7, 7, "mean"),
        "grid of B/16": _grid(14, 14, width=16),
        "grid of tiny, no self link": _grid(8, 8, self_link="zero"),
        "narrow grid": _grid(3, 5, "mean", self_link="zero", width=32, heads=2),
        "wide grid": _grid(2, 17, width=16),
        "one row": _grid(1, 7, width=16),
        "one column": _grid(6, 1, width=16),
        "bf16 caption": _captions(33, 2, dtype=torch.bfloat16),
        "bf16 grid": _grid(7, 7, dtype=torch.bfloat16),
        "bf16 grid, mean": _grid(7, 7, "mean", dtype=torch.bfloat16),
        "compiled caption": _captions(9, 4, width=16, compiled=True),
        "compiled grid": _grid(3, 4, width=16, compiled=True),
    }


def differences(case: Case) -> dict[str, list[float]]:
    """Output and every gradient: the largest difference from the reference, and the reference's largest value."""
    batch = len(case.affinities[0])
    drawn = [torch.randn(batch, case.tokens, case.heads, case.width).to(case.dtype).transpose(1, 2) for _ in range(4)]
    answers = []
    for attention in (
        _reference,
        torch.compile(_fused, backend="aot_eager", fullgraph=True) if case.compiled else _fused,
    ):
        inputs = [side.detach().clone().requires_grad_() for side in drawn[:3]]
        affinities = [links.clone().requires_grad_() for links in case.affinities]
        output = attention(*inputs, case.links(*affinities), case.allowed)
        output.backward(drawn[3].to(output.dtype))
        answers.append([output, *(given.grad for given in (*inputs, *affinities))])
    names = ("output", "query", "key", "value", "first links", "second links")
    return {
        name: [(one.float() - other.float()).abs().max().item(), other.float().abs().max().item()]
        for name, other, one in zip(names, *answers, strict=False)
        if other.numel()
    }


def _fused(query: Tensor, key: Tensor, value: Tensor, links: HierarchyLinks, allowed: Tensor | None) -> Tensor:
    assert can_fuse(query, links)
    return fused_attention(query, key, value, links, allowed)


def _reference(query: Tensor, key: Tensor, value: Tensor, links: HierarchyLinks, allowed: Tensor | None) -> Tensor:
    return hierarchy_attention(
        query.float(), key.float(), value.float(), links.dense(), None if allowed is None else allowed[:, None]
    )


def compile_kernels() -> dict[str, int]:
    """Two kernels in bf16 for an Ampere GPU, for grids (the larger code) -> shared memory of each in bytes.

    The third, `query_gradients`, is `key_gradients` seen from the other end, with less to do.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hiclip.model import attention_kernels

    switches = {"HEAD": 64, "OWN": 64, "OTHER": 32, "GRID": True, "MEAN": False, "SELF_LINK": True, "LIMITED": False}
    constants = switches | {"ROWS": 16, "COLUMNS": 16}
    kinds = dict.fromkeys(("query", "key", "value", "output", "gradient"), "*bf16")
    kinds |= dict.fromkeys(("into_query", "into_key", "into_value"), "*bf16")
    kinds |= dict.fromkeys(("logsum", "delta", "into_tables", "first", "second", "allowed"), "*fp32")
    shared = {}
    for name in ("attend", "key_gradients"):
        kernel = getattr(attention_kernels, name)
        arguments = kernel.arg_names
        signature = {one: "constexpr" if one in constants else kinds.get(one, "i32") for one in arguments}
        signature["scale"] = "fp32"
        fixed = {(arguments.index(one),): value for one, value in constants.items() if one in arguments}
        compiled = triton.compile(
            ASTSource(kernel, signature, fixed, {}),
            target=GPUTarget("cuda", 80, 32),
            options={"num_warps": 8, "num_stages": 1},
        )
        shared[name] = compiled.metadata.shared
    return shared


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "--compile" in sys.argv:
        sys.stdout.write(json.dumps(compile_kernels()))
    else:
        sys.stdout.write(json.dumps({name: differences(case) for name, case in cases().items()}))
