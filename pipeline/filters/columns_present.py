"""Keeps pairs that have what an objective compares: to PyramidCLIP no tags at all are the tags of such a picture."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.rules import FilterSettings, first_reason


class ColumnsPresent(FilterSettings):
    """Annotation columns that must be neither null nor empty."""

    name: Literal["columns_present"] = "columns_present"
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Their names: `[object_tags, regions]`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """All of them."""
        return self.columns

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`no_` and the name of the first column that says nothing."""
        return first_reason(*((_says_nothing(pairs[name]), f"no_{name}") for name in self.columns))


def _says_nothing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
    return pc.is_null(column)
