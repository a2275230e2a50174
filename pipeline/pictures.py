"""What a picture must be before it is decoded, and how unusual ones become usual.

The header says size, frames and depth at no cost, so a bomb is refused before it goes off. Pictures that img2dataset's
resizer would get wrong without a word (inks of print, 16 bits, a camera held sideways) are repainted first.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.refusal import Refusal

ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_BEGINNINGS = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG", "WEBP": b"RIFF", "GIF": b"GIF8", "BMP": b"BM"}


def format_of(picture: bytes) -> str | None:
    """Which of ACCEPTED the bytes are, by how they begin; None if they are none of them."""
    return next((name for name, beginning in _BEGINNINGS.items() if picture.startswith(beginning)), None)


def checked_picture(content: bytes, max_pixels: int) -> bytes:
    """The bytes to resize: as they came, or repainted as an upright 8-bit PNG. Refusal for what is no single picture.

    Reasons: empty_body, not_an_image, too_many_pixels, unsupported_format (several frames), truncated, undecodable.
    An animation is refused, not cut down to its first frame: its caption speaks of what happens in it.
    """
    if not content:
        raise Refusal("empty_body")
    with _opened(content) as picture:
        if picture.width * picture.height > max_pixels:
            raise Refusal("too_many_pixels", f"{picture.width} x {picture.height} px in {len(content)} bytes")
        if _is_cut_off(content, str(picture.format)):
            raise Refusal("truncated", f"no end of the {picture.format} in {len(content)} bytes")
        try:
            if getattr(picture, "is_animated", False):
                raise Refusal("unsupported_format", f"{picture.format} of several frames")
            return content if _is_usual(picture, content) else _repainted(picture)
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's ways to say that bytes are broken
            raise Refusal("truncated" if "truncated" in str(error) else "undecodable", str(error)) from None


def _opened(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The job's own limit follows; Pillow's for an error (179 megapixels) stays above it as the last one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=ACCEPTED)
    except Image.DecompressionBombError as error:
        raise Refusal("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise Refusal("not_an_image", f"begins with {content[:16]!r}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Refusal("undecodable", str(error)) from None


def _is_cut_off(content: bytes, kind: str) -> bool:
    """Whether the end is missing. Decoders fill what is missing with grey and say nothing."""
    if kind == "JPEG":
        return content.find(b"\xff\xd9", _start_of_pixels(content)) < 0
    if kind == "PNG":
        return b"\0\0\0\0IEND\xaeB`\x82" not in content
    if kind == "WEBP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    return False


def _start_of_pixels(jpeg: bytes) -> int:
    """Where the header's last segment ends: a thumbnail inside the header has an end of its own."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] != 0xDA:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at


def _is_usual(picture: Image.Image, content: bytes) -> bool:
    if picture.format == "PNG":
        eight_bits = content[24] <= 8  # Pillow hides the depth of RGB
        # To look for EXIF in a PNG Pillow would decode all of it.
        return eight_bits and b"eXIf" not in content and picture.mode in ("RGB", "RGBA", "L", "P")
    upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return upright and picture.format in ("JPEG", "WEBP") and picture.mode in ("RGB", "RGBA", "L")


def _repainted(picture: Image.Image) -> bytes:
    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow would clip instead of scale
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    upright = ImageOps.exif_transpose(picture)
    see_through = "A" in upright.mode or "a" in upright.mode or "transparency" in upright.info
    encoded = io.BytesIO()
    upright.convert("RGBA" if see_through else "RGB").save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def as_seen(picture: Image.Image) -> Image.Image:
    """In RGB, upright, and on white where it is see-through: as it is after a download, and as a model sees it."""
    picture.load()  # what a PNG says of itself may stand behind its pixels
    upright = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
    if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    see_through = upright.convert("RGBA")
    ground = Image.new("RGB", upright.size, "white")
    ground.paste(see_through, mask=see_through)
    return ground
