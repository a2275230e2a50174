"""Sets as CLIP_benchmark packs them: tars of pictures with a label or with captions beside each (webdataset).

The tars stay as they are. Their headers are read once, to know where each picture lies; the pictures themselves are
read where they are embedded, by offset, also from s3://.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import Field

from hiclip.evaluation.evaluation_set import (
    Classification,
    Convention,
    EvaluationSet,
    Retrieval,
    questions_fingerprint,
)
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.set_pictures import TarPictures
from hiclip.evaluation.sets.prompt_templates import Templates, template_fault
from hiclip.evaluation.sets.set_files import stored_lines, stored_text
from pipeline.jobfile import InputError, Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

_PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # webdataset's: the key ends at the name's first point
_PICTURE_BYTES, _TEXT_BYTES = 1 << 28, 1 << 20
"""Larger members are refused."""
_TARS_AT_ONCE = 4
_BLOCK = 512  # of a tar


class WebdatasetSettings(Settings):
    """Keys of a set in tars, `webdataset`."""

    name: Literal["webdataset"]
    called: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """The set's own name, in tables and files; letters, digits, `_`, `.`, `-`."""
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address with `SPLIT/nshards.txt`, `SPLIT/0.tar`, ...; and `classnames.txt` and
    `zeroshot_classification_templates.txt`, or `dataset_type.txt` that says "retrieval"."""
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "test"
    """Folder of the pictures that are asked for."""
    templates: Templates | None = None
    """Prompts of a class, averaged; `{}` stands for its name. Null: the set's own file."""
    convention: Convention = "top1"
    """The metric that is quoted for the set."""

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The pictures of the key `split`, or as `train` those of the folder `train`; DatasetError."""
        place = folder(self.root)
        kind = "classification"  # as CLIP_benchmark has it where no file says so
        if place.exists("dataset_type.txt"):
            kind = stored_text(place, "dataset_type.txt", self.called).strip().lower()
        if kind not in ("classification", "retrieval"):
            raise DatasetError(
                f"{place.join('dataset_type.txt')}: expected classification or retrieval, came '{kind[:40]}'"
            )
        tars = _tars(place, self.split if split == "test" else "train", self.called)
        beside = "cls" if kind == "classification" else "txt"
        with ThreadPoolExecutor(_TARS_AT_ONCE) as threads:
            samples = list(threads.map(partial(_index, place, beside), tars))
        if not any(samples):
            raise DatasetError(f"{place.join(tars[0])}: holds no pictures")
        places = [(tar, sample.offset, sample.size) for tar, found in enumerate(samples) for sample in found]
        together = [sample for found in samples for sample in found]
        pictures = TarPictures(
            place, tuple(tars), tuple(sample.member for sample in together), np.array(places, dtype=np.int64)
        )
        asked, found = None, None
        if kind == "classification":
            asked = self._classification(place, together)
        else:
            found = Retrieval.of_own_captions([_captions(sample) for sample in together])
        fingerprint = questions_fingerprint(self.called, pictures, asked, found)
        return EvaluationSet(self.called, fingerprint, pictures, asked, found)

    def _classification(self, place: Folder, samples: Sequence[_Sample]) -> Classification:
        classes = stored_lines(place, "classnames.txt", self.called)
        if not all(classes):
            raise DatasetError(
                f"{place.join('classnames.txt')}: expected a class a line, line {classes.index('') + 1} is empty"
            )
        return Classification(
            rows=np.arange(len(samples)),
            labels=np.array([_label(sample, len(classes)) for sample in samples], dtype=np.int64),
            tree=LabelTree(tuple(classes)),
            templates=self.templates or _templates(place, self.called),
            convention=self.convention,
        )


@dataclass
class _Sample:
    """A picture in a tar, and the text beside it."""

    where: str
    """Tar and key, for people."""
    member: str = ""
    offset: int = 0
    size: int = 0
    text: str | None = None


def _tars(place: Folder, split: str, called: str) -> list[str]:
    file = f"{split}/nshards.txt"
    text = stored_text(place, file, called).strip()
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise DatasetError(f"{place.join(file)}: expected the number of tars, came '{text[:40]}'")
    tars = [f"{split}/{number}.tar" for number in range(int(text))]
    for tar in tars:
        if not place.exists(tar):
            raise DatasetError(f"{place.join(tar)}: is not there, but {file} counts {text} tars")
    return tars


def _index(place: Folder, beside: str, tar: str) -> list[_Sample]:
    """The pictures of one tar in their order, each with the text of its member KEY.`beside`."""
    samples: dict[str, _Sample] = {}
    where = place.join(tar)
    try:
        with place.open(tar, to_the_end=True) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, kind = match[1], match[2].lower()
                if kind not in _PICTURES and kind != beside:
                    continue
                sample = samples.setdefault(key, _Sample(f"{where}: {key}"))
                if kind == beside:
                    sample.text = _text_of(archive, member, where)
                else:
                    _take_picture(sample, member, where)
            _check_end(file, archive.offset, where)
    except InputError:
        raise
    except (tarfile.TarError, ValueError) as error:
        raise DatasetError(f"{where}: is no whole tar: {error}") from None
    for sample in samples.values():
        if not sample.member:
            raise DatasetError(f"{sample.where}: has a .{beside} and no picture")
        if sample.text is None:
            hint = "; a set of captions says retrieval in dataset_type.txt" if beside == "cls" else ""
            raise DatasetError(f"{sample.where}: has a picture and no .{beside}{hint}")
    return list(samples.values())


def _text_of(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > _TEXT_BYTES:
        raise DatasetError(f"{where}: {member.name}: expected at most {_TEXT_BYTES} bytes of text, came {member.size}")
    file = archive.extractfile(member)
    assert file is not None  # it is a file
    return file.read().decode("utf-8")


def _take_picture(sample: _Sample, member: tarfile.TarInfo, where: str) -> None:
    if sample.member:
        raise DatasetError(f"{where}: {member.name}: a second picture of its key, after {sample.member}")
    if member.issparse() or not 0 < member.size <= _PICTURE_BYTES:
        raise DatasetError(
            f"{where}: {member.name}: expected a picture of at most {_PICTURE_BYTES} bytes, came {member.size}"
        )
    member.name.encode("utf-8")  # a name that is no text is an error here, not in the set's fingerprint
    sample.member, sample.offset, sample.size = member.name, member.offset_data, member.size


def _check_end(file: BinaryIO, end: int, where: str) -> None:
    # Where a header is damaged, or the file ends, tarfile stops as if that were the end of the archive.
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK or any(block):
        raise DatasetError(f"{where}: is no whole tar: no end mark after byte {end}, it was cut or damaged")


def _label(sample: _Sample, classes: int) -> int:
    text = (sample.text or "").strip()
    if not re.fullmatch(r"\d{1,9}", text) or int(text) >= classes:
        raise DatasetError(f"{sample.where}.cls: expected a number from 0 to {classes - 1}, came '{text[:40]}'")
    return int(text)


def _captions(sample: _Sample) -> list[str]:
    captions = [line.strip() for line in (sample.text or "").rstrip("\r\n").split("\n")]
    if not all(captions):
        raise DatasetError(f"{sample.where}.txt: expected a caption a line, line {captions.index('') + 1} is empty")
    return captions


def _templates(place: Folder, called: str) -> tuple[str, ...]:
    file = "zeroshot_classification_templates.txt"
    templates = tuple(line.replace("{c}", "{}") for line in stored_lines(place, file, called))
    for number, template in enumerate(templates, 1):
        if template_fault(template):
            raise DatasetError(
                f"{place.join(file)}: line {number}: expected a prompt with one {{c}}, came '{template}'"
            )
    return templates
