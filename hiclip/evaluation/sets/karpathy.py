"""Retrieval on MSCOCO's 5K test pictures and on Flickr30K's 1000, in the split of Karpathy and Fei-Fei (2015).

Papers count the first five captions of a picture, 25,000 of MSCOCO and 5,000 of Flickr30K (OpenAI's, and before it the
line from VSE++). MSCOCO's pictures have 25,010 in all; CLIP_benchmark, whose numbers open_clip quotes, takes all of
them: `captions: null`. A picture is found when one of its own captions is, a caption when its picture is.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hiclip.evaluation.evaluation_set import EvaluationSet, Retrieval, questions_fingerprint
from hiclip.evaluation.set_pictures import FilePictures
from hiclip.evaluation.sets.set_files import stored_json, told_published
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import folder


class _KarpathySplit(Settings):
    """Keys that both have."""

    name: str
    root: Annotated[str, Field(min_length=1)]
    pictures: str
    captions: Annotated[int, Field(ge=1)] | None = 5
    """How many captions of a picture count, the first ones; null: all."""

    file: ClassVar[str]
    published: ClassVar[int]
    """Pictures of the test split."""

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The pictures of the split `test`; DatasetError when files are missing or not what they should be."""
        if split == "train":
            raise DatasetError(f"{self.name}: expected the split test, came train: it is a set for retrieval alone")
        place = folder(self.root)
        where = place.join(self.file)
        images = stored_json(place, self.file, self.name).get("images")
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise DatasetError(f"{where}: expected a list of images, came none")
        asked = [image for image in images if image.get("split") == "test"]
        if not asked:
            raise DatasetError(f"{where}: expected images of the split test, came none among {len(images)}")
        told_published(self.name, len(asked), self.published)
        files = tuple(_file(image, self.pictures, where) for image in asked)
        found = Retrieval.of_own_captions([_captions(image, where)[: self.captions] for image in asked])
        if not place.exists(files[0]):  # one stands for all: a picture that is missing alone is counted as wrong
            raise DatasetError(f"{place.join(files[0])}: the pictures of {self.name} are not there")
        pictures = FilePictures(place, files)
        fingerprint = questions_fingerprint(self.name, pictures, retrieval=found)
        return EvaluationSet(self.name, fingerprint, pictures, retrieval=found)


class Coco5kSettings(_KarpathySplit):
    """Keys of the set `coco_5k`."""

    name: Literal["coco_5k"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address with `dataset_coco.json` and `val2014/*.jpg`."""
    pictures: str = ""
    """Folder below the root that holds `val2014`; empty: the root itself."""

    file = "dataset_coco.json"
    published = 5_000


class Flickr30kSettings(_KarpathySplit):
    """Keys of the set `flickr30k`."""

    name: Literal["flickr30k"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address with `dataset_flickr30k.json` and the pictures."""
    pictures: str = "flickr30k-images"
    """Folder below the root that holds the pictures; empty: the root itself."""

    file = "dataset_flickr30k.json"
    published = 1_000


def _file(image: dict[str, Any], pictures: str, where: str) -> str:
    parts = [pictures, image.get("filepath") or "", image.get("filename")]
    if not all(isinstance(part, str) and ".." not in part.split("/") for part in parts) or not parts[-1]:
        raise DatasetError(f"{where}: expected a filename and captions of each image, came {str(image)[:80]}")
    return "/".join(part.strip("/") for part in parts if part)


def _captions(image: dict[str, Any], where: str) -> list[str]:
    sentences = image.get("sentences")
    if not isinstance(sentences, list):
        sentences = []
    texts = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
    captions = [" ".join(text.split()) if isinstance(text, str) else "" for text in texts]
    if not captions or not all(captions):
        raise DatasetError(f"{where}: {image['filename']}: expected captions, came an empty one or none")
    return captions
