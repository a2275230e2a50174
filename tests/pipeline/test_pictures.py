"""Nothing is decoded that the header forbids, and unusual pictures come out as a person sees them."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import checked_picture
from pipeline.refusal import Refusal

LIMIT = 1_000_000


def scene(width: int = 40, height: int = 30) -> Image.Image:
    """Red left, blue right, a green stripe on top."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 30, 200), (width // 2, 0, width, height))
    image.paste((30, 180, 30), (0, 0, width, height // 5))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def refusal(content: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(Refusal) as caught:
        checked_picture(content, limit)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_usual_pictures_stay_as_they_came(kind: str, mode: str) -> None:
    content = encoded(scene().convert(mode), kind)
    assert checked_picture(content, LIMIT) is content
    assert checked_picture(encoded(scene().convert("RGBA"), "PNG"), LIMIT)


def png(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_sixteen_bits_become_eight_of_the_same_brightness(colour: int, channels: int) -> None:
    samples = np.full((10, 12, channels), 0x8000, ">u2")
    samples[..., -1] = 0xFFFF if channels == 4 else 0x8000
    content = png(12, 10, 16, colour, b"".join(b"\0" + row.tobytes() for row in samples))
    assert np.abs(pixels(checked_picture(content, LIMIT)) - 0x80).max() <= 1


def test_inks_of_print_become_light() -> None:
    content = checked_picture(encoded(scene().convert("CMYK"), "JPEG", quality=95), LIMIT)
    assert np.abs(pixels(content) - pixels(encoded(scene(), "PNG"))).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_camera_held_sideways(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that makes the stored picture
    stored = scene().transpose(Image.Transpose(undo))
    content = checked_picture(encoded(stored, kind, exif=exif, quality=95), LIMIT)
    assert pixels(content).shape == (30, 40, 3)
    assert np.abs(pixels(content) - pixels(encoded(scene(), "PNG"))).mean() < 12


def test_see_through_stays_see_through() -> None:
    image = scene().convert("RGBA")
    image.putalpha(100)
    for content in (encoded(image.convert("LA"), "PNG"), encoded(image.convert("P"), "GIF", transparency=0)):
        with Image.open(io.BytesIO(checked_picture(content, LIMIT))) as seen:
            assert seen.mode == "RGBA"
    with Image.open(io.BytesIO(checked_picture(encoded(scene(), "BMP"), LIMIT))) as seen:
        assert seen.mode == "RGB"


@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><title>no</title>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 50, b"GIF", b"%PDF-1.7",
     encoded(scene(), "TIFF"), encoded(scene(), "ICO")],
)  # fmt: skip
def test_what_is_no_picture_whatever_it_is_called(content: bytes) -> None:
    assert refusal(content) == "not_an_image"
    assert refusal(b"") == "empty_body"


def test_a_bomb_is_not_decoded() -> None:
    content = png(60_000, 60_000, 1, 0, b"\0")  # 3.6 gigapixels, of which not one is there
    assert refusal(content, 10**8) == "too_many_pixels"
    assert refusal(encoded(scene(), "PNG"), 40 * 30 - 1) == "too_many_pixels"
    assert checked_picture(encoded(scene(), "PNG"), 40 * 30)


def test_animations_are_refused() -> None:
    frames = [scene(), scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for kind in ("GIF", "WEBP", "PNG"):
        moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert refusal(moving) == "unsupported_format", kind
    assert checked_picture(encoded(scene(), "GIF"), LIMIT)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_cut_off_pictures_are_refused(kind: str, share: float) -> None:
    whole = encoded(NOISE, kind)
    assert refusal(whole[: int(len(whole) * share)]) in ("truncated", "undecodable")


def test_cut_off_jpegs_with_a_thumbnail_and_progressive_ones() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x\xff\xd9".encode("latin-1") + encoded(scene(), "JPEG")  # the end of a picture, within the header
    for options in ({"exif": exif}, {"progressive": True}):
        whole = encoded(NOISE, "JPEG", **options)
        assert checked_picture(whole, LIMIT) == whole
        assert checked_picture(whole + b"trailing \xff\xda", LIMIT), "a little after the end does no harm"
        assert refusal(whole[: len(whole) * 2 // 3]) == "truncated"


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
@pytest.mark.parametrize("place", range(20, 400, 40))
def test_broken_bytes_are_refused_or_seen_but_never_raise_anything_else(kind: str, place: int) -> None:
    broken = bytearray(encoded(NOISE, kind))
    broken[place : place + 40] = b"\xff" * 40
    with contextlib.suppress(Refusal):
        assert pixels(checked_picture(bytes(broken), LIMIT)).ndim == 3
