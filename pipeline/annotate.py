"""Annotations of a snapshot: one Ray Data stream over its shards, a stage an annotation with resources of its own.

What an annotation says of a shard is a file beside the snapshot, named by the annotation's version and settings:
another job over the same snapshot, or this one after it was killed, computes only what is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from pipeline.annotation_columns import Annotated, annotated, annotation_file, annotation_files
from pipeline.annotations import Annotation
from pipeline.progress import Advance
from pipeline.snapshot import read_snapshot_shard
from pipeline.storage import Folder


def annotate(snapshot: Folder, shards: Sequence[int], annotations: Sequence[Annotation], done: Advance) -> None:
    """Writes the columns of every annotation for every shard (number -> rows in `shards`) where they are missing."""
    by_shard = annotation_files(frozenset(snapshot.names("annotations/")))
    missing: dict[int, frozenset[str]] = {}
    places = [annotated(one) for one in annotations]
    for number, rows in enumerate(shards):
        there = set(by_shard.get(number, ()))
        lacks = frozenset(one.folder for one in places if annotation_file(one.folder, number) not in there)
        if lacks:
            missing[number] = lacks
        else:
            done(rows, from_before=True)
    if not missing:
        return
    reads = sorted({"pair_id", *(column for one in annotations for column in one.reads)})
    stream = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
    context = stream.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    # batch_size=None: whole blocks, each a snapshot shard, so that neighbouring stages run in one task without a copy.
    stream = stream.map_batches(_Reading(snapshot, reads), batch_format="pyarrow", batch_size=1)
    for annotation, place in zip(annotations, places, strict=True):
        lacking = frozenset(number for number, lacks in missing.items() if place.folder in lacks)
        stream = _staged(stream, annotation, _Writing(annotation, snapshot, place, lacking))
    stream = stream.map_batches(_only_number, batch_format="pyarrow", batch_size=None)
    for block in stream.iter_batches(batch_format="pyarrow", batch_size=None):
        for number in block["shard"].to_pylist():
            done(shards[number])


def _staged(stream: Any, annotation: Annotation, stage: _Writing) -> Any:
    wanted = annotation.resources
    options: dict[str, Any] = {"num_cpus": wanted.cpus, "batch_format": "pyarrow", "batch_size": None}
    if wanted.gpus:
        options["num_gpus"] = wanted.gpus
    if wanted.workers is None:
        return stream.map_batches(stage, **options)
    arguments = {"stage": stage}
    return stream.map_batches(_Actor, fn_constructor_kwargs=arguments, concurrency=wanted.workers, **options)


@dataclass(frozen=True)
class _Reading:
    snapshot: Folder
    columns: Sequence[str]

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch["shard"].to_pylist()
        rows = read_snapshot_shard(self.snapshot, number, self.columns)
        return rows.append_column("shard", pa.repeat(pa.scalar(number, pa.int64()), rows.num_rows))


@dataclass(frozen=True)
class _Writing:
    """Computes and writes one annotation of the shard that passes, where it is lacking, and hands the shard on."""

    annotation: Annotation
    snapshot: Folder
    place: Annotated
    lacking: Set[int]

    def __call__(self, rows: pa.Table) -> pa.Table:
        if rows.num_rows and (number := rows["shard"][0].as_py()) in self.lacking:
            self.place.write(self.snapshot, number, self._found(rows))
        return rows

    def _found(self, rows: pa.Table) -> pa.Table:
        """The annotation's columns; null where it would look at a picture and there is none."""
        if "image" not in self.annotation.reads:
            return self.annotation.annotate(rows)
        there = np.asarray(rows["image"].is_valid())
        found = self.annotation.annotate(rows.filter(pa.array(there))).select(self.place.columns.names)
        return found.combine_chunks().take(pa.array(np.cumsum(there) - 1, mask=~there))


class _Actor:
    """A stage in a process of its own, which loads the annotation's model once."""

    def __init__(self, stage: _Writing) -> None:
        self._stage = stage

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self._stage(rows)


def _only_number(rows: pa.Table) -> pa.Table:
    return rows.select(["shard"]).slice(0, 1)
