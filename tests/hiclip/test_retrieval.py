"""Retrieval: hand-made cases, ties, captions that fit several pictures, and a triple loop as the independent value."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hiclip.evaluation import retrieval
from hiclip.evaluation.bootstrap import estimate
from hiclip.evaluation.retrieval import (
    METRICS,
    Answers,
    Fits,
    TableScores,
    VectorScores,
    answers,
    fits,
    highest,
    hit_chance,
    retrieval_chance,
    retrieval_statistic,
)


def _answers(scores: list[list[float]] | np.ndarray, right: Fits, logit_scale: float = 1.0) -> tuple[Answers, Answers]:
    return answers(TableScores(np.array(scores)), right, logit_scale)


def _values(scores: np.ndarray, wordings: list[set[str]], captions: list[str], owners: list[int]) -> dict[str, float]:
    right = fits(wordings, captions)
    statistic = retrieval_statistic(*_answers(scores, right), np.array(owners))
    values = statistic(np.ones((1, len(wordings))))[0]
    return dict(zip(METRICS, values.tolist(), strict=True))


def test_a_caption_fits_every_picture_that_has_it_among_its_wordings() -> None:
    right = fits([{"cat"}, {"dog", "hound"}, {"dog"}], ["cat", "dog", "hound"])
    assert right.pairs.tolist() == [[0, 0], [1, 1], [1, 2], [2, 1]]
    assert right.turned().pairs.tolist() == [[0, 0], [1, 1], [1, 2], [2, 1]]
    assert right.turned().right_answers().tolist() == [1, 2, 1]
    held = [[right.holds(query, candidate) for candidate in range(3)] for query in range(3)]
    assert held == [[True, False, False], [False, True, True], [False, True, False]]


def test_ranks_count_wrong_candidates_only() -> None:
    # Candidates 0 and 1 both fit; one wrong candidate lies above the better of them.
    right = fits([{"a", "b"}], ["a", "b", "c", "d"])
    assert _answers([[0.5, 0.4, 0.9, 0.1]], right)[0].ranks.tolist() == [2]


def test_a_tie_earns_nothing() -> None:
    right = fits([{"a"}], ["a", "b", "c"])
    assert _answers(np.zeros((1, 3)), right)[0].ranks.tolist() == [3]


def test_an_unreadable_picture_is_wrong_and_not_dropped() -> None:
    pictures, captions = _answers([[np.nan, np.nan], [0.1, 0.9]], fits([{"a"}, {"b"}], ["a", "b"]))
    assert pictures.ranks.tolist() == [3, 1]
    assert pictures.surprise[0] == pytest.approx(np.log(2))
    # The other way: a caption whose own picture cannot be read is not found; the other still is.
    assert captions.ranks.tolist() == [3, 1]
    assert captions.surprise == pytest.approx([np.log(2), 0.0])


def test_an_unreadable_picture_is_not_found_among_few_either() -> None:
    found = _answers([[np.nan, np.nan], [0.1, 0.9]], fits([{"a"}, {"b"}], ["a", "b"]))
    values = retrieval_statistic(*found, np.array([0, 1]))(np.ones((1, 2)))[0]
    assert values[:7].tolist() == [0.5] * 6 + [300.0], "of 2 candidates the third place is beyond all"


def test_surprise_is_the_contrastive_loss_when_one_candidate_fits() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 3.0]])
    right = fits([{"a"}, {"b"}, {"c"}], ["a", "b", "c"])
    expected = [-np.log(np.exp(row[i]) / np.exp(row).sum()) for i, row in enumerate(logits)]
    assert _answers(logits / 10, right, logit_scale=10)[0].surprise == pytest.approx(expected)


def test_against_three_loops() -> None:
    random = np.random.default_rng(3)
    words = [f"word {number}" for number in range(9)]
    captions = [words[number] for number in random.integers(0, 9, 14)]
    owners = random.integers(0, 7, 14)
    wordings = [
        {captions[text] for text in np.flatnonzero(owners == picture)} | {words[picture]} for picture in range(7)
    ]
    scores = random.integers(0, 12, (7, 14)) / 12  # coarse: full of ties
    found = _values(scores, wordings, captions, owners.tolist())
    for name, table, right in (
        ("image_to_text", scores, lambda i, j: captions[j] in wordings[i]),
        ("text_to_image", scores.T, lambda i, j: captions[i] in wordings[j]),
    ):
        for cut in (1, 5, 10):
            hits = []
            for i, row in enumerate(table):
                best = max((row[j] for j in range(len(row)) if right(i, j)), default=-np.inf)
                wrong_ahead = sum(1 for j in range(len(row)) if not right(i, j) and row[j] >= best)
                hits.append(wrong_ahead < cut and best > -np.inf)
            assert found[f"{name}_r{cut}"] == pytest.approx(np.mean(hits)), (name, cut)
    assert found["rsum"] == pytest.approx(100 * sum(found[m] for m in METRICS[:6]))


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    scores = random.integers(-20, 20, (50, 60)) / 20  # full of ties
    scores[7] = np.nan
    right = fits([{str(i % 40), str(i % 7)} for i in range(50)], [str(i % 40) for i in range(60)])
    whole = _answers(scores, right, 30.0)
    monkeypatch.setattr(retrieval, "ROWS", 7)
    monkeypatch.setattr(retrieval, "COLUMNS", 11)
    for one, other in zip(whole, _answers(scores, right, 30.0), strict=True):
        assert (one.ranks == other.ranks).all()
        assert one.surprise == pytest.approx(other.surprise, rel=1e-12)
        assert (one.best == other.best).all()
        assert (one.shown == other.shown).all()


def test_memory_is_that_of_a_tile() -> None:
    random, captions = np.random.default_rng(0), 2 * retrieval.COLUMNS
    rows, columns = (random.normal(size=(count, 8)).astype(np.float32) for count in (retrieval.ROWS, captions))
    right = Fits.of_owners(np.arange(captions) % len(rows), len(rows))
    tracemalloc.start()
    try:
        answers(VectorScores(rows / 100, columns / 100), right)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 115e6, "a tile in both precisions, and which of its scores are NaN"


def test_the_best_candidates_are_those_of_a_stable_sort() -> None:
    random = np.random.default_rng(6)
    scores = random.integers(0, 9, (40, 30)) / 9
    scores[3, 5:9] = np.nan
    assert (highest(scores, 5) == np.argsort(-scores, axis=1, kind="stable")[:, :5]).all()
    pictures, captions = _answers(scores, fits([{str(i)} for i in range(40)], [str(i) for i in range(30)]))
    assert (pictures.best == np.argsort(-scores, axis=1, kind="stable")[:, :5]).all()
    assert (captions.best == np.argsort(-scores.T, axis=1, kind="stable")[:, :5]).all()


def test_only_some_of_very_many_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SHOWN", 4)
    scores = np.random.default_rng(7).normal(size=(30, 30))
    pictures, _ = _answers(scores, fits([{str(i)} for i in range(30)], [str(i) for i in range(30)]))
    assert pictures.shown.tolist() == [0, 9, 19, 29]
    assert pictures.best.tolist() == np.argsort(-scores[[0, 9, 19, 29]], axis=1)[:, :5].tolist()


def test_five_captions_a_picture_in_blocks_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    pictures, captions = random.normal(size=(40, 16)), random.normal(size=(200, 16))
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    owners = random.permutation(np.repeat(np.arange(40), 5))
    right = Fits.of_owners(owners, 40)
    assert right.right_answers().tolist() == [5] * 40
    monkeypatch.setattr(retrieval, "ROWS", 9)
    monkeypatch.setattr(retrieval, "COLUMNS", 33)
    found = answers(VectorScores(pictures.astype(np.float32), captions.astype(np.float32)), right)
    table = pictures @ captions.T
    for picture in range(40):
        order = np.argsort(-table[picture])
        assert found[0].ranks[picture] == 1 + sum(
            owners[order[place]] != picture for place in range(int(np.flatnonzero(owners[order] == picture)[0]))
        )
    for caption in range(200):
        assert found[1].ranks[caption] == 1 + (table[:, caption] > table[owners[caption], caption]).sum()


def test_chance_is_what_random_scores_reach() -> None:
    assert hit_chance(np.array([2]), 4, 2)[0] == pytest.approx(1 - (2 / 4) * (1 / 3))
    assert hit_chance(np.array([1]), 1000, 10)[0] == pytest.approx(0.01)
    assert hit_chance(np.array([1]), 3, 10)[0] == 1.0
    captions = [str(i % 30) for i in range(40)]  # ten captions fit two pictures
    wordings = [{caption} for caption in captions]
    expected = dict(zip(METRICS, retrieval_chance(fits(wordings, captions)).tolist(), strict=True))
    random = np.random.default_rng(1)
    drawn = [_values(random.normal(size=(40, 40)) * 1e-6, wordings, captions, list(range(40))) for _ in range(300)]
    for metric in METRICS:
        measured = np.mean([values[metric] for values in drawn])
        assert measured == pytest.approx(expected[metric], rel=0.06), metric


def test_typical_rank_is_the_geometric_mean_both_ways() -> None:
    # Right on the diagonal: pictures find it at ranks 1, 3, 1 and captions at 1, 2, 2.
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.2, 0.5], [0.1, 0.1, 0.3]])
    found = _values(scores, [{"a"}, {"b"}, {"c"}], ["a", "b", "c"], [0, 1, 2])
    assert found["typical_rank"] == pytest.approx((3 * 2 * 2) ** (1 / 6))
    assert retrieval_chance(fits([{"a"}, {"b"}, {"c"}], ["a", "b", "c"]))[-1] == pytest.approx(6 ** (1 / 3))


def test_interval_of_a_share_is_the_binomial_one() -> None:
    hits = (np.arange(400) < 80).astype(float)

    def share(weights: np.ndarray) -> np.ndarray:
        return (weights @ hits / weights.sum(axis=1))[:, None]

    found = estimate(share, 400, seed=0)
    error = 1.96 * np.sqrt(0.2 * 0.8 / 400)
    assert found.value[0] == pytest.approx(0.2)
    assert found.low[0] == pytest.approx(0.2 - error, abs=0.01)
    assert found.high[0] == pytest.approx(0.2 + error, abs=0.01)
    again, other = estimate(share, 400, seed=0), estimate(share, 400, seed=1)
    assert (again.low == found.low).all()
    assert (other.low != found.low).any() or (other.high != found.high).any()
