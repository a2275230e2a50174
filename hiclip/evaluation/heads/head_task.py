"""What a head is asked: questions about pictures, and what each answer to each of them is worth.

A published set becomes one `HeadTask`: numbered pictures, numbered texts, numbered answers, and three lists of
questions. It is learnt on `train`, the epoch is chosen on `choose`, the numbers are those of `measured`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from hiclip.evaluation.bootstrap import FloatArray
from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.retrieval import IntArray
from hiclip.evaluation.set_pictures import SetPictures
from pipeline.manifest import DatasetError
from pipeline.storage import Folder

Table = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Worths:
    """What answers to Q questions are worth, 0 to 1; only those that are worth something are kept."""

    starts: IntArray
    """(Q+1,) where each question's part of the next two begins and ends."""
    answers: IntArray
    """(T,) numbers of answers."""
    shares: Table
    """(T,) what they are worth."""

    def table(self, questions: IntArray, classes: int) -> Table:
        """(B,) questions -> (B, C) what every answer is worth."""
        counts = self.starts[questions + 1] - self.starts[questions]
        before = np.cumsum(counts) - counts
        places = np.repeat(self.starts[questions] - before, counts) + np.arange(int(counts.sum()))
        found = np.zeros((len(questions), classes), dtype=np.float32)
        found[np.repeat(np.arange(len(questions)), counts), self.answers[places]] = self.shares[places]
        return found

    def of(self, guesses: IntArray) -> FloatArray:
        """(Q,) an answer to each question, -1 for none -> (Q,) what it is worth."""
        question = np.repeat(np.arange(len(guesses)), np.diff(self.starts))
        hit = self.answers == guesses[question]
        return _sums(question[hit], self.shares[hit], len(guesses))

    def by_question(self) -> FloatArray:
        """(Q,) what all answers to a question are worth together."""
        question = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return _sums(question, self.shares, len(self.starts) - 1)

    def by_answer(self, classes: int) -> FloatArray:
        """(C,) what each answer is worth, summed over questions: how common it is."""
        return _sums(self.answers, self.shares, classes)


def _sums(places: IntArray, values: Table, size: int) -> FloatArray:
    return np.bincount(places, values, minlength=size).astype(np.float64)


def worths_of(questions: Sequence[dict[int, float]]) -> Worths:
    """From one `{answer: worth}` a question."""
    starts = np.cumsum([0, *(len(one) for one in questions)])
    answers = np.array([answer for one in questions for answer in one], dtype=np.int64)
    shares = np.array([share for one in questions for share in one.values()], dtype=np.float32)
    return Worths(starts, answers, shares)


@dataclass(frozen=True)
class Questions:
    """Q questions, by number."""

    pictures: IntArray
    """(Q,) picture that each is about."""
    texts: IntArray
    """(Q,) text of each."""
    worths: Worths
    kinds: IntArray
    """(Q,) what kind each is of; metrics are over all and over each kind."""

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Submission:
    """Questions without published answers, for a server that knows them."""

    file: str
    """Name of the file of answers."""
    questions: Questions
    ids: IntArray
    """(Q,) by which the server knows each."""


@dataclass(frozen=True)
class HeadTask:
    """A set of questions with everything that is numbered in it."""

    pictures: SetPictures
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    """(C,)"""
    metrics: tuple[tuple[str, int | None], ...]
    """Names, and the kind of questions that each is over; None is all."""
    loss: Literal["binary", "cross_entropy"]
    """binary: every answer by itself, worth something or not (soft targets); cross_entropy: one of C is right."""
    train: Questions
    choose: Questions
    measured: Questions
    left_out: int = 0
    """Questions that have no agreed answer."""
    submission: Submission | None = None

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the pictures' names and of all that is asked and right."""
        digest = hashlib.sha256(repr((self.texts, self.answers, self.metrics, self.loss)).encode())
        for name in self.pictures.names():
            digest.update(name.encode() + b"\0")
        submitted = [] if self.submission is None else [self.submission.questions]
        for part in (self.train, self.choose, self.measured, *submitted):
            worths = part.worths
            for array in (part.pictures, part.texts, part.kinds, worths.starts, worths.answers, worths.shares):
                digest.update(array.tobytes() + b"\0")
        return digest.hexdigest()


class HeadSetting(Protocol):
    """What the settings of every head have."""

    @property
    def name(self) -> str:
        """The set's name in a job."""
        ...

    @property
    def train(self) -> HeadTraining:
        """How its head is trained."""
        ...

    def load(self) -> HeadTask:
        """The questions. DatasetError for what is missing or is not what it should be."""
        ...


def head_label(settings: HeadSetting) -> str:
    """A head's name among the results: set, mode and, if it is not both, what it is shown."""
    return f"{settings.name}-{settings.train.label}"


class Numbered:
    """Gives each of the texts that it meets a number, in the order of meeting."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, texts: Iterable[str]) -> IntArray:
        """(N,) numbers."""
        return np.array([self.known.setdefault(text, len(self.known)) for text in texts], dtype=np.int64)


def published(root: Folder, file: str, name: str) -> bytes:
    """The content of a set's file. DatasetError if it is not there."""
    if not root.exists(file):
        raise DatasetError(f"{root.join(file)}: the evaluation set {name} is not there")
    return root.read_bytes(file)
