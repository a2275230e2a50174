"""Scores become results: the same lines for a model and for a baseline.

Whoever answers gives a score to every (picture, class) and every (picture, caption); from there on nobody asks where
the scores came from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hiclip.evaluation import retrieval, zero_shot
from hiclip.evaluation.blocks import MapBlocks, map_here
from hiclip.evaluation.bootstrap import FloatArray, estimate, resampled
from hiclip.evaluation.embed import EmbeddedPictures, Embedder, Vectors, embed_pictures, embed_texts
from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, Retrieval
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.result import Result, results_of
from hiclip.evaluation.retrieval import Answers, IntArray, ScoreTile, TableScores, VectorScores
from hiclip.evaluation.zero_shot import Predictions
from pipeline.jobfile import Settings

METRICS = (*zero_shot.METRICS, *retrieval.METRICS)
"""Every metric of a set, in the order of the table."""


class SeenPictures(Settings):
    """What a model was shown."""

    count: int
    broken: int
    """Pictures that cannot be fetched or decoded; they are scored as wrong."""
    sha256: str
    """Hex sha256 over the sha256 of each picture's bytes, in order."""


@dataclass(frozen=True)
class Scores:
    """What somebody thinks of a set's N pictures and C classes, and of its Q pictures and M captions."""

    classes: npt.NDArray[np.float32] | None
    """(N, C); None if nobody asked for a metric that needs it."""
    captions: ScoreTile | None
    """(Q, M) in tiles; None likewise."""
    logit_scale: float = 1.0
    """Inverse temperature that makes scores logits."""
    seen: SeenPictures | None = None
    """What was looked at; None for a baseline."""


class SubgroupResult(Settings):
    """How one subgroup of classes fares."""

    group: str
    subgroup: str
    count: int
    top1: float
    top5: float
    top5_low: float
    top5_high: float
    left_out: bool
    """Whether averages leave it out."""


class Judged(Settings):
    """What the pictures of a set were taken for; enough to show successes and errors."""

    ranks: list[int]
    """(N,) place of the right class."""
    best: list[list[int]]
    """(N, 5) classes, best first."""
    labels: list[int] = Field(default_factory=list)
    """(N,) right class of each; empty in what earlier versions stored."""
    steps: list[int] = Field(default_factory=list)
    """(N,) steps up the label tree from the first answer to the right one; empty where classes have no hierarchy, and
    in what earlier versions stored."""
    subgroups: list[int] = Field(default_factory=list)
    """(C,) number of each class's subgroup; empty likewise."""
    left_out: list[int] = Field(default_factory=list)
    """Numbers of the subgroups that averages leave out."""


class Found(Settings):
    """What one direction of retrieval found."""

    ranks: list[int]
    """(Q,) pictures, or (M,) captions: place of the first right candidate."""
    shown: list[int]
    """(K,) queries whose best candidates are here."""
    best: list[list[int]]
    """(K, 5) candidates, best first."""
    owners: list[int] = Field(default_factory=list)
    """(M,) of captions: the picture that each was written for; empty of pictures, and in what earlier versions stored.
    """


class Probed(Settings):
    """How a linear probe came by its planes."""

    strength: float
    """The C that was chosen."""
    tried: dict[float, float]
    """C -> share of the held-out pictures that are right."""
    converged: bool
    """Whether the last fit came to an end within its iterations."""


class MeasuredSet(Settings):
    """All that is known about one model on one set."""

    set: str
    results: list[Result]
    seen: SeenPictures | None = None
    seconds: float = 0.0
    """Wall time until the model's numbers were there, from when those of the set before it were."""
    subgroups: list[SubgroupResult] = Field(default_factory=list)
    judged: Judged | None = None
    """Null where nothing was classified."""
    images_found: Found | None = None
    """Pictures as queries, captions as candidates; null where nothing was retrieved."""
    texts_found: Found | None = None
    """The other way round."""
    probe: Probed | None = None
    """Of a linear probe; null otherwise."""


def asked_metrics(content: EvaluationSet) -> tuple[str, ...]:
    """The metrics that a set can have, in the order of the table."""
    asked = content.classification
    classify = zero_shot.tree_metrics(asked.labels, asked.tree) if asked is not None else ()
    return (*classify, *(retrieval.METRICS if content.retrieval is not None else ()))


def model_scores(
    embedder: Embedder, contents: Sequence[EvaluationSet], batch: int, map_blocks: MapBlocks, metrics: Collection[str]
) -> Iterator[Scores]:
    """The towers' cosines, set by set; only what `metrics` need is embedded, and equal prompts of several sets once."""
    asked = [_asked(content, metrics) for content in contents]
    nothing = np.empty(0, dtype=np.int64)  # of a set that has none of the metrics
    rows = [np.unique(np.concatenate([nothing, *(part.rows for part in parts if part is not None)])) for parts in asked]
    shown = [(content.pictures, part) for content, part in zip(contents, rows, strict=True)]
    what = f"{contents[0].name}: pictures" if len(contents) == 1 else f"pictures of {len(contents)} sets"
    embedded = embed_pictures(embedder, shown, batch, map_blocks, what)
    prompts = ClassVectors()
    for content, parts, part, images in zip(contents, asked, rows, embedded, strict=True):
        yield _scores(embedder, content, parts, part, images, prompts, batch, map_blocks)


def _asked(content: EvaluationSet, metrics: Collection[str]) -> tuple[Classification | None, Retrieval | None]:
    """The questions of a set that the metrics need."""
    return (
        content.classification if any(metric in zero_shot.METRICS for metric in metrics) else None,
        content.retrieval if any(metric in retrieval.METRICS for metric in metrics) else None,
    )


def _scores(
    embedder: Embedder,
    content: EvaluationSet,
    questions: tuple[Classification | None, Retrieval | None],
    rows: IntArray,
    images: EmbeddedPictures,
    prompts: ClassVectors,
    batch: int,
    map_blocks: MapBlocks,
) -> Scores:
    asked, found = questions
    scale = float(embedder.towers.logit_scale().item())
    per_class, tile = None, None
    if asked is not None:
        vectors = prompts.of(asked, embedder, batch, map_blocks, f"{content.name}: prompts")
        per_class = images.vectors[np.searchsorted(rows, asked.rows)] @ vectors.T
    if found is not None:
        captions = embed_texts(embedder, found.captions, batch, map_blocks, f"{content.name}: captions")
        tile = VectorScores(images.vectors[np.searchsorted(rows, found.rows)], captions)
    seen = SeenPictures(count=len(rows), broken=images.broken, sha256=images.sha256)
    return Scores(per_class, tile, scale, seen)


@dataclass
class ClassVectors:
    """The vectors of classes, embedded once a model however many sets have the same prompts."""

    known: dict[tuple[tuple[str, ...], tuple[str, ...]], Vectors] = field(default_factory=dict)

    def of(self, asked: Classification, embedder: Embedder, batch: int, map_blocks: MapBlocks, what: str) -> Vectors:
        """(C, E) unit vectors."""
        key = (asked.tree.classes, asked.templates)
        if key not in self.known:
            texts = embed_texts(embedder, asked.prompts(), batch, map_blocks, what)
            self.known[key] = zero_shot.class_vectors(texts.reshape(len(asked.templates), len(asked.tree.classes), -1))
        return self.known[key]


def class_only_scores(content: EvaluationSet, per_class: npt.NDArray[np.floating]) -> Scores:
    """Scores (N, C) of an answerer that knows classes alone: a caption is worth what its picture's class is."""
    asked, found = content.classification, content.retrieval
    assert asked is not None
    scores = per_class.astype(np.float32)
    if found is None or not np.isin(found.rows, asked.rows).all():
        return Scores(scores, None)
    order = np.argsort(asked.rows, kind="stable")
    places = order[np.searchsorted(asked.rows, found.rows, sorter=order)]
    return Scores(scores, TableScores(scores[places][:, asked.labels[places][found.owners]]))


def measure(
    content: EvaluationSet, scores: Scores, seed: int, draws: int, map_blocks: MapBlocks = map_here
) -> MeasuredSet:
    """Every metric that the scores allow, with intervals."""
    results: list[Result] = []
    subgroups: list[SubgroupResult] = []
    judged, images_found, texts_found = None, None, None
    if scores.classes is not None:
        assert content.classification is not None
        asked = content.classification
        predictions = zero_shot.predict(scores.classes, asked.labels, names=asked.tree.classes)
        results += zero_shot_results(content.name, asked, predictions, seed, draws)
        subgroups = _subgroup_results(asked, predictions, seed, draws)
        judged = _judged(predictions, asked.tree)
    if scores.captions is not None:
        assert content.retrieval is not None
        right = content.retrieval.right
        images, texts = retrieval.answers(scores.captions, right, scores.logit_scale, map_blocks, content.name)
        results += _retrieval_results(content.name, content.retrieval, images, texts, seed, draws)
        images_found, texts_found = _found(images), _found(texts, content.retrieval.owners.tolist())
    return MeasuredSet(
        set=content.name,
        results=results,
        seen=scores.seen,
        subgroups=subgroups,
        judged=judged,
        images_found=images_found,
        texts_found=texts_found,
    )


def sample_metric(
    content: EvaluationSet, scores: Scores, metric: str, seed: int, draws: int, map_blocks: MapBlocks = map_here
) -> tuple[float, FloatArray]:
    """One metric, and (draws,) what it is on resamples of the set's pictures, see `bootstrap.resampled`."""
    if metric in zero_shot.METRICS:
        assert scores.classes is not None
        assert content.classification is not None
        asked = content.classification
        predictions = zero_shot.predict(scores.classes, asked.labels, names=asked.tree.classes)
        statistic, pictures = zero_shot.zero_shot_statistic(predictions, asked.tree), len(asked.labels)
        place = zero_shot.METRICS.index(metric)
    else:
        assert scores.captions is not None
        assert content.retrieval is not None
        found = content.retrieval
        answers = retrieval.answers(scores.captions, found.right, scores.logit_scale, map_blocks, content.name)
        statistic, pictures = retrieval.retrieval_statistic(*answers, found.owners), len(found.rows)
        place = retrieval.METRICS.index(metric)
    value = statistic(np.ones((1, pictures)))[0, place]
    return float(value), resampled(statistic, pictures, seed, draws)[:, place]


def baseline_values(content: EvaluationSet, scores: Scores, without: Collection[str] = ()) -> dict[str, float]:
    """The metrics of a baseline by name, without intervals."""
    values: dict[str, float] = {}
    if scores.classes is not None:
        asked = content.classification
        assert asked is not None
        predictions = zero_shot.predict(scores.classes, asked.labels, names=asked.tree.classes)
        statistic = zero_shot.zero_shot_statistic(predictions, asked.tree)
        values |= zip(zero_shot.METRICS, statistic(np.ones((1, len(asked.labels))))[0].tolist(), strict=True)
    if scores.captions is not None:
        found = content.retrieval
        assert found is not None
        statistic = retrieval.retrieval_statistic(*retrieval.answers(scores.captions, found.right), found.owners)
        values |= zip(retrieval.METRICS, statistic(np.ones((1, len(found.rows))))[0].tolist(), strict=True)
    return {metric: value for metric, value in values.items() if metric not in without and np.isfinite(value)}


def _found(answers: Answers, owners: Sequence[int] = ()) -> Found:
    shown, best = answers.shown.tolist(), answers.best.tolist()
    return Found(ranks=answers.ranks.tolist(), shown=shown, best=best, owners=list(owners))


def zero_shot_results(
    name: str, asked: Classification, predictions: Predictions, seed: int, draws: int
) -> list[Result]:
    """The metrics of classification, with intervals over pictures and chance beside them."""
    results = results_of(
        name,
        zero_shot.METRICS,
        estimate(zero_shot.zero_shot_statistic(predictions, asked.tree), len(asked.labels), seed, draws),
        zero_shot.zero_shot_chance(asked.labels, asked.tree),
        zero_shot.metric_counts(asked.labels, asked.tree),
    )
    return [one.model_copy(update={"quoted": one.metric == asked.convention}) for one in results]


def _subgroup_results(asked: Classification, predictions: Predictions, seed: int, draws: int) -> list[SubgroupResult]:
    if asked.tree.flat:
        return []
    names, statistic = zero_shot.subgroup_statistic(predictions, asked.tree)
    found = estimate(statistic, len(asked.labels), seed, draws)
    top1, top5 = found.value.reshape(2, len(names))
    low, high = found.low.reshape(2, len(names))[1], found.high.reshape(2, len(names))[1]
    group_of = dict(zip(asked.tree.subgroups, asked.tree.groups, strict=True))
    number = asked.tree.subgroup_numbers()[1][asked.labels]
    return [
        SubgroupResult(
            group=group_of[name],
            subgroup=name,
            count=int((number == place).sum()),
            top1=float(top1[place]),
            top5=float(top5[place]),
            top5_low=float(low[place]),
            top5_high=float(high[place]),
            left_out=name in asked.tree.left_out,
        )
        for place, name in enumerate(names)
        if np.isfinite(top1[place])
    ]


def _judged(predictions: zero_shot.Predictions, tree: LabelTree) -> Judged:
    near = zero_shot.nearness(predictions, tree)
    hierarchy = (
        {}
        if near is None
        else {
            "steps": near.steps.tolist(),
            "subgroups": near.subgroups.tolist(),
            "left_out": near.left_out.tolist(),
        }
    )
    return Judged(
        ranks=predictions.ranks.tolist(),
        best=predictions.best.tolist(),
        labels=predictions.labels.tolist(),
        **hierarchy,
    )


def _retrieval_results(
    name: str, asked: Retrieval, images: Answers, texts: Answers, seed: int, draws: int
) -> list[Result]:
    pictures = len(asked.rows)
    statistic = retrieval.retrieval_statistic(images, texts, asked.owners)
    chance: FloatArray = retrieval.retrieval_chance(asked.right)
    estimates = estimate(statistic, pictures, seed, draws)
    return results_of(name, retrieval.METRICS, estimates, chance, [pictures] * len(chance))
