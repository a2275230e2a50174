"""SUN397: scenes in folders by their path, `SUN397/a/abbey/sun_*.jpg`, with `ClassName.txt` and the partition lists.

CLIP's test is the first of the ten published partitions, `Testing_01.txt`, as its 19,850 pictures say.
"""

from __future__ import annotations

from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    check_keys,
    labelled_set,
    lines_of,
    picture_files,
    unpacked,
)
from pipeline.storage import folder

CLASSES = "ClassName.txt"
LISTS: dict[Split, str] = {"test": "Testing_01.txt", "train": "Training_01.txt"}
PICTURES = "SUN397"


class Sun397Settings(PublishedSetSettings):
    """Keys of the set `sun397`."""

    name: Literal["sun397"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a list of it is missing or names another class."""
        named = unpacked(self, CLASSES, PICTURES, "Partitions")
        check_keys(self, lines_of(self, named, CLASSES), named.join(CLASSES))
        place = unpacked(self, LISTS[split], PICTURES, "Partitions")
        files = [line.lstrip("/") for line in lines_of(self, place, LISTS[split])]
        keys = ["/" + file.rpartition("/")[0] for file in files]
        pictures = picture_files(self, folder(self.root).child(PICTURES), files)
        return labelled_set(self, split, pictures, keys, place.join(LISTS[split]))
