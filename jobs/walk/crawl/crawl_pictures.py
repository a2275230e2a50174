"""What the sources of the sample crawl share: the row, a coin that always falls the same way, how pictures are kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageChops

from pipeline.spoilt_pictures import on_white

LONGEST_SIDE_PX = 144


@dataclass(frozen=True)
class Row:
    """One picture and what its package says about it; `path` is its path on its host."""

    path: str
    image: bytes
    caption: str
    captions: list[str]
    concept: str
    group: str
    subgroup: str
    source: str
    licence: str


def draw(key: str, choices: int) -> int:
    """A number from 0 to choices - 1 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % choices


def some_of(words: Sequence[str], fewest: int, most: int, key: str) -> list[str]:
    """Between `fewest` and `most` of the words, in their own order."""
    wanted = fewest + draw(f"{key} how many", most - fewest + 1)
    drawn = sorted(words, key=lambda word: draw(f"{key} {word}", 2**62))[:wanted]
    return [word for word in words if word in drawn]


def fitted(file: Path) -> Image.Image | None:
    """The picture without its margin, at most LONGEST_SIDE_PX long; None where it shows little or cannot be read."""
    try:
        with Image.open(file) as opened:
            if max(opened.size) > 6_000:
                return None
            picture = without_margin(opened.convert("RGBA"))
    except (OSError, Image.DecompressionBombError):
        return None
    if min(picture.size) < 32 or max(picture.size) > 4 * min(picture.size):
        return None
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    darkest, lightest = on_white(picture).convert("L").getextrema()
    return picture if lightest - darkest > 24 and min(picture.size) >= 32 else None


def drawn_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of what is not white; the whole picture where nothing is."""
    flat = on_white(picture)
    return ImageChops.difference(flat, Image.new("RGB", flat.size, "white")).getbbox() or (0, 0, *flat.size)


def without_margin(picture: Image.Image) -> Image.Image:
    """The part of a page that is drawn on: many drawings sit in a corner of an empty page."""
    return picture.crop(drawn_box(picture))


def stored(file: Path, picture: Image.Image) -> tuple[str, bytes]:
    """Path and bytes: PNG where it is small, else JPEG on white or WebP, as the web would have it."""
    png = encoded(picture, "PNG", optimize=True)
    if len(png) <= 5_000:
        return quote(file.as_posix()), png
    if draw(file.as_posix(), 2):
        return quote(file.with_suffix(".jpg").as_posix()), encoded(on_white(picture), "JPEG", quality=88)
    return quote(file.with_suffix(".webp").as_posix()), encoded(picture, "WEBP", quality=88, method=3)


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    """The picture's bytes in a format that Pillow writes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()
