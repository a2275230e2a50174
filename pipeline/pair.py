"""What a pair is: one image and its caption, one row; its columns, their types and units, and its name."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PAIR_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),  # 16 hex digits, see pair_id()
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the list that the row came from
        pa.field("image", pa.binary(), nullable=False),  # encoded picture (JPEG, PNG or WebP)
        pa.field("width", pa.int32(), nullable=False),  # px, of the stored picture
        pa.field("height", pa.int32(), nullable=False),  # px
        pa.field("image_sha256", pa.string(), nullable=False),  # hex, of the bytes as downloaded, before any resizing
    ]
)
"""The columns of every dataset; annotation columns follow them."""


def pair_id(url: str, caption: str) -> str:
    """16 hex digits of the sha256 of address and caption: the same pair has the same name in every build."""
    return hashlib.sha256(f"{url}\0{caption}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def pair_numbers(pair_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """(pairs,): the numbers that the names are in hexadecimal; they sort as the names do."""
    letters = np.frombuffer("".join(pair_ids.to_pylist()).encode("ascii"), np.uint8)
    digits = np.where(letters >= ord("a"), letters - (ord("a") - 10), letters - ord("0")).astype(np.uint8)
    return (digits[0::2] << 4 | digits[1::2]).view(">u8").astype(np.uint64)
