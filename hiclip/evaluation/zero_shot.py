"""Zero-shot classification with labels in a hierarchy: is the right concept first, and if not, how far off is it?

Pure numpy. Classes are the leaves of a label tree (group > subgroup > concept); a score matrix in, numbers out, so a
model and a pixel baseline are measured by the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiclip.evaluation.bootstrap import FloatArray, Statistic, weighted_mean
from hiclip.evaluation.label_tree import LabelTree, numbered
from hiclip.evaluation.retrieval import BoolArray, IntArray, highest

METRICS = (
    "top1",
    "top5",
    "mean_per_class",
    "subgroup_mean_top1",
    "subgroup_mean_top5",
    "subgroup_right",
    "group_right",
    "error_distance",
    "left_out_top1",
    "left_out_top5",
)
"""Order of the columns of `zero_shot_statistic`, `zero_shot_chance` and `zero_shot_majority`:

top1, top5: share of all pictures.
mean_per_class: mean over classes that have pictures of the share of top1 within each; what CLIP quotes for four sets.
subgroup_mean_*: mean over subgroups of the share within each, without those left out.
subgroup_right, group_right: the same mean of "the first answer lies in the right subgroup (group)".
error_distance: mean steps up the label tree from a wrong first answer to a node that also holds the right one: 1 same
subgroup, 2 same group, 3 nothing shared; pictures of the subgroups left out do not count.
left_out_*: share of the pictures of the subgroups left out.

Of a flat tree the first three alone, and error_distance where the classes hang in a hierarchy of any depth (WordNet).
"""

FLAT = 3
"""How many of METRICS ask for no hierarchy."""


def tree_metrics(labels: IntArray, tree: LabelTree) -> tuple[str, ...]:
    """Those of METRICS that (N,) labels of such a tree can have."""
    counted = tree.counted()[labels]
    lacking = set() if counted.any() else {name for name in METRICS if name.startswith(("subgroup_", "group_"))}
    lacking |= {"left_out_top1", "left_out_top5"} if counted.all() else set()
    if tree.flat:
        lacking |= set(METRICS[FLAT:]) - ({"error_distance"} if tree.heights is not None else set())
    return tuple(name for name in METRICS if name not in lacking)


def class_vectors(prompts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(T, C, E) unit vectors of T prompts for each class -> (C, E): averaged, then unit again, as CLIP does."""
    mean = prompts.mean(axis=0)
    unit: npt.NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


@dataclass(frozen=True)
class Predictions:
    """What a score matrix (N, C) says about N pictures."""

    labels: IntArray
    """(N,) right class."""
    ranks: IntArray
    """(N,) place of the right class, 1 is first; a class with the same score stands before it: ties earn nothing."""
    best: IntArray
    """(N, 5), or as many as there are: the classes with the highest scores, best first; of equal ones the first in the
    list."""


def predict(scores: npt.NDArray[np.floating], labels: IntArray, top: int = 5, names: Sequence[str] = ()) -> Predictions:
    """Ranks of the right classes and the best answers; NaN scores (an unreadable picture) are wrong: rank C + 1.

    Classes of one name have one score: of ImageNet's two "missile" and two "sunglasses" the first wins, as it does in
    everybody's argmax. Where `names` (C,) are given, such a tie is not held against the first.

    Example: scores [[.2, .7, .1], [.5, .5, .0]], labels [1, 0] -> ranks [1, 2], best[:, 0] = [1, 0].
    """
    classes = scores.shape[1]
    truth = scores[np.arange(len(labels)), labels]
    ranks = (scores >= truth[:, None]).sum(axis=1)  # the right class itself counts once
    number = numbered(names)[1]
    for first in np.flatnonzero(np.bincount(number) > 1).tolist():
        twins = np.flatnonzero(number == first).tolist()
        for place, twin in enumerate(twins):
            rows = np.flatnonzero(labels == twin)
            ranks[rows] -= (scores[rows][:, twins[place + 1 :]] == truth[rows, None]).sum(axis=1)
    unusable = np.isnan(truth)
    return Predictions(
        labels, np.where(unusable, classes + 1, ranks).astype(np.int64), highest(scores, min(top, classes))
    )


@dataclass(frozen=True)
class Nearness:
    """How far N pictures' first answers are off in a hierarchy of C classes, without the hierarchy itself."""

    steps: IntArray
    """(N,) up the label tree from the first answer to a node that also holds the right one."""
    subgroups: IntArray
    """(C,) number of each class's subgroup; empty where the classes hang in a hierarchy of any depth."""
    left_out: IntArray
    """Numbers of the subgroups that averages leave out."""


def nearness(predictions: Predictions, tree: LabelTree) -> Nearness | None:
    """What the metrics of a hierarchy are made of; None if the classes have none."""
    none = np.empty(0, dtype=np.int64)
    if tree.flat and tree.heights is None:
        return None
    farthest = 3 if tree.heights is None else int(tree.heights.max())
    # An unreadable picture has a first answer too, but not one that anybody gave.
    unread = predictions.ranks > len(tree.classes)
    steps = np.where(unread, farthest, tree.distances(predictions.best[:, 0], predictions.labels)).astype(np.int64)
    if tree.flat:
        return Nearness(steps, none, none)
    names, number = tree.subgroup_numbers()
    return Nearness(steps, number, np.array([place for place, name in enumerate(names) if name in tree.left_out], int))


def zero_shot_statistic(predictions: Predictions, tree: LabelTree) -> Statistic:
    """The METRICS as a function of the weights of N pictures; NaN for those of a hierarchy that is not there."""
    return nearness_statistic(predictions, nearness(predictions, tree))


def nearness_statistic(predictions: Predictions, near: Nearness | None) -> Statistic:
    """The same of one who knows the hierarchy no more, but what it said about the answers."""
    labels = predictions.labels
    hit1, hit5 = (_hits(predictions, cut).astype(np.float64) for cut in (1, 5))
    plain = _flat_statistic(labels, hit1, hit5)
    if near is None or not len(near.subgroups):
        return _of_flat(plain, near)
    distance = near.steps
    count = int(near.subgroups.max()) + 1
    taken = ~np.isin(np.arange(count), near.left_out)
    counted = taken[near.subgroups[labels]].astype(np.float64)
    member = np.zeros((len(labels), count))
    member[np.arange(len(labels)), near.subgroups[labels]] = 1.0
    averaged = member[:, taken]
    wrong = counted * (distance > 0)

    def statistic(weights: FloatArray) -> FloatArray:
        def over_subgroups(values: FloatArray) -> FloatArray:
            return mean_over_columns(weighted_mean(weights, averaged * values[:, None], averaged))

        def over(values: FloatArray, part: FloatArray) -> FloatArray:
            return weighted_mean(weights, (values * part)[:, None], part[:, None])[:, 0]

        left_out = 1.0 - counted
        return np.column_stack(
            [
                *plain(weights).T,
                over_subgroups(hit1),
                over_subgroups(hit5),
                over_subgroups((distance <= 1).astype(np.float64)),
                over_subgroups((distance <= 2).astype(np.float64)),
                over(distance.astype(np.float64), wrong),
                over(hit1, left_out),
                over(hit5, left_out),
            ]
        )

    return statistic


def _hits(predictions: Predictions, cut: int) -> BoolArray:
    """(N,): whether the right class is among the first `cut`; never of an unreadable picture, however few classes."""
    found: BoolArray = predictions.ranks <= min(cut, predictions.best.shape[1])
    return found


def _of_flat(plain: Statistic, near: Nearness | None) -> Statistic:
    """Without subgroups; with error_distance where a hierarchy of classes says how far they are apart."""
    place = METRICS.index("error_distance")

    def statistic(weights: FloatArray) -> FloatArray:
        found = np.full((len(weights), len(METRICS)), np.nan)
        found[:, :FLAT] = plain(weights)
        if near is not None:
            wrong = (near.steps > 0).astype(np.float64)[:, None]
            found[:, place] = weighted_mean(weights, near.steps[:, None] * wrong, wrong)[:, 0]
        return found

    return statistic


def _flat_statistic(labels: IntArray, hit1: FloatArray, hit5: FloatArray) -> Statistic:
    """top1, top5 and mean_per_class."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))  # where each class that has pictures begins

    def statistic(weights: FloatArray) -> FloatArray:
        sorted_weights = weights[:, order]
        counts = np.add.reduceat(sorted_weights, starts, axis=1)
        hits = np.add.reduceat(sorted_weights * hit1[order], starts, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            # A draw may leave out all pictures of a class, which then says nothing.
            per_class = mean_over_columns(np.where(counts > 0, hits / counts, np.nan))
        everyone = weighted_mean(weights, np.column_stack([hit1, hit5]))
        return np.column_stack([everyone, per_class])

    return statistic


def mean_over_columns(values: FloatArray) -> FloatArray:
    """(draws, S) -> (draws,): the mean without NaN; NaN where a row has nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / count, np.nan)
    return mean


def subgroup_statistic(predictions: Predictions, tree: LabelTree) -> tuple[list[str], Statistic]:
    """Names of the S subgroups, and their top1 (S columns) then top5 (S columns) as a function of the weights.

    The tree is not flat.
    """
    names, number = tree.subgroup_numbers()
    member = np.zeros((len(predictions.labels), len(names)))
    member[np.arange(len(member)), number[predictions.labels]] = 1.0
    hits = np.hstack([member * _hits(predictions, cut)[:, None] for cut in (1, 5)])
    counts = np.hstack([member, member])
    return names, lambda weights: weighted_mean(weights, hits, counts)


def zero_shot_chance(labels: IntArray, tree: LabelTree) -> FloatArray:
    """What METRICS are for an order of the classes drawn at random: (10,)."""
    classes = len(tree.classes)
    one, five = 1.0 / classes, min(5, classes) / classes
    if tree.flat:
        found = np.array([one, five, one] + [np.nan] * (len(METRICS) - FLAT))
        if tree.heights is not None:
            found[METRICS.index("error_distance")] = (tree.heights[labels].sum(axis=1) / max(1, classes - 1)).mean()
        return found
    subgroup, group = _sizes(tree.subgroups), _sizes(tree.groups)
    counted = tree.counted()[labels]
    names, number = tree.subgroup_numbers()
    averaged = [number[labels] == place for place, name in enumerate(names) if name not in tree.left_out]

    def over_subgroups(sizes: IntArray) -> float:
        shares = [sizes[labels[inside]].mean() / classes for inside in averaged if inside.any()]
        return float(np.mean(shares)) if shares else float("nan")

    # Expected steps to one of the other classes: 1 inside the subgroup, 2 inside the group, 3 elsewhere.
    far = ((subgroup - 1) + 2 * (group - subgroup) + 3 * (classes - group)) / max(1, classes - 1)
    distance = float(far[labels][counted].mean()) if counted.any() else float("nan")
    return np.array(
        [one, five, one, one, five, over_subgroups(subgroup), over_subgroups(group), distance, one, five],
        dtype=np.float64,
    )


def _sizes(names: Sequence[str]) -> IntArray:
    """(C,) names -> (C,): how many classes share each one's name."""
    number = numbered(names)[1]
    sizes: IntArray = np.bincount(number).astype(np.int64)[number]
    return sizes


def majority_scores(labels: IntArray, tree: LabelTree) -> npt.NDArray[np.float32]:
    """(N,) labels -> (N, C) scores of one who always gives the same answer: the commonest class.

    Among equally common classes those of the commonest subgroup come first, among these those of the commonest group;
    subgroups that are left out of the averages come last.
    """
    count = np.bincount(labels, minlength=len(tree.classes))
    spreads = () if tree.flat else (_spread(tree.groups, count), _spread(tree.subgroups, count))
    keys = (*spreads, count, tree.counted())
    order = np.lexsort([-key.astype(np.int64) for key in keys])  # the last key is the first to decide
    scores = np.empty(len(tree.classes), dtype=np.float32)
    scores[order] = -np.arange(len(tree.classes), dtype=np.float32)
    return np.broadcast_to(scores, (len(labels), len(tree.classes)))


def _spread(names: Sequence[str], count: IntArray) -> IntArray:
    """(C,): pictures of all classes that share the name."""
    number = numbered(names)[1]
    total: IntArray = np.bincount(number, weights=count).astype(np.int64)[number]
    return total


def metric_counts(labels: IntArray, tree: LabelTree) -> list[int]:
    """How many pictures each of METRICS is over: all, those that count in averages, or those left out."""
    everyone, counted = len(labels), int(tree.counted()[labels].sum())
    left_out = everyone - counted
    return [everyone, everyone, everyone, counted, counted, counted, counted, counted, left_out, left_out]
