"""Keeps pictures that a square crop can show: no banners, rulers and separators."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number
from pipeline.rules import FilterSettings, first_reason


class ImageShape(FilterSettings):
    """A greatest ratio of longer to shorter side. CC3M asks for 2, CC12M for 2.5, DataComp and COYO for 3."""

    name: Literal["image_shape"] = "image_shape"
    max_aspect: Annotated[Number, Field(ge=1)] = 3.0
    """Longer side over shorter side, at most."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`too_wide` or `too_tall`, by the size before resizing."""
        width, height = (pairs[name].cast(pa.float64()) for name in ("original_width", "original_height"))
        # Longer over shorter both times: at 220 x 100 and 100 x 220 that is the same number, 2.2, and 1 / 2.2 is not.
        return first_reason(
            (pc.greater(pc.divide(width, height), self.max_aspect), "too_wide"),
            (pc.greater(pc.divide(height, width), self.max_aspect), "too_tall"),
        )
