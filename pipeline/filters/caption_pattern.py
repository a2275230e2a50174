"""Keeps captions by regular expressions: no boilerplate ("click to enlarge"), no addresses, a capital to begin with."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator, model_validator

from pipeline.rules import FilterSettings, first_reason


class CaptionPattern(FilterSettings):
    """Patterns in RE2's syntax, which has neither look-around nor back-references and never takes long."""

    name: Literal["caption_pattern"] = "caption_pattern"
    refuse: tuple[str, ...] = ()
    """A caption in which any of these is found is refused."""
    require: tuple[str, ...] = ()
    """A caption in which one of these is not found is refused."""
    ignore_case: bool = False
    """Whether capital and small letters are the same."""

    @field_validator("refuse", "require")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                pc.match_substring_regex(pa.array([""]), pattern)
            except pa.ArrowInvalid as error:
                why = str(error).removeprefix("Invalid regular expression: ")
                raise ValueError(f"expected regular expressions of RE2, came '{pattern}' ({why})") from None
        return patterns

    @model_validator(mode="after")
    def _says_something(self) -> CaptionPattern:
        if not self.refuse and not self.require:
            raise ValueError("refuse, require: expected at least one pattern")
        return self

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`refused_pattern`, else `no_required_pattern`; a pattern may be found anywhere unless it has `^` or `$`."""
        refused = ((self._found(pairs, one), "refused_pattern") for one in self.refuse)
        missing = ((pc.invert(self._found(pairs, one)), "no_required_pattern") for one in self.require)
        return first_reason(*refused, *missing)

    def _found(self, pairs: pa.Table, pattern: str) -> pa.ChunkedArray:
        return pc.match_substring_regex(pairs["caption"], pattern, ignore_case=self.ignore_case)
