"""Changes of colour for views: brightness, contrast, saturation and hue in random order, grey, blur.

The operations and their order are torchvision's `ColorJitter`, `RandomGrayscale` and a Gaussian blur, as DeCLIP and
SimCLR chain them; all are off unless a job turns them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter

from hiclip.data.images import Pixels


@dataclass(frozen=True)
class ColourSettings:
    """How often and how far colours change. Probabilities of 0 turn a change off; the strengths are DeCLIP's."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    jitter_probability: float = 0.0
    """How often brightness, contrast, saturation and hue change, all four at once. DeCLIP: 0.8."""
    brightness: float = 0.4
    """Brightness is multiplied by a factor from 1 - this to 1 + this."""
    contrast: float = 0.4
    """The distance from the picture's mean grey is multiplied likewise."""
    saturation: float = 0.4
    """The distance from grey is multiplied likewise."""
    hue: float = 0.1
    """Hue turns by up to this part of the circle, either way; at most 0.5."""
    grey_probability: float = 0.0
    """How often a view loses its colours. DeCLIP: 0.2."""
    blur_probability: float = 0.0
    """How often a view is blurred. DeCLIP: 0.5."""
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    """Least and greatest standard deviation of the blur."""

    def __post_init__(self) -> None:
        limits = {
            "jitter_probability": 1.0,
            "brightness": 1.0,
            "contrast": 1.0,
            "saturation": 1.0,
            "hue": 0.5,
            "grey_probability": 1.0,
            "blur_probability": 1.0,
        }
        for name, greatest in limits.items():
            if not 0 <= getattr(self, name) <= greatest:
                raise ValueError(f"{name}: expected 0 to {greatest:g}, came {getattr(self, name)}")
        if not 0 <= self.blur_sigma_px[0] <= self.blur_sigma_px[1]:
            raise ValueError(f"blur_sigma_px: expected 0 <= least <= greatest, came {self.blur_sigma_px}")

    @property
    def off(self) -> bool:
        """Whether no view changes."""
        return not (self.jitter_probability or self.grey_probability or self.blur_probability)


def change_colours(pixels: Pixels, random: Generator, settings: ColourSettings) -> Pixels:
    """(H, W, 3) -> (H, W, 3), changed as chance and the settings say."""
    if settings.off:
        return pixels
    image = Image.fromarray(pixels)
    if random.random() < settings.jitter_probability:
        image = _jitter(image, random, settings)
    if random.random() < settings.grey_probability:
        image = image.convert("L").convert("RGB")
    if random.random() < settings.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*settings.blur_sigma_px)))
    return np.array(image)


def _jitter(image: Image.Image, random: Generator, settings: ColourSettings) -> Image.Image:
    changes = (
        (ImageEnhance.Brightness, settings.brightness),
        (ImageEnhance.Contrast, settings.contrast),
        (ImageEnhance.Color, settings.saturation),
        (None, settings.hue),
    )
    for place in random.permutation(len(changes)):
        enhance, strength = changes[place]
        amount = random.uniform(-strength, strength)
        image = _turn_hue(image, amount) if enhance is None else enhance(image).enhance(1 + amount)
    return image


def _turn_hue(image: Image.Image, part: float) -> Image.Image:
    """Turns the hue of every pixel by a part of the circle, -0.5 to 0.5."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(part * 255)) % 256  # modulo: the circle closes at 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
