"""Stanford Cars: 196 makes, models and years, 8,041 test pictures.

`cars_test/`, `cars_train/`, `devkit/` (cars_meta.mat, cars_train_annos.mat) and `cars_test_annos_withlabels.mat`,
beside the devkit or in it. A label is a number from 1 in the order of `class_names` in cars_meta.mat.
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
    picture_files,
    unpacked,
)
from hiclip.evaluation.sets.matlab_file import MatlabFile

META = "devkit/cars_meta.mat"
TEST = "cars_test_annos_withlabels.mat"
TRAIN = "devkit/cars_train_annos.mat"


class StanfordCarsSettings(PublishedSetSettings):
    """Keys of the set `stanford_cars`."""

    name: Literal["stanford_cars"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a file of it is missing or not what it should be."""
        place = unpacked(self, META, "stanford_cars")
        meta = MatlabFile(place, META)
        classes = [" ".join(name.split()) for name in meta.texts("class_names")]
        check_keys(self, classes, meta.path)
        beside = TEST if place.exists(TEST) else f"devkit/{TEST}"
        listed = MatlabFile(place, beside if split == "test" else TRAIN)
        numbers, files = listed.records("annotations", number="class", text="fname")
        keys = keys_by_number(numbers, classes, 1, listed.path)
        return labelled_set(
            self, split, picture_files(self, place, [f"cars_{split}/{file}" for file in files]), keys, listed.path
        )
