"""FGVC Aircraft, its 100 variants: `data/images/0034309.jpg` and `data/images_variant_test.txt`."""

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

LISTS: dict[Split, str] = {"test": "data/images_variant_test.txt", "train": "data/images_variant_trainval.txt"}


class FgvcAircraftSettings(PublishedSetSettings):
    """Keys of the set `fgvc_aircraft`."""

    name: Literal["fgvc_aircraft"]

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when a list of it is missing or names another variant."""
        place = unpacked(self, LISTS[split], "fgvc-aircraft-2013b")
        listed = place.join(LISTS[split])
        lines = [parted(line, listed, " ") for line in lines_of(self, place, LISTS[split])]
        pictures = picture_files(self, place, [f"data/images/{number}.jpg" for number, _ in lines])
        return labelled_set(self, split, pictures, [variant for _, variant in lines], listed, "mean_per_class")
