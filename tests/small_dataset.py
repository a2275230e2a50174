"""A small real dataset for tests: drawn pictures of coloured shapes with captions that say what they show."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.manifest import Manifest, dataset_fingerprint, write_manifest
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.shards import write_shards
from pipeline.storage import Folder

COLOURS = ("red", "green", "blue", "yellow", "black", "purple", "orange", "grey")
SHAPES = ("circle", "square", "triangle", "cross")


def small_dataset(
    folder: str | Path,
    pairs: int = 64,
    px: int = 48,
    pairs_per_shard: int = 32,
    rows_per_group: int = 8,
    first: int = 0,
) -> Manifest:
    """Writes `pairs` pairs, numbered from `first`, and their manifest; the same arguments give the same bytes."""
    place = Folder(str(folder))
    shards = tuple(write_shards(_tables(range(first, first + pairs), px), place, pairs_per_shard, rows_per_group))
    columns = {field.name: str(field.type) for field in PAIR_SCHEMA}
    manifest = Manifest(
        name="small",
        pairs=pairs,
        pairs_per_shard=pairs_per_shard,
        rows_per_group=rows_per_group,
        shards=shards,
        columns=columns,
        fingerprint=dataset_fingerprint(shards, columns),
        job={"name": "small"},
        snapshot=hashlib.sha256(b"drawn").hexdigest(),
        funnel=[],
        versions={},
    )
    write_manifest(place, manifest)
    return manifest


def _tables(numbers: range, px: int) -> Iterator[pa.Table]:
    rows = [_pair(number, px) for number in numbers]
    yield pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def _pair(number: int, px: int) -> dict[str, object]:
    chance = random.Random(number)
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]
    caption = f"a {colour} {shape} number {number}"
    url = f"http://drawn.crawl.example/{number}.png"
    image = _draw(colour, shape, chance, px)
    return {
        "pair_id": pair_id(url, caption),
        "url": url,
        "caption": caption,
        "source": "drawn",
        "image": image,
        "width": px,
        "height": px,
        "image_sha256": hashlib.sha256(image).hexdigest(),
    }


def _draw(colour: str, shape: str, chance: random.Random, px: int) -> bytes:
    picture = Image.new("RGB", (px, px), "white")
    draw = ImageDraw.Draw(picture)
    left, top = chance.randint(0, px // 3), chance.randint(0, px // 3)
    right, bottom = left + px // 2, top + px // 2
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "triangle":
        draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
    else:
        draw.line((left, top, right, bottom), fill=colour, width=px // 8)
        draw.line((left, bottom, right, top), fill=colour, width=px // 8)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
