"""Keeps pictures with enough pixels to show something, and none that are posters to be zoomed into."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.rules import FilterSettings, first_reason


class ImageSize(FilterSettings):
    """Bounds on both sides, of the picture as it was downloaded. DataComp and COYO ask for 200 px, CC12M for 401."""

    name: Literal["image_size"] = "image_size"
    min_px: Annotated[int, Field(ge=1)] = 32
    """Least pixels of the shorter side; "both sides greater than 400" is 401."""
    max_px: Annotated[int, Field(ge=1)] | None = None
    """Most pixels of the longer side; null: any number."""

    @model_validator(mode="after")
    def _fits_together(self) -> ImageSize:
        if self.max_px is not None and self.min_px > self.max_px:
            raise ValueError(f"min_px, max_px: expected a min of at most max, came {self.min_px} and {self.max_px}")
        return self

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`too_small` or `too_large`, by the size before resizing: a blown-up thumbnail stays a thumbnail."""
        sides = pairs["original_width"], pairs["original_height"]
        rules = [(pc.less(pc.min_element_wise(*sides), self.min_px), "too_small")]
        if self.max_px is not None:
            rules.append((pc.greater(pc.max_element_wise(*sides), self.max_px), "too_large"))
        return first_reason(*rules)
