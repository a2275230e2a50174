"""Views of the regions of a picture: vectors that a detector found before the run, an entry of `REGION_VIEWS` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.manifest import DatasetError

Regions = npt.NDArray[np.float16]


@dataclass(frozen=True)
class RegionView:
    """A view of a pair for the image tower's rear layers."""

    draw: Callable[[Mapping[str, Any], int, int], Regions]
    """The pair's columns, M, F -> (M, F)."""
    columns: tuple[str, ...]
    """Columns of the dataset that it reads."""


def regions(pair: Mapping[str, Any], most: int, width: int) -> Regions:
    """Column `regions`: vectors of F = `width` float16 one after another -> the first M = `most`, filled up with zeros.

    PyramidCLIP: ten regions by a detector's confidence, each 2048 numbers of what is seen and 4 of its box. Null: none.
    """
    data = pair["regions"] or b""
    vectors = np.frombuffer(data, dtype="<f2")
    if vectors.size % width:
        raise DatasetError(
            f"pair {pair['pair_id']}: expected regions of {width} float16 each (model.region_width), "
            f"came {len(data)} bytes"
        )
    shown = vectors.reshape(-1, width)[:most]
    filled = np.zeros((most, width), dtype=np.float16)
    filled[: len(shown)] = shown
    return filled


REGION_VIEWS = {"regions": RegionView(regions, columns=("regions",))}
