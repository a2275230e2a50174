"""The contrastive loss at any batch: time and memory of its form in blocks against the full matrix.

    OMP_NUM_THREADS=1 python -m benchmarks.contrastive [--pairs 8192] [--embedding 512] [--blocks 256 1024] [--keep]

Loss and gradients of one process, fp32. Time: interleaved, processor time; a ratio is the time of the full matrix over
that of the blocks. Memory: how far the resident set of a process of its own rises above what it was before the step
(Linux resets the high-water mark). Inputs, unit vectors and gradients are in it in every form, `vectors_mb` at least.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measurement import interleaved, report, summary
from hiclip.losses.contrastive import contrastive_loss

_MEASURE = "--measure-memory"


def step(pairs: int, embedding: int, block: int | None) -> Callable[[], int]:
    """Loss and gradients of random vectors, again at every call."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(pairs, embedding, generator=generator).requires_grad_() for _ in range(2)]
    scale = torch.tensor(14.3, requires_grad=True)

    def once() -> int:
        torch.autograd.grad(contrastive_loss(sides[0], sides[1], scale, block=block), (*sides, scale))
        return pairs

    return once


def added_mb(pairs: int, embedding: int, block: int | None) -> int:
    """Megabytes (10^6 bytes) that a step takes beyond what the process had before it."""
    step(64, embedding, block)()  # threads and libraries are there
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step(pairs, embedding, block)()
    return round((_resident("VmHWM") - before) / 1e6)


def _resident(which: str) -> int:
    """Bytes of the resident set now (VmRSS), or at most since the mark was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])


def in_its_own_process(pairs: int, embedding: int, block: int | None) -> int:
    """`added_mb` of a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.contrastive", _MEASURE, str(pairs), str(embedding), str(block or 0)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(pairs: int, embedding: int, blocks: list[int], rounds: int) -> dict[str, object]:
    """All numbers of the line."""
    forms: dict[str, int | None] = {"full": None, **{f"blocks of {block}": block for block in blocks}}
    rates = interleaved({name: step(pairs, embedding, block) for name, block in forms.items()}, rounds)
    speeds = summary(rates, {f"full over {name}": (name, "full") for name in forms if name != "full"})
    memory = {
        f"{count} pairs": {name: in_its_own_process(count, embedding, block) for name, block in forms.items()}
        for count in (pairs // 2, pairs)
    }
    vectors = round(7 * pairs * embedding * 4 / 1e6)  # two inputs, unit vectors stacked, two and two gradients
    return {"pairs": pairs, "embedding": embedding, **speeds, "memory_mb": memory, "vectors_mb": vectors}


def main() -> None:
    if sys.argv[1:2] == [_MEASURE]:
        pairs, embedding, block = map(int, sys.argv[2:])
        print(added_mb(pairs, embedding, block or None))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="append the line to benchmarks/results/contrastive.jsonl")
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--blocks", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    numbers = measure(arguments.pairs, arguments.embedding, arguments.blocks, arguments.rounds)
    report("contrastive", numbers, arguments.keep)


if __name__ == "__main__":
    main()
