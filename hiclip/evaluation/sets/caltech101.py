"""Caltech 101: a folder of pictures a category, `101_ObjectCategories/NAME/image_0001.jpg`; also below `caltech-101`.

`BACKGROUND_Google` is kept as a class, because CLIP's 102 names begin with 'background' and its paper counts 102
classes; papers that leave it out count 101 and their numbers differ. No list of CLIP's split is published, only its
sizes: 30 pictures a class to train on and all others as the test. So are they here, but drawn by hash of their names.
"""

from __future__ import annotations

from itertools import groupby
from typing import Literal

from hiclip.evaluation.evaluation_set import EvaluationSet, drawn
from hiclip.evaluation.set_pictures import FilePictures
from hiclip.evaluation.sets.labelled_files import PublishedSetSettings, Split, check_keys, labelled_set, unpacked
from pipeline.manifest import DatasetError

FOLDER = "101_ObjectCategories"
TRAINING = 30
"""Pictures a class that are trained on."""


class Caltech101Settings(PublishedSetSettings):
    """Keys of the set `caltech101`."""

    name: Literal["caltech101"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when it is missing or has a folder that is no class."""
        place = unpacked(self, FOLDER, "caltech-101", "caltech101").child(FOLDER)
        found = [name for name in place.names(suffix=".jpg") if not name.rsplit("/", 1)[-1].startswith(".")]
        if not found:
            raise DatasetError(f"{place.root}: the evaluation set {self.name} is not there")
        check_keys(self, map(_category, found), place.root)
        files: list[str] = []
        for _, of_class in groupby(found, key=_category):
            names = list(of_class)
            training = set(drawn(names, TRAINING, key="caltech101 train"))
            files += [name for row, name in enumerate(names) if (row in training) == (split == "train")]
        pictures = FilePictures(place, tuple(files))
        return labelled_set(self, split, pictures, [_category(file) for file in files], place.root, "mean_per_class")


def _category(file: str) -> str:
    return file.rsplit("/", 1)[0]
