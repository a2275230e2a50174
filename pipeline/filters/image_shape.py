"""Keeps pictures that a square crop can show: no banners, rulers and separators."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import Number, Settings
from pipeline.rules import first_reason


class ImageShape(Settings):
    """A greatest ratio of longer to shorter side. CC3M asks for 2, CC12M for 2.5, DataComp and COYO for 3."""

    name: Literal["image_shape"] = "image_shape"
    max_aspect: Annotated[Number, Field(ge=1)] = 3.0
    """Longer side over shorter side, at most."""

    @property
    def needs(self) -> tuple[str, ...]:
        """No annotation."""
        return ()

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`too_wide` or `too_tall`, by the size before resizing."""
        aspect = pc.divide(pairs["original_width"].cast(pa.float64()), pairs["original_height"].cast(pa.float64()))
        return first_reason(
            (pc.greater(aspect, self.max_aspect), "too_wide"),
            (pc.less(aspect, 1 / self.max_aspect), "too_tall"),
        )
