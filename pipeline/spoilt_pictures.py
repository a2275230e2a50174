"""Good pictures spoilt as the web spoils them, and bad ones made from nothing: the bytes of the sample crawl's dirt.

Each function is pure: the same picture in gives the same bytes out.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache

from PIL import Image


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, laid on white where it is see-through."""
    rgba = picture.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(ground, rgba).convert("RGB")


def jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    """The picture as JPEG."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def truncated_jpeg(picture: Image.Image) -> bytes:
    """The first two thirds of a JPEG."""
    whole = jpeg(picture, 95)
    return whole[: len(whole) * 2 // 3]


def png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def truncated_png(picture: Image.Image) -> bytes:
    """The first half of a PNG."""
    whole = png(picture)
    return whole[: len(whole) // 2]


def animated_gif(picture: Image.Image) -> bytes:
    """A GIF of two frames: the picture and its mirror image."""
    encoded = io.BytesIO()
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(encoded, "GIF", save_all=True, append_images=[mirrored], duration=400, loop=0)
    return encoded.getvalue()


def cmyk_jpeg(picture: Image.Image) -> bytes:
    """A JPEG in the four inks of print."""
    return jpeg(picture.convert("CMYK"), 90)


def sixteen_bit_png(picture: Image.Image) -> bytes:
    """An RGB PNG of 16 bits a sample."""
    samples = bytes(byte for sample in picture.tobytes() for byte in (sample, sample))
    stride = picture.width * 6
    rows = (samples[start : start + stride] for start in range(0, len(samples), stride))
    return png_bytes(picture.width, picture.height, 16, 2, rows)


def lying_on_its_side(picture: Image.Image) -> bytes:
    """A JPEG turned by 90 degrees, whose EXIF says how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise to see it upright
    encoded = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(encoded, "JPEG", quality=90, exif=exif)
    return encoded.getvalue()


def two_px(picture: Image.Image) -> bytes:
    """The picture at 2 x 2 px."""
    return png(picture.resize((2, 2)))


def near_copy(picture: Image.Image) -> bytes:
    """The picture at four fifths of its size as a JPEG: other bytes, the same to the eye."""
    return jpeg(picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS), 70)


def png_bytes(width: int, height: int, bits: int, color_type: int, rows: Iterator[bytes]) -> bytes:
    """A PNG of packed pixel rows, written a row at a time: also of sizes and depths that Pillow does not write."""
    squeeze = zlib.compressobj(9)
    pixels = b"".join([*(squeeze.compress(b"\0" + row) for row in rows), squeeze.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@cache
def very_wide() -> bytes:
    """A PNG of 29,700 x 60 px, the width of the widest picture in openclipart."""
    ramp = bytes(column * 255 // 29_699 for column in range(29_700))
    return png_bytes(29_700, 60, 8, 0, iter([ramp] * 60))


@cache
def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 px in 1 bit: some 50 kB, and 1.2 GB when it is decoded as RGB."""
    return png_bytes(20_000, 20_000, 1, 0, iter([bytes(2_500)] * 20_000))


@cache
def oversized() -> bytes:
    """48 MiB that begin like a JPEG."""
    return b"\xff\xd8\xff\xe0" + bytes(48 * 2**20)


HTML = (
    b"<!doctype html><html><head><title>Hotlinking is not allowed</title></head><body><img src='x.jpg'></body></html>"
)
SVG = (
    b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'><circle cx='50' cy='50' r='40' fill='teal'/></svg>"
)
