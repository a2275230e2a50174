"""Pictures and labels in the columns of parquet files, as dataset hubs convert published sets: one row a picture."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hiclip.evaluation.retrieval import IntArray
from hiclip.evaluation.set_pictures import NOT_THERE
from pipeline.manifest import DatasetError
from pipeline.storage import Folder


@dataclass(frozen=True)
class ParquetPictures:
    """Rows of parquet files whose picture column is encoded bytes, or a struct with a field `bytes`."""

    root: Folder
    files: tuple[str, ...]
    column: str
    places: IntArray
    """(N, 3): which file, its row group, row in that."""

    def __len__(self) -> int:
        return len(self.places)

    def names(self) -> Sequence[str]:
        """(N,) file, row group and row."""
        return [f"{self.files[file]}/{group}/{row}" for file, group, row in self.places.tolist()]

    def state(self) -> str:
        """Of the files."""
        return self.root.state(self.files)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The stored pictures; each row group is read once for neighbours."""
        found: list[bytes] = []
        for (file, group), part in itertools.groupby(rows, key=lambda row: tuple(self.places[row, :2].tolist())):
            with self.root.open(self.files[file]) as opened:
                column = pq.ParquetFile(opened).read_row_group(group, columns=[self.column]).column(self.column)
            images = column.combine_chunks()
            images = images.field("bytes") if pa.types.is_struct(images.type) else images
            found += [images[int(self.places[row, 2])].as_py() or NOT_THERE for row in part]
        return found


def parquet_files(place: Folder, split: str) -> list[str]:
    """The files of a split below a folder: those whose name is the split's, or begins with it and a dash."""
    names = re.compile(rf"{split}(-[^/]*)?\.parquet")
    return [name for name in place.names(suffix=".parquet") if names.fullmatch(name.rsplit("/", 1)[-1])]


def read_labelled_parquet(
    place: Folder, files: Sequence[str], image_columns: Sequence[str], label_columns: Sequence[str], keys: Sequence[str]
) -> tuple[ParquetPictures, list[int]]:
    """N pictures and (N,) labels; of the columns' names the first that a file has.

    DatasetError if a column is missing, or if the file says its labels mean other classes than `keys`.
    """
    places, labels, image = list[tuple[int, int, int]](), list[int](), ""
    for number, file in enumerate(files):
        path = place.join(file)
        try:
            with place.open(file) as opened:
                parquet = pq.ParquetFile(opened)
                schema = parquet.schema_arrow
                image, label = _column(schema, image_columns, path), _column(schema, label_columns, path)
                _check_names(schema, label, keys, path)
                column = parquet.read(columns=[label]).column(label)
                groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        except pa.ArrowException as error:
            raise DatasetError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
        if not pa.types.is_integer(column.type) or column.null_count:
            raise DatasetError(f"{path}: expected whole numbers in '{label}', came {column.type} or nothing")
        labels += column.to_pylist()
        places += [(number, group, row) for group, rows in enumerate(groups) for row in range(rows)]
    return ParquetPictures(place, tuple(files), image, np.array(places, dtype=np.int64).reshape(-1, 3)), labels


def _column(schema: pa.Schema, names: Sequence[str], path: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DatasetError(f"{path}: expected a column {' or '.join(names)}, came {', '.join(schema.names)}")


def _check_names(schema: pa.Schema, label: str, keys: Sequence[str], path: str) -> None:
    """Files of Hugging Face say what their labels mean: another order is an error, another spelling is none.

    Its CIFAR-100 calls the class 26 'cra'.
    """
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = [str(name) for name in said["info"]["features"][label]["names"]]
    except (ValueError, LookupError, TypeError):
        return  # it says nothing that can be compared
    if len(names) != len(keys):
        raise DatasetError(f"{path}: expected {len(keys)} label names, came {len(names)}")
    for key, name in zip(keys, names, strict=True):
        if name != key and name in keys:
            raise DatasetError(f"{path}: expected '{key}' where the published labels have it, came '{name}'")
