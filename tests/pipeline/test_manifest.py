"""A manifest says that a dataset is whole, and what was altered afterwards is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_dataset import small_dataset

from pipeline.manifest import MANIFEST, DatasetError, check_shards, read_manifest


def test_it_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = small_dataset(tmp_path)
    assert read_manifest(str(tmp_path)) == manifest
    check_shards(str(tmp_path), manifest)


def test_without_one_there_is_no_dataset(tmp_path: Path) -> None:
    small_dataset(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(DatasetError, match=r"no dataset here; build it first with python -m pipeline\.build"):
        read_manifest(str(tmp_path))


def flip_a_byte(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def cut_the_end(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (flip_a_byte, "00001.parquet: expected sha256 .* the shard was altered"),
        (cut_the_end, "00001.parquet: expected sha256 .* the shard was altered"),
        (Path.unlink, "00001.parquet: the manifest lists this shard, and it is not there"),
    ],
)
def test_an_altered_shard_is_named(tmp_path: Path, alter: Callable[[Path], None], message: str) -> None:
    manifest = small_dataset(tmp_path)
    alter(tmp_path / "shards" / "00001.parquet")
    with pytest.raises(DatasetError, match=message):
        check_shards(str(tmp_path), manifest)


def swap_hashes(content: dict[str, Any]) -> None:
    first, second = content["shards"]
    first["sha256"], second["sha256"] = second["sha256"], first["sha256"]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (swap_hashes, "its fingerprint does not fit its list of shards"),
        (lambda content: content.update(pairs=63), "63 pairs, but its shards hold another number"),
        (lambda content: content.update(format=2), "is not a manifest of format 1"),
        (lambda content: content.pop("shards"), "is not a manifest of format 1"),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path: Path, alter: Callable[[Any], None], message: str) -> None:
    small_dataset(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    alter(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message):
        read_manifest(str(tmp_path))


def test_half_a_manifest_is_refused(tmp_path: Path) -> None:
    small_dataset(tmp_path)
    (tmp_path / MANIFEST).write_text((tmp_path / MANIFEST).read_text()[:100])
    with pytest.raises(DatasetError, match="is not a manifest"):
        read_manifest(str(tmp_path))
