"""Retrieval: hand-made cases, ties, captions that fit several pictures, and a triple loop as the independent value."""

from __future__ import annotations

import numpy as np
import pytest

from hiclip.evaluation.bootstrap import estimate
from hiclip.evaluation.retrieval import METRICS, answer, fits, hit_chance, retrieval_chance, retrieval_statistic


def _values(scores: np.ndarray, wordings: list[set[str]], captions: list[str], owners: list[int]) -> dict[str, float]:
    right = fits(wordings, captions)
    statistic = retrieval_statistic(
        answer(lambda part: scores[part], right),
        answer(lambda part: scores.T[part], right.turned()),
        np.array(owners),
    )
    values = statistic(np.ones((1, len(wordings))))[0]
    return dict(zip(METRICS, values.tolist(), strict=True))


def test_a_caption_fits_every_picture_that_has_it_among_its_wordings() -> None:
    right = fits([{"cat"}, {"dog", "hound"}, {"dog"}], ["cat", "dog", "hound"])
    assert right.pairs.tolist() == [[0, 0], [1, 1], [1, 2], [2, 1]]
    assert right.turned().pairs.tolist() == [[0, 0], [1, 1], [1, 2], [2, 1]]
    assert right.turned().right_answers().tolist() == [1, 2, 1]
    assert right.rows(slice(1, 3)).tolist() == [[False, True, True], [False, True, False]]


def test_ranks_count_wrong_candidates_only() -> None:
    # Candidates 0 and 1 both fit; one wrong candidate lies above the better of them.
    right = fits([{"a", "b"}], ["a", "b", "c", "d"])
    assert answer(lambda part: np.array([[0.5, 0.4, 0.9, 0.1]])[part], right).ranks.tolist() == [2]


def test_a_tie_earns_nothing() -> None:
    right = fits([{"a"}], ["a", "b", "c"])
    assert answer(lambda part: np.zeros((1, 3))[part], right).ranks.tolist() == [3]


def test_an_unreadable_picture_is_wrong_and_not_dropped() -> None:
    scores = np.array([[np.nan, np.nan], [0.1, 0.9]])
    answers = answer(lambda part: scores[part], fits([{"a"}, {"b"}], ["a", "b"]))
    assert answers.ranks.tolist() == [3, 1]
    assert answers.surprise[0] == pytest.approx(np.log(2))
    # The other way: a caption whose own picture cannot be read is not found; the other still is.
    turned = answer(lambda part: scores.T[part], fits([{"a"}, {"b"}], ["a", "b"]).turned())
    assert turned.ranks.tolist() == [3, 1]


def test_surprise_is_the_contrastive_loss_when_one_candidate_fits() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 3.0]])
    right = fits([{"a"}, {"b"}, {"c"}], ["a", "b", "c"])
    expected = [-np.log(np.exp(row[i]) / np.exp(row).sum()) for i, row in enumerate(logits)]
    assert answer(lambda part: logits[part] / 10, right, logit_scale=10).surprise == pytest.approx(expected)


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


def test_blocks_of_rows_change_nothing() -> None:
    random = np.random.default_rng(5)
    scores, right = (
        random.normal(size=(50, 50)),
        fits([{str(i % 40)} for i in range(50)], [str(i % 40) for i in range(50)]),
    )
    whole = answer(lambda part: scores[part], right, block=64)
    cut = answer(lambda part: scores[part], right, block=7)
    assert (whole.ranks == cut.ranks).all()
    assert (whole.surprise == cut.surprise).all()


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
