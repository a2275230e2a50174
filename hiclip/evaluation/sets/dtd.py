"""Describable Textures: `images/banded/banded_0001.jpg` and `labels/test1.txt`, the first of ten published splits."""

from __future__ import annotations

from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    labelled_set,
    lines_of,
    parted,
    picture_files,
    unpacked,
)

LISTS: dict[Split, tuple[str, ...]] = {
    "test": ("labels/test1.txt",),
    "train": ("labels/train1.txt", "labels/val1.txt"),
}


class DtdSettings(PublishedSetSettings):
    """Keys of the set `dtd`."""

    name: Literal["dtd"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a list of it is missing or names another class."""
        place = unpacked(self, LISTS[split][0], "dtd")
        lines = [line for part in LISTS[split] for line in lines_of(self, place, part)]
        listed = place.join(LISTS[split][0])
        keys = [parted(line, listed, "/")[0] for line in lines]
        pictures = picture_files(self, place, [f"images/{line}" for line in lines])
        return labelled_set(self, split, pictures, keys, listed)
