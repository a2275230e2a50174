"""Vectors of pictures and texts: the same from one process and from Ray, whatever else is computed with them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from hiclip.evaluation.blocks import cut, map_here
from hiclip.evaluation.embed import Embedder, embed_pictures, embed_texts, picture_vectors
from hiclip.evaluation.ray_blocks import RayBlocks
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.evaluation.watched_blocks import WatchedBlocks
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers

SMALL = ModelSettings(width=64, depth=2, image_px=32, patch_px=8, context=16, embedding=32)
TEXTS = ["a cat", "a dog", "a blue cat sitting on a bench", "a cat", "pear"]


def _embedder() -> Embedder:
    torch.manual_seed(1)
    return Embedder(TwoTowers(SMALL).eval())


def _picture(color: tuple[int, int, int], side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    return [_picture(tuple(int(level) for level in random.integers(0, 256, 3))) for _ in range(count)]


def test_an_unreadable_picture_is_nan_and_leaves_the_others_as_they_are() -> None:
    good = _pictures(3)
    vectors = picture_vectors(_embedder(), [good[0], b"\x89PNG broken", good[2]])
    assert np.isnan(vectors[1]).all()
    whole = picture_vectors(_embedder(), good)
    assert (vectors[[0, 2]] == whole[[0, 2]]).all()
    assert np.linalg.norm(whole, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_equal_texts_are_embedded_once_and_found_again() -> None:
    asked: list[int] = []

    def counting(function, shared, blocks, what):  # type: ignore[no-untyped-def]
        for block in blocks:
            asked.append(len(block))
            yield function(shared, block)

    vectors = embed_texts(_embedder(), TEXTS, 3, counting, "texts")
    assert asked == [3, 1]
    assert (vectors[0] == vectors[3]).all()
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        picture_vectors(_embedder(), _pictures(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cuts_do_not_depend_on_who_works() -> None:
    assert [list(block) for block in cut(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.usefixtures("ray_session")
def test_ray_gives_the_bits_of_one_process() -> None:
    encoded, embedder = [*_pictures(20), b"no picture"], _embedder()
    pictures = StoredPictures(tuple(map(str, range(21))), tuple(encoded))
    shown = [(pictures, np.arange(21)), (pictures, np.array([4, 5, 6, 7]))]
    here, some = embed_pictures(embedder, shown, 4, map_here, "pictures")
    assert here.broken == 1
    for cpus in (1.0, 0.5):
        there, _ = embed_pictures(embedder, shown, 4, RayBlocks(cpus), "pictures")
        assert np.array_equal(there.vectors, here.vectors, equal_nan=True)
        assert there.sha256 == here.sha256
    digest = hashlib.sha256(b"".join(hashlib.sha256(picture).digest() for picture in encoded))
    assert here.sha256 == digest.hexdigest()
    assert (some.vectors == here.vectors[4:8]).all()
    assert (embed_texts(embedder, TEXTS, 2, RayBlocks(), "") == embed_texts(embedder, TEXTS, 2, map_here, "")).all()


def _total(shared: int, block: Sequence[int]) -> int:
    return shared + sum(block)


@pytest.mark.usefixtures("ray_session")
def test_blocks_come_back_in_order_and_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def blocks():  # type: ignore[no-untyped-def]
        for number in range(200):
            read.append(number)
            yield [number]

    answers = RayBlocks()(_total, 1000, blocks(), "numbers")
    assert next(answers) == 1000
    assert len(read) < 100, "the window is bounded: not all blocks are under way at once"
    assert list(answers) == [1000 + number for number in range(1, 200)]


def test_a_bar_may_stand_inside_another() -> None:
    # While pictures of several sets are under way, the captions of the first one are embedded.
    watched = WatchedBlocks(map_here, Console(file=io.StringIO(), force_terminal=True))
    pictures = watched(_total, 0, [[1], [2]], "pictures")
    assert next(pictures) == 1
    assert list(watched(_total, 0, [[3], [4]], "captions")) == [3, 4]
    assert list(pictures) == [2]


def test_the_image_tower_is_shown_the_centre_that_is_asked_for() -> None:
    framed = Image.new("RGB", (80, 80), (200, 30, 30))
    framed.paste((20, 90, 200), (5, 5, 75, 75))  # 0.875 of 80 is 70: the frame is left out
    buffer = io.BytesIO()
    framed.save(buffer, "PNG")
    inside = picture_vectors(_embedder(), [_picture((20, 90, 200), 70)])
    assert np.allclose(picture_vectors(_embedder(), [buffer.getvalue()]), inside, atol=1e-6)
    whole = dataclasses.replace(_embedder(), centre_crop=1.0)
    assert not np.allclose(picture_vectors(whole, [buffer.getvalue()]), inside, atol=1e-3)
