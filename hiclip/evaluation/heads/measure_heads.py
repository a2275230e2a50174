"""Heads become results: each is trained, asked what is measured, and its numbers stand beside chance and the majority.

A head that was finished before in the same folder is taken from there; one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import ValidationError

from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.bootstrap import FloatArray, estimate, weighted_mean
from hiclip.evaluation.embed import Embedder
from hiclip.evaluation.heads import HeadSettings
from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.heads.head_task import HeadTask, head_label
from hiclip.evaluation.heads.train_head import (
    EpochRow,
    Features,
    Training,
    answers_of,
    features_after,
    head_task_features,
    train_head,
)
from hiclip.evaluation.ratio_parts import RatioParts, ratio_parts
from hiclip.evaluation.result import Result, results_of
from hiclip.evaluation.retrieval import IntArray
from pipeline.jobfile import Settings
from pipeline.storage import Folder

log = logging.getLogger(__name__)

_REVISION = 1
"""Of the training and of the metrics; one more makes what was remembered be computed again."""
RESULT = "head.json"


@dataclass(frozen=True)
class AskedHead:
    """A head that a job asks for, its questions read."""

    label: str
    """Its name among the results."""
    training: HeadTraining
    task: HeadTask
    fingerprint: str
    """Of the task."""
    state: str
    """Of the task and of its pictures; see `EvaluationSet.state`."""


class MeasuredHead(Settings):
    """All that is known about one head."""

    set: str
    results: list[Result]
    questions: int
    """That the results are over."""
    pictures: int
    """That they are about."""
    broken: int
    """Of these, pictures that cannot be read; their questions are scored as wrong. 0 where the head is shown none."""
    answers: int
    """That it chooses among."""
    left_out: int
    """Questions without an agreed answer, in all parts."""
    epochs: list[EpochRow]
    chosen: int
    """Number, from 1, of the epoch that is measured."""
    submission: str | None
    """File of answers for a server, relative to the folder of the result."""
    parts: RatioParts | None = None
    """Picture by picture; null in what earlier versions stored."""
    seconds: float
    """Wall time: all epochs, and what was embedded and measured without an interruption."""


def ask_heads(heads: Sequence[HeadSettings]) -> tuple[AskedHead, ...]:
    """Reads the questions of heads, once where they differ in their training alone.

    DatasetError for what is missing or is not what it should be.
    """
    read: dict[HeadSettings, tuple[HeadTask, str, str]] = {}
    found = []
    for settings in heads:
        same = settings.model_copy(update={"train": HeadTraining()})
        if same not in read:
            task = settings.load()
            read[same] = task, task.fingerprint, f"{task.fingerprint} {task.pictures.state()}"
        found.append(AskedHead(head_label(settings), settings.train, *read[same]))
    return tuple(found)


@dataclass
class HeadMeasurer:
    """Trains and measures the heads of one checkpoint; pictures and texts that several ask about are embedded once."""

    embedder: Embedder
    weights: str
    """Hex sha256 of the checkpoint's weights."""
    map_blocks: MapBlocks
    out: Folder
    seed: int
    batch: int
    """Pictures or texts that are embedded together."""
    draws: int
    known: dict[tuple[str, str], Features] = field(default_factory=dict)

    def key(self, asked: AskedHead) -> str:
        """Hex sha256 of what the numbers of a head depend on."""
        embedder = self.embedder
        how = [embedder.precision, embedder.centre_crop, self.seed, self.batch, self.draws]
        parts = [_REVISION, self.weights, asked.state, asked.training.model_dump(mode="json"), *how]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def measure(self, asked: AskedHead) -> MeasuredHead:
        """The head's numbers. What it leaves lies in `heads/LABEL-KEY/`: head.json, written last, and the weights."""
        name = f"heads/{asked.label}-{self.key(asked)[:16]}"
        place = self.out.child(name)
        if place.exists(RESULT):
            try:
                return MeasuredHead.model_validate_json(place.read_text(RESULT))
            except ValidationError:
                log.warning("%s is not what it should be and is computed again", place.join(RESULT))
        began = time.monotonic()
        task, settings = asked.task, asked.training
        features = self._frozen(asked) if settings.mode == "frozen" else None
        training = Training(asked.label, task, settings, self.embedder, features, self.seed)
        embedded = time.monotonic()
        model, progress = train_head(training, self.batch, self.map_blocks, place)
        trained = time.monotonic()
        parts = [task.measured] if task.submission is None else [task.measured, task.submission.questions]
        features = features_after(training, model, parts, self.batch, self.map_blocks, f"{asked.label}: measured")
        guesses = answers_of(model.head, features, task.measured)
        shown = np.unique(task.measured.pictures)
        images, submission = features.image(shown), None
        if task.submission is not None:
            submission = f"{name}/{task.submission.file}"
            given = answers_of(model.head, features, task.submission.questions)
            place.write_text(task.submission.file, submission_json(task, given) + "\n")
        measured = MeasuredHead(
            set=asked.label,
            results=head_results(asked.label, task, guesses, self.seed, self.draws),
            questions=len(task.measured),
            pictures=len(shown),
            broken=0 if images is None else int(np.isnan(images[:, 0]).sum()),
            answers=len(task.answers),
            left_out=task.left_out,
            epochs=progress.epochs,
            chosen=progress.best,
            submission=submission,
            parts=_parts(asked, guesses),
            seconds=round(
                (embedded - began) + sum(row.seconds for row in progress.epochs) + (time.monotonic() - trained), 3
            ),
        )
        place.write_text(RESULT, measured.model_dump_json() + "\n")
        for file in place.names("last-", ".safetensors"):
            place.remove(file)
        return measured

    def _frozen(self, asked: AskedHead) -> Features:
        """Vectors of everything that the task asks about, from what is known or computed now."""
        task = asked.task
        parts = [task.train, task.choose, task.measured]
        parts += [] if task.submission is None else [task.submission.questions]
        shown = ("image", "text") if asked.training.inputs == "both" else (asked.training.inputs,)
        for side in shown:
            if (asked.fingerprint, side) not in self.known:
                settings = asked.training.model_copy(update={"inputs": side})
                self.known[asked.fingerprint, side] = head_task_features(
                    self.embedder, task, settings, parts, self.batch, self.map_blocks, asked.label
                )
        first = self.known[asked.fingerprint, shown[0]]
        if len(shown) == 1:
            return first
        return replace(first, texts=self.known[asked.fingerprint, "text"].texts)


def head_results(label: str, task: HeadTask, guesses: IntArray, seed: int, draws: int) -> list[Result]:
    """The metrics of (Q,) answers, -1 for none, with intervals over pictures that are drawn with all their questions.

    Chance is an answer drawn from all that the head can give; the majority is always the commonest one in training.
    """
    asked, classes = task.measured, len(task.answers)
    names = [name for name, _ in task.metrics]
    commonest = np.full(len(asked), int(task.train.worths.by_answer(classes).argmax()), dtype=np.int64)
    sums, counts = _by_picture(task, asked.worths.of(guesses))
    once = np.ones((1, len(counts)))
    chance = weighted_mean(once, *_by_picture(task, asked.worths.by_question() / classes))[0]
    majority = weighted_mean(once, *_by_picture(task, asked.worths.of(commonest)))[0]
    estimates = estimate(lambda weights: weighted_mean(weights, sums, counts), len(counts), seed, draws)
    results = results_of(label, names, estimates, chance, np.count_nonzero(counts, axis=0).tolist())
    baseline = dict(zip(names, majority.tolist(), strict=True))
    return [result.model_copy(update={"baselines": {"majority": baseline[result.metric]}}) for result in results]


def _parts(asked: AskedHead, guesses: IntArray) -> RatioParts:
    """That the metrics are made of; the pictures are those whose files were in this state."""
    task = asked.task
    metrics = [name for name, _ in task.metrics]
    return ratio_parts([asked.state], metrics, *_by_picture(task, task.measured.worths.of(guesses)))


def _by_picture(task: HeadTask, worth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(N, M) of the N pictures asked about: what (Q,) answers are worth together, and how many questions they are."""
    asked = task.measured
    pictures, place = np.unique(asked.pictures, return_inverse=True)
    takes_part = np.stack(
        [np.ones(len(asked)) if kind is None else (asked.kinds == kind).astype(np.float64) for _, kind in task.metrics],
        axis=1,
    )
    counts = np.zeros((len(pictures), len(task.metrics)))
    sums = np.zeros_like(counts)
    np.add.at(counts, place, takes_part)
    np.add.at(sums, place, takes_part * worth[:, None])
    return sums, counts


def submission_json(task: HeadTask, guesses: IntArray) -> str:
    """[{"question_id", "answer"}] as the server of VQA takes it; the commonest answer where a picture is missing."""
    assert task.submission is not None
    commonest = int(task.train.worths.by_answer(len(task.answers)).argmax())
    return json.dumps(
        [
            {"question_id": number, "answer": task.answers[guess if guess >= 0 else commonest]}
            for number, guess in zip(task.submission.ids.tolist(), guesses.tolist(), strict=True)
        ]
    )
