"""Copies of a picture are found, drawings of the same thing are not, and which one stays depends on no order."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.duplicates import LOOK_BYTES, DuplicateSettings, NearDuplicates, look, near_of, refuse_duplicates
from pipeline.stages import JUDGED


def drawing(seed: int, side: int = 160) -> Image.Image:
    """A few overlapping shapes in colour."""
    chance = random.Random(seed)
    image = Image.new("RGB", (160, 160), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, size = chance.randrange(140), chance.randrange(140), chance.randrange(20, 90)
        colour = tuple(chance.randrange(256) for _ in range(3))
        (draw.ellipse if chance.random() < 0.5 else draw.rectangle)((x, y, x + size, y + size), fill=colour)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def looks(images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    found = [look(image) for image in images]
    hashes = np.array([number for number, _ in found], np.uint64)
    return hashes, np.frombuffer(b"".join(thumb for _, thumb in found), np.uint8).reshape(-1, LOOK_BYTES)


@pytest.mark.parametrize("seed", range(8))
def test_a_smaller_or_coarser_copy_is_near(seed: int) -> None:
    original = drawing(seed)
    copies = [
        encoded(original),
        encoded(drawing(seed, 128), "JPEG", quality=70),
        encoded(original, "JPEG", quality=40),
        encoded(drawing(seed, 90), "WEBP", quality=60),
    ]
    assert near_of(*looks(copies), NearDuplicates()).tolist() == [-1, 0, 0, 0]


def test_different_drawings_are_not_near() -> None:
    assert (near_of(*looks([encoded(drawing(seed)) for seed in range(60)]), NearDuplicates()) == -1).all()


def face(mouth: int) -> bytes:
    """Two vendors' faces: the same yellow disc, another mouth."""
    image = Image.new("RGB", (72, 72), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((2, 2, 70, 70), fill="#ffcc4d")
    draw.ellipse((20, 24, 28, 36), fill="#664500")
    draw.ellipse((44, 24, 52, 36), fill="#664500")
    if mouth:
        draw.chord((16, 30, 56, 64), 0, 180, fill="#664500")
    return encoded(image)


def test_flat_signs_with_the_same_outline_stay_two() -> None:
    hashes, thumbnails = looks([face(0), face(1)])
    bits = int(np.bitwise_count(hashes[0] ^ hashes[1]))
    assert bits <= 8, "the outline alone hardly tells them apart"
    assert near_of(hashes, thumbnails, NearDuplicates(max_bits=8)).tolist() == [-1, -1]
    assert near_of(hashes, thumbnails, NearDuplicates(max_bits=8, max_cell=255, max_share=1)).tolist() == [-1, 0]


def test_blank_pictures_of_another_colour_are_not_near() -> None:
    blanks = [encoded(Image.new("RGB", (50, 50), colour)) for colour in ("white", "black", "white")]
    assert near_of(*looks(blanks), NearDuplicates()).tolist() == [-1, -1, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.integers(0, 12), st.randoms())
def test_bands_find_what_comparing_all_finds(numbers: list[int], max_bits: int, chance: random.Random) -> None:
    flipped = [number ^ sum(1 << bit for bit in chance.sample(range(64), chance.randint(0, 14))) for number in numbers]
    hashes = np.array(numbers + flipped, np.uint64)
    blank = np.zeros((len(hashes), LOOK_BYTES), np.uint8)
    expected: list[int] = []
    for row, number in enumerate(hashes):
        stays = [at for at in range(row) if expected[at] == -1]
        near = [at for at in stays if int(np.bitwise_count(hashes[at] ^ number)) <= max_bits]
        expected.append(near[0] if near else -1)
    assert near_of(hashes, blank, NearDuplicates(max_bits=max_bits)).tolist() == expected


def judged(rows: list[dict[str, object]]) -> pa.Table:
    whole = [{name: row.get(name) for name in JUDGED.names} for row in rows]
    return pa.Table.from_pylist(whole, schema=JUDGED)


def row(name: str, image: bytes, side: int, **more: object) -> dict[str, object]:
    number, thumbnail = look(image)
    return {
        "pair_id": name, "image_sha256": f"sha of {len(image)}", "hash": number, "thumbnail": thumbnail, "caption": "a",
        "original_width": side, "original_height": side, **more,
    }  # fmt: skip


ONE, SMALL, OTHER = encoded(drawing(1)), encoded(drawing(1, 100), "JPEG", quality=80), encoded(drawing(2))


def fates(rows: list[dict[str, object]], settings: DuplicateSettings) -> dict[str, tuple[str | None, str | None]]:
    found = refuse_duplicates(judged(rows), settings).to_pylist()
    return {one["pair_id"]: (one["reason"], one["detail"]) for one in found}


def test_the_largest_stays_then_the_smallest_name_in_whatever_order_rows_come() -> None:
    rows = [row("c", ONE, 160), row("b", ONE, 160), row("a", SMALL, 100), row("d", OTHER, 160)]
    expected = {
        "a": ("near_duplicate", "of b"), "b": (None, None), "c": ("duplicate_image", "of b"), "d": (None, None),
    }  # fmt: skip
    for seed in range(6):
        random.Random(seed).shuffle(rows)
        assert fates(rows, DuplicateSettings()) == expected


def test_what_an_earlier_step_refused_refuses_nobody() -> None:
    rows = [row("a", ONE, 160, step="language", reason="other_language"), row("b", ONE, 160)]
    assert fates(rows, DuplicateSettings()) == {"a": ("other_language", None), "b": (None, None)}


def test_the_same_bytes_may_stay_under_another_caption_or_altogether() -> None:
    rows = [row("a", ONE, 160, caption="x"), row("b", ONE, 160, caption="y"), row("c", ONE, 160, caption="y")]
    only_exact = DuplicateSettings(exact="image_and_caption", near=None)
    assert [reason for reason, _ in fates(rows, only_exact).values()] == [None, None, "duplicate_image"]
    assert {reason for reason, _ in fates(rows, DuplicateSettings(exact=None, near=None)).values()} == {None}
    assert fates([], DuplicateSettings()) == {}
