"""ImageNet and the sets that ask for its classes in other pictures: V2, Sketch, A and R.

Every folder is looked up by its name, never by its place in a listing: those of V2 are numbers without zeros in front,
so that "10" comes before "2", and the numbers of ImageNet's own devkit are in another order than its wnids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, questions_fingerprint
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.set_pictures import FilePictures, SetPictures
from hiclip.evaluation.sets.imagenet_classes import imagenet_classes, wordnet_heights
from hiclip.evaluation.sets.matlab_file import MatlabFile
from hiclip.evaluation.sets.prompt_templates import Templates
from hiclip.evaluation.sets.set_files import picture_files, stored_lines, told_published
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

DEVKIT = "ILSVRC2012_devkit_t12/data"
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class _ImagenetFamily(Settings):
    """Keys that all of them have."""

    name: str
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address of the unpacked set."""
    templates: Templates | None = None
    """Prompts of a class, averaged; `{}` stands for its name. Null: CLIP's 80."""

    published: ClassVar[int]
    """Pictures that the whole set has."""

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The set; DatasetError when its files are missing or are not what they should be."""
        if split == "train":
            raise DatasetError(f"{self.name}: expected the split test, came train: the set has no training pictures")
        place, known = folder(self.root), self._folders()
        files = picture_files(place, "", self.name)
        told_published(self.name, len(files), self.published)
        return self._set(place, files, labels_by_folder(place, files, 0, known, self.name))

    def _folders(self) -> dict[str, int]:
        """Folder of each class, and the class's number."""
        return {wnid: number for number, wnid in enumerate(imagenet_classes().wnids_of(self.name))}

    def _set(self, place: Folder, files: Sequence[str], labels: Sequence[int]) -> EvaluationSet:
        classes = imagenet_classes()
        return classified(
            self.name, FilePictures(place, tuple(files)), labels, classes.names_of(self.name), self.templates
        )


class ImagenetSettings(_ImagenetFamily):
    """Keys of the set `imagenet`: the validation pictures of ILSVRC 2012, 50 for each of 1000 classes."""

    name: Literal["imagenet"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address with `val/WNID/*.JPEG`, or with `val/*.JPEG` as unpacked and ILSVRC2012_devkit_t12; and
    `train/WNID/*.JPEG` if a probe is to be trained."""

    published = 50_000

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The validation pictures, or as `train` the training pictures; DatasetError when they are not there."""
        place = folder(self.root)
        below = "val" if split == "test" else "train"
        files = picture_files(place, below, f"{self.name} ({split})")
        if split == "test":
            told_published(self.name, len(files), self.published)
            if all(file.count("/") == 1 for file in files):
                return self._set(place, files, _labels_of_devkit(place, files))
        return self._set(place, files, labels_by_folder(place, files, 1, self._folders(), self.name))


class ImagenetV2Settings(_ImagenetFamily):
    """Keys of the set `imagenet_v2`: 10 new pictures for each of the 1000 classes (Recht and others, 2019)."""

    name: Literal["imagenet_v2"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address with the folders 0 to 999, such as imagenetv2-matched-frequency-format-val."""

    published = 10_000

    def _folders(self) -> dict[str, int]:
        return {str(number): number for number in range(len(imagenet_classes().wnids))}


class ImagenetSketchSettings(_ImagenetFamily):
    """Keys of the set `imagenet_sketch`: black and white drawings of the 1000 classes (Wang and others, 2019)."""

    name: Literal["imagenet_sketch"]

    published = 50_889


class ImagenetASettings(_ImagenetFamily):
    """Keys of the set `imagenet_a`: photos that a ResNet-50 mistakes, of 200 classes (Hendrycks and others, 2021)."""

    name: Literal["imagenet_a"]

    published = 7_500


class ImagenetRSettings(_ImagenetFamily):
    """Keys of the set `imagenet_r`: paintings, toys, renditions of 200 classes (Hendrycks and others, 2021)."""

    name: Literal["imagenet_r"]

    published = 30_000


def classified(
    name: str,
    pictures: SetPictures,
    labels: Sequence[int],
    classes: tuple[str, ...],
    templates: tuple[str, ...] | None,
) -> EvaluationSet:
    """A set of pictures with a label each, asked in `templates` or in CLIP's 80."""
    asked = Classification(
        rows=np.arange(len(pictures)),
        labels=np.array(labels, dtype=np.int64),
        tree=LabelTree(classes, heights=wordnet_heights(name) if name != "objectnet" else None),
        templates=templates or imagenet_classes().templates,
        convention="top1",
    )
    return EvaluationSet(name, questions_fingerprint(name, pictures, asked), pictures, asked)


def labels_by_folder(
    place: Folder, files: Sequence[str], depth: int, known: Mapping[str, int], called: str
) -> list[int]:
    """The class of each file by the folder that it lies in, `depth` folders below the set's own.

    DatasetError names the first file that lies elsewhere.
    """
    labels = []
    for file in files:
        parts = file.split("/")
        label = known.get(parts[depth]) if len(parts) == depth + 2 else None
        if label is None:
            names = list(known)
            raise DatasetError(
                f"{place.join(file)}: expected a picture in a folder of one of the {len(known)} classes of {called} "
                f"({names[0]} to {names[-1]}), came '{'/'.join(parts[depth:-1])}'"
            )
        labels.append(label)
    return labels


def _labels_of_devkit(place: Folder, files: Sequence[str]) -> list[int]:
    """Line N of the ground truth has the devkit's own number of the class of picture N."""
    truth_file = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"
    truth = stored_lines(place, truth_file, "imagenet")
    number_of = {wnid: number for number, wnid in enumerate(imagenet_classes().wnids)}
    wnid_of = _wnids_of_devkit(place)
    labels = []
    for file in files:
        match = _FLAT.fullmatch(file.split("/")[-1])
        line = int(match[1]) if match else 0
        if not 1 <= line <= len(truth):
            raise DatasetError(
                f"{place.join(file)}: expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(truth):08d}.JPEG, "
                f"the pictures that {truth_file} tells of"
            )
        wnid = wnid_of.get(truth[line - 1])
        if wnid is None:
            raise DatasetError(
                f"{place.join(truth_file)}: line {line}: expected a number from 1 to {len(wnid_of)}, "
                f"came '{truth[line - 1][:40]}'"
            )
        labels.append(number_of[wnid])
    return labels


def _wnids_of_devkit(place: Folder) -> dict[str, str]:
    """The devkit's number of each class, as text, and its wnid. Numbers above 1000 are groups of classes."""
    file = f"{DEVKIT}/meta.mat"
    table = MatlabFile(place, file)
    numbers, wnids = table.records("synsets", number="ILSVRC2012_ID", text="WNID")
    children, _ = table.records("synsets", number="num_children", text="WNID")
    found = {str(number): wnid for number, wnid, below in zip(numbers, wnids, children, strict=True) if below == 0}
    if sorted(found.values()) != sorted(imagenet_classes().wnids):
        raise DatasetError(
            f"{place.join(file)}: expected the 1000 classes of ILSVRC 2012 without children, came others"
        )
    return found
