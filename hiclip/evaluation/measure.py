"""Scores become results: the same lines for a model and for a baseline.

Whoever answers gives a score to every (picture, class) and every (picture, caption); from there on nobody asks where
the scores came from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hiclip.evaluation import retrieval, zero_shot
from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.bootstrap import FloatArray, estimate
from hiclip.evaluation.embed import Embedder, embed_pictures, embed_texts
from hiclip.evaluation.evaluation_set import EvaluationSet, folded
from hiclip.evaluation.result import Result, results_of
from hiclip.evaluation.retrieval import Answers, Fits, ScoreRows
from hiclip.evaluation.zero_shot import Predictions
from pipeline.jobfile import Settings

METRICS = (*zero_shot.METRICS, *retrieval.METRICS)
"""Every metric of a set, in the order of the table."""


@dataclass(frozen=True)
class Scores:
    """What somebody thinks of a set's N pictures, C classes, and Q queries with their captions."""

    classes: npt.NDArray[np.float32] | None
    """(N, C); None if nobody asked for a metric that needs it."""
    image_rows: ScoreRows | None
    """Rows of (Q pictures, Q captions); None likewise."""
    text_rows: ScoreRows | None
    """The same the other way round."""
    logit_scale: float = 1.0
    """Inverse temperature that makes scores logits."""


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


class Found(Settings):
    """What one direction of retrieval found."""

    ranks: list[int]
    """(Q,) place of the first right candidate."""
    best: list[list[int]]
    """(Q, 5) candidates, best first."""


class MeasuredSet(Settings):
    """All that is known about one model on one set."""

    set: str
    results: list[Result]
    subgroups: list[SubgroupResult] = Field(default_factory=list)
    judged: Judged | None = None
    """Null where nothing was classified."""
    images_found: Found | None = None
    """Pictures as queries, captions as candidates; null where nothing was retrieved."""
    texts_found: Found | None = None
    """The other way round."""


def model_scores(
    embedder: Embedder, content: EvaluationSet, batch: int, map_blocks: MapBlocks, metrics: Collection[str]
) -> Scores:
    """The towers' cosines; only what `metrics` need is embedded."""
    classify = any(metric in zero_shot.METRICS for metric in metrics)
    retrieve = any(metric in retrieval.METRICS for metric in metrics)
    shown = np.arange(len(content.pictures)) if classify else content.queries
    images = embed_pictures(
        embedder, [content.pictures[row] for row in shown], batch, map_blocks, f"{content.name}: pictures"
    )
    prompts = content.prompts() if classify else []
    texts = embed_texts(
        embedder,
        [*prompts, *(content.captions if retrieve else ())],
        batch,
        map_blocks,
        f"{content.name}: prompts and captions",
    )
    scale = float(embedder.towers.logit_scale().item())
    per_class = None
    if classify:
        shape = (len(content.templates), len(content.tree.classes), -1)
        per_class = images @ zero_shot.class_vectors(texts[: len(prompts)].reshape(shape)).T
    if not retrieve:
        return Scores(per_class, None, None, scale)
    pictures, captions = images[content.queries] if classify else images, texts[len(prompts) :]
    return Scores(per_class, lambda part: pictures[part] @ captions.T, lambda part: captions[part] @ pictures.T, scale)


def class_only_scores(content: EvaluationSet, per_class: npt.NDArray[np.floating]) -> Scores:
    """Scores (N, C) of an answerer that knows classes alone: a caption is worth what its picture's class is."""
    table = per_class[content.queries][:, content.labels[content.queries]].astype(np.float32)
    return Scores(per_class.astype(np.float32), lambda part: table[part], lambda part: table.T[part])


def measure(content: EvaluationSet, scores: Scores, seed: int, draws: int) -> MeasuredSet:
    """Every metric that the scores allow, with intervals."""
    results: list[Result] = []
    subgroups: list[SubgroupResult] = []
    judged, images_found, texts_found = None, None, None
    if scores.classes is not None:
        predictions = zero_shot.predict(scores.classes, content.labels)
        results += _zero_shot_results(content, predictions, seed, draws)
        subgroups = _subgroup_results(content, predictions, seed, draws)
        judged = Judged(ranks=predictions.ranks.tolist(), best=predictions.best.tolist())
    if scores.image_rows is not None and scores.text_rows is not None:
        right = _right(content)
        images = retrieval.answer(scores.image_rows, right, scores.logit_scale)
        texts = retrieval.answer(scores.text_rows, right.turned(), scores.logit_scale)
        results += _retrieval_results(content, right, images, texts, seed, draws)
        images_found, texts_found = _found(images), _found(texts)
    return MeasuredSet(
        set=content.name,
        results=results,
        subgroups=subgroups,
        judged=judged,
        images_found=images_found,
        texts_found=texts_found,
    )


def baseline_values(content: EvaluationSet, scores: Scores, without: Collection[str] = ()) -> dict[str, float]:
    """The metrics of a baseline by name, without intervals."""
    values: dict[str, float] = {}
    if scores.classes is not None:
        predictions = zero_shot.predict(scores.classes, content.labels)
        statistic = zero_shot.zero_shot_statistic(predictions, content.tree)
        values |= zip(zero_shot.METRICS, statistic(np.ones((1, len(content.labels))))[0].tolist(), strict=True)
    if scores.image_rows is not None and scores.text_rows is not None:
        right = _right(content)
        images = retrieval.answer(scores.image_rows, right)
        texts = retrieval.answer(scores.text_rows, right.turned())
        statistic = retrieval.retrieval_statistic(images, texts, np.arange(len(content.queries)))
        values |= zip(retrieval.METRICS, statistic(np.ones((1, len(content.queries))))[0].tolist(), strict=True)
    return {metric: value for metric, value in values.items() if metric not in without and np.isfinite(value)}


def _right(content: EvaluationSet) -> Fits:
    return retrieval.fits(content.wordings, [folded(caption) for caption in content.captions])


def _found(answers: Answers) -> Found:
    return Found(ranks=answers.ranks.tolist(), best=answers.best.tolist())


def _zero_shot_results(content: EvaluationSet, predictions: Predictions, seed: int, draws: int) -> list[Result]:
    statistic = zero_shot.zero_shot_statistic(predictions, content.tree)
    return results_of(
        content.name,
        zero_shot.METRICS,
        estimate(statistic, len(content.labels), seed, draws),
        zero_shot.zero_shot_chance(content.labels, content.tree),
        zero_shot.metric_counts(content.labels, content.tree),
    )


def _subgroup_results(content: EvaluationSet, predictions: Predictions, seed: int, draws: int) -> list[SubgroupResult]:
    names, statistic = zero_shot.subgroup_statistic(predictions, content.tree)
    found = estimate(statistic, len(content.labels), seed, draws)
    top1, top5 = found.value.reshape(2, len(names))
    low, high = found.low.reshape(2, len(names))[1], found.high.reshape(2, len(names))[1]
    group_of = dict(zip(content.tree.subgroups, content.tree.groups, strict=True))
    number = content.tree.subgroup_numbers()[1][content.labels]
    return [
        SubgroupResult(
            group=group_of[name],
            subgroup=name,
            count=int((number == place).sum()),
            top1=float(top1[place]),
            top5=float(top5[place]),
            top5_low=float(low[place]),
            top5_high=float(high[place]),
            left_out=name in content.tree.left_out,
        )
        for place, name in enumerate(names)
        if np.isfinite(top1[place])
    ]


def _retrieval_results(
    content: EvaluationSet, right: Fits, images: Answers, texts: Answers, seed: int, draws: int
) -> list[Result]:
    queries = len(content.queries)
    statistic = retrieval.retrieval_statistic(images, texts, np.arange(queries))
    chance: FloatArray = retrieval.retrieval_chance(right)
    return results_of(
        content.name, retrieval.METRICS, estimate(statistic, queries, seed, draws), chance, [queries] * len(chance)
    )
