"""Where a snapshot keeps what annotations say of its shards: files named by the annotation's version and settings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotations import Annotation
from pipeline.snapshot import shard_file
from pipeline.storage import Folder


@dataclass(frozen=True)
class Annotated:
    """Where the columns of one annotation lie."""

    folder: str
    """Below the snapshot's `annotations/`."""
    columns: pa.Schema

    def write(self, snapshot: Folder, number: int, found: pa.Table) -> None:
        """Writes the columns of a shard, which are among those of `found`."""
        content = io.BytesIO()
        pq.write_table(found.select(self.columns.names).cast(self.columns), content, compression="zstd")
        snapshot.write_bytes(annotation_file(self.folder, number), content.getvalue())


def annotated(annotation: Annotation) -> Annotated:
    """Where the columns of `annotation` lie, or will lie."""
    depends_on = [annotation.name, annotation.version, annotation.deciding()]
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:12]
    return Annotated(f"{annotation.name}-{key}", annotation.columns)


def annotation_file(columns: str, number: int) -> str:
    """Where a snapshot keeps a shard's annotation columns; `columns` is a name and a hash of what they depend on."""
    return f"annotations/{columns}/{shard_file(number)}"


def annotation_files(there: Set[str]) -> dict[int, list[str]]:
    """Shard number -> the annotation files of it, among the files of a snapshot."""
    found: dict[int, list[str]] = {}
    for name in sorted(there):
        if name.startswith("annotations/"):
            found.setdefault(int(name.rpartition("/")[2].removesuffix(".parquet")), []).append(name)
    return found


def read_annotations(
    snapshot: Folder, number: int, places: Sequence[Annotated], columns: Set[str] | Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """The wanted ones of the annotation columns of a shard, by name."""
    found: dict[str, pa.ChunkedArray] = {}
    for place in places:
        wanted = [name for name in place.columns.names if name in columns]
        if wanted:
            with snapshot.open(annotation_file(place.folder, number)) as file:
                table = pq.read_table(file, columns=wanted, use_threads=False)
            found |= {name: table[name] for name in wanted}
    return found
