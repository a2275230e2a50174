"""Retrieval both ways among N pictures and M captions: recall at 1, 5 and 10, their sum, the contrastive loss, and
the typical rank of the right answer.

Pure numpy. Scores come in blocks of rows, so memory is linear in the number of pictures; what is right comes as pairs
(picture, caption), so a picture may have several captions and a caption may fit several pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiclip.evaluation.bootstrap import FloatArray, Statistic, weighted_mean

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ScoreRows = Callable[[slice], npt.NDArray[np.floating]]
"""Scores of the queries in a slice against all candidates: slice -> (rows, candidates); higher is nearer."""

CUTS = (1, 5, 10)
METRICS = (
    *(f"image_to_text_r{cut}" for cut in CUTS),
    *(f"text_to_image_r{cut}" for cut in CUTS),
    "rsum",
    "loss",
    "typical_rank",
)
"""Order of the columns of `retrieval_statistic` and `retrieval_chance`."""


@dataclass(frozen=True)
class Fits:
    """Which of M candidates are right answers to each of N queries."""

    pairs: IntArray
    """(P, 2) of (query, candidate), sorted, each once."""
    queries: int
    candidates: int

    def rows(self, part: slice) -> BoolArray:
        """(rows, M): True where the candidate answers the query."""
        start, stop, _ = part.indices(self.queries)
        first, last = np.searchsorted(self.pairs[:, 0], [start, stop])
        dense = np.zeros((stop - start, self.candidates), dtype=np.bool_)
        dense[self.pairs[first:last, 0] - start, self.pairs[first:last, 1]] = True
        return dense

    def turned(self) -> Fits:
        """The same with queries and candidates exchanged."""
        order = np.lexsort((self.pairs[:, 0], self.pairs[:, 1]))
        return Fits(self.pairs[order][:, ::-1], self.candidates, self.queries)

    def right_answers(self) -> IntArray:
        """(N,): how many candidates answer each query."""
        return np.bincount(self.pairs[:, 0], minlength=self.queries).astype(np.int64)


def fits(wordings: Sequence[Collection[str]], candidates: Sequence[str]) -> Fits:
    """Pictures as queries, captions as candidates: a caption fits a picture that has it among its wordings.

    Example: wordings [{"cat"}, {"dog", "hound"}, {"dog"}] and candidates ["cat", "dog", "hound"]
    give the pairs (0, 0), (1, 1), (1, 2), (2, 1): "dog" is right for two pictures.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(candidates):
        places.setdefault(text, []).append(place)
    pairs = [
        (query, place) for query, texts in enumerate(wordings) for text in set(texts) for place in places.get(text, ())
    ]
    array = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return Fits(array, len(wordings), len(candidates))


@dataclass(frozen=True)
class Answers:
    """How one direction went: for each of N queries, what became of its best right candidate."""

    ranks: IntArray
    """(N,): 1 is first. A wrong candidate with the same score stands before a right one: ties earn nothing."""
    surprise: FloatArray
    """(N,) nats: minus the logarithm of the probability that softmax gives to all right candidates together."""
    best: IntArray
    """(N, 5) candidates with the highest scores, best first."""


def answer(score_rows: ScoreRows, right: Fits, logit_scale: float = 1.0, block: int = 1024) -> Answers:
    """Ranks and surprise of every query, `block` rows of scores at a time.

    A query whose scores are NaN (a picture that could not be read) or that no candidate fits is answered wrong: its
    rank is the number of candidates plus one, its surprise that of a uniform guess.

    Example: scores [[.9, .1, .9]], right candidate 0, gives rank 2: candidate 2 ties with it.
    """
    ranks = np.empty(right.queries, dtype=np.int64)
    surprise = np.empty(right.queries)
    best = np.empty((right.queries, min(5, right.candidates)), dtype=np.int64)
    for start in range(0, right.queries, block):
        part = slice(start, min(start + block, right.queries))
        scores, fitting = score_rows(part).astype(np.float64), right.rows(part)
        found = np.where(fitting, scores, -np.inf).max(axis=1)
        ahead = ((scores >= found[:, None]) & ~fitting).sum(axis=1)
        lost = ~np.isfinite(found)
        best[part] = highest(scores, best.shape[1])
        ranks[part] = np.where(lost, right.candidates + 1, ahead + 1)
        surprise[part] = np.where(lost, np.log(right.candidates), _surprise(scores * logit_scale, fitting))
    return Answers(ranks, surprise, best)


def highest(scores: npt.NDArray[np.floating], count: int) -> IntArray:
    """(rows, M) -> (rows, count) columns of the highest scores, best first; of equal ones the first; NaN last."""
    order: IntArray = np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int64)
    return order


def _surprise(logits: FloatArray, fitting: BoolArray) -> FloatArray:
    """(rows, M) -> (rows,) nats; NaN for a row that holds one."""
    logits = np.nan_to_num(logits - logits.max(axis=1, keepdims=True), nan=0.0)
    everything = np.exp(logits)
    with np.errstate(divide="ignore"):
        nats: FloatArray = np.log(everything.sum(axis=1)) - np.log(np.where(fitting, everything, 0.0).sum(axis=1))
    return nats


def retrieval_statistic(image_answers: Answers, text_answers: Answers, owners: IntArray) -> Statistic:
    """The METRICS as a function of the weights of N pictures.

    owners: (M,), the picture that each caption was written for: captions are drawn together with their picture.
    Recalls are shares of queries, `rsum` is the papers' sum of the six in percent (0 to 600), `loss` is in nats.
    `typical_rank` is the geometric mean of the ranks in both directions, 1 at best: smooth where recalls still stand at
    chance, and unlike the loss blind to a temperature that suits the training data alone.
    """
    pictures = len(image_answers.ranks)

    def of_owner(values: FloatArray) -> FloatArray:
        return np.bincount(owners, weights=values, minlength=pictures).astype(np.float64)

    image_hits = [image_answers.ranks <= cut for cut in CUTS]
    text_hits = [of_owner((text_answers.ranks <= cut).astype(np.float64)) for cut in CUTS]
    log_ranks = np.log(image_answers.ranks), of_owner(np.log(text_answers.ranks))
    surprises = image_answers.surprise, of_owner(text_answers.surprise)
    values = np.stack([*image_hits, *text_hits, *surprises, *log_ranks], axis=1)
    pictures_once, captions = np.ones(pictures), of_owner(np.ones(len(owners)))
    recalls_of = [pictures_once] * len(CUTS) + [captions] * len(CUTS)
    counts = np.stack([*recalls_of, pictures_once, captions, pictures_once, captions], axis=1)

    def statistic(weights: FloatArray) -> FloatArray:
        means = weighted_mean(weights, values, counts)
        recalls, losses, logs = np.split(means, [2 * len(CUTS), 2 * len(CUTS) + 2], axis=1)
        rank = np.exp(logs.mean(axis=1))
        return np.column_stack([recalls, 100.0 * recalls.sum(axis=1), losses.mean(axis=1), rank])

    return statistic


def retrieval_chance(right: Fits) -> FloatArray:
    """What METRICS are for scores that know nothing: (9,). `right` has the pictures as queries.

    With one right candidate of M: recall k/M and loss ln M; with m of M: 1 - C(M-m, k)/C(M, k) and ln(M/m).
    """
    recalls, losses, logs = [], [], []
    for direction in (right, right.turned()):
        answers = direction.right_answers()
        recalls += [float(hit_chance(answers, direction.candidates, cut).mean()) for cut in CUTS]
        losses.append(float(np.log(direction.candidates / np.maximum(answers, 1)).mean()))
        logs.append(float(_mean_log_rank(answers, direction.candidates).mean()))
    return np.array([*recalls, 100.0 * sum(recalls), sum(losses) / 2.0, np.exp(sum(logs) / 2.0)])


def hit_chance(right_answers: IntArray, candidates: int, cut: int) -> FloatArray:
    """(N,) counts of right candidates -> (N,) probability that a random order has one of them among its first `cut`.

    Example: 2 right of 4 candidates, cut 1 -> 0.5; cut 2 -> 1 - (2/4)(1/3) = 0.8333.
    """
    missed = np.ones(len(right_answers))
    for drawn in range(min(cut, candidates)):
        missed *= np.clip(candidates - right_answers - drawn, 0, None) / (candidates - drawn)
    return 1.0 - missed


def _mean_log_rank(right_answers: IntArray, candidates: int) -> FloatArray:
    """(N,) counts of right candidates -> (N,) mean log rank of the first of them in a random order.

    Example: 1 right of 2 candidates -> (log 1 + log 2) / 2.
    """
    counts, places = np.unique(right_answers, return_inverse=True)
    drawn = np.arange(candidates - 1)
    later = np.cumprod(np.clip(candidates - counts[:, None] - drawn, 0, None) / (candidates - drawn), axis=1)
    # Over places k: the probability that the rank is beyond k, times what one more place adds to the logarithm.
    means: FloatArray = later @ np.diff(np.log(np.arange(1, candidates + 1)))
    return means[places]
