"""Keeps pictures with enough pixels to show something."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Settings
from pipeline.rules import first_reason


class ImageSize(Settings):
    """A least shorter side, of the picture as it was downloaded. DataComp and COYO ask for 200 px, CC12M for 400."""

    name: Literal["image_size"] = "image_size"
    min_px: Annotated[int, Field(ge=1)] = 32
    """Least pixels of the shorter side."""

    @property
    def needs(self) -> tuple[str, ...]:
        """No annotation."""
        return ()

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """Looks at the size before resizing: a blown-up thumbnail stays a thumbnail."""
        shorter = pc.min_element_wise(pairs["original_width"], pairs["original_height"])
        return first_reason((pc.less(shorter, self.min_px), "too_small"))
