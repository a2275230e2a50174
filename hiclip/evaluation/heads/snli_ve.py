"""SNLI-VE: does a picture of Flickr30K entail a sentence, contradict it, or neither (Xie et al. 2019)?

From the published `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl`. The epoch is chosen on dev, so
its number is the luckier one; "val+test", which HiCLIP's paper quotes, pools both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.heads.head_task import HeadTask, Numbered, Questions, published, worths_of
from hiclip.evaluation.set_pictures import FilePictures
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

LABELS = ("entailment", "neutral", "contradiction")
NO_CONSENSUS = "-"
METRICS = (("accuracy_val_test", None), ("accuracy_dev", 0), ("accuracy_test", 1))


class _Line(TypedDict):
    Flickr30K_ID: str
    sentence2: str
    gold_label: Literal["entailment", "neutral", "contradiction", "-"]


_LINE = TypeAdapter(_Line)


class SnliVeSettings(Settings):
    """Keys of the head `snli_ve`."""

    name: Literal["snli_ve"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// that every machine reaches, with `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`,
    `snli_ve_test.jsonl` and the pictures in `flickr30k-images/`."""
    train: HeadTraining = HeadTraining()

    def load(self) -> HeadTask:
        """The sentences. DatasetError for a file that is missing or is not what it should be."""
        root, texts, pictures = folder(self.root), Numbered(), Numbered()
        lines, left_out = dict[str, list[_Line]](), 0
        for split in ("train", "dev", "test"):
            read = _lines(root, f"snli_ve_{split}.jsonl")
            lines[split] = [line for line in read if line["gold_label"] != NO_CONSENSUS]
            left_out += len(read) - len(lines[split])
            if not lines[split]:
                raise DatasetError(f"{root.join(f'snli_ve_{split}.jsonl')}: expected labelled pairs, came none")

        def asked(*splits: str) -> Questions:
            chosen = [(kind, line) for kind, split in enumerate(splits) for line in lines[split]]
            return Questions(
                pictures=pictures.of(f"flickr30k-images/{line['Flickr30K_ID']}.jpg" for _, line in chosen),
                texts=texts.of(line["sentence2"] for _, line in chosen),
                worths=worths_of([{LABELS.index(line["gold_label"]): 1.0} for _, line in chosen]),
                kinds=np.array([kind for kind, _ in chosen], dtype=np.int64),
            )

        train, choose, measured = asked("train"), asked("dev"), asked("dev", "test")
        return HeadTask(
            pictures=FilePictures(root, tuple(pictures.known)),
            texts=tuple(texts.known),
            answers=LABELS,
            metrics=METRICS,
            loss="cross_entropy",
            train=train,
            choose=choose,
            measured=measured,
            left_out=left_out,
        )


def _lines(root: Folder, file: str) -> list[_Line]:
    found: list[_Line] = []
    for number, line in enumerate(published(root, file, "snli_ve").split(b"\n"), 1):
        if line.strip():
            try:
                found.append(_LINE.validate_json(line))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                came = f", came {first['input']!r}" if where and first["type"] != "missing" else ""
                said = f"{where}: {first['msg']}{came}" if where else first["msg"]
                place = f"{root.join(file)}, line {number}"
                raise DatasetError(f"{place}: cannot be read: {' '.join(said.split())}") from None
    return found
