"""Columns about a dataset from a checkpoint: parquet parts by pair_id, for `joined_columns` of a later build to read.

A part is a run of whole row groups of the dataset, so its rows and its batches follow from the job and never from how
many share the work. A task makes one part, a row group in memory at a time, and writes it itself: nothing but counts
comes back, and what a finished part holds is not computed again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.embed import Embedder, Vectors, picture_vectors, text_vectors
from hiclip.evaluation.evaluate_job import ColumnName, ColumnsSettings, EvaluateJob
from hiclip.evaluation.evaluated_model import EvaluatedModel
from hiclip.model.sizes import resolve
from pipeline.jobfile import JobError, Settings
from pipeline.manifest import UNFINISHED, DatasetError, Manifest, read_manifest
from pipeline.shards import DatasetReader
from pipeline.storage import Folder, absolute, folder

COLUMNS = "columns.json"
"""Written last: a folder with it is whole."""
_ROWS_PER_GROUP = 1_000  # of a part: few enough to be read for a few keys, many enough for short footers
log = logging.getLogger(__name__)

_ID_BYTES = 16  # of a pair_id


class ColumnsOrigin(Settings):
    """All that the values of a folder of columns follow from."""

    checkpoint: str
    """Where the model lay; it may be moved."""
    weights: str
    """Hex sha256 of the file of the weights."""
    dataset_fingerprint: str
    adds: tuple[ColumnName, ...]
    pairs_per_part: int
    batch: int
    precision: str
    centre_crop: float


class WrittenColumns(ColumnsOrigin):
    """What `columns.json` says of the finished parts beside it."""

    to: str
    """The folder."""
    rows: int
    """One for each pair of the dataset."""
    broken: int
    """Rows of nulls, whose picture cannot be read."""
    parts: int
    bytes: int
    """Of all parts."""


@dataclass(frozen=True)
class AskedColumns:
    """The columns that a job asks for, checked against its dataset and against what lies in their folder."""

    settings: ColumnsSettings
    manifest: Manifest
    origin: ColumnsOrigin
    embedding: int
    """Numbers of a vector."""
    written: WrittenColumns | None
    """What was finished before."""

    @property
    def to(self) -> Folder:
        """Where the parts go."""
        return folder(self.settings.to)

    @property
    def groups_per_part(self) -> int:
        """Row groups of the dataset behind every part but the last."""
        return -(-self.settings.pairs_per_part // self.manifest.rows_per_group)

    @property
    def parts(self) -> int:
        """Parts of the whole."""
        return -(-self.manifest.pairs // (self.groups_per_part * self.manifest.rows_per_group))

    @property
    def about_bytes(self) -> int:
        """Bytes of all parts before compression."""
        sizes = {"clip_score": 4, "embedding": 4 * self.embedding}
        return self.manifest.pairs * (_ID_BYTES + sum(sizes[name] for name in self.settings.adds))


def ask_columns(job: EvaluateJob, model: EvaluatedModel) -> AskedColumns | None:
    """The columns of a job, None if it asks for none.

    DatasetError if the dataset is not there; JobError if other columns lie in their folder.
    """
    settings = job.columns
    if settings is None:
        return None
    manifest = read_manifest(settings.dataset)
    missing = [name for name in ("pair_id", "caption", "image") if name not in manifest.columns]
    if missing:
        raise DatasetError(f"{settings.dataset}: expected a column {missing[0]}, found {', '.join(manifest.columns)}")
    origin = ColumnsOrigin(
        checkpoint=model.root,
        weights=model.weights,
        dataset_fingerprint=manifest.fingerprint,
        adds=settings.adds,
        pairs_per_part=settings.pairs_per_part,
        batch=job.batch,
        precision=job.precision,
        centre_crop=job.centre_crop,
    )
    asked = AskedColumns(settings, manifest, origin, resolve(model.settings).embedding, None)
    return replace(asked, written=_found(asked))


def write_columns(asked: AskedColumns, embedder: Embedder, map_blocks: MapBlocks) -> WrittenColumns:
    """Makes the parts that are not there yet, columns.json last; what was finished before is taken as it is."""
    if asked.written is not None:
        return asked.written
    to = asked.to.make()
    to.write_text(UNFINISHED, asked.origin.model_dump_json(indent=1) + "\n")
    maker = _Maker(embedder, asked, absolute(asked.settings.dataset), to)
    parts = list(map_blocks(_part, maker, range(asked.parts), "parts of columns"))
    written = WrittenColumns(
        **asked.origin.model_dump(),
        to=to.root,
        rows=sum(part.rows for part in parts),
        broken=sum(part.broken for part in parts),
        parts=len(parts),
        bytes=sum(part.bytes for part in parts),
    )
    to.write_text(COLUMNS, written.model_dump_json(indent=1) + "\n")
    to.remove(UNFINISHED)
    return written


def part_name(number: int) -> str:
    """Name of a part in its folder; the names sort as the rows of the dataset do."""
    return f"part-{number:05d}.parquet"


def _found(asked: AskedColumns) -> WrittenColumns | None:
    """What columns.json says, if all parts are there. JobError if anything lies there that this job would not make."""
    to = asked.to
    names = set(to.names())
    expected = {part_name(number) for number in range(asked.parts)}
    record: ColumnsOrigin | None = None
    try:
        if COLUMNS in names:
            record = WrittenColumns.model_validate_json(to.read_text(COLUMNS))
        elif UNFINISHED in names:
            record = ColumnsOrigin.model_validate_json(to.read_text(UNFINISHED))
    except ValidationError:
        raise JobError(f"columns.to: expected an empty folder or columns of this job, came {to.root}, whose record "
                       "cannot be read") from None  # fmt: skip
    if record is not None:
        came, wanted = record.model_dump(), asked.origin.model_dump(exclude={"checkpoint"})
        for name, value in wanted.items():
            if came[name] != value:
                raise JobError(
                    f"columns.to: expected an empty folder or columns of this job ({name} {_short(value)}), came "
                    f"{to.root} with those of {record.checkpoint} ({name} {_short(came[name])})"
                )
    others = {name for name in names if name.endswith(".parquet")} - (expected if record is not None else set())
    if others:
        raise JobError(
            f"columns.to: expected an empty folder or columns of this job, came {to.root}, where {min(others)} is none"
        )
    return record if isinstance(record, WrittenColumns) and expected <= names else None


def _short(value: object) -> str:
    if isinstance(value, str):
        return value[:16]
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Part(NamedTuple):
    rows: int
    broken: int
    bytes: int


@dataclass(frozen=True)
class _Maker:
    """What the tasks share."""

    embedder: Embedder
    asked: AskedColumns
    dataset: str
    to: Folder


def _part(maker: _Maker, number: int) -> _Part:
    """Makes a part unless it is there and can be read, and counts it."""
    name = part_name(number)
    footer = _footer(maker.to, name)
    if footer is None:
        table = _table(maker, number)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, compression="zstd", use_dictionary=False)
        maker.to.write_bytes(name, buffer.getvalue())
        buffer.seek(0)
        footer = pq.ParquetFile(buffer).metadata
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    # A row without one of the columns is without all of them; a null list counts as one null number.
    broken = sum(group.column(1).statistics.null_count for group in groups)
    return _Part(footer.num_rows, broken, maker.to.size(name))


def _footer(to: Folder, name: str) -> pq.FileMetaData | None:
    """What a part says of itself; None if it is not there, or damaged."""
    if not to.exists(name):
        return None
    try:
        with to.open(name) as file:
            return pq.ParquetFile(file).metadata
    except pa.ArrowInvalid as error:
        log.warning("%s is damaged and made again: %s", to.join(name), str(error).splitlines()[0])
        return None


def _table(maker: _Maker, number: int) -> pa.Table:
    """The rows of a part: pair_id and the columns asked for, in the dataset's order."""
    adds = maker.asked.settings.adds
    columns = ["pair_id", "image", *(["caption"] if "clip_score" in adds else [])]
    ids: list[str] = []
    scores: list[Vectors] = []
    embeddings: list[Vectors] = []
    for rows in _batches(maker, number, columns):
        ids += rows["pair_id"].to_pylist()
        pictures = picture_vectors(maker.embedder, rows["image"].to_pylist())
        if "clip_score" in adds:
            scores.append((pictures * text_vectors(maker.embedder, rows["caption"].to_pylist())).sum(axis=1))
        if "embedding" in adds:
            embeddings.append(pictures)
    made: dict[str, pa.Array] = {"pair_id": pa.array(ids, pa.string())}
    for name in adds:
        if name == "clip_score":
            made[name] = pa.array(np.concatenate(scores), pa.float32(), from_pandas=True)
        else:
            made[name] = _lists(np.concatenate(embeddings))
    return pa.table(made)


def _batches(maker: _Maker, number: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The pairs of a part in batches that run across row groups; at most one batch and one row group are in memory."""
    reader = DatasetReader(maker.dataset, maker.asked.manifest)
    size, step = maker.asked.origin.batch, maker.asked.groups_per_part
    waiting: pa.Table | None = None
    for group in range(number * step, min((number + 1) * step, reader.groups)):
        rows = reader.read_group(group, columns)
        waiting = rows if waiting is None else pa.concat_tables([waiting, rows])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    if waiting is not None and waiting.num_rows:
        yield waiting


def _lists(vectors: Vectors) -> pa.Array:
    """(N, E) -> N lists of float32; null for a row of NaN."""
    known = ~np.isnan(vectors[:, 0])
    lengths = np.where(known, vectors.shape[1], 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(vectors[known].ravel(), pa.float32()), mask=pa.array(~known)
    )
