"""Which of the measured rungs a law of compute stands on: all, or those that made the best of their compute.

A law through all rungs says what a typical one reaches; through the best, what can be reached. Cherti et al. 2022 take
the best run of each of five equal bins of log compute, Nezhurina et al. 2025 bins of the Pareto frontier. Minima of
noisy numbers lie a little low: the more rungs compete for a place, the more.

Cherti et al. also move each best run to the middle of its bin, and let the last bin end at 10^0.1 times the largest
compute; `bin_middles` does so too, because their published exponents come from there. Where the best run lies at one
end of its bin that is off by as much as half a bin; `bins` leaves runs where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Selection = Literal["all", "frontier", "bins", "bin_middles"]

_BEYOND = 10**0.1  # where the study of Cherti et al. lets its last bin end, over the largest compute


class Chosen(NamedTuple):
    """A rung that a law stands on."""

    place: int
    """In the table."""
    compute: float
    """Where the law has it: its own, or the middle of its bin."""


def chosen_rungs(
    computes: Sequence[float], errors: Sequence[float], selection: Selection, bins: int = 5
) -> list[Chosen]:
    """The rungs of n that are chosen, ascending in compute but for `all`; of equal ones the first.

    `all`: every rung, in the order of the table. `frontier`: those than which no other has a lower error with no more
    compute. `bins`: the lowest error of each of `bins` equal parts of log compute. `bin_middles`: see the module.
    """
    if selection == "all":
        return [Chosen(place, compute) for place, compute in enumerate(computes)]
    order = sorted(range(len(computes)), key=lambda place: (computes[place], errors[place], place))
    if selection == "frontier":
        return [Chosen(place, computes[place]) for place in _frontier(order, errors)]
    least = min(computes)
    span = math.log(max(computes) / least) + (math.log(_BEYOND) if selection == "bin_middles" else 0.0)
    best: dict[int, int] = {}
    for place in order:
        part = min(int(bins * math.log(computes[place] / least) / span), bins - 1) if span else 0
        if part not in best or errors[place] < errors[best[part]]:
            best[part] = place
    if selection == "bins":
        return [Chosen(best[part], computes[best[part]]) for part in sorted(best)]
    return [Chosen(best[part], least * math.exp(span * (part + 0.5) / bins)) for part in sorted(best)]


def _frontier(order: Sequence[int], errors: Sequence[float]) -> list[int]:
    found: list[int] = []
    for place in order:
        if not found or errors[place] < errors[found[-1]]:
            found.append(place)
    return found
