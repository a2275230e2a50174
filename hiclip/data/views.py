"""Views: what the towers are shown of a pair, by chance that belongs to the pair and not to the worker.

A view draws from a generator of its own, keyed by (seed, pair, epoch, view). So what a pair looks like in an epoch
depends on nothing else: not on the process that decodes it, the batch it falls into, or whether the run was resumed.

A new view is an entry of `IMAGE_VIEWS` or `TEXT_VIEWS`; an objective asks for it by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from numpy.random import Generator, Philox

from hiclip.data.colours import ColourSettings, change_colours
from hiclip.data.images import Box, Picture, Pixels


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn. Defaults: DeCLIP's CLIP baseline, on which HiCLIP builds: a crop and nothing else."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Least and greatest share of the picture's area that a crop shows."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width over height of a crop, before it is made square."""
    flip_probability: float = 0.0
    """How often a view is mirrored. Off: captions name sides, and pictures hold letters."""
    colours: ColourSettings = field(default_factory=ColourSettings)
    """Changes of colour, all off."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: expected 0 < least <= greatest <= 1, came {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: expected 0 < least <= greatest, came {self.crop_ratio}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability: expected 0 to 1, came {self.flip_probability}")


class Chance(NamedTuple):
    """What a view's chance belongs to; equal for equal fields, on every machine."""

    seed: int
    pair_id: str
    epoch: int
    view: str

    def generator(self) -> Generator:
        """A fresh generator, keyed by BLAKE2b of the fields; every call starts it anew."""
        text = "/".join(map(str, self))
        digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"hiclip.views").digest()
        return Generator(Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class ImageView:
    """A view of a pair for the image tower."""

    draw: Callable[[Picture, Mapping[str, Any], int, Chance, ViewSettings], Pixels]
    """Picture, the pair's columns, pixels a side, chance, settings -> (px, px, 3)."""
    columns: tuple[str, ...] = ()
    """Columns of the dataset that it reads beside `image`."""


@dataclass(frozen=True)
class TextView:
    """A view of a pair for the text tower."""

    draw: Callable[[Mapping[str, Any], Chance, ViewSettings], str]
    """The pair's columns, chance, settings -> a text."""
    columns: tuple[str, ...] = ()
    """Columns of the dataset that it reads."""


def random_crop(picture: Picture, pair: Mapping[str, Any], px: int, chance: Chance, settings: ViewSettings) -> Pixels:
    """(px, px, 3): a random resized crop, then perhaps mirrored, then perhaps recoloured. Raises ImageError."""
    random = chance.generator()
    pixels = picture.crop(random_box(picture.height, picture.width, random, settings), px, px)
    if settings.flip_probability and random.random() < settings.flip_probability:
        pixels = pixels[:, ::-1].copy()
    return change_colours(pixels, random, settings.colours)


def random_box(height: int, width: int, random: Generator, settings: ViewSettings) -> Box:
    """A box of random area, shape and place, by the rule of torchvision's RandomResizedCrop (Szegedy et al. 2014).

    Ten tries to fit one inside; a picture too long for that shows the largest box of an allowed shape in its centre.
    """
    least, greatest = map(math.log, settings.crop_ratio)
    for _ in range(10):
        area = height * width * random.uniform(*settings.crop_scale)
        ratio = math.exp(random.uniform(least, greatest))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = random.integers(width - box_width + 1), random.integers(height - box_height + 1)
            return Box(int(left), int(top), box_width, box_height)
    ratio = min(max(width / height, settings.crop_ratio[0]), settings.crop_ratio[1])
    box_width, box_height = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def caption(pair: Mapping[str, Any], chance: Chance, settings: ViewSettings) -> str:
    """The caption as the dataset holds it."""
    return str(pair["caption"])


IMAGE_VIEWS = {"crop": ImageView(random_crop)}
TEXT_VIEWS = {"caption": TextView(caption, columns=("caption",))}
