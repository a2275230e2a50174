"""A dataset of one's own, as `pipeline.build` wrote it: retrieval between pictures and captions of some of its pairs.

Captions of a crawl repeat, so equal ones are right for each other's pictures. Which pairs take part depends on their
names alone: the same ones for every model, and after rows were added or moved.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hiclip.evaluation.evaluation_set import (
    Classification,
    Convention,
    EvaluationSet,
    Retrieval,
    folded,
    questions_fingerprint,
)
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.retrieval import fits
from hiclip.evaluation.set_pictures import DatasetPictures
from hiclip.evaluation.sets.prompt_templates import Templates
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError, read_manifest
from pipeline.shards import DatasetReader
from pipeline.storage import folder


class DatasetSettings(Settings):
    """Keys of a dataset as a set, `dataset`."""

    name: Literal["dataset"]
    called: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """The set's own name, in tables and files; letters, digits, `_`, `.`, `-`."""
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address that `pipeline.build` wrote."""
    pairs: Annotated[int, Field(ge=2)] = 5000
    """Pairs that take part, chosen by hash of their pair_id; all if the dataset has fewer."""
    label: str | None = None
    """A column of texts to classify by; its texts are the classes. Null: no classification. Pairs where it is null or
    empty are not classified."""
    templates: Templates = ("{}",)
    """Prompts of a class, averaged; `{}` stands for its name."""
    convention: Convention = "top1"
    """The metric that is quoted for the classification."""

    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet:
        """The set; DatasetError when there is no dataset, or it lacks the column."""
        if split == "train":
            raise DatasetError(f"{self.called}: expected the split test, came train: a dataset is one split")
        path = folder(self.root).root
        manifest = read_manifest(path)
        kind = manifest.columns.get(self.label or "caption")
        if kind not in ("string", "large_string"):
            raise DatasetError(f"{path}: expected a column '{self.label}' of texts, came {kind or 'none'}")
        reader = DatasetReader(path, manifest)
        drawn = _drawn(reader, self.pairs)
        rows = list(_rows(reader, drawn, ["pair_id", "caption", *([self.label] if self.label else [])]))
        pictures = DatasetPictures(path, np.array(drawn, dtype=np.int64), tuple(row["pair_id"] for row in rows))
        captions = tuple(row["caption"] for row in rows)
        wordings = [folded(caption) for caption in captions]
        everyone = np.arange(len(rows))
        found = Retrieval(everyone, captions, everyone, fits([{wording} for wording in wordings], wordings))
        asked = self._classification([row[self.label] for row in rows], path) if self.label else None
        # A pair_id names an address, not what a build made of its picture.
        fingerprint = questions_fingerprint(f"{self.called} {manifest.fingerprint}", pictures, asked, found)
        return EvaluationSet(self.called, fingerprint, pictures, asked, found)

    def _classification(self, texts: Sequence[str | None], path: str) -> Classification:
        labelled = {row: text.strip() for row, text in enumerate(texts) if text and text.strip()}
        classes = sorted(set(labelled.values()))
        if len(classes) < 2:
            raise DatasetError(
                f"{path}: expected two or more classes in the column '{self.label}', came {len(classes)}"
            )
        number = {name: place for place, name in enumerate(classes)}
        return Classification(
            rows=np.array(list(labelled), dtype=np.int64),
            labels=np.array([number[text] for text in labelled.values()], dtype=np.int64),
            tree=LabelTree(tuple(classes)),
            templates=self.templates,
            convention=self.convention,
        )


def _drawn(reader: DatasetReader, pairs: int) -> list[tuple[int, int]]:
    """Row group and row of the pairs whose hash is smallest, ascending; memory is that of the pairs drawn."""

    def hashed() -> Iterator[tuple[bytes, int, int]]:
        for group in range(reader.groups):
            for row, name in enumerate(reader.read_group(group, ["pair_id"])["pair_id"].to_pylist()):
                yield hashlib.sha256(f"evaluation set\0{name}".encode()).digest(), group, row

    return sorted((group, row) for _, group, row in heapq.nsmallest(pairs, hashed()))


def _rows(reader: DatasetReader, drawn: Sequence[tuple[int, int]], columns: list[str]) -> Iterator[dict[str, Any]]:
    for group, part in itertools.groupby(drawn, key=lambda place: place[0]):
        yield from reader.read_group(group, columns).take([row for _, row in part]).to_pylist()
