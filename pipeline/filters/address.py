"""Keeps pairs by where their picture lies: not on hosts that do not want it, and no drawings and icons."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from pipeline.rules import FilterSettings, first_reason

_HOST = r"^[^:/?#]+://(?:[^/?#]*@)?(?P<host>\[[^\]]*\]|[^:/?#]*)"
_PATH_ENDS = r"^[^:/?#]+://[^/?#]*/[^?#]*(?:{})(?:[?#]|$)"


class Address(FilterSettings):
    """Hosts and endings of paths that are refused. LAION leaves out .svg, .gif and a list of hosts."""

    name: Literal["address"] = "address"
    refuse_hosts: tuple[str, ...] = ()
    """Host names as an address has them: `example.com` means that one, `*.example.com` all names below it."""
    refuse_suffixes: tuple[Annotated[str, Field(pattern=r"^\.[^/?#]+$")], ...] = ()
    """What an address' path may not end with, before `?` and `#`, in any case: `.svg`."""

    @field_validator("refuse_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"(\*\.)?[^*\s/:?#@]+", host):
                raise ValueError(f"expected host names, example.com or *.example.com, came '{host}'")
        return tuple(host.lower() for host in hosts)

    @model_validator(mode="after")
    def _says_something(self) -> Address:
        if not self.refuse_hosts and not self.refuse_suffixes:
            raise ValueError("refuse_hosts, refuse_suffixes: expected at least one")
        return self

    def reasons(self, pairs: pa.Table) -> pa.Array:
        """`refused_host`, else `refused_suffix`."""
        rules = []
        if self.refuse_hosts:
            rules.append((_is_below(_hosts(pairs["url"]), self.refuse_hosts), "refused_host"))
        if self.refuse_suffixes:
            endings = "|".join(map(re.escape, self.refuse_suffixes))
            ends = pc.match_substring_regex(pairs["url"], _PATH_ENDS.format(endings), ignore_case=True)
            rules.append((ends, "refused_suffix"))
        return first_reason(*rules)


def _hosts(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """(urls,) host of each in small letters, without the dot that may end it."""
    return pc.utf8_rtrim(pc.struct_field(pc.extract_regex(pc.utf8_lower(urls), _HOST), "host"), ".")


def _is_below(hosts: pa.ChunkedArray, refused: tuple[str, ...]) -> pa.ChunkedArray:
    """(hosts,) whether a host is one of `refused`, or below one that begins with `*.`."""
    alone = pa.array([host for host in refused if not host.startswith("*.")], pa.string())
    above = pa.array([host.removeprefix("*.") for host in refused if host.startswith("*.")], pa.string())
    found = pc.is_in(hosts, value_set=alone)
    # From the left a label less in each round, as many rounds as the longest name has dots: any number of refused hosts
    # costs the same.
    for _ in range(pc.max(pc.count_substring(hosts, ".")).as_py() or 0):
        hosts = pc.replace_substring_regex(hosts, r"^[^.]*\.?", "", max_replacements=1)
        found = pc.or_(found, pc.is_in(hosts, value_set=above))
    return found
