"""Views of a pair for the image tower. A new one is an entry of `IMAGE_VIEWS`; an objective asks for it by name.

crop          part of the picture (CLIP)
global_crop   nearly all of it, goes with the summary (PyramidCLIP)
local_crop    a smaller part, goes with the caption (PyramidCLIP)
view_1/2      strongly changed parts (DeCLIP)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from hiclip.data.chance import Chance
from hiclip.data.colours import ColourSettings, change_colours
from hiclip.data.images import Box, Picture, Pixels
from hiclip.data.view_settings import Range, ViewSettings


@dataclass(frozen=True)
class ImageView:
    """A view of a pair for the image tower."""

    draw: Callable[[Picture, Mapping[str, Any], int, Chance, ViewSettings], Pixels]
    """Picture, the pair's columns, pixels a side, chance, settings -> (px, px, 3)."""
    columns: tuple[str, ...] = ()
    """Columns of the dataset that it reads beside `image`."""


def random_crop(picture: Picture, pair: Mapping[str, Any], px: int, chance: Chance, settings: ViewSettings) -> Pixels:
    """(px, px, 3): a random resized crop, then perhaps mirrored, then perhaps recoloured. Raises ImageError."""
    return _drawn(picture, px, chance, settings.crop_scale, settings)


def global_crop(picture: Picture, pair: Mapping[str, Any], px: int, chance: Chance, settings: ViewSettings) -> Pixels:
    """The same with `global_crop_scale`."""
    return _drawn(picture, px, chance, settings.global_crop_scale, settings)


def local_crop(picture: Picture, pair: Mapping[str, Any], px: int, chance: Chance, settings: ViewSettings) -> Pixels:
    """The same with `local_crop_scale`."""
    return _drawn(picture, px, chance, settings.local_crop_scale, settings)


def augmented(picture: Picture, pair: Mapping[str, Any], px: int, chance: Chance, settings: ViewSettings) -> Pixels:
    """The same with the settings under `augmented`."""
    own = settings.augmented
    return _changed(picture, px, chance, own.crop_scale, settings.crop_ratio, own.flip_probability, own.colours)


IMAGE_VIEWS = {
    "crop": ImageView(random_crop),
    "global_crop": ImageView(global_crop),
    "local_crop": ImageView(local_crop),
    "view_1": ImageView(augmented),
    "view_2": ImageView(augmented),
}


def random_box(height: int, width: int, random: Generator, scale: Range, shape: Range) -> Box:
    """A box of random area, shape and place, by the rule of torchvision's RandomResizedCrop (Szegedy et al. 2014).

    `scale`: least and greatest share of the area; `shape`: least and greatest width over height. Ten tries to fit one
    inside; a picture too long for that shows the largest box of an allowed shape in its centre.
    """
    least, greatest = map(math.log, shape)
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        ratio = math.exp(random.uniform(least, greatest))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = random.integers(width - box_width + 1), random.integers(height - box_height + 1)
            return Box(int(left), int(top), box_width, box_height)
    ratio = min(max(width / height, shape[0]), shape[1])
    box_width, box_height = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def _drawn(picture: Picture, px: int, chance: Chance, scale: Range, settings: ViewSettings) -> Pixels:
    return _changed(picture, px, chance, scale, settings.crop_ratio, settings.flip_probability, settings.colours)


def _changed(
    picture: Picture, px: int, chance: Chance, scale: Range, shape: Range, flip: float, colours: ColourSettings
) -> Pixels:
    random = chance.generator()
    pixels = picture.crop(random_box(picture.height, picture.width, random, scale, shape), px, px)
    if flip and random.random() < flip:
        pixels = pixels[:, ::-1].copy()
    return change_colours(pixels, random, colours)
