"""How a picture looks, small enough to compare it with millions: for duplicates and decontamination."""

from __future__ import annotations

import io
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.annotation_resources import Resources
from pipeline.jobfile import Settings
from pipeline.pictures import as_seen

LOOK_SIDE = 8  # px, of the colour thumbnail
LOOK_BYTES = LOOK_SIDE * LOOK_SIDE * 3
_STEP = 3  # of 255: smaller steps between neighbours are noise of the encoder, which would set bits by chance


class Look(Settings):
    """Adds `hash`, a difference hash of 64 bits, and `thumbnail`, 8 x 8 px of RGB; null where there is no picture."""

    name: Literal["look"] = "look"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("image",)
    resources: Resources = Resources()

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        return pa.schema([pa.field("hash", pa.uint64()), pa.field("thumbnail", pa.binary(LOOK_BYTES))])

    def deciding(self) -> dict[str, Any]:
        """Nothing to decide."""
        return {}

    def ready(self) -> Look:
        """Itself: it needs nothing."""
        return self

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks at every picture; about 2,000 a second on one core at 128 px."""
        found = [look(image) for image in pairs["image"].to_pylist()]
        for field, values in zip(self.columns, zip(*found, strict=True) if found else ((), ()), strict=True):
            pairs = pairs.append_column(field, pa.array(values, field.type))
        return pairs


def look(image: bytes) -> tuple[int, bytes]:
    """A picture's difference hash (64 bits) and its colour thumbnail (LOOK_BYTES, RGB rows of 8 x 8 px)."""
    with Image.open(io.BytesIO(image)) as picture:
        colour = as_seen(picture)
    grey = np.asarray(colour.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] - grey[:, :-1]) > _STEP
    number = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return number, colour.resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX).tobytes()
