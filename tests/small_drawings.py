"""Pictures that tests draw: overlapping shapes in colour, the same for the same number."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw


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
