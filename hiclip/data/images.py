"""Encoded pictures become pixels: whatever a crawl holds, on white, and decoded no larger than a crop needs.

JPEG goes through libjpeg-turbo (`simplejpeg`), which shrinks by 2, 4 or 8 while it decodes, for less work than the
whole picture is; all else goes through Pillow. Resizing is torch's: bicubic with antialiasing like Pillow's, in a
fraction of its time (benchmarks/loader.py).
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

Pixels = npt.NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue, 0..1, that CLIP was trained with (Radford et al. 2021)."""

MAX_PIXELS = 1 << 26
"""Larger pictures are refused before they are decoded: 67 megapixels take 200 MB."""

CENTRE_CROP = 0.875
"""Share of the shorter side that an evaluated picture's centre square shows in DeCLIP's tests, on which HiCLIP builds:
"resize 256, crop 224". Training crops enlarge what they show, and this brings things back to that size."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
# What Pillow's readers let through when bytes are damaged, beside their own UnidentifiedImageError (an OSError).
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """Bytes that show no picture, or one that is too large; the message says which."""


class Box(NamedTuple):
    """A rectangle of a picture, in the picture's pixels."""

    left: int
    top: int
    width: int
    height: int


class Picture:
    """An encoded picture, upright. A JPEG is decoded when a crop asks for it, in the size that the crop needs."""

    height: int
    width: int

    def __init__(self, data: bytes) -> None:
        """Raises ImageError if the bytes show no picture or one of more than `MAX_PIXELS`."""
        self._data = data
        self._decoded: dict[int, Pixels] = {}
        size = _jpeg_size(data)
        self._is_jpeg = size is not None
        if size is None:
            self._decoded[1] = _decode_with_pillow(data)
            size = self._decoded[1].shape[0], self._decoded[1].shape[1]
        self.height, self.width = size

    def pixels(self) -> Pixels:
        """(H, W, 3) red, green, blue; transparent places are white. Raises ImageError."""
        return self._shrunk(1)[0]

    def crop(self, box: Box, height: int, width: int) -> Pixels:
        """(height, width, 3): the box, resized by bicubic interpolation with antialiasing. Raises ImageError.

        Where a JPEG is decoded at 1/2, 1/4 or 1/8, which still holds a pixel for every pixel of the result, the box's
        edges move to the nearest of its pixels; the result is within 44 dB of that from the whole picture.
        """
        shrink = 1
        while shrink < 8 and box.height >= 2 * shrink * height and box.width >= 2 * shrink * width:
            shrink *= 2
        pixels, shrink = self._shrunk(shrink)
        left, right = round(box.left / shrink), round((box.left + box.width) / shrink)
        top, bottom = round(box.top / shrink), round((box.top + box.height) / shrink)
        return resize(pixels[top:bottom, left:right], height, width)

    def _shrunk(self, shrink: int) -> tuple[Pixels, int]:
        """The picture at 1/shrink of its size (1, 2, 4 or 8) and `shrink`; whole, and 1, if it is no JPEG."""
        shrink = shrink if self._is_jpeg else 1
        if shrink not in self._decoded:
            try:
                self._decoded[shrink] = _decode_jpeg(self._data, self.height, self.width, shrink)
            except ValueError:  # simplejpeg is strict; Pillow reads on where the damage is harmless
                self._is_jpeg, shrink = False, 1
                self._decoded[shrink] = _decode_with_pillow(self._data)
                if self._decoded[shrink].shape[:2] != (self.height, self.width):
                    raise ImageError("two decoders disagree about its size") from None
        return self._decoded[shrink], shrink


def decode(data: bytes) -> Pixels:
    """Encoded picture -> (H, W, 3) red, green, blue; transparent places are white. Raises ImageError."""
    return Picture(data).pixels()


def eval_transform(data: bytes, px: int, centre_crop: float = 1.0) -> Pixels:
    """Encoded picture -> (px, px, 3): the square in its centre, `centre_crop` of the shorter side wide.

    1 is CLIP's resize and centre crop; for 0.875 see `CENTRE_CROP`. Raises ImageError.
    """
    picture = Picture(data)
    side = max(1, round(centre_crop * min(picture.height, picture.width)))
    return picture.crop(Box((picture.width - side) // 2, (picture.height - side) // 2, side, side), px, px)


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """(H, W, 3) -> (height, width, 3), bicubic with antialiasing. The result is an array of its own."""
    if pixels.shape[:2] == (height, width):
        return pixels.copy()
    # In this order torch sees its "channels last" layout, takes bytes as they lie, and answers in kind: twice as fast.
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized: Pixels = interpolate(planes, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return resized


def normalise(pictures: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 by CLIP's mean and deviation, on the device that they are on."""
    scale = pictures.new_tensor([1 / (255 * std) for std in CLIP_STD], dtype=torch.float32)
    shift = pictures.new_tensor(
        [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)], dtype=torch.float32
    )
    return (pictures * scale + shift).permute(0, 3, 1, 2).contiguous()


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width if these are the bytes of a JPEG that stands upright and has three colours or one."""
    if data[:2] != b"\xff\xd8" or _is_turned(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(height, width)
    return None if colours in ("CMYK", "YCCK") else (height, width)


def _is_turned(data: bytes) -> bool:
    """Whether a JPEG's EXIF block, which stands near its beginning, asks for it to be turned."""
    if data.find(b"Exif\0\0", 0, 4096) < 0:
        return False
    try:
        with _opened(data) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except ImageError:
        return False


def _decode_jpeg(data: bytes, height: int, width: int, shrink: int) -> Pixels:
    # libjpeg takes the smallest of 1/8 ... 8/8 that is not below the size asked for, which is exactly 1/shrink here.
    pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=-(-height // shrink), min_width=-(-width // shrink))
    return pixels


def _decode_with_pillow(data: bytes) -> Pixels:
    with _opened(data) as image:
        _check_size(image.height, image.width)
        image.load()  # what a PNG says of itself may stand behind its pixels
        return np.array(_on_white(ImageOps.exif_transpose(image) if "exif" in image.info else image))


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Pillow's view of the bytes. What is wrong with them becomes ImageError; what is only odd (EXIF) is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                yield image
        except ImageError:
            raise
        except _DAMAGED as error:
            raise ImageError(f"{type(error).__name__}: {error}") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Any mode -> RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits a sample; Pillow's own conversion would cut values off at 255.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _check_size(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels; from 1 to {MAX_PIXELS} can be decoded")
