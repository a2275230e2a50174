"""Copies of a picture are found, drawings of the same thing are not, and which one stays depends on no order."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from small_drawings import drawing, encoded
from small_pool import small_pool, verdicts_by_name

from pipeline.all_pairs import crowds
from pipeline.duplicates import LOOK_KEYS_A_ROW, DuplicateSettings, LooksAlike, NearDuplicates, look_keys, part_looks
from pipeline.look import LOOK_BYTES, Look, look
from pipeline.nearness import RANKED, best_alike, refuse_the_alike, row_of
from pipeline.selection import refuse_duplicates


def near_of(looks: list[tuple[int, bytes]], settings: NearDuplicates, finer: float = 0.0) -> list[int]:
    """For each look the one beside which it is refused, -1 where it stays; best first. `finer`: share of a part."""
    names = [f"{number:016x}" for number in range(len(looks))]
    columns = {
        "row": range(len(looks)), "pair_id": names,
        "original_width": [9] * len(looks), "original_height": [9] * len(looks),
        "hash": pa.array([number for number, _ in looks], pa.uint64()),
        "thumbnail": pa.array([thumbnail for _, thumbnail in looks], pa.binary(LOOK_BYTES)),
    }  # fmt: skip
    keys = look_keys(pa.table(columns), settings)
    if finer:  # every second key is a crowd
        key = np.asarray(keys["key"])
        cuts = {crowd: part_looks(keys.filter(pa.array(key == crowd)), finer, settings)
                for crowd in np.unique(key)[::2].tolist()}  # fmt: skip
        keys = look_keys(pa.table(columns), settings, {crowd: cut for crowd, cut in cuts.items() if cut is not None})
    edges = refuse_the_alike(lambda among: best_alike(keys, partial(LooksAlike, settings=settings), among))
    found = [-1] * len(looks)
    for edge in edges:
        found[row_of(edge["rank"])] = int(row_of(edge["best"]))
        assert int(edge["pair"]) == found[row_of(edge["rank"])]
    return found


def looks(images: list[bytes]) -> list[tuple[int, bytes]]:
    return [look(image) for image in images]


@pytest.mark.parametrize("seed", range(8))
def test_a_smaller_or_coarser_copy_is_near(seed: int) -> None:
    original = drawing(seed)
    copies = [
        encoded(original),
        encoded(drawing(seed, 128), "JPEG", quality=70),
        encoded(original, "JPEG", quality=40),
        encoded(drawing(seed, 90), "WEBP", quality=60),
    ]
    assert near_of(looks(copies), NearDuplicates()) == [-1, 0, 0, 0]


def test_different_drawings_are_not_near() -> None:
    assert set(near_of(looks([encoded(drawing(seed)) for seed in range(60)]), NearDuplicates())) == {-1}


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
    faces = looks([face(0), face(1)])
    assert (faces[0][0] ^ faces[1][0]).bit_count() <= 8, "the outline alone hardly tells them apart"
    assert near_of(faces, NearDuplicates(max_bits=8)) == [-1, -1]
    assert near_of(faces, NearDuplicates(max_bits=8, max_cell=255, max_share=1)) == [-1, 0]


def test_blank_pictures_of_another_colour_are_not_near() -> None:
    blanks = [encoded(Image.new("RGB", (50, 50), colour)) for colour in ("white", "black", "white")]
    assert near_of(looks(blanks), NearDuplicates()) == [-1, -1, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.integers(0, 12), st.integers(0, 90), st.randoms(),
    st.sampled_from((0.0, 0.3, 0.01)),
)  # fmt: skip
def test_keys_and_rounds_find_what_one_pass_over_all_finds(
    numbers: list[int], max_bits: int, max_cell: int, chance: random.Random, finer: float
) -> None:
    flipped = [number ^ sum(1 << bit for bit in chance.sample(range(64), chance.randint(0, 14))) for number in numbers]
    pattern = [chance.randrange(100) for _ in range(LOOK_BYTES)]
    shifts = [[chance.choice((0, 80, chance.randint(0, 155))) for _ in range(3)] for _ in flipped * 2]
    some = [(number, bytes(pattern[at] + shift[at % 3] for at in range(LOOK_BYTES)))
            for number, shift in zip(numbers + flipped, shifts, strict=True)]  # fmt: skip
    rule = NearDuplicates(max_bits=max_bits, max_cell=max_cell, max_share=1e9)
    expected: list[int] = []
    for number, thumbnail in some:
        stays = [at for at, of in enumerate(expected) if of == -1]
        near = [at for at in stays if (some[at][0] ^ number).bit_count() <= max_bits
                and max(abs(a - b) for a, b in zip(some[at][1], thumbnail, strict=True)) <= max_cell]  # fmt: skip
        expected.append(near[0] if near else -1)
    assert near_of(some, rule, finer) == expected


def row(name: str, image: bytes, side: int, **more: object) -> dict[str, object]:
    number, thumbnail = look(image)
    return {
        "pair_id": name * 16, "image_sha256": hashlib.sha256(image).hexdigest(), "hash": number, "thumbnail": thumbnail,
        "original_width": side, "original_height": side, **more,
    }  # fmt: skip


ONE, SMALL, OTHER = encoded(drawing(1)), encoded(drawing(1, 100), "JPEG", quality=80), encoded(drawing(2))
Fates = dict[str, tuple[str | None, str | None]]


def fates(folder: Path, rows: list[dict[str, object]], settings: DuplicateSettings) -> Fates:
    pool = refuse_duplicates(small_pool(folder, rows, Look().columns), settings)
    shorter = {name[0]: verdict for name, verdict in verdicts_by_name(pool).items()}
    return {name: (reason, detail and detail[: len("of x")]) for name, (reason, detail) in shorter.items()}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("shards_per_span", [1, 100])
def test_a_crowd_is_parted_until_it_fits(tmp_path: Path, shards_per_span: int) -> None:
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (1000, LOOK_BYTES), dtype=np.uint8)
    rows = [
        {"pair_id": f"{number:016x}", "hash": number, "thumbnail": noise[number].tobytes(), "original_width": 9,
         "original_height": 9}
        for number in range(len(noise))
    ]  # fmt: skip
    pool = small_pool(tmp_path, rows, Look().columns, per_shard=100, shards_per_span=shards_per_span)
    columns, rule = (*RANKED, "hash", "thumbnail"), NearDuplicates()
    cuts = crowds(pool, columns, partial(look_keys, settings=rule), partial(part_looks, settings=rule), most=100)
    largest = []
    for given_cuts in ({}, cuts):
        spread = look_keys(pool.left(0, columns), rule, given_cuts)
        for span in range(1, pool.spans):
            spread = pa.concat_tables([spread, look_keys(pool.left(span, columns), rule, given_cuts)])
        largest.append(int(np.unique(np.asarray(spread["key"]), return_counts=True)[1].max()))
        assert len(np.unique(np.asarray(spread["rank"]))) == len(noise), "nobody is lost"
    assert largest[0] > 300
    assert largest[1] < 200, "from a sample: about 100"
    assert spread.num_rows < 2.5 * len(noise) * LOOK_KEYS_A_ROW


@pytest.mark.usefixtures("ray_session")
def test_the_largest_stays_then_the_smallest_name(tmp_path: Path) -> None:
    rows = [row("c", ONE, 160), row("b", ONE, 160), row("a", SMALL, 100), row("d", OTHER, 160),
            row("e", SMALL, 160, step="language", reason="other_language")]  # fmt: skip
    assert fates(tmp_path, rows, DuplicateSettings()) == {
        "a": ("near_duplicate", "of b"), "b": (None, None), "c": ("duplicate_image", "of b"), "d": (None, None),
        "e": ("other_language", None),
    }  # fmt: skip


@pytest.mark.usefixtures("ray_session")
def test_the_same_bytes_may_stay_under_another_caption(tmp_path: Path) -> None:
    rows = [row("a", ONE, 160, caption="x"), row("b", ONE, 160, caption="y"), row("c", ONE, 160, caption="y"),
            row("d", SMALL, 100, caption="y")]  # fmt: skip
    only_exact = DuplicateSettings(exact="image_and_caption", near=None)
    assert [reason for reason, _ in fates(tmp_path / "exact", rows, only_exact).values()] == [
        None, None, "duplicate_image", None,
    ]  # fmt: skip
    same_look = DuplicateSettings(exact="look_and_caption", near=None)
    assert [reason for reason, _ in fates(tmp_path / "look", rows, same_look).values()] == [
        None, None, "duplicate_image", "duplicate_image",
    ]  # fmt: skip
    nothing = DuplicateSettings(exact=None, near=None)
    assert {reason for reason, _ in fates(tmp_path / "nothing", rows, nothing).values()} == {None}


@pytest.mark.usefixtures("ray_session")
def test_a_caption_that_too_many_pairs_have_goes_with_all_of_them(tmp_path: Path) -> None:
    captions = {"a": "icon", "b": "icon", "c": "Icon", "d": "icon", "e": "a dog"}
    rows = [row(name, encoded(drawing(seed)), 160, caption=captions[name]) for seed, name in enumerate(captions)]
    only_common = DuplicateSettings(exact=None, near=None, common_captions=2)
    assert list(fates(tmp_path, rows, only_common).values()) == [
        ("common_caption", "3 ti"), ("common_caption", "3 ti"), (None, None), ("common_caption", "3 ti"), (None, None),
    ]  # fmt: skip
