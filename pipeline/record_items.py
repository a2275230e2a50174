"""What a run tells its record, one item each, and as lines of JSON where the record cannot be reached.

Items are plain data: they wait in a queue, are sent twice without harm, and outlive the process in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import get_args


@dataclass(frozen=True)
class Point:
    """One measured number. Its time makes it the same point however often it is sent."""

    key: str
    value: float
    seen: int
    time_ms: int


@dataclass(frozen=True)
class Params:
    """Settings by dotted name."""

    values: dict[str, str]


@dataclass(frozen=True)
class Tag:
    """One fact."""

    key: str
    value: str


@dataclass(frozen=True)
class Artifact:
    """A file; without a `copy` the one of that name in the run's folder."""

    name: str
    folder: str
    copy: str | None


@dataclass(frozen=True)
class Model:
    """A finished model for the registry; see `pipeline.tracker.Tracker.model`."""

    name: str
    checkpoint: str
    files: dict[str, str]
    tags: dict[str, str]
    description: str


@dataclass(frozen=True)
class Dataset:
    """A dataset that the run is about; see `pipeline.tracker.Tracker.dataset`."""

    name: str
    fingerprint: str
    place: str
    columns: dict[str, str]
    pairs: int
    context: str


@dataclass(frozen=True)
class End:
    """The run is over."""

    status: str


Item = Point | Params | Tag | Artifact | Model | Dataset | End
_KINDS = {kind.__name__: kind for kind in get_args(Item)}


def to_lines(items: Iterable[Item], run_id: str | None) -> str:
    """A line of JSON an item; `run_id` is the record's, None if it was never begun. Artifacts keep only their names."""
    lines = []
    for item in items:
        kept = replace(item, copy=None) if isinstance(item, Artifact) else item
        lines.append(json.dumps({"run_id": run_id, "kind": type(item).__name__, **asdict(kept)}) + "\n")
    return "".join(lines)


def from_lines(text: str) -> list[tuple[str | None, Item]]:
    """The items of `to_lines`, each with its record's id. ValueError, KeyError or TypeError if the text is no such."""
    found = []
    for line in text.splitlines():
        fields = json.loads(line)
        run_id, kind = fields.pop("run_id"), _KINDS[fields.pop("kind")]
        found.append((run_id, kind(**fields)))
    return found


def batches(items: Iterable[tuple[str | None, Item]], most: int) -> Iterator[tuple[str | None, list[Item]]]:
    """Items in their order: at most `most` points of one record together, all else alone."""
    for (run_id, are_points), group in groupby(items, lambda pair: (pair[0], isinstance(pair[1], Point))):
        together = [item for _, item in group]
        size = most if are_points else 1
        for start in range(0, len(together), size):
            yield run_id, together[start : start + size]
