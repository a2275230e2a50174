"""A keyed permutation of 0..size-1 as a formula: any place can be asked for, and nothing is stored.

Shuffling five billion numbers in a list takes 40 GB and cannot start in the middle. A Feistel network over a grid of
`height x width >= size` cells permutes the cells whatever its round function (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"); a result outside 0..size-1 is put in again until it falls inside (cycle walking). The grid
is nearly square and holds fewer than `height` cells too many, so walking is rare: about one number in sqrt(size).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

MAX_SIZE = 1 << 62
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the step of splitmix64's counter


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and the names of what it is for: BLAKE2b of the parts, joined by "/"."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"hiclip.order").digest(), "little")


def keys_of(key: int, numbers: Words) -> Words:
    """A key for each of the numbers (n,), all from one key: splitmix64 with the numbers as its counter."""
    return _mix(np.uint64(key) + (numbers + np.uint64(1)) * _GOLDEN)


def _mix(words: Words) -> Words:
    """Scrambles words in place, one to one: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


ROUND_KEYS = _mix(np.arange(1, 13, dtype=np.uint64) * _GOLDEN)
"""(12,) words that make the rounds differ. Of 16 places, over 40,000 keys, 4 rounds put a number right before its
successor 50 % too often, 8 rounds 3 % too often; with 12, tests/hiclip/test_order.py finds nothing."""


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0..size-1 for every 64-bit key."""

    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"a permutation has 1 to 2^62 places, not {self.size}")

    @cached_property
    def height(self) -> int:
        """Rows of the grid, ceil(sqrt(size)): at most 2^31, so a product with 32 random bits fits a word."""
        return math.isqrt(self.size - 1) + 1

    @cached_property
    def width(self) -> int:
        """Columns of the grid, at most its rows."""
        return -(-self.size // self.height)

    def forward(self, places: Words, keys: Words) -> Words:
        """What lies at each place. places (n,); keys (n,), one for each place, or (1,) for all. Returns (n,)."""
        return self._walk(places, keys, inverse=False)

    def inverse(self, values: Words, keys: Words) -> Words:
        """At which place each value lies: `inverse(forward(x, k), k) == x`. Shapes as in `forward`."""
        return self._walk(values, keys, inverse=True)

    def _walk(self, words: Words, keys: Words, inverse: bool) -> Words:
        words = self._feistel(words, keys, inverse)
        outside = np.flatnonzero(words >= np.uint64(self.size))
        while outside.size:
            words[outside] = self._feistel(words[outside], keys if keys.size == 1 else keys[outside], inverse)
            outside = outside[words[outside] >= np.uint64(self.size)]
        return words

    def _feistel(self, cells: Words, keys: Words, inverse: bool) -> Words:
        """Shifts cells along their row by a hash of their column, then along their column by a hash of the row, ..."""
        coordinates = np.divmod(cells, np.uint64(self.width))
        lengths = np.uint64(self.height), np.uint64(self.width)
        rounds = range(len(ROUND_KEYS))
        for number in rounds[::-1] if inverse else rounds:
            moved, fixed, length = coordinates[number % 2], coordinates[1 - number % 2], lengths[number % 2]
            shift = fixed * _GOLDEN
            shift += keys
            shift += ROUND_KEYS[number]
            _mix(shift)
            # High half times length, over 2^32: even over 0..length-1 to one part in 2^32 / length, without dividing.
            shift >>= np.uint64(32)
            shift *= length
            shift >>= np.uint64(32)
            if inverse:
                np.subtract(length, shift, out=shift)
            moved += shift
            np.minimum(moved, moved - length, out=moved)  # modulo length: below it the difference wraps to a huge word
        return coordinates[0] * lengths[1] + coordinates[1]
