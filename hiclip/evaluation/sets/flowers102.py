"""Oxford Flowers 102: `jpg/image_00001.jpg`, `imagelabels.mat` and `setid.mat`.

A label is a number from 1; no published file says which flower it is, so the order of the names is CLIP's. `setid.mat`
lists 6,149 pictures as the test; CLIP's linear probe trains on its two other parts together.
"""

from __future__ import annotations

from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    keys_by_number,
    labelled_set,
    picture_files,
    published_classes,
    unpacked,
)
from hiclip.evaluation.sets.matlab_file import MatlabFile

LABELS = "imagelabels.mat"
SPLITS = "setid.mat"
PARTS: dict[Split, tuple[str, ...]] = {"test": ("tstid",), "train": ("trnid", "valid")}


class Flowers102Settings(PublishedSetSettings):
    """Keys of the set `flowers102`."""

    name: Literal["flowers102"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a file of it is missing or not what it should be."""
        place = unpacked(self, LABELS, "flowers-102", "flowers102")
        labels, parts = MatlabFile(place, LABELS), MatlabFile(place, SPLITS)
        numbers = [number for part in PARTS[split] for number in parts.numbers(part)]
        classes = list(published_classes(self.name).classes)
        of_picture = keys_by_number(labels.numbers("labels"), classes, 1, labels.path)
        keys = keys_by_number(numbers, of_picture, 1, parts.path)
        pictures = picture_files(self, place, [f"jpg/image_{number:05d}.jpg" for number in numbers])
        return labelled_set(self, split, pictures, keys, parts.path, "mean_per_class")
