"""What the published classification sets share: names and prompts of their classes, and pictures with the key of their
class in the set's own layout become an `EvaluationSet`, or an error in one line.

A picture's class is always found by the key that the published files give it (a folder, a variant, a number), never by
its place in a list of ours: a list in another order would give the accuracy of chance and no error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from hiclip.evaluation.evaluation_set import Classification, Convention, EvaluationSet, questions_fingerprint
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.set_pictures import FilePictures, SetPictures
from hiclip.evaluation.sets.prompt_templates import Templates
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

log = logging.getLogger(__name__)

Split: TypeAlias = Literal["test", "train"]
"""`test` is what zero-shot answers are about; `train` is what a linear probe learns from, validation included."""

_LOOKED_FOR = 8
"""Picture files, spread over a set, of which one at least must be there; others may be missing and are scored wrong."""


class PublishedClasses(Settings):
    """The file `classes/NAME.json`: what the classes of a set are called, and the prompts they are asked with."""

    source: str
    """Where names, prompts and keys come from."""
    license: str
    """Of the names and prompts."""
    pictures: dict[Split, int]
    """How many pictures each split has when it is whole; without a split whose size is not published."""
    templates: Templates
    """Averaged."""
    classes: dict[str, str]
    """Key of a class in the published files -> its name in a prompt; numbered classes in the order of their numbers."""


@cache
def published_classes(name: str) -> PublishedClasses:
    """Of the set `name`, as they come with this package."""
    file = resources.files("hiclip.evaluation.sets").joinpath(f"classes/{name}.json")
    return PublishedClasses.model_validate_json(file.read_text("utf-8"))


class PublishedSetSettings(Settings):
    """What the settings of all published classification sets have."""

    name: str
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address of the set as it is published, unpacked."""
    templates: Templates | None = None
    """Prompts of a class, averaged; `{}` stands for its name. Null: those that CLIP published for the set."""


def labelled_set(
    settings: PublishedSetSettings,
    split: Split,
    pictures: SetPictures,
    keys: Sequence[str],
    listed_in: str,
    convention: Convention = "top1",
) -> EvaluationSet:
    """N pictures and the (N,) published keys of their classes; `listed_in` is where the keys were read, for errors."""
    published = published_classes(settings.name)
    check_keys(settings, keys, listed_in)
    if not keys:
        raise DatasetError(f"{listed_in}: expected pictures of {settings.name}, came none")
    number = {key: place for place, key in enumerate(published.classes)}
    labels = np.array([number[key] for key in keys], dtype=np.int64)
    seen, whole = len(np.unique(labels)), published.pictures.get(split, len(keys))
    if len(keys) != whole or seen != len(number):
        log.warning(
            "%s: expected %d pictures of %d classes, came %d of %d: no published number is about these",
            listed_in,
            whole,
            len(number),
            len(keys),
            seen,
        )
    classification = Classification(
        rows=np.arange(len(keys)),
        labels=labels,
        tree=LabelTree(classes=tuple(published.classes.values())),
        templates=settings.templates or published.templates,
        convention=convention,
    )
    name = settings.name if split == "test" else f"{settings.name}-{split}"
    return EvaluationSet(
        name=name,
        fingerprint=questions_fingerprint(name, pictures, classification),
        pictures=pictures,
        classification=classification,
    )


def check_keys(settings: PublishedSetSettings, keys: Iterable[str], listed_in: str) -> None:
    """DatasetError for the first key that is no class of the set."""
    classes = published_classes(settings.name).classes
    for key in keys:
        if key not in classes:
            raise DatasetError(
                f"{listed_in}: expected one of the {len(classes)} classes of {settings.name}, came '{key}'"
            )


def keys_by_number(numbers: Sequence[int], keys: Sequence[str], first: int, listed_in: str) -> list[str]:
    """(N,) numbers, of which `first` means the first of `keys`, -> (N,) keys; DatasetError for one that means none."""
    for number in numbers:
        if not first <= number < first + len(keys):
            raise DatasetError(f"{listed_in}: expected numbers from {first} to {first + len(keys) - 1}, came {number}")
    return [keys[number - first] for number in numbers]


def picture_files(settings: PublishedSetSettings, place: Folder, files: Sequence[str]) -> FilePictures:
    """Files below `place`. A missing one stays and is scored as wrong; DatasetError if there seem to be none at all."""
    looked_for = files[:: max(1, len(files) // _LOOKED_FOR)]
    if files and not any(place.exists(file) for file in looked_for):
        raise DatasetError(f"{place.join(files[0])}: the pictures of {settings.name} are not there")
    return FilePictures(place, tuple(files))


def unpacked(settings: PublishedSetSettings, file: str, *archives: str) -> Folder:
    """Where `file` lies: the set's root, or the folder in it that the archive unpacks to. DatasetError if in none."""
    root = folder(settings.root)
    for place in (root, *(root.child(archive) for archive in archives)):
        if place.exists(file):
            return place
    raise DatasetError(f"{root.join(file)}: the evaluation set {settings.name} is not there")


def lines_of(settings: PublishedSetSettings, place: Folder, file: str) -> list[str]:
    """The lines of a list, without empty ones and comments; DatasetError if it is not there or no text."""
    if not place.exists(file):
        raise DatasetError(f"{place.join(file)}: the evaluation set {settings.name} is not there")
    try:
        text = place.read_text(file)
    except UnicodeDecodeError:
        raise DatasetError(f"{place.join(file)}: expected a list in UTF-8, came other bytes") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def parted(line: str, listed_in: str, separator: str) -> tuple[str, str]:
    """A line's part before the first separator, and what follows; DatasetError if it has none."""
    before, found, after = line.partition(separator)
    if not found or not before or not after:
        raise DatasetError(f"{listed_in}: expected lines of two parts with '{separator}' between, came '{line[:60]}'")
    return before, after.strip()
