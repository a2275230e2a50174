"""CIFAR-10 and CIFAR-100: 10,000 test pictures of 32 x 32 pixels, in published pickles or in parquet files.

`cifar-10-batches-py/` (test_batch, data_batch_1 to 5, batches.meta) or `cifar-100-python/` (test, train, meta), which
are taken if they are there; else `test-*.parquet` with `img` or `image`, and `label` or `fine_label`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.cifar_batches import BatchPictures, read_batch, read_names
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    check_keys,
    keys_by_number,
    labelled_set,
    published_classes,
)
from hiclip.evaluation.sets.labelled_parquet import parquet_files, read_labelled_parquet
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder


@dataclass(frozen=True)
class _Layout:
    """How one of the two is published."""

    archive: str
    files: dict[Split, tuple[str, ...]]
    labels: str
    meta: str
    names: str


_CIFAR10 = _Layout(
    "cifar-10-batches-py",
    {"test": ("test_batch",), "train": tuple(f"data_batch_{number}" for number in range(1, 6))},
    "labels",
    "batches.meta",
    "label_names",
)
_CIFAR100 = _Layout(
    "cifar-100-python", {"test": ("test",), "train": ("train",)}, "fine_labels", "meta", "fine_label_names"
)


class Cifar10Settings(PublishedSetSettings):
    """Keys of the set `cifar10`."""

    name: Literal["cifar10"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a file of it is missing or not what it should be."""
        return _load(self, split, _CIFAR10, ("label",))


class Cifar100Settings(PublishedSetSettings):
    """Keys of the set `cifar100`, by its 100 fine labels."""

    name: Literal["cifar100"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a file of it is missing or not what it should be."""
        return _load(self, split, _CIFAR100, ("fine_label", "label"))


def _load(settings: PublishedSetSettings, split: Split, layout: _Layout, labels: tuple[str, ...]) -> EvaluationSet:
    root = folder(settings.root)
    for place in (root.child(layout.archive), root):
        if place.exists(layout.meta):
            return _batches(settings, split, layout, place)
    files = parquet_files(root, split)
    if not files:
        looked_for = root.join(f"{layout.archive}/{layout.meta}")
        raise DatasetError(f"{looked_for}: the evaluation set {settings.name} is not there, nor {split}-*.parquet")
    keys = list(published_classes(settings.name).classes)
    pictures, numbers = read_labelled_parquet(root, files, ("img", "image"), labels, keys)
    listed = root.join(files[0])
    return labelled_set(settings, split, pictures, keys_by_number(numbers, keys, 0, listed), listed)


def _batches(settings: PublishedSetSettings, split: Split, layout: _Layout, place: Folder) -> EvaluationSet:
    names = read_names(place, layout.meta, layout.names)
    check_keys(settings, names, place.join(layout.meta))
    keys, counts = list[str](), list[int]()
    for file in layout.files[split]:
        batch = read_batch(place, file, layout.labels)
        keys += keys_by_number(batch.labels, names, 0, place.join(file))
        counts.append(len(batch.labels))
    pictures = BatchPictures(place, layout.files[split], tuple(counts), layout.labels)
    return labelled_set(settings, split, pictures, keys, place.join(layout.files[split][0]))
