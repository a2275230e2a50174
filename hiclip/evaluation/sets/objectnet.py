"""ObjectNet: things in rooms and poses that no set had arranged; the 113 kinds that are classes of ImageNet too.

The names of the classes are ObjectNet's own and the prompts ImageNet's, as CLIP_benchmark asks it. Every picture has a
red border of two pixels, by which its makers know it again, and which evaluations cut off.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field

from hiclip.data.images import ImageError, decode
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.set_pictures import FilePictures, SetPictures
from hiclip.evaluation.sets.imagenet import classified, labels_by_folder
from hiclip.evaluation.sets.prompt_templates import Templates
from hiclip.evaluation.sets.set_files import picture_files, stored_json, told_published
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

BORDER = 2
_LABELS = "mappings/folder_to_objectnet_label.json"
_OVERLAP = "mappings/objectnet_to_imagenet_1k.json"
_PUBLISHED = 18_574


class ObjectnetSettings(Settings):
    """Keys of the set `objectnet`."""

    name: Literal["objectnet"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address of objectnet-1.0, with `images/FOLDER/*.png` and `mappings/`."""
    templates: Templates | None = None
    """Prompts of a class, averaged; `{}` stands for its name. Null: CLIP's 80 of ImageNet."""

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The set; DatasetError when its files are missing or are not what they should be."""
        if split == "train":
            raise DatasetError(f"{self.name}: expected the split test, came train: the set has no training pictures")
        place = folder(self.root)
        label_of = _words(place, _LABELS)
        overlap = _words(place, _OVERLAP)
        every = {name: number for number, name in enumerate(label_of)}
        asked = sorted(name for name, label in label_of.items() if label in overlap)
        if len(asked) != len(overlap):
            raise DatasetError(
                f"{place.join(_OVERLAP)}: names {len(overlap)} labels, but {len(asked)} of them are in {_LABELS}"
            )
        number = {name: place for place, name in enumerate(asked)}
        files = picture_files(place, "images", self.name)
        labels_by_folder(place, files, 1, every, self.name)  # a folder that nobody knows is a mistake
        files = [file for file in files if file.split("/")[1] in number]
        told_published(self.name, len(files), _PUBLISHED)
        labels = [number[file.split("/")[1]] for file in files]
        classes = tuple(label_of[name].lower() for name in asked)
        pictures = CroppedPictures(FilePictures(place, tuple(files)), BORDER)
        return classified(self.name, pictures, labels, classes, self.templates)


@dataclass(frozen=True)
class CroppedPictures:
    """Pictures without their border."""

    pictures: SetPictures
    border: int
    """Pixels cut off at each side."""

    def __len__(self) -> int:
        return len(self.pictures)

    def names(self) -> Sequence[str]:
        """(N,) as before."""
        return self.pictures.names()

    def state(self) -> str:
        """As before."""
        return self.pictures.state()

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The pictures as BMP; one that cannot be decoded as it is, so that whoever decodes it counts it."""
        return [self._cropped(encoded) for encoded in self.pictures.read(rows)]

    def _cropped(self, encoded: bytes) -> bytes:
        try:
            pixels = decode(encoded)
        except ImageError:
            return encoded
        if min(pixels.shape[:2]) <= 2 * self.border:
            return encoded
        inner = pixels[self.border : -self.border, self.border : -self.border]
        file = io.BytesIO()
        Image.fromarray(inner).save(file, "BMP")
        return file.getvalue()


def _words(place: Folder, file: str) -> dict[str, str]:
    content = stored_json(place, file, "objectnet")
    wrong = [key for key, value in content.items() if not isinstance(value, str)]
    if wrong or not content:
        raise DatasetError(f"{place.join(file)}: expected words for words, came {'nothing' if not wrong else wrong[0]}")
    return {key: str(value) for key, value in content.items()}
