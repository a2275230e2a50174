"""Rows that have something in common meet in one task, whichever task had read them: an exchange through files.

A task that reads writes one Arrow file with a record batch for every bucket; a task that decides reads its bucket's
batch of every file. Memory is one task's rows, files are as many as the tasks that read, and a task that is killed is
done again: its file is replaced by an equal one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage import Folder

_READ_AT_ONCE = 8  # on s3:// a read is mostly waiting


def bucket_file(number: int) -> str:
    """The file that task `number` of an exchange writes."""
    return f"{number:05d}.arrow"


def write_buckets(place: Folder, number: int, rows: pa.Table, bucket: npt.NDArray[np.int64], buckets: int) -> None:
    """Writes `rows` as file `number` of the exchange at `place`; bucket (rows,) says in which bucket each row is.

    Within a bucket rows keep their order.
    """
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    whole = _one_batch(rows.take(order))
    content = io.BytesIO()
    with pa.ipc.new_file(content, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        for begin, end in zip([0, *ends], ends, strict=False):
            file.write_batch(whole.slice(begin, end - begin))
    place.write_bytes(bucket_file(number), content.getvalue())


def read_bucket(place: Folder, files: Sequence[int], bucket: int) -> pa.Table:
    """All rows of one bucket, in the order of `files`."""

    def batch(number: int) -> pa.RecordBatch:
        with place.open(bucket_file(number)) as file:
            return pa.ipc.open_file(file).get_batch(bucket)

    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        return pa.Table.from_batches(list(threads.map(batch, files)))


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
