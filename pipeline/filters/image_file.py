"""Keeps pictures whose files, as they were downloaded, are large enough and of the wanted formats."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.rules import FilterSettings, first_reason

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP"]
"""What a download accepts: pipeline.pictures.ACCEPTED."""


class ImageFile(FilterSettings):
    """A least size and a list of formats. LAION and COYO ask for 5 KB, CC3M and CC12M for JPEG."""

    name: Literal["image_file"] = "image_file"
    min_bytes: Annotated[int, Field(ge=0)] = 0
    """Fewest bytes of the file."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] | None = None
    """The formats that stay, by how a file begins and not by what its server calls it; null: any."""

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`too_few_bytes` or `other_format`, of the file before resizing."""
        rules = [(pc.less(pairs["original_bytes"], self.min_bytes), "too_few_bytes")]
        if self.formats is not None:
            wanted = pc.is_in(pairs["original_format"], value_set=pa.array(self.formats, pa.string()))
            rules.append((pc.invert(wanted), "other_format"))
        return first_reason(*rules)
