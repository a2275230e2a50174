"""The folder of a finished evaluation of made-up scores, measured and stored as a real one is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, Retrieval, questions_fingerprint
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.measure import MeasuredSet, Scores, SeenPictures, measure
from hiclip.evaluation.outcome import RESULT, Outcome
from hiclip.evaluation.retrieval import Fits, TableScores
from hiclip.evaluation.set_pictures import StoredPictures

CAPTIONS = 2
"""Of each picture."""


def small_set(name: str, pictures: int = 60, classes: int = 6, template: str = "a {}") -> EvaluationSet:
    """Pictures with a label each, and two captions each."""
    rows = np.arange(pictures)
    stored = StoredPictures(tuple(f"{row}.png" for row in rows), (b"",) * pictures)
    tree = LabelTree(tuple(f"class {number}" for number in range(classes)))
    classification = Classification(rows, np.random.default_rng(7).integers(0, classes, pictures), tree, (template,))
    owners = np.tile(rows, CAPTIONS)  # a picture's captions do not stand together
    captions = tuple(f"caption {number}" for number in range(len(owners)))
    retrieval = Retrieval(rows, captions, owners, Fits.of_owners(owners, pictures))
    fingerprint = questions_fingerprint(name, stored, classification, retrieval)
    return EvaluationSet(name, fingerprint, stored, classification, retrieval)


def small_scores(content: EvaluationSet, signal: float, seed: int, pictures: str = "the same") -> Scores:
    """Noise, with `signal` added where the answer is right; `pictures`: what their bytes are."""
    classes, found = content.classification, content.retrieval
    assert classes is not None
    assert found is not None
    random = np.random.default_rng(seed)
    per_class = random.normal(size=(len(classes.labels), len(classes.tree.classes))).astype(np.float32)
    per_class[np.arange(len(classes.labels)), classes.labels] += signal
    table = random.normal(size=(len(found.rows), len(found.owners)))
    table[found.owners, np.arange(len(found.owners))] += signal
    seen = SeenPictures(count=len(found.rows), broken=0, sha256=hashlib.sha256(pictures.encode()).hexdigest())
    return Scores(per_class, TableScores(np.tanh(table / 4)), seen=seen)


def small_evaluation(
    place: Path,
    contents: list[EvaluationSet],
    signal: float,
    seed: int = 0,
    name: str | None = None,
    pictures: str = "the same",
) -> list[MeasuredSet]:
    """Writes what an evaluation leaves in the folder `place`, and returns what was measured."""
    (place / "sets").mkdir(parents=True)
    measured = [
        measure(content, small_scores(content, signal, seed + number, pictures), 0, 100)
        for number, content in enumerate(contents)
    ]
    for one in measured:
        key = hashlib.sha256(f"{signal} {seed}".encode()).hexdigest()
        (place / f"sets/{one.set}-{key[:16]}.json").write_text(one.model_dump_json())
    (place / f"sets/{contents[0].name}-pixel_neighbours-{'0' * 16}.json").write_text('{"values": {}, "voters": 1}')
    outcome = Outcome(
        name=name or place.name,
        key="0" * 64,
        checkpoint=f"/runs/{place.name}",
        weights=hashlib.sha256(place.name.encode()).hexdigest(),
        step=10,
        seen=640,
        parameters=1_000_000,
        train_flops=1e12,
        dataset=None,
        sets={content.name: content.fingerprint for content in contents},
        results=[result for one in measured for result in one.results],
        subgroups={one.set: one.subgroups for one in measured},
        pictures=[],
        report="report.html",
    )
    (place / RESULT).write_text(outcome.model_dump_json())
    return measured
