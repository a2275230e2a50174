"""Pictures of every kind that a crawl holds: decoded on white, upright, in the right size, or refused in words."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hiclip.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    Box,
    ImageError,
    Picture,
    Pixels,
    decode,
    eval_transform,
    normalise,
    resize,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(height: int, width: int) -> Image.Image:
    """A smooth picture with edges: red grows to the right, green downwards, a dark disc in the middle."""
    rows, columns = np.mgrid[0:height, 0:width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 4) ** 2
    pixels = np.stack([255 * columns / width, 255 * rows / height, 120 + 0 * rows], axis=-1)
    pixels[disc] = 20
    return Image.fromarray(pixels.astype(np.uint8))


def likeness_db(left: Pixels, right: Pixels) -> float:
    """Peak signal to noise ratio; above 40 dB an eye sees no difference."""
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((left.astype(float) - right.astype(float)) ** 2))))


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header promises another size."""
    data = bytearray(encoded(scene(8, 8), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(scene(8, 8), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def with_exif() -> dict[str, object]:
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side: shown after a quarter turn to the right
    exif[0x010E] = "a description, which damage may cut"
    return {"exif": exif}


def transparent() -> Image.Image:
    image = scene(40, 60).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([255] * 30 + [0] * 30, dtype=np.uint8), (40, 1))))
    return image


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(transparent(), "PNG"), id="png"),
        pytest.param(encoded(transparent(), "WEBP", lossless=True), id="webp"),
        pytest.param(encoded(transparent().quantize(64), "PNG"), id="palette"),
    ],
)
def test_transparent_places_are_white(data: bytes) -> None:
    pixels = decode(data)
    assert pixels.shape == (40, 60, 3)
    assert (pixels[:, 31:] > 250).all()
    assert likeness_db(pixels[:, :30], np.asarray(scene(40, 60))[:, :30]) > 30


def test_half_transparent_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (4, 4), (100, 0, 200, 128))
    assert np.abs(decode(encoded(image, "PNG"))[0, 0].astype(int) - [177, 127, 227]).max() <= 1
    grey = Image.new("LA", (4, 4), (0, 0))
    assert (decode(encoded(grey, "PNG")) == 255).all()
    marked = encoded(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
    assert (decode(marked) == 255).all()


def test_sixteen_bits_keep_their_brightness() -> None:
    levels = np.linspace(0, 65535, 32).astype(np.uint16).reshape(4, 8)
    pixels = decode(encoded(Image.fromarray(levels), "PNG"))
    assert np.abs(pixels[..., 0].astype(int) - np.round(levels / 257)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "GIF", "BMP") for mode in ("1", "L", "P", "RGB")]
    + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
)
def test_modes(kind: str, mode: str) -> None:
    image = scene(48, 64).convert(mode)
    pixels = decode(encoded(image, kind))
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    assert likeness_db(pixels, np.asarray(image.convert("RGB"))) > 25


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_camera_is_turned_back(kind: str) -> None:
    pixels = decode(encoded(scene(40, 80), kind, **with_exif()))
    upright = np.asarray(scene(40, 80).rotate(-90, expand=True))
    assert pixels.shape == (80, 40, 3)
    assert likeness_db(pixels, upright) > 28


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue")]
    pixels = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot identify"),
        (b"<html>404</html>", "cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
        (b"\xff\xd8\xff\xe0", "cannot identify|truncated|broken|[Ee]rror"),
        (encoded(scene(64, 64), "JPEG")[:-400], "truncated"),
        (encoded(scene(64, 64), "PNG")[:-300], "truncated|Truncated"),
        (png_claiming(9000, 8000), "9000 x 8000 pixels; from 1 to 67108864"),
        (png_claiming(10_000, 10_000), "bomb"),
        (png_claiming(100_000, 100_000), "bomb"),
        (jpeg_claiming(9000, 8000), "9000 x 8000 pixels"),
        (jpeg_claiming(60_000, 60_000), "60000 x 60000 pixels"),
        (jpeg_claiming(0, 8), "."),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_bytes_give_a_picture_or_an_image_error(kind: str, seed: int) -> None:
    """Nothing else may come out: one bad row must not end a run of weeks."""
    chance = random.Random(seed)
    data = bytearray(encoded(scene(24, 32), kind, **(with_exif() if chance.random() < 0.5 else {})))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    try:
        picture = Picture(bytes(data))
        pixels = picture.crop(Box(0, 0, picture.width, picture.height), 8, 8)
    except ImageError:
        return
    assert pixels.shape == (8, 8, 3)


def test_harmless_damage_is_read_over() -> None:
    """A strict decoder stops at bytes between markers; pictures of the web have them."""
    data = encoded(scene(40, 40), "JPEG")
    marker = data.index(b"\xff\xda")
    assert decode(data[:marker] + b"\0\0\0" + data[marker:]).shape == (40, 40, 3)


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 9, 20])
def test_small_decoding_gives_the_picture_that_whole_decoding_gives(factor: int) -> None:
    px = 32
    data = encoded(scene(px * factor, px * factor), "JPEG", quality=95)
    whole = decode(data)
    assert whole.shape == (px * factor, px * factor, 3)
    picture = Picture(data)
    small = picture.crop(Box(0, 0, px * factor, px * factor), px, px)
    assert likeness_db(small, np.asarray(Image.fromarray(whole).resize((px, px), Image.Resampling.BICUBIC))) > 40
    decoded = next(iter(picture._decoded.values())).shape[0]
    assert decoded == -(-px * factor // min(8, 2 ** int(np.log2(factor))))


def test_a_crop_shows_its_box() -> None:
    for kind in ("JPEG", "PNG"):
        picture = Picture(encoded(scene(200, 400), kind, quality=95))
        assert (picture.height, picture.width) == (200, 400)
        crop = picture.crop(Box(left=300, top=40, width=80, height=60), 30, 40)
        assert crop.shape == (30, 40, 3)
        assert np.abs(crop[15, 20].astype(int) - [255 * 340 / 400, 255 * 70 / 200, 120]).max() < 4


def test_resizing_is_pillows() -> None:
    pixels = np.asarray(scene(90, 120))
    for height, width in ((30, 30), (64, 64), (90, 40), (200, 300), (90, 120)):
        ours = resize(pixels.copy(), height, width)
        theirs = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        assert np.abs(ours.astype(int) - theirs).max() <= 2
        assert ours.flags.c_contiguous
        assert ours.flags.writeable


def test_evaluation_shows_the_centre() -> None:
    data = encoded(scene(100, 200), "PNG")
    pixels = eval_transform(data, 50)
    assert pixels.shape == (50, 50, 3)
    assert abs(int(pixels[2, 0, 0]) - 255 * 51 / 200) < 4  # the square begins a quarter from the left
    kept = eval_transform(data, 50, centre_crop=0.5)
    assert abs(int(kept[2, 0, 0]) - 255 * 75 / 200) < 4
    assert eval_transform(encoded(scene(1, 500), "PNG"), 8).shape == (8, 8, 3)


def test_normalisation_is_clips() -> None:
    pictures = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    tensor = normalise(pictures)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.is_contiguous()
    for channel in range(3):
        expected = (pictures[..., channel].double() / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert torch.allclose(tensor[:, channel].double(), expected, atol=1e-6)
