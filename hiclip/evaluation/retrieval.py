"""Retrieval both ways among N pictures and M captions: recall at 1, 5 and 10, their sum, the contrastive loss, and
the typical rank of the right answer.

Pure numpy. Scores come in tiles, so memory is linear in the number of pictures and captions; what is right comes as
pairs (picture, caption), so a picture may have several captions and a caption may fit several pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiclip.evaluation.blocks import MapBlocks, map_here
from hiclip.evaluation.bootstrap import FloatArray, Statistic, weighted_mean

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Some = slice | IntArray
"""Rows or columns of a table: a run of them, or their numbers."""
ScoreTile = Callable[[Some, Some], npt.NDArray[np.floating]]
"""Scores from -1 to 1 of some rows against some columns, one of both a run: (rows, columns); higher is nearer."""

ROWS, COLUMNS = 1024, 8192
"""Of a tile. A score depends in its last bits on the tile that it is computed in, so the cut never varies."""

SHOWN = 2000
"""Queries of each direction whose best candidates are remembered, for people to look at."""

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

    @classmethod
    def of_owners(cls, owners: IntArray, queries: int) -> Fits:
        """Each candidate is right for its owner alone: (M,) numbers of queries."""
        order = np.argsort(owners, kind="stable")
        return cls(np.stack([owners[order], order], axis=1).astype(np.int64), queries, len(owners))

    def holds(self, query: int, candidate: int) -> bool:
        """Whether the candidate answers the query."""
        first, last = np.searchsorted(self.pairs[:, 0], [query, query + 1])
        return bool(np.any(self.pairs[first:last, 1] == candidate))

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
class VectorScores:
    """Cosines of N and M unit vectors, a `ScoreTile`."""

    rows: npt.NDArray[np.float32]
    """(N, E)"""
    columns: npt.NDArray[np.float32]
    """(M, E)"""

    def __call__(self, rows: Some, columns: Some) -> npt.NDArray[np.float32]:
        """Their products."""
        return self.rows[rows] @ self.columns[columns].T


@dataclass(frozen=True)
class TableScores:
    """Scores that are known already, a `ScoreTile`; for baselines on small sets."""

    table: npt.NDArray[np.floating]
    """(N, M)"""

    def __call__(self, rows: Some, columns: Some) -> npt.NDArray[np.floating]:
        """A part of the table."""
        return self.table[rows, columns]


@dataclass(frozen=True)
class Answers:
    """How one direction went: for each of N queries, what became of its best right candidate."""

    ranks: IntArray
    """(N,): 1 is first. A wrong candidate with the same score stands before a right one: ties earn nothing."""
    surprise: FloatArray
    """(N,) nats: minus the logarithm of the probability that softmax gives to all right candidates together."""
    shown: IntArray
    """(K,) the queries whose best candidates are named: all, or SHOWN of them evenly spread."""
    best: IntArray
    """(K, 5) candidates with the highest scores, best first."""


@dataclass(frozen=True)
class _Question:
    """What all tasks share."""

    scores: ScoreTile
    right: Fits
    logit_scale: float


@dataclass(frozen=True)
class _Rows:
    """What one block of rows adds."""

    ahead: IntArray
    """(rows,) wrong candidates that stand before the best right one."""
    mass: FloatArray
    """(rows,) sum of the exponentials of all scores."""
    ahead_of_columns: IntArray
    """(M,) the same for the other direction, among these rows."""
    mass_of_columns: FloatArray
    """(M,)"""


def answers(
    scores: ScoreTile, right: Fits, logit_scale: float = 1.0, map_blocks: MapBlocks = map_here, what: str = "retrieval"
) -> tuple[Answers, Answers]:
    """Both directions at once: rows ask among columns, columns among rows; tiles with right pairs are computed twice.

    Tile by tile, so memory grows with rows plus columns and never with their product: 110 MB a task beside what the
    scores are computed from and two numbers a column. A query whose scores are NaN (a picture that could not be read)
    or that no candidate fits is answered wrong: its rank is the number of candidates plus one, its surprise that of a
    uniform guess.

    Example: scores [[.9, .1, .9]], right column 0, give the row rank 2: column 2 ties with it.
    """
    question = _Question(scores, right, logit_scale)
    blocks = [slice(start, min(start + ROWS, right.queries)) for start in range(0, right.queries, ROWS)]
    # What the right pairs score must be known before anybody can stand before them; to the bit, so from the same tiles.
    of_pairs = np.concatenate([*map_blocks(_scores_of_pairs, question, blocks, f"{what}: right pairs"), np.empty(0)])
    row_of, column_of = right.pairs[:, 0], right.pairs[:, 1]
    rows_best, columns_best = np.full(right.queries, -np.inf), np.full(right.candidates, -np.inf)
    np.fmax.at(rows_best, row_of, of_pairs)
    np.fmax.at(columns_best, column_of, of_pairs)
    ahead, mass = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    columns_ahead, columns_mass = np.zeros(right.candidates, dtype=np.int64), np.zeros(right.candidates)
    for found in map_blocks(_compared, (question, rows_best, columns_best), blocks, what):
        ahead.append(found.ahead)
        mass.append(found.mass)
        columns_ahead += found.ahead_of_columns
        columns_mass += found.mass_of_columns
    right_mass = np.exp(logit_scale * (np.nan_to_num(of_pairs, nan=-np.inf) - 1.0))
    rows_shown = _evenly(right.queries)
    columns_shown = _evenly(right.candidates)
    return (
        Answers(
            *_judged(rows_best, np.concatenate(ahead), np.concatenate(mass), row_of, right_mass, right.candidates),
            rows_shown,
            _highest_in_rows(scores, rows_shown, right.candidates),
        ),
        Answers(
            *_judged(columns_best, columns_ahead, columns_mass, column_of, right_mass, right.queries),
            columns_shown,
            _highest_in_rows(lambda rows, columns: scores(columns, rows).T, columns_shown, right.queries),
        ),
    )


def _tiles(right: Fits, rows: slice) -> Iterator[tuple[slice, IntArray, IntArray]]:
    """The tiles of a block of rows: columns, and the pairs (their places in the tile) that are right in it."""
    first, last = np.searchsorted(right.pairs[:, 0], [rows.start, rows.stop])
    pairs = right.pairs[first:last] - [rows.start, 0]
    for start in range(0, right.candidates, COLUMNS):
        stop = min(start + COLUMNS, right.candidates)
        inside = np.flatnonzero((pairs[:, 1] >= start) & (pairs[:, 1] < stop))
        yield slice(start, stop), pairs[inside] - [0, start], inside


def _scores_of_pairs(question: _Question, rows: slice) -> FloatArray:
    """The scores of the right pairs whose rows are in the block, in order; only tiles that hold some are computed."""
    first, last = np.searchsorted(question.right.pairs[:, 0], [rows.start, rows.stop])
    found = np.empty(last - first)
    for columns, pairs, places in _tiles(question.right, rows):
        if len(pairs):
            found[places] = question.scores(rows, columns)[pairs[:, 0], pairs[:, 1]]
    return found


def _compared(shared: tuple[_Question, FloatArray, FloatArray], rows: slice) -> _Rows:
    question, rows_best, columns_best = shared
    found = _Rows(
        np.zeros(rows.stop - rows.start, dtype=np.int64),
        np.zeros(rows.stop - rows.start),
        np.zeros(question.right.candidates, dtype=np.int64),
        np.zeros(question.right.candidates),
    )
    for columns, pairs, _ in _tiles(question.right, rows):
        tile = question.scores(rows, columns)
        # Scores are cosines, so that 1 is above them all: no exponential overflows, and none underflows up to a scale
        # of 350; CLIP's is at most 100.
        likely = tile.astype(np.float64)  # the largest thing here, so it is worked on in its place
        likely -= 1.0
        likely *= question.logit_scale
        np.exp(likely, out=likely)
        found.mass[:] += likely.sum(axis=1)
        # A picture that cannot be read weighs nothing among the candidates of others.
        likely[np.isnan(likely)] = 0.0
        found.mass_of_columns[columns] += likely.sum(axis=0)
        del likely
        tile = tile.copy()
        tile[pairs[:, 0], pairs[:, 1]] = -np.inf  # what is right too never stands before
        threshold = rows_best[rows].astype(tile.dtype), columns_best[columns].astype(tile.dtype)
        found.ahead[:] += np.count_nonzero(tile >= threshold[0][:, None], axis=1)
        found.ahead_of_columns[columns] += np.count_nonzero(tile >= threshold[1], axis=0)
    return found


def _judged(
    best: FloatArray, ahead: IntArray, mass: FloatArray, owners: IntArray, right_mass: FloatArray, candidates: int
) -> tuple[IntArray, FloatArray]:
    """Ranks and surprise of one direction."""
    lost = ~np.isfinite(best)
    right = np.bincount(owners, weights=right_mass, minlength=len(best))
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.where(lost, np.log(candidates), np.log(mass) - np.log(right))
    return np.where(lost, candidates + 1, ahead + 1).astype(np.int64), surprise


def _evenly(count: int) -> IntArray:
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN)).astype(np.int64))


def _highest_in_rows(scores: ScoreTile, rows: IntArray, candidates: int, count: int = 5) -> IntArray:
    """(K,) rows -> (K, 5) columns of their highest scores; some rows at a time, all columns in turn."""
    found = np.empty((len(rows), min(count, candidates)), dtype=np.int64)
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        values, places = np.empty((len(part), 0)), np.empty((len(part), 0), dtype=np.int64)
        for first in range(0, candidates, COLUMNS):
            columns = slice(first, min(first + COLUMNS, candidates))
            tile = scores(part, columns)
            top = highest(tile, min(count, tile.shape[1]))
            values = np.concatenate([values, np.take_along_axis(tile, top, axis=1)], axis=1)
            places = np.concatenate([places, top + first], axis=1)
            keep = highest(values, min(count, values.shape[1]))
            values, places = np.take_along_axis(values, keep, axis=1), np.take_along_axis(places, keep, axis=1)
        found[start : start + 64] = places
    return found


def highest(scores: npt.NDArray[np.floating], count: int) -> IntArray:
    """(rows, M) -> (rows, count) columns of the highest scores, best first; of equal ones the first; NaN last."""
    left = np.where(np.isnan(scores), -np.inf, scores)
    found = np.empty((len(left), count), dtype=np.int64)
    rows = np.arange(len(left))
    for place in range(count):
        found[:, place] = left.argmax(axis=1)
        left[rows, found[:, place]] = -np.inf
    nothing = np.isneginf(np.where(np.isnan(scores), -np.inf, scores).max(axis=1, initial=-np.inf))
    found[nothing] = np.arange(count)
    return found


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

    # A query without an answer has a rank beyond all candidates: however few they are, none of them was found.
    image_hits = [image_answers.ranks <= min(cut, len(owners)) for cut in CUTS]
    text_hits = [of_owner((text_answers.ranks <= min(cut, pictures)).astype(np.float64)) for cut in CUTS]
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
