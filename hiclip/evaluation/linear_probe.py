"""Linear probe: how much of a set's classes can be read off frozen features by a plane for each class?

CLIP's protocol (Radford et al. 2021, appendix A.3), which HiCLIP's Table 7 follows: multinomial logistic regression
by scikit-learn with L-BFGS and at most 1,000 iterations. Its strength C is chosen on pictures held out from training,
in seven steps over 1e-6 to 1e6 and then ever closer about the best, to eight steps a decade; then it learns from all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.embed import Embedder, Vectors, embed_pictures, picture_features, picture_vectors
from hiclip.evaluation.evaluate_job import LinearProbeSettings
from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, drawn
from hiclip.evaluation.measure import Judged, MeasuredSet, Probed, SeenPictures, zero_shot_results
from hiclip.evaluation.result import Result
from hiclip.evaluation.retrieval import IntArray
from hiclip.evaluation.zero_shot import (
    METRICS,
    Predictions,
    majority_scores,
    predict,
    zero_shot_statistic,
)
from pipeline.manifest import DatasetError

_WIDE_STEPS = 7
_CLOSEST = 1 / 8  # of a decade
_LEAST, _MOST = -6.0, 6.0  # decades
_ITERATIONS = 1000


class _HasSplits(Protocol):
    def load(self, split: Literal["test", "train"] = "test") -> EvaluationSet: ...


def load_splits(settings: _HasSplits) -> tuple[EvaluationSet, EvaluationSet]:
    """(train, test) of a set. DatasetError if it has no labels or both do not have the same classes."""
    train, test = settings.load("train"), settings.load("test")
    for content in (train, test):
        if content.classification is None:
            raise DatasetError(f"{content.name}: expected labelled pictures for a linear probe, it has none")
    assert train.classification is not None
    assert test.classification is not None
    if train.classification.tree.classes != test.classification.tree.classes:
        raise DatasetError(f"{test.name}: expected the same classes in training and test, they differ")
    missing = np.setdiff1d(test.classification.labels, train.classification.labels)
    if len(missing):
        name = test.classification.tree.classes[missing[0]]
        raise DatasetError(f"{test.name}: expected every class of the test in training, '{name}' has no picture there")
    return train, test


def probe(
    settings: LinearProbeSettings,
    splits: tuple[EvaluationSet, EvaluationSet],
    embedder: Embedder,
    batch: int,
    map_blocks: MapBlocks,
    seed: int,
    draws: int,
) -> MeasuredSet:
    """The numbers of one set. Fits are blocks too, so that strengths are tried side by side."""
    train, test = splits
    assert train.classification is not None
    assert test.classification is not None
    embed = picture_features if settings.features == "before_projection" else picture_vectors
    shown = [(content.pictures, content.classification.rows) for content in splits if content.classification]
    what = f"{test.name}: features"
    seen, asked = embed_pictures(embedder, shown, batch, map_blocks, what, embed)
    usable = ~np.isnan(seen.vectors[:, 0])
    examples = Examples(seen.vectors[usable], train.classification.labels[usable])
    _check(train, examples.labels)
    every = train.pictures.names()  # once: some sets put their names together anew
    names = [every[row] for row in train.classification.rows[usable].tolist()]
    apart = _held_out(names, examples.labels, settings.held_out)
    tried = _search(examples.part(~apart), examples.part(apart), map_blocks, f"{test.name}: probes")
    strength = _best(tried)
    (fitted,) = map_blocks(_fit, examples, [strength], f"{test.name}: last fit")
    scores = fitted.scores(asked.vectors, len(test.classification.tree.classes))
    predictions = predict(scores, test.classification.labels)
    return MeasuredSet(
        set=probe_name(test),
        results=_results(probe_name(test), test.classification, predictions, seed, draws),
        seen=SeenPictures(count=len(asked.vectors), broken=asked.broken, sha256=asked.sha256),
        judged=Judged(
            ranks=predictions.ranks.tolist(), best=predictions.best.tolist(), labels=predictions.labels.tolist()
        ),
        probe=Probed(strength=strength, tried=tried, converged=fitted.converged),
    )


def _check(train: EvaluationSet, labels: IntArray) -> None:
    """(N,) classes of the training pictures that can be read. DatasetError if nothing can be learnt or held out."""
    counts = np.bincount(labels)
    if np.count_nonzero(counts) < 2:
        raise DatasetError(
            f"{train.name}: expected readable training pictures of two classes or more, came {len(labels)} of "
            f"{np.count_nonzero(counts)}"
        )
    if counts.max() < 2:
        raise DatasetError(f"{train.name}: expected two readable training pictures of a class, came one of each")


def probe_name(test: EvaluationSet) -> str:
    """What a probe's numbers on a set are called."""
    return f"linear_probe/{test.name}"


def _results(name: str, asked: Classification, predictions: Predictions, seed: int, draws: int) -> list[Result]:
    """Beside one who always says the commonest class."""
    majority = predict(majority_scores(asked.labels, asked.tree), asked.labels)
    always = zero_shot_statistic(majority, asked.tree)(np.ones((1, len(asked.labels))))[0].tolist()
    values = dict(zip(METRICS, always, strict=True))
    results = zero_shot_results(name, asked, predictions, seed, draws)
    return [one.model_copy(update={"baselines": {"majority": values[one.metric]}}) for one in results]


@dataclass(frozen=True)
class Examples:
    """What a probe learns from."""

    features: Vectors
    """(N, D)"""
    labels: IntArray
    """(N,)"""

    def part(self, chosen: npt.NDArray[np.bool_]) -> Examples:
        """Some of them."""
        return Examples(self.features[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Fitted:
    """A plane for each class that was learnt."""

    classes: IntArray
    """(K,) which ones, ascending."""
    weights: npt.NDArray[np.float64]
    """(K, D)"""
    biases: npt.NDArray[np.float64]
    """(K,)"""
    converged: bool

    def scores(self, features: Vectors, classes: int) -> npt.NDArray[np.float32]:
        """(N, D) -> (N, C) logits; minus infinity for a class that training did not show."""
        found = np.full((len(features), classes), -np.inf, dtype=np.float32)
        found[:, self.classes] = features @ self.weights.T + self.biases
        return found


def _fit(examples: Examples, strength: float) -> Fitted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        model = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(examples.features, examples.labels)
    weights, biases = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(model.classes_) == 2:  # scikit-learn keeps one plane for two classes
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    return Fitted(model.classes_.astype(np.int64), weights, biases, int(model.n_iter_.max()) < _ITERATIONS)


def _held_out(names: Sequence[str], labels: IntArray, share: float) -> npt.NDArray[np.bool_]:
    """(N,): of each class the share of pictures whose hash is smallest, one at least where two or more are."""
    apart = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) > 1:
            count = min(max(1, round(share * len(places))), len(places) - 1)
            apart[places[drawn([names[place] for place in places.tolist()], count, key="linear probe")]] = True
    return apart


def _search(train: Examples, held_out: Examples, map_blocks: MapBlocks, what: str) -> dict[float, float]:
    """CLIP's search for C: C -> share of the held-out pictures that are right."""
    tried: dict[float, float] = {}
    step = (_MOST - _LEAST) / (_WIDE_STEPS - 1)
    decades = [_LEAST + step * place for place in range(_WIDE_STEPS)]
    while True:
        strengths = [10.0**decade for decade in decades if _LEAST <= decade <= _MOST and 10.0**decade not in tried]
        shared = (train, held_out)
        tried |= dict(zip(strengths, map_blocks(_tried, shared, strengths, what), strict=True))
        step /= 2
        if step < _CLOSEST:
            return tried
        best = float(np.log10(_best(tried)))
        decades = [best - step, best + step]


def _tried(shared: tuple[Examples, Examples], strength: float) -> float:
    train, held_out = shared
    fitted = _fit(train, strength)
    scores = fitted.scores(held_out.features, int(train.labels.max()) + 1)
    return float((scores.argmax(axis=1) == held_out.labels).mean())


def _best(tried: dict[float, float]) -> float:
    """The strength that is most often right; of equal ones the smallest, which bends the planes least."""
    return min(tried, key=lambda strength: (-tried[strength], strength))
