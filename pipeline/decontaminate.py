"""Refuses pairs whose picture is one that a model will be evaluated on, and counts them for every evaluation set.

Two ways to be the same: to look the same as `duplicates.near` means it, and, where an embedding is at hand, a cosine
above a threshold (DataComp: 0.604169 with ISC's descriptor). The evaluation side is small: it is looked at once and
given to every task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from pipeline.duplicates import LooksAlike, NearDuplicates, look_keys
from pipeline.jobfile import Number, Settings
from pipeline.keyed_tables import all_rows, check_table
from pipeline.look import LOOK_BYTES, look
from pipeline.manifest import MANIFEST, DatasetError, read_manifest
from pipeline.nearness import Among, best_alike
from pipeline.pool import REFUSED
from pipeline.storage import Folder, absolute, folder

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_FILES_A_PIECE = 512
_BLOCK = 4096


class EvaluationPictures(Settings):
    """The pictures of one evaluation set."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """In the ledger: pairs are refused as `in_NAME`."""
    pictures: str
    """A parquet file with a column `image`, a folder of them or of picture files, or a built dataset; a path or s3://."""
    embeddings: str | None = None
    """Parquet file or folder with the column of `decontaminate.embedding`, a row a picture; null: only looks count."""


class Decontaminate(Settings):
    """Against which sets, and when two pictures are the same."""

    sets: Annotated[tuple[EvaluationPictures, ...], Field(min_length=1)]
    """The evaluation sets; a pair that is in several is counted for the first."""
    near: NearDuplicates = NearDuplicates()
    """When two pictures look the same."""
    embedding: str | None = None
    """Column of the pairs with a vector of the picture (a list of floats); null: only looks count."""
    min_cosine: Annotated[Number, Field(gt=0, le=1)] = 0.604169
    """From which cosine of the vectors two pictures are the same; DataComp's, for ISC's descriptor."""

    @model_validator(mode="after")
    def _fits_together(self) -> Decontaminate:
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets: expected a name once, came {', '.join(names)}")
        lacks = [one.name for one in self.sets if one.embeddings is not None and self.embedding is None]
        if lacks:
            raise ValueError(f"embedding: expected the name of the column, because {lacks[0]} has embeddings")
        return self

    def ready(self) -> Decontaminate:
        """Itself with full paths; DatasetError that names the first set that is not there."""
        sets = []
        for one in self.sets:
            path = absolute(one.pictures)
            if not list(pieces_of(path)):
                raise DatasetError(f"decontaminate.sets.{one.name}: {path}: expected pictures, found none")
            vectors = None if one.embeddings is None else absolute(one.embeddings)
            if vectors is not None:
                check_table(vectors, self._vector_schema)
            sets.append(one.model_copy(update={"pictures": path, "embeddings": vectors}))
        return self.model_copy(update={"sets": tuple(sets)})

    @property
    def _vector_schema(self) -> pa.Schema:
        return pa.schema([pa.field(self.embedding or "", pa.list_(pa.float32()))])

    def vectors(self, one: EvaluationPictures) -> npt.NDArray[np.float32] | None:
        """(pictures, width): the unit vectors of a set, None where it has none."""
        if one.embeddings is None or self.embedding is None:
            return None
        return unit_vectors(all_rows(one.embeddings, self._vector_schema)[self.embedding])


@dataclass(frozen=True)
class Piece:
    """Some pictures of a set, for a task to look at."""

    path: str
    files: tuple[str, ...] = ()
    """Picture files below the path; none: the path is a parquet file."""
    group: int = 0
    """Row group of the parquet file."""


def pieces_of(path: str) -> Iterator[Piece]:
    """The pieces of a set's pictures, in order; DatasetError where a table has no column `image`."""
    place = folder(path)
    if place.exists(MANIFEST):  # beside its shards lie a ledger and a snapshot
        names = [shard.path for shard in read_manifest(path).shards]
    else:
        names = [""] if path.endswith(".parquet") and place.exists() else place.names()
    tables = [place.join(name) for name in names if path.endswith(".parquet") or name.endswith(".parquet")]
    for table in tables:
        yield from (Piece(table, group=group) for group in range(_groups_with_pictures(table)))
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    for start in range(0, len(pictures), _FILES_A_PIECE):
        yield Piece(path, tuple(pictures[start : start + _FILES_A_PIECE]))


def _groups_with_pictures(table: str) -> int:
    with folder(table).open("") as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{table}: expected a parquet table: {str(error).splitlines()[0]}") from None
        if "image" not in parquet.schema_arrow.names:
            raise DatasetError(f"{table}: expected a column image, found {', '.join(parquet.schema_arrow.names)}")
        return int(parquet.metadata.num_row_groups)


def looks_of(piece: Piece) -> tuple[pa.Table, int]:
    """(name, hash, thumbnail) of the pictures that can be read, and how many cannot."""
    found, broken = [], 0
    for name, content in _contents(piece):
        try:
            found.append((name, *look(content)))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError):
            broken += 1
    names, hashes, thumbnails = zip(*found, strict=True) if found else ((), (), ())
    columns = {
        "name": pa.array(names, pa.string()),
        "hash": pa.array(hashes, pa.uint64()),
        "thumbnail": pa.array(thumbnails, pa.binary(LOOK_BYTES)),
    }
    return pa.table(columns), broken


def _contents(piece: Piece) -> Iterator[tuple[str, bytes]]:
    if piece.files:
        place = Folder(piece.path)
        yield from ((name, place.read_bytes(name)) for name in piece.files)
        return
    with folder(piece.path).open("") as file:
        table = pq.ParquetFile(file).read_row_group(piece.group, columns=["image"], use_threads=False)
    images = table["image"].to_pylist()
    label = f"{PurePosixPath(piece.path).name}/{piece.group}"
    yield from (
        (f"{label}/{at}", image["bytes"] if isinstance(image, dict) else image) for at, image in enumerate(images)
    )


@dataclass(frozen=True)
class Evaluated:
    """All that tasks need to know of the evaluation sets."""

    looks: pa.Table
    """(set, name, hash, thumbnail) of every picture, set after set."""
    vectors: tuple[tuple[str, npt.NDArray[np.float32]], ...] = ()
    """Set and its unit vectors (pictures, width)."""


def pair_columns(settings: Decontaminate) -> tuple[str, ...]:
    """What `contaminated` reads of a pair."""
    vector = () if settings.embedding is None else (settings.embedding,)
    return ("pair_id", "original_width", "original_height", "hash", "thumbnail", *vector)


def contaminated(pairs: pa.Table, settings: Decontaminate, evaluated: Evaluated) -> pa.Table:
    """The pairs that are in an evaluation set, as REFUSED: `in_NAME`, and the picture that they are."""
    reasons = np.full(pairs.num_rows, None, object)
    details = np.full(pairs.num_rows, None, object)
    for at, of in _look_the_same(pairs, settings, evaluated.looks):
        reasons[at], details[at] = f"in_{evaluated.looks['set'][of].as_py()}", evaluated.looks["name"][of].as_py()
    for name, vectors in evaluated.vectors:
        assert settings.embedding is not None, "a set has vectors, so the pairs' column is named"
        for at, of, cosine in _mean_the_same(pairs[settings.embedding], vectors, settings.min_cosine):
            if reasons[at] is None:
                reasons[at], details[at] = f"in_{name}", f"vector {of}, cosine {cosine:.3f}"
    out = np.flatnonzero(reasons != None)  # noqa: E711  # elementwise
    columns = {
        "row": pairs["row"].take(out),
        "reason": pa.array(reasons[out], pa.string()),
        "detail": pa.array(details[out], pa.string()),
        "of": pa.nulls(len(out), pa.int64()),
    }
    return pa.table(columns).cast(REFUSED)


def _look_the_same(pairs: pa.Table, settings: Decontaminate, looks: pa.Table) -> Iterator[tuple[int, int]]:
    """Place of a pair and of the first evaluation picture that it looks like."""
    both = pa.concat_tables([_as_pairs(looks, 0), _as_pairs(pairs, looks.num_rows)])
    keys = look_keys(both, settings.near)
    place = np.asarray(keys["rank"], np.uint64)
    # Evaluation pictures come before all pairs: the best that a pair is alike to is one of them, if any is.
    asking = Among(np.arange(looks.num_rows, both.num_rows).astype(np.uint64), np.empty(0, np.uint64))
    theirs = np.unique(np.asarray(keys["key"])[place < looks.num_rows])
    keys = keys.filter(pa.array(np.isin(np.asarray(keys["key"]), theirs)))
    found: dict[int, int] = {}
    for edge in best_alike(keys, lambda rows: LooksAlike(rows, settings.near), asking):
        pair, best = int(edge["rank"]) - looks.num_rows, int(edge["best"])
        if best < looks.num_rows:
            found[pair] = min(best, found.get(pair, best))
    yield from sorted(found.items())


def _as_pairs(rows: pa.Table, first: int) -> pa.Table:
    """Rows for `look_keys`, ranked by their place alone."""
    count = rows.num_rows
    columns = {
        "row": pa.array(np.arange(first, first + count)),
        "pair_id": pa.array([f"{number:016x}" for number in range(first, first + count)], pa.string()),
        "original_width": pa.array(np.full(count, 1 << 20)),
        "original_height": pa.array(np.full(count, 1 << 20)),
        "hash": rows["hash"].combine_chunks(),
        "thumbnail": rows["thumbnail"].combine_chunks(),
    }
    return pa.table(columns)


def unit_vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """(rows, width) of a column of lists, each divided by its length; a row of zeros where there is none or no number.

    DatasetError where lists are not of one length.
    """
    lists = column.combine_chunks()
    given = lists.drop_null()
    widths = np.unique(pc.list_value_length(given)).tolist() or [1]
    if len(widths) > 1:
        raise DatasetError(f"decontaminate.embedding: expected vectors of one width, found {widths[0]} and {widths[1]}")
    found = np.zeros((len(lists), widths[0]), np.float32)
    found[np.asarray(lists.is_valid())] = given.flatten().to_numpy(zero_copy_only=False).reshape(-1, widths[0])
    found[~np.isfinite(found).all(axis=1)] = 0  # beside a NaN no other vector would ever be the nearest
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12).astype(np.float32))


def _mean_the_same(
    column: pa.ChunkedArray, vectors: npt.NDArray[np.float32], min_cosine: float
) -> Iterator[tuple[int, int, float]]:
    """Place of a pair, the vector that it is nearest to, and their cosine, from `min_cosine` on."""
    ours = unit_vectors(column)
    if column.null_count == len(column):
        return
    if ours.shape[1] != vectors.shape[1]:
        widths = f"{ours.shape[1]} and {vectors.shape[1]}"
        raise DatasetError(f"decontaminate.embedding: expected vectors of one width, found {widths} of pairs and set")
    for start in range(0, len(ours), _BLOCK):
        best, greatest = _nearest(ours[start : start + _BLOCK], vectors)
        for at in np.flatnonzero(greatest >= min_cosine):
            yield start + int(at), int(best[at]), float(greatest[at])


def _nearest(
    ours: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    best, greatest = np.zeros(len(ours), np.int64), np.full(len(ours), -2, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        cosines = ours @ vectors[start : start + _BLOCK].T
        at = cosines.argmax(axis=1)
        higher = cosines[np.arange(len(ours)), at] > greatest
        best[higher] = start + at[higher]
        greatest[higher] = cosines[np.arange(len(ours)), at][higher]
    return best, greatest


def joined_looks(sets: Sequence[tuple[str, Sequence[pa.Table]]]) -> pa.Table:
    """The looks of all sets as `Evaluated.looks` has them."""
    parts = [
        table.add_column(0, "set", pa.repeat(pa.scalar(name), table.num_rows))
        for name, tables in sets
        for table in tables
    ]
    return pa.concat_tables(parts).combine_chunks()
