"""Whole numbers and texts to numbers that look like chance and are the same everywhere: keys, buckets, draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]


def mixed(*columns: Numbers | np.uint64) -> Numbers:
    """(rows,) from columns of (rows,): splitmix64 (Steele, Lea and Flood 2014), one column after the other."""
    with np.errstate(over="ignore"):
        state = np.zeros(np.broadcast_shapes(*(np.shape(column) for column in columns)), np.uint64)
        for column in columns:
            state = _splitmix(state ^ column)
    return state


def _splitmix(state: Numbers) -> Numbers:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def text_keys(texts: Iterable[str]) -> Numbers:
    """(texts,): BLAKE2b of each text."""
    hashes = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)
