"""OpenMoji: about 1,900 things drawn in a style that no training picture has, with labels in a hierarchy.

The same concepts occur in training in other hands' drawings, so it asks whether a model knows the thing or the style.
Every concept is one class, named by its label; subgroups and groups are those of the emoji standard. Retrieval takes
pictures from all concepts, country flags included; only averages over subgroups leave the flags out, because they are
one subgroup of 258 that is told apart by colours alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, Retrieval, drawn, folded
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.retrieval import fits
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.evaluation.sets.labelled_files import Split
from hiclip.evaluation.sets.prompt_templates import Templates
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import folder

FILE = "openmoji.parquet"
COLUMNS = ["path", "image", "caption", "captions", "concept", "group", "subgroup"]
LEFT_OUT = frozenset({"country-flag"})


class OpenmojiSettings(Settings):
    """Keys of the set `openmoji`."""

    name: Literal["openmoji"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address that holds `openmoji.parquet`."""
    templates: Templates = ("{}",)
    """Prompts of a class, averaged; `{}` stands for its label. The captions of the sample crawl are bare labels, so
    the bare label is the prompt that it was trained on."""
    retrieval_pairs: Annotated[int, Field(ge=2)] = 1000
    """Pictures and captions that take part in retrieval, chosen by hash: the same ones for every model and seed."""

    def load(self, split: Split = "test") -> EvaluationSet:
        """The set; DatasetError when its file is missing or is not what it should be, or for its training split."""
        if split != "test":
            raise DatasetError(f"{self.name}: expected the split test, came {split}, which the set does not have")
        rows = _read(self.root)
        names = [folded(concept) for concept in rows["concept"]]
        classes = {name: place for place, name in reversed(list(enumerate(names)))}  # the first row of a name wins
        order = sorted(classes, key=classes.__getitem__)
        number = {name: place for place, name in enumerate(order)}
        classification = Classification(
            rows=np.arange(len(names)),
            labels=np.array([number[name] for name in names], dtype=np.int64),
            tree=LabelTree(
                classes=tuple(rows["concept"][classes[name]] for name in order),
                subgroups=tuple(rows["subgroup"][classes[name]] for name in order),
                groups=tuple(rows["group"][classes[name]] for name in order),
                left_out=LEFT_OUT,
            ),
            templates=self.templates,
        )
        return EvaluationSet(
            name=self.name,
            fingerprint=_fingerprint(rows, self),
            pictures=StoredPictures(tuple(rows["path"]), tuple(rows["image"])),
            classification=classification,
            retrieval=_retrieval(rows, drawn(rows["path"], self.retrieval_pairs, key="openmoji retrieval")),
        )


def _retrieval(rows: dict[str, list[Any]], queries: Sequence[int]) -> Retrieval:
    """A caption is right for every picture that has it among its own."""
    captions = tuple(rows["caption"][query] for query in queries)
    wordings = [
        {folded(text) for text in [caption, *rows["captions"][query]]}
        for query, caption in zip(queries, captions, strict=True)
    ]
    right = fits(wordings, [folded(caption) for caption in captions])
    return Retrieval(np.array(queries, dtype=np.int64), captions, np.arange(len(captions)), right)


def _read(root: str) -> dict[str, list[Any]]:
    place = folder(root)
    if not place.exists(FILE):
        raise DatasetError(f"{place.join(FILE)}: the evaluation set openmoji is not there")
    try:
        with place.open(FILE) as file:
            table = pq.read_table(file, columns=COLUMNS)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DatasetError(f"{place.join(FILE)}: cannot be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or not table.num_rows:
        raise DatasetError(f"{place.join(FILE)}: expected rows with the columns {', '.join(COLUMNS)}; lacks {missing}")
    rows: dict[str, list[Any]] = table.to_pydict()
    return rows


def _fingerprint(rows: dict[str, list[Any]], settings: OpenmojiSettings) -> str:
    digest = hashlib.sha256(repr((settings.templates, settings.retrieval_pairs)).encode())
    for image, *texts in zip(*(rows[name] for name in ("image", *(n for n in COLUMNS if n != "image"))), strict=True):
        digest.update(hashlib.sha256(image).digest() + repr(texts).encode())
    return digest.hexdigest()
