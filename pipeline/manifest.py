"""The manifest: the JSON that says a dataset is whole. It is written last, so a folder without it is no dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from pipeline.jobfile import InputError, Settings
from pipeline.storage import Folder, folder

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
"""Lies in a folder of tables for as long as some of them are still to come."""


class DatasetError(InputError):
    """A dataset is missing, unfinished, altered, or lacks what a job needs."""


_HASHED_AT_ONCE = 8


class Shard(Settings):
    """One parquet file of pairs."""

    path: str
    """Relative to the dataset's folder."""
    pairs: int
    bytes: int
    sha256: str
    """Hex, of the file."""


class Manifest(Settings):
    """Everything that a reader needs to trust and to address a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    name: str
    pairs: int
    pairs_per_shard: int
    """Rows of every shard but the last."""
    rows_per_group: int
    """Rows of every parquet row group but the dataset's last; divides `pairs_per_shard`."""
    shards: tuple[Shard, ...]
    columns: dict[str, str]
    """Column name to Arrow type."""
    fingerprint: str
    """`dataset_fingerprint` of the shards and columns: two datasets with the same one hold the same bytes."""
    job: dict[str, Any]
    """The resolved job that built it."""
    lists: dict[str, str] = Field(default_factory=dict)
    """Path of every URL list, and the hex sha256 of its file."""
    snapshot: str
    """Hex sha256 of the downloaded snapshot that it was made from."""
    funnel: list[dict[str, Any]]
    """How many pairs went in and out of each step, in order."""
    versions: dict[str, str]
    """Version of every package whose code touched the bytes."""


def dataset_fingerprint(shards: Sequence[Shard], columns: dict[str, str]) -> str:
    """Hex sha256 over names, counts and hashes of all shards in order, and the columns."""
    content = {"columns": columns, "shards": [shard.model_dump(mode="json") for shard in shards]}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(target: Folder, manifest: Manifest) -> None:
    """Writes the manifest, which makes the dataset whole: call it last."""
    target.write_text(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: str) -> Manifest:
    """The manifest of the dataset at `path`; DatasetError when there is none or it contradicts itself."""
    place = folder(path)
    if not place.exists(MANIFEST):
        raise DatasetError(f"{place.join(MANIFEST)}: no dataset here; build it first with python -m pipeline.build")
    try:
        manifest = Manifest.model_validate_json(place.read_text(MANIFEST))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DatasetError(f"{place.join(MANIFEST)}: is not a manifest of format 1: {first}") from None
    if manifest.fingerprint != dataset_fingerprint(manifest.shards, manifest.columns):
        raise DatasetError(f"{place.join(MANIFEST)}: its fingerprint does not fit its list of shards; it was altered")
    if manifest.pairs != sum(shard.pairs for shard in manifest.shards) or manifest.pairs == 0:
        raise DatasetError(
            f"{place.join(MANIFEST)}: {manifest.pairs} pairs, but its shards hold another number or none"
        )
    return manifest


def check_shards(path: str, manifest: Manifest) -> None:
    """Reads every shard once and compares its sha256; DatasetError names the first that differs or is missing."""
    for _, why in unsound_shards(path, manifest):
        raise DatasetError(why)


def unsound_shards(path: str, manifest: Manifest) -> Iterator[tuple[int, str]]:
    """Number of every shard that is missing or whose sha256 is not the manifest's, and what is the matter with it.

    Reads all shards, several at a time.
    """
    place = folder(path)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        for number, why in enumerate(threads.map(partial(shard_fault, place), manifest.shards)):
            if why is not None:
                yield number, why


def shard_fault(place: Folder, shard: Shard) -> str | None:
    """What is the matter with a shard that is missing or whose bytes are not the manifest's; reads it once."""
    if not place.exists(shard.path):
        return f"{place.join(shard.path)}: the manifest lists this shard, and it is not there"
    if (found := place.sha256(shard.path)) != shard.sha256:
        return (
            f"{place.join(shard.path)}: expected sha256 {shard.sha256[:16]}..., came {found[:16]}...; "
            "the shard was altered after the build"
        )
    return None
