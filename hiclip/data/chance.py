"""Chance that belongs to a pair and not to the worker that happens to draw.

A view draws from a generator of its own, keyed by (seed, pair, epoch, view). So what a pair looks like in an epoch
depends on nothing else: not on the process that decodes it, the batch it falls into, or whether the run was resumed.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from numpy.random import Generator, Philox


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
