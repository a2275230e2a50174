"""Which of the measured rungs a law of compute stands on: all, or those that made the best of their compute.

A law through all rungs says what a typical one reaches; through the best, what can be reached. Cherti et al. 2022 take
the best run of each of five equal bins of log compute, Nezhurina et al. 2025 bins of the Pareto frontier. Minima of
noisy numbers lie a little low: the more rungs compete for a place, the more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Selection = Literal["all", "frontier", "bins"]


def selected(computes: Sequence[float], errors: Sequence[float], selection: Selection, bins: int = 5) -> list[int]:
    """Places of the n rungs that are chosen, ascending in compute; of equal ones the first.

    `all`: every rung, in the order of the table. `frontier`: those than which no other has a lower error with no more
    compute. `bins`: the lowest error of each of `bins` equal parts between the least and the largest log compute.
    """
    order = sorted(range(len(computes)), key=lambda place: (computes[place], errors[place], place))
    if selection == "all":
        return list(range(len(computes)))
    if selection == "frontier":
        return _frontier(order, errors)
    best: dict[int, int] = {}
    for place in order:
        part = _part(computes, place, bins)
        if part not in best or errors[place] < errors[best[part]]:
            best[part] = place
    return [best[part] for part in sorted(best)]


def _frontier(order: Sequence[int], errors: Sequence[float]) -> list[int]:
    chosen: list[int] = []
    for place in order:
        if not chosen or errors[place] < errors[chosen[-1]]:
            chosen.append(place)
    return chosen


def _part(computes: Sequence[float], place: int, bins: int) -> int:
    """Which of the equal parts of log compute a rung lies in, from 0; the largest lies in the last."""
    least, span = min(computes), math.log(max(computes) / min(computes))
    if span == 0:
        return 0
    return min(int(bins * math.log(computes[place] / least) / span), bins - 1)
