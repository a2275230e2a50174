"""Oxford-IIIT Pets: `images/Abyssinian_201.jpg` and `annotations/test.txt` with a number from 1 beside each name.

The breed is in the picture's name and in its number; both are read, and must be the same.
"""

from __future__ import annotations

from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.labelled_files import (
    PublishedSetSettings,
    Split,
    check_keys,
    keys_by_number,
    labelled_set,
    lines_of,
    parted,
    picture_files,
    published_classes,
    unpacked,
)
from pipeline.manifest import DatasetError

LISTS: dict[Split, str] = {"test": "annotations/test.txt", "train": "annotations/trainval.txt"}


class OxfordPetsSettings(PublishedSetSettings):
    """Keys of the set `oxford_pets`."""

    name: Literal["oxford_pets"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a list of it is missing, or its names and numbers say different breeds."""
        place = unpacked(self, LISTS[split], "oxford-iiit-pet")
        listed = place.join(LISTS[split])
        lines = [parted(line, listed, " ") for line in lines_of(self, place, LISTS[split])]
        keys = [name.rpartition("_")[0] for name, _ in lines]
        check_keys(self, keys, listed)
        numbers = [_number(rest.split()[0], listed) for _, rest in lines]
        by_number = keys_by_number(numbers, list(published_classes(self.name).classes), 1, listed)
        for (name, _), key, other in zip(lines, keys, by_number, strict=True):
            if key != other:
                raise DatasetError(f"{listed}: expected {name} with the number of {key}, came that of {other}")
        pictures = picture_files(self, place, [f"images/{name}.jpg" for name, _ in lines])
        return labelled_set(self, split, pictures, keys, listed, "mean_per_class")


def _number(text: str, listed: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise DatasetError(f"{listed}: expected a number behind each name, came '{text[:40]}'")
    return int(text)
