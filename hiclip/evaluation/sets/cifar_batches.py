"""CIFAR's batches as published, which are Python pickles: read without letting them run anything.

A pickle may name any function and have it called. `RestrictedUnpickler` hands out only the stand-ins below, which know
enough of numpy to hold whole numbers in an array; every other name is refused before anything is called.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.manifest import DatasetError
from pipeline.storage import Folder

SIDE = 32
"""Pixels; a row of a batch is a picture's red, then its green, then its blue plane."""
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What unpickling raises about bytes that are no pickle or not this one; it promises none in particular."""


class _Refused(Exception):
    """A pickle names something that no batch needs."""


class _StandIn:
    """What a pickle may be given: `__setstate__`, which refuses by default, is its only way to change one."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for what has none")


class _ArrayKind(_StandIn):
    """Stands for the class numpy.ndarray, which a pickle names and never calls."""

    __slots__ = ()


class _NumberKind(_StandIn):
    """Stands for numpy.dtype: whole numbers of one size."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, align: object = None, copy: object = None) -> None:
        self.code, self.order = _text(code), "|"
        if not re.fullmatch(r"[iu][1248]", self.code):
            raise pickle.UnpicklingError(f"expected arrays of whole numbers, came of '{self.code[:20]}'")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or _text(state[1]) not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a kind of number that is not numpy's")
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        """The kind itself."""
        return np.dtype(self.order + self.code)


class _Array(_StandIn):
    """Stands for numpy's function that begins an array; the array's content comes as its state."""

    __slots__ = ("values",)

    def __init__(self, kind: object, shape: object, code: object) -> None:
        self.values: npt.NDArray[Any] = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array that is not numpy's")
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _NumberKind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that holds no numbers")
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError("an array without a shape")
        if math.prod(shape) * kind.numpy().itemsize != len(content):
            raise pickle.UnpicklingError(f"an array of {shape} that has {len(content)} bytes")
        self.values = np.frombuffer(content, dtype=kind.numpy()).reshape(shape, order="F" if is_fortran else "C")


class _Number(_StandIn):
    """Stands for numpy's function that makes a number; it makes one of Python's."""

    __slots__ = ()

    def __new__(cls, kind: _NumberKind, content: bytes) -> Any:
        (value,) = np.frombuffer(content, dtype=kind.numpy()).tolist()
        return value


class _Encoded(_StandIn):
    """Stands for the function by which Python 3 writes bytes into a pickle of Python 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str | bytes) -> Any:
        if _text(encoding) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("bytes in another encoding than latin1")
        return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _ArrayKind,
    ("numpy", "dtype"): _NumberKind,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Number,
    ("numpy._core.multiarray", "scalar"): _Number,
    ("_codecs", "encode"): _Encoded,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Builds containers, numbers, texts and the stand-ins; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global that a pickle names."""
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        """There is nothing outside a batch that it could mean."""
        raise pickle.UnpicklingError("a reference to something outside")


def read_pickle(place: Folder, file: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text; DatasetError names a global that it must not have."""
    path = place.join(file)
    if not place.exists(file):
        raise DatasetError(f"{path}: is not there")
    try:
        content = RestrictedUnpickler(io.BytesIO(place.read_bytes(file)), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"expected a dictionary, came {type(content).__name__}")
        return {_text(key): value for key, value in content.items()}
    except _Refused as refused:
        raise DatasetError(f"{path}: expected arrays, lists and texts, came a pickle that asks for {refused}") from None
    except _BROKEN as error:
        raise DatasetError(f"{path}: cannot be read: {(str(error) or repr(error)).splitlines()[0][:200]}") from None


@dataclass(frozen=True)
class Batch:
    """One file of N pictures."""

    planes: npt.NDArray[np.uint8]
    """(N, 3 * 32 * 32)."""
    labels: list[int]
    """(N,) from 0."""


@lru_cache(maxsize=2)
def read_batch(place: Folder, file: str, labels: str) -> Batch:
    """A batch whose labels are called `labels`, kept for whoever reads its pictures next; DatasetError otherwise."""
    content, path = read_pickle(place, file), place.join(file)
    data, found = content.get("data"), content.get(labels)
    planes = data.values if isinstance(data, _Array) else None
    if planes is None or planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != 3 * SIDE * SIDE:
        raise DatasetError(f"{path}: expected 'data' of {3 * SIDE * SIDE} bytes a picture, came something else")
    numbers = found.values.tolist() if isinstance(found, _Array) else found
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise DatasetError(f"{path}: expected '{labels}', a list of whole numbers, came something else")
    if len(numbers) != len(planes):
        raise DatasetError(f"{path}: expected a label a picture, came {len(numbers)} for {len(planes)} pictures")
    return Batch(planes, numbers)


def read_names(place: Folder, file: str, names: str) -> list[str]:
    """The names of the classes, which the file calls `names`."""
    found = read_pickle(place, file).get(names)
    if not isinstance(found, list) or not all(isinstance(name, str | bytes) for name in found):
        raise DatasetError(f"{place.join(file)}: expected '{names}', a list of names, came something else")
    return [_text(name) for name in found]


@dataclass(frozen=True)
class BatchPictures:
    """Pictures of batches; encoded as PNG when they are read, so that they are looked at like any others."""

    root: Folder
    files: tuple[str, ...]
    counts: tuple[int, ...]
    """Pictures of each file."""
    labels: str
    """What the files call their labels."""

    def __len__(self) -> int:
        return sum(self.counts)

    def names(self) -> Sequence[str]:
        """(N,) file and place in it."""
        return [f"{file}/{row}" for file, count in zip(self.files, self.counts, strict=True) for row in range(count)]

    def state(self) -> str:
        """Of the files."""
        return self.root.state(self.files)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The pictures as PNG; a file is read once for neighbours."""
        ends = list(accumulate(self.counts))
        found: list[bytes] = []
        for row in rows:
            file = bisect_right(ends, row)
            batch = read_batch(self.root, self.files[file], self.labels)
            found.append(_png(batch.planes[row - (ends[file] - self.counts[file])]))
        return found


def _png(planes: npt.NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0)))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _text(word: object) -> str:
    """A text of Python 3, or of Python 2, which comes as bytes."""
    if isinstance(word, bytes):
        return word.decode("latin1")
    if not isinstance(word, str):
        raise pickle.UnpicklingError(f"expected a text, came {type(word).__name__}")
    return word
