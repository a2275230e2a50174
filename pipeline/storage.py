"""Read, list, and write-then-rename on a folder or on s3://, so that no other file needs to know which it is.

The one file that imports s3fs and that reads endpoints and credentials, from the environment alone
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), so that a secret can reach no log, manifest or job.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlparse

import fsspec
from botocore.exceptions import BotoCoreError

from pipeline.jobfile import InputError


class StorageError(InputError):
    """A folder or address cannot be read or written; the message names it and says why."""


_AHEAD_BYTES = 8 << 20
_NOT_THERE = "not there"
_UNPACKED = "_ray_pkg_"  # the name that Ray gives to its unpacked copy of a submitted working directory


def absolute(path: str) -> str:
    """The path as every machine of a run means it: s3:// stays, a relative path gets its anchor.

    The anchor is the current directory. Under `ray job submit --working-dir .` that is a copy which Ray deletes some
    time after the job, so there the anchor is `HICLIP_HOME`, else the checkout that `pip install -e` recorded.
    Raises StorageError when neither is known: results would be lost in silence.
    """
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if local.is_absolute():
        return str(local)
    here = Path.cwd()
    if not any(part.startswith(_UNPACKED) for part in here.parts):
        return str(here / local)
    home = os.environ.get("HICLIP_HOME") or _checkout()
    if home is None:
        raise StorageError(
            f"{path}: is relative, and the current directory is Ray's copy of the working directory, which Ray "
            "deletes; give an absolute path or s3://, or set HICLIP_HOME"
        )
    return str(Path(home) / local)


def _checkout() -> str | None:
    """The folder that an editable installation was made from, if it still exists."""
    try:
        record = importlib.metadata.distribution("hiclip").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlparse(json.loads(record).get("url", "")) if record else None
    folder = unquote(url.path) if url is not None and url.scheme == "file" else ""
    return folder if folder and Path(folder).is_dir() else None


@lru_cache(maxsize=8)
def _filesystem(protocol: str, endpoint: str | None) -> Any:
    if protocol == "file":
        return fsspec.filesystem("file")
    # Listings are never cached: another worker's upload must be seen.
    options = {"endpoint_url": endpoint} if endpoint else {}
    return fsspec.filesystem("s3", client_kwargs=options, use_listings_cache=False)


@dataclass(frozen=True)
class Folder:
    """A folder on disk or a prefix on s3://; names are relative to it and use `/`."""

    root: str
    """Absolute path, or s3://bucket/prefix."""

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a file system of this machine."""
        return "://" not in self.root

    def join(self, name: str) -> str:
        """The full path or address of `name`."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        return Folder(self.join(name))

    def make(self) -> Folder:
        """Makes the folder with its parents (nothing to do on s3://) and returns it."""
        if self.is_local:
            with self._explained("be made"):
                Path(self.root).mkdir(parents=True, exist_ok=True)
        return self

    def exists(self, name: str = "") -> bool:
        """Whether the file (or, with no name, the folder) is there."""
        with self._explained("be looked at", name):
            return bool(self._files.exists(self.join(name)))

    def size(self, name: str = "") -> int:
        """Bytes of a file; with no name of the file that this is."""
        with self._explained("be looked at", name):
            return int(self._files.size(self.join(name)))

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Files below the folder, sorted, relative to it, without unfinished writes; empty if there is no folder."""
        with self._explained("be listed"):
            if not self._files.exists(self.root):
                return []
            found = self._files.find(self.root)
        root = self._files._strip_protocol(self.root).rstrip("/") + "/"
        names = (str(path).removeprefix(root) for path in found)
        return sorted(n for n in names if n.startswith(prefix) and n.endswith(suffix) and not _unfinished(n))

    def state(self, names: Iterable[str]) -> str:
        """Hex sha256 of where files of the folder lie, of their sizes, and of when they were changed (on s3:// their
        ETags): while it stays the same they may be taken for unchanged without being read. One that is not there has a
        state too.
        """
        digest, names = hashlib.sha256(self.root.encode()), list(names)
        with self._explained("be looked at"):
            states = _states_here(self.root, names) if self.is_local else self._states_there(names)
            for name, state in zip(names, states, strict=True):
                digest.update(f"\0{name}\0{state}".encode())
        return digest.hexdigest()

    def _states_there(self, names: Sequence[str]) -> Iterator[str]:
        """By listing, a thousand files a request, what lies below the innermost folder of all."""
        inner = self.join(posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else "")
        found = self._files.find(inner, detail=True)
        for name in names:
            one = found.get(self._files._strip_protocol(self.join(name)))
            yield f"{one['size']} {one.get('ETag')}" if one else _NOT_THERE

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file."""
        with self.open(name) as file:
            return file.read()

    def read_text(self, name: str) -> str:
        """The whole content of a UTF-8 file."""
        return self.read_bytes(name).decode("utf-8")

    @contextlib.contextmanager
    def open(self, name: str, to_the_end: bool = False) -> Iterator[BinaryIO]:
        """A seekable binary file to read from; on s3:// only the ranges that are read travel.

        `to_the_end`: it will be read from the front to the end in small pieces, so that fetching ahead pays. Left to
        itself s3fs fetches 50 MiB ahead, and the 3 MB of a row group travel with 16 times as much.
        """
        ahead = {"block_size": _AHEAD_BYTES} if to_the_end else {"cache_type": "none"}
        with (
            self._explained("be read", name),
            self._files.open(self.join(name), "rb", **({} if self.is_local else ahead)) as file,
        ):
            yield cast(BinaryIO, file)

    def sha256(self, name: str = "") -> str:
        """Hex sha256 of a file, read a piece at a time; with no name of the file that this is."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
        return digest.hexdigest()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes the file so that a reader sees the old content or all of the new, never a part."""
        with self._explained("be written", name):
            if self.is_local:
                with _replacing(Path(self.join(name))) as unfinished:
                    unfinished.write_bytes(content)
            else:
                self._files.pipe_file(self.join(name), content)

    def write_text(self, name: str, content: str) -> None:
        """`write_bytes` of UTF-8 text."""
        self.write_bytes(name, content.encode("utf-8"))

    def upload(self, local: str, name: str) -> None:
        """Copies a local file into the folder; it appears whole or not at all."""
        with self._explained("be written", name):
            if self.is_local:
                with _replacing(Path(self.join(name))) as unfinished:
                    shutil.copyfile(local, unfinished)
            else:
                self._files.put_file(local, self.join(name))

    def download(self, name: str, local: str) -> None:
        """Copies a file of the folder to a local path."""
        with self._explained("be read", name):
            if self.is_local:
                shutil.copyfile(self.join(name), local)
            else:
                self._files.get_file(self.join(name), local)

    def remove(self, name: str = "") -> None:
        """Removes a file, or a folder with all that is in it; nothing to do if it is not there."""
        with self._explained("be removed", name):
            if self._files.exists(self.join(name)):
                self._files.rm(self.join(name), recursive=True)

    @property
    def _files(self) -> Any:
        protocol = "file" if self.is_local else urlparse(self.root).scheme
        if protocol not in ("file", "s3"):
            raise StorageError(f"{self.root}: expected a folder or s3://, came {protocol}://")
        return _filesystem(protocol, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))

    @contextlib.contextmanager
    def _explained(self, what: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise StorageError(f"{self.join(name)}: cannot {what}: there is no such file or bucket") from None
        except OSError as error:  # read-only, full disk, no permission, S3 refusals (s3fs maps them to OSError)
            raise StorageError(f"{self.join(name)}: cannot {what}: {error.strerror or error}") from error
        except BotoCoreError as error:  # before a server answers: no credentials, no connection
            raise StorageError(f"{self.join(name)}: cannot {what}: {error}") from error


def _states_here(root: str, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        try:
            found = Path(root, name).stat()
        except FileNotFoundError:
            yield _NOT_THERE
        else:
            yield f"{found.st_size} {found.st_mtime_ns}"


def folder(path: str) -> Folder:
    """The folder that a job means by `path`."""
    return Folder(absolute(path))


def _unfinished(name: str) -> bool:
    return Path(name).name.startswith(".unfinished-")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; renamed onto it when all went well, removed when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".unfinished-{uuid.uuid4().hex}"
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
