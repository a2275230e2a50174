"""The pixel baseline on pictures made by hand, from a real dataset on disk."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.evaluation_set import Classification
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.pixel_neighbours import NOTHING, Labels, pixel_scores, pixel_vectors
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.evaluation.zero_shot import predict
from pipeline.manifest import Manifest, dataset_fingerprint, write_manifest
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.shards import write_shards
from pipeline.storage import folder


def _picture(left: str, right: str, brightness: float = 1.0) -> bytes:
    image = Image.new("RGB", (32, 32), left)
    image.paste(right, (16, 0, 32, 32))
    buffer = io.BytesIO()
    image.point([int(level * brightness) for level in range(256)] * 3).save(buffer, "PNG")
    return buffer.getvalue()


def _dataset(place: Path, pairs: list[tuple[str, bytes]]) -> str:
    rows = [
        {
            "pair_id": pair_id(str(number), caption),
            "url": str(number),
            "caption": caption,
            "source": "test",
            "image": image,
            "width": 32,
            "height": 32,
            "image_sha256": hashlib.sha256(image).hexdigest(),
        }
        for number, (caption, image) in enumerate(pairs)
    ]
    target = folder(str(place)).make()
    shards = write_shards([pa.Table.from_pylist(rows, PAIR_SCHEMA)], target, 4, 2)
    columns = {field.name: str(field.type) for field in PAIR_SCHEMA}
    fingerprint = dataset_fingerprint(shards, columns)
    write_manifest(
        target,
        Manifest(
            name="test",
            pairs=len(rows),
            pairs_per_shard=4,
            rows_per_group=2,
            shards=tuple(shards),
            columns=columns,
            fingerprint=fingerprint,
            job={},
            snapshot="0",
            funnel=[],
            versions={},
        ),
    )
    return str(place)


def test_the_longest_label_in_a_caption_is_what_it_speaks_of() -> None:
    labels = Labels.of(["cat", "black cat", "keycap: *", "keycap: #", "flag: Chad"])
    assert labels.in_caption("Animals and nature: Black  CAT, kitty") == 1
    assert labels.in_caption("cat (animal mammal)") == 0
    assert labels.in_caption("concatenate") is None
    assert labels.in_caption("keycap: #") == 3
    assert labels.in_caption("flag: chad, nation") == 4


def test_pixels_are_compared_without_brightness_and_contrast() -> None:
    vectors = pixel_vectors(8, [_picture("red", "blue"), _picture("red", "blue", 0.5), _picture("blue", "red")])
    likeness = vectors @ vectors.T
    assert likeness[0, 1] == pytest.approx(1.0, abs=0.02)
    assert likeness[0, 2] < 0
    blank, broken = pixel_vectors(8, [_picture("red", "red"), b"nothing"])
    assert np.isfinite(blank).all()
    assert np.isnan(broken).all()


def test_the_nearest_picture_of_each_label_decides(tmp_path: Path) -> None:
    dataset = _dataset(
        tmp_path / "build",
        [
            ("sun, star", _picture("white", "orange")),
            ("a picture of nobody", _picture("green", "blue")),
            ("moon", _picture("black", "white")),
            ("sun", _picture("orange", "white")),
            ("moon (night)", b"not a picture"),
        ],
    )
    encoded = (_picture("orange", "white", 0.8), _picture("black", "white"), b"?")
    classes, queries = LabelTree(("sun", "moon", "comet")), StoredPictures(("a", "b", "c"), encoded)
    asked = Classification(np.arange(3), np.arange(3), classes, ("{}",))
    scores, voters = pixel_scores([dataset], asked, queries, 8, 2, map_here)
    assert voters == 3, "three captions hold a label over a picture that can be read"
    assert scores[0, 0] == pytest.approx(1.0, abs=0.02), "the better of two suns"
    assert predict(scores[:2], np.array([0, 1])).ranks.tolist() == [1, 1]
    assert (scores[:2, 2] == NOTHING).all()
    more = _dataset(tmp_path / "more", [("comet", _picture("orange", "white")), ("sun", _picture("black", "white"))])
    both, voters = pixel_scores([dataset, more], asked, queries, 8, 2, map_here)
    other, _ = pixel_scores([more], asked, queries, 8, 2, map_here)
    assert voters == 5
    assert (both[:2] == np.fmax(scores, other)[:2]).all(), "a mixture's pictures vote together"
    assert np.isnan(scores[2]).all()
