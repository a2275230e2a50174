"""VQA v2: questions about COCO's pictures, each answered by ten people (Goyal et al. 2017), from the published files.

The head chooses among the answers that are common in training. It learns on train2014 but for some of its pictures,
by which the epoch is chosen, and is measured on val2014, which nothing is chosen by. test-dev's answers are secret:
for them a file is written as the server takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hiclip.evaluation.evaluation_set import drawn
from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.heads.head_task import (
    HeadTask,
    Numbered,
    Questions,
    Submission,
    published,
    worths_of,
)
from hiclip.evaluation.heads.vqa_answers import PEOPLE, normalised, worths
from hiclip.evaluation.retrieval import IntArray
from hiclip.evaluation.set_pictures import FilePictures
from pipeline.jobfile import Number, Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

KINDS = ("yes/no", "number", "other")
METRICS = (("accuracy", None), ("accuracy_yes_no", 0), ("accuracy_number", 1), ("accuracy_other", 2))
TEST_DEV = "test-dev2015"


class _Question(TypedDict):
    question_id: int
    image_id: int
    question: str


class _Answer(TypedDict):
    answer: str


class _Annotation(TypedDict):
    question_id: int
    answer_type: Literal["yes/no", "number", "other"]
    multiple_choice_answer: str
    answers: list[_Answer]


class _QuestionFile(TypedDict):
    questions: list[_Question]


class _AnnotationFile(TypedDict):
    annotations: list[_Annotation]


class VqaV2Settings(Settings):
    """Keys of the head `vqa_v2`."""

    name: Literal["vqa_v2"]
    root: Annotated[str, Field(min_length=1)]
    """Folder or s3:// that every machine reaches, with `v2_OpenEnded_mscoco_train2014_questions.json`,
    `v2_mscoco_train2014_annotations.json`, the same of val2014, and the pictures in `train2014/` and `val2014/`."""
    train: HeadTraining = HeadTraining()
    min_count: Annotated[int, Field(ge=1)] = 9
    """Training questions whose commonest answer an answer must be, to be one that the head can give. With 9 the
    literature has 3,129, counting val2014 as well."""
    choose_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """Share of the pictures of train2014, chosen by hash, whose questions are not learnt but choose the epoch."""
    test_dev: bool = False
    """Whether to answer `v2_OpenEnded_mscoco_test-dev2015_questions.json` (pictures in `test2015/`) for the server."""

    def load(self) -> HeadTask:
        """The questions. DatasetError for a file that is missing or is not what it should be."""
        root, texts, pictures = folder(self.root), Numbered(), Numbered()
        asked, said = _read_split(root, "train2014")
        answers = _vocabulary(said, self.min_count, root)
        train = _questions(asked, said, "train2014", texts, pictures, answers)
        names = list(pictures.known)
        held_out = drawn(names, max(1, round(self.choose_share * len(names))), key="vqa_v2 choose")
        chooses = np.isin(train.pictures, held_out)
        if chooses.all():
            raise DatasetError(f"{root.join('train2014')}: expected questions about two pictures or more, came one")
        asked, said = _read_split(root, "val2014")
        measured = _questions(asked, said, "val2014", texts, pictures, answers)
        submission = _submission(root, texts, pictures) if self.test_dev else None
        return HeadTask(
            pictures=FilePictures(root, tuple(pictures.known)),
            texts=tuple(texts.known),
            answers=tuple(answers),
            metrics=METRICS,
            loss="binary",
            train=_part(train, ~chooses),
            choose=_part(train, chooses),
            measured=measured,
            submission=submission,
        )


def _part(questions: Questions, taken: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Questions:
    places = np.flatnonzero(taken)
    starts, worth = questions.worths.starts, questions.worths
    rows = [
        dict(zip(worth.answers[first:last].tolist(), worth.shares[first:last].tolist(), strict=True))
        for first, last in zip(starts[places], starts[places + 1], strict=True)
    ]
    return Questions(questions.pictures[places], questions.texts[places], worths_of(rows), questions.kinds[places])


def _read_split(root: Folder, split: str) -> tuple[list[_Question], list[_Annotation]]:
    """Questions and, in the same order, what people said of each."""
    questions = _questions_of(root, split)
    file = f"v2_mscoco_{split}_annotations.json"
    said = {one["question_id"]: one for one in _parsed(root, file, _AnnotationFile)["annotations"]}
    for question in questions:
        number = question["question_id"]
        if number not in said:
            raise DatasetError(f"{root.join(file)}: expected an annotation of question {number}, came none")
        given = len(said[number]["answers"])
        if given != PEOPLE:
            raise DatasetError(f"{root.join(file)}: question {number}: expected {PEOPLE} answers, came {given}")
    return questions, [said[question["question_id"]] for question in questions]


def _questions_of(root: Folder, split: str) -> list[_Question]:
    file = f"v2_OpenEnded_mscoco_{split}_questions.json"
    questions = _parsed(root, file, _QuestionFile)["questions"]
    if not questions:
        raise DatasetError(f"{root.join(file)}: expected questions, came none")
    return questions


F = TypeVar("F", _QuestionFile, _AnnotationFile)


def _parsed(root: Folder, file: str, kind: type[F]) -> F:
    try:
        return TypeAdapter(kind).validate_json(published(root, file, "vqa_v2"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise DatasetError(f"{root.join(file)}: cannot be read: {' '.join(said.split())}") from None


def _vocabulary(said: Sequence[_Annotation], min_count: int, root: Folder) -> dict[str, int]:
    """Answers, the commonest first, and their numbers."""
    counts = Counter(normalised(one["multiple_choice_answer"]) for one in said)
    order = sorted((answer for answer in counts if counts[answer] >= min_count), key=lambda one: (-counts[one], one))
    if not order:
        raise DatasetError(
            f"{root.root}: min_count: expected a number that some answer reaches, came {min_count}; the commonest is "
            f"that of {max(counts.values()):,} questions"
        )
    return {answer: number for number, answer in enumerate(order)}


def _questions(
    asked: Sequence[_Question],
    said: Sequence[_Annotation],
    split: str,
    texts: Numbered,
    pictures: Numbered,
    answers: dict[str, int],
) -> Questions:
    worth = [worths([one["answer"] for one in about["answers"]]) for about in said]
    known = [{answers[answer]: share for answer, share in one.items() if answer in answers} for one in worth]
    return Questions(
        pictures=pictures.of(_picture(split, one) for one in asked),
        texts=texts.of(one["question"] for one in asked),
        worths=worths_of(known),
        kinds=np.array([KINDS.index(one["answer_type"]) for one in said], dtype=np.int64),
    )


def _submission(root: Folder, texts: Numbered, pictures: Numbered) -> Submission:
    asked = _questions_of(root, TEST_DEV)
    questions = Questions(
        pictures=pictures.of(_picture("test2015", one) for one in asked),
        texts=texts.of(one["question"] for one in asked),
        worths=worths_of([{}] * len(asked)),
        kinds=np.zeros(len(asked), dtype=np.int64),
    )
    ids: IntArray = np.array([one["question_id"] for one in asked], dtype=np.int64)
    return Submission(f"v2_OpenEnded_mscoco_{TEST_DEV}_hiclip_results.json", questions, ids)


def _picture(split: str, question: _Question) -> str:
    return f"{split}/COCO_{split}_{question['image_id']:012d}.jpg"
