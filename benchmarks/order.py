"""Row indices a second that one core computes for a stream of five billion pairs, and for the walk's dataset.

    OMP_NUM_THREADS=1 python -m benchmarks.order [--keep]

`steps` is what a rank asks for: global batches of 8,192 rows, sorted within the step. `random access` asks for
positions all over an epoch. `a shuffled list` is numpy's permutation of ten million, the usual way, which takes 8 bytes
a pair and cannot start in the middle.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.measurement import interleaved, report, summary
from hiclip.data.order import Order

BATCH = 8192
HUGE = Order(5_000_000_000, 1024, 256, seed=1)
WALK = Order(6_000, 50, 64, seed=1)


def steps(order: Order) -> int:
    """100 steps from somewhere in the fourth epoch on."""
    first = 3 * order.pairs // BATCH + 1
    for step in range(first, first + 100):
        order.rows_of_rank(step, BATCH, 3, 8)
    return 100 * BATCH


def random_access() -> int:
    """100 batches of positions all over an epoch."""
    random = np.random.default_rng(0)
    for _ in range(100):
        HUGE.rows(random.integers(0, HUGE.pairs, BATCH))
    return 100 * BATCH


def shuffled_list() -> int:
    """A permutation of ten million."""
    return len(np.random.default_rng(0).permutation(10_000_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="append the line to benchmarks/results/order.jsonl")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ways = {
        "steps of 5e9 pairs": lambda: steps(HUGE),
        "steps of 6,000 pairs": lambda: steps(WALK),
        "random access to 5e9 pairs": random_access,
        "a shuffled list of 1e7 pairs": shuffled_list,
    }
    against = {"steps over a shuffled list": ("steps of 5e9 pairs", "a shuffled list of 1e7 pairs")}
    report("order", summary(interleaved(ways, arguments.rounds), against), arguments.keep)


if __name__ == "__main__":
    main()
