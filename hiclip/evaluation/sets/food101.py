"""Food-101: `images/apple_pie/1005649.jpg`, `meta/classes.txt` and `meta/test.txt`."""

from __future__ import annotations

from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    check_keys,
    labelled_set,
    lines_of,
    parted,
    picture_files,
    unpacked,
)

CLASSES = "meta/classes.txt"


class Food101Settings(PublishedSetSettings):
    """Keys of the set `food101`."""

    name: Literal["food101"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a list of it is missing or names another class."""
        place = unpacked(self, CLASSES, "food-101")
        check_keys(self, lines_of(self, place, CLASSES), place.join(CLASSES))
        listed = place.join(f"meta/{split}.txt")
        lines = lines_of(self, place, f"meta/{split}.txt")
        keys = [parted(line, listed, "/")[0] for line in lines]
        pictures = picture_files(self, place, [f"images/{line}.jpg" for line in lines])
        return labelled_set(self, split, pictures, keys, listed)
