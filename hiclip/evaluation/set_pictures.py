"""Where the pictures of an evaluation set lie, so that every task reads its own block and no machine holds them all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from hiclip.evaluation.retrieval import IntArray
from pipeline.manifest import read_manifest
from pipeline.shards import DatasetReader
from pipeline.storage import Folder, StorageError

NOT_THERE = b""
"""Stands for a picture that cannot be fetched; like one that cannot be decoded it is scored as wrong and counted."""

_READERS = 8
"""Files that one task reads at a time; from S3 each of them waits for an answer."""


class SetPictures(Protocol):
    """N encoded pictures by number; small enough to be sent to every task, since it says where they lie."""

    def __len__(self) -> int:
        """N."""
        ...

    def names(self) -> Sequence[str]:
        """(N,) by which a person finds each picture; they stand for the pictures in the set's fingerprint."""
        ...

    def state(self) -> str:
        """Hex digest that changes whenever the pictures' bytes may have: numbers are remembered under it. It is no
        fingerprint, for it also changes where the same bytes lie elsewhere; see `Folder.state`."""
        ...

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded pictures of some rows, in that order; NOT_THERE for one that cannot be fetched."""
        ...


@dataclass(frozen=True)
class StoredPictures:
    """Pictures that came with the set's own file; for small sets."""

    named: tuple[str, ...]
    encoded: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.encoded)

    def names(self) -> Sequence[str]:
        """(N,) as the file names them."""
        return self.named

    def state(self) -> str:
        """Of their bytes."""
        digest = hashlib.sha256()
        for encoded in self.encoded:
            digest.update(hashlib.sha256(encoded).digest())
        return digest.hexdigest()

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The pictures, which are here."""
        return [self.encoded[row] for row in rows]


@dataclass(frozen=True)
class FilePictures:
    """One file a picture, below a folder or an s3:// address."""

    root: Folder
    files: tuple[str, ...]
    """(N,) relative to the root."""

    def __len__(self) -> int:
        return len(self.files)

    def names(self) -> Sequence[str]:
        """(N,) paths below the root."""
        return self.files

    def state(self) -> str:
        """Of all files."""
        return self.root.state(self.files)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The files' contents, several read at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self._one, rows))

    def _one(self, row: int) -> bytes:
        try:
            return self.root.read_bytes(self.files[row])
        except StorageError:
            if self.root.exists(self.files[row]):
                raise  # a store that is away says nothing about the picture
            return NOT_THERE


@dataclass(frozen=True)
class TarPictures:
    """Members of tar files, as webdataset packs them; read by their place, not by unpacking."""

    root: Folder
    tars: tuple[str, ...]
    """Relative to the root."""
    members: tuple[str, ...]
    """(N,) names within their tar."""
    places: IntArray
    """(N, 3): which tar, offset of the picture's first byte in it, bytes."""

    def __len__(self) -> int:
        return len(self.members)

    def names(self) -> Sequence[str]:
        """(N,) tar and member."""
        return [f"{self.tars[tar]}/{name}" for name, tar in zip(self.members, self.places[:, 0].tolist(), strict=True)]

    def state(self) -> str:
        """Of the tars."""
        return self.root.state(self.tars)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The members' contents; each tar is opened once for neighbours."""
        found: list[bytes] = []
        for tar, part in itertools.groupby(rows, key=lambda row: int(self.places[row, 0])):
            with self.root.open(self.tars[tar]) as file:
                for row in part:
                    file.seek(int(self.places[row, 1]))
                    found.append(file.read(int(self.places[row, 2])))
        return found


@dataclass(frozen=True)
class DatasetPictures:
    """Pictures of a dataset that `pipeline.build` wrote."""

    path: str
    rows: IntArray
    """(N, 2): row group of the dataset and row in it."""
    pair_ids: tuple[str, ...]
    """(N,)"""

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> Sequence[str]:
        """(N,) pair_ids."""
        return self.pair_ids

    def state(self) -> str:
        """The dataset's fingerprint: its pictures never change under it."""
        return read_manifest(self.path).fingerprint

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The stored pictures; each row group is read once for neighbours."""
        reader = _reader(self.path)
        found: list[bytes] = []
        for group, part in itertools.groupby(rows, key=lambda row: int(self.rows[row, 0])):
            images = reader.read_group(group, ["image"])["image"]
            found += [images[int(self.rows[row, 1])].as_py() for row in part]
        return found


@lru_cache(maxsize=4)
def _reader(path: str) -> DatasetReader:
    return DatasetReader(path)
