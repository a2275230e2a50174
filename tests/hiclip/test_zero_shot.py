"""Zero-shot classification in a label tree: hand-made cases, chance, the majority, and scikit-learn-free counting."""

from __future__ import annotations

import numpy as np
import pytest

from hiclip.evaluation.compare import _statistic_of
from hiclip.evaluation.evaluation_set import Classification, questions_fingerprint
from hiclip.evaluation.label_tree import LabelTree, meeting_heights
from hiclip.evaluation.measure import Judged, _judged
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.evaluation.sets.imagenet_classes import imagenet_classes, wordnet_heights
from hiclip.evaluation.zero_shot import (
    METRICS,
    class_vectors,
    majority_scores,
    predict,
    subgroup_statistic,
    zero_shot_chance,
    zero_shot_statistic,
)

# animals: cat, dog (mammals), frog (amphibians); food: pear (fruit); flags: two
TREE = LabelTree(
    classes=("cat", "dog", "frog", "pear", "flag a", "flag b"),
    subgroups=("mammal", "mammal", "amphibian", "fruit", "country-flag", "country-flag"),
    groups=("animals", "animals", "animals", "food", "flags", "flags"),
    left_out=frozenset({"country-flag"}),
)


def _measure(scores: np.ndarray, labels: list[int], tree: LabelTree = TREE) -> dict[str, float]:
    statistic = zero_shot_statistic(predict(scores, np.array(labels)), tree)
    return dict(zip(METRICS, statistic(np.ones((1, len(labels))))[0].tolist(), strict=True))


def _answers(*first: int) -> np.ndarray:
    scores = np.tile(np.linspace(0.5, 0.4, 6), (len(first), 1))
    scores[np.arange(len(first)), first] = 1.0
    return scores


def test_ranks_and_ties() -> None:
    found = predict(np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [np.nan] * 3]), np.array([1, 0, 2]))
    assert found.ranks.tolist() == [1, 2, 4]
    assert found.best[:2, 0].tolist() == [1, 0]


def test_of_two_classes_of_one_name_the_first_wins() -> None:
    scores = np.array([[0.9, 0.1, 0.9], [0.9, 0.1, 0.9], [0.2, 0.9, 0.2]])
    labels = np.array([0, 2, 0])
    assert predict(scores, labels).ranks.tolist() == [2, 2, 3]
    assert predict(scores, labels, names=("missile", "rocket", "missile")).ranks.tolist() == [1, 2, 2]
    assert predict(scores, labels, names=("a", "b", "c")).ranks.tolist() == [2, 2, 3]


def test_a_flat_set_has_three_metrics() -> None:
    flat = LabelTree(("cat", "dog", "frog", "pear", "fig", "oak"))
    found = _measure(_answers(0, 0, 1, 1), [0, 0, 0, 1], flat)
    known = {name: value for name, value in found.items() if np.isfinite(value)}
    assert known == pytest.approx({"top1": 3 / 4, "top5": 1.0, "mean_per_class": (2 / 3 + 1) / 2})
    chance = zero_shot_chance(np.array([0, 0, 0, 1]), flat)
    assert chance[:3] == pytest.approx([1 / 6, 5 / 6, 1 / 6])
    assert np.isnan(chance[3:]).all()
    assert majority_scores(np.array([1, 1, 0]), flat).argmax(axis=1).tolist() == [1, 1, 1]


def test_heights_of_meetings_where_a_node_has_two_parents() -> None:
    parents = {
        "cat": ["mammal", "pet"], "dog": ["mammal"], "frog": ["animal"], "goldfish": ["pet"], "oak": ["plant"],
        "mammal": ["animal"], "pet": ["animal"], "animal": ["thing"], "plant": ["thing"],
    }  # fmt: skip
    names = ["cat", "dog", "frog", "goldfish", "oak"]
    heights = meeting_heights(parents, names)
    assert heights.tolist() == [
        [0, 1, 2, 1, 3],
        [1, 0, 2, 2, 3],
        [2, 2, 0, 2, 3],
        [1, 2, 2, 0, 3],
        [3, 3, 3, 3, 0],
    ]
    tree = LabelTree(tuple(names), heights=heights)
    scores = np.eye(5)[[1, 1, 4, 3]]
    found = _measure(scores, [0, 1, 2, 3], tree)
    assert found["error_distance"] == pytest.approx((1 + 3) / 2), "of the wrong answers alone"
    assert found["top1"] == 0.5
    chance = dict(zip(METRICS, zero_shot_chance(np.array([4]), tree).tolist(), strict=True))
    assert chance["error_distance"] == 3.0
    scores[0] = np.nan
    assert _measure(scores, [0, 1, 2, 3], tree)["error_distance"] == pytest.approx((3 + 3) / 2), (
        "unreadable: as far as can be"
    )


def test_other_heights_are_another_question() -> None:
    def asked(*heights: int) -> str:
        tree = LabelTree(("cat", "dog"), heights=np.array(heights).reshape(2, 2) if heights else None)
        asked = Classification(np.arange(2), np.arange(2), tree, ("{}",))
        return questions_fingerprint("pets", StoredPictures(("0", "1"), (b"", b"")), asked)

    assert len({asked(), asked(0, 1, 1, 0), asked(0, 2, 2, 0)}) == 3


def test_a_tie_with_the_right_class_is_no_error_of_no_steps() -> None:
    heights = np.array([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
    scores = np.array([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]])
    found = _measure(scores, [0, 0], LabelTree(("cat", "dog", "pear"), heights=heights))
    assert (found["top1"], found["error_distance"]) == (0.0, 2.0), "the first answer is wrong of one picture alone"


def test_who_forgot_the_hierarchy_still_knows_what_it_said() -> None:
    """What is stored of a set gives every metric, under any weights, that the label tree itself gives."""
    heights = np.array([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
    random = np.random.default_rng(1)
    for tree in (TREE, LabelTree(("cat", "dog", "pear"), heights=heights), LabelTree(("cat", "dog"))):
        labels = random.integers(0, len(tree.classes), 40)
        scores = random.normal(size=(40, len(tree.classes)))
        scores[3] = np.nan
        predictions = predict(scores, labels)
        judged = Judged.model_validate_json(_judged(predictions, tree).model_dump_json())
        weights = random.multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
        found = _statistic_of(judged)(weights)
        np.testing.assert_array_equal(found, zero_shot_statistic(predictions, tree)(weights))
        assert np.isfinite(found[:, METRICS.index("error_distance")]).all() == (len(tree.classes) > 2)


def test_imagenets_mistakes_are_weighed_by_wordnet() -> None:
    heights, names = wordnet_heights("imagenet"), imagenet_classes().names
    tabby, tiger_cat, fig = names.index("tabby cat"), names.index("tiger cat"), names.index("fig")
    assert heights.shape == (1000, 1000)
    assert (heights == heights.T).all()
    assert 0 < heights[tabby, tiger_cat] < heights[tabby, fig] <= heights.max()


def test_steps_up_the_label_tree() -> None:
    assert TREE.distances(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0])).tolist() == [0, 1, 2, 3]


def test_every_metric_by_hand() -> None:
    # The cat is right; dog, frog and pear are taken for a cat (1, 2 and 3 steps off), flag b for flag a.
    found = _measure(_answers(0, 0, 0, 0, 4), [0, 1, 2, 3, 5])
    assert found["top1"] == pytest.approx(1 / 5)
    assert found["subgroup_mean_top1"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["subgroup_right"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["group_right"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["error_distance"] == pytest.approx((1 + 2 + 3) / 3), "flags do not count"
    assert found["left_out_top1"] == 0
    assert found["left_out_top5"] == 0, "the right flag stands last, sixth"
    assert found["top5"] == pytest.approx(4 / 5)


def test_a_common_subgroup_does_not_outvote_a_rare_one() -> None:
    found = _measure(_answers(*[0] * 9, 0), [0] * 9 + [3])
    assert found["top1"] == pytest.approx(0.9)
    assert found["subgroup_mean_top1"] == pytest.approx(0.5)


def test_an_unreadable_picture_is_wrong_and_as_far_off_as_can_be() -> None:
    scores = _answers(0, 0)
    scores[1] = np.nan
    found = _measure(scores, [0, 0])
    assert found["top1"] == 0.5
    assert found["error_distance"] == 3


def test_an_unreadable_picture_is_wrong_among_few_classes_too() -> None:
    few = LabelTree(("cat", "dog", "pear"), ("mammal", "mammal", "fruit"), ("animals", "animals", "food"))
    scores = np.array([[0.1, 0.2, 0.3], [np.nan] * 3])
    assert _measure(scores, [0, 1], LabelTree(few.classes))["top5"] == 0.5, "3 classes, and rank 4 is no hit"
    found = _measure(scores, [0, 1], few)
    assert (found["top5"], found["subgroup_mean_top5"]) == (0.5, 0.5)
    statistic = subgroup_statistic(predict(scores, np.array([0, 1])), few)[1]
    assert statistic(np.ones((1, 2)))[0].tolist() == pytest.approx([0, np.nan, 0.5, np.nan], nan_ok=True)


def test_chance_is_what_random_scores_reach() -> None:
    labels = [0, 1, 2, 3, 4, 5, 0, 3]
    expected = dict(zip(METRICS, zero_shot_chance(np.array(labels), TREE).tolist(), strict=True))
    random = np.random.default_rng(2)
    drawn = [_measure(random.normal(size=(len(labels), 6)), labels) for _ in range(3000)]
    for metric in METRICS:
        assert np.mean([values[metric] for values in drawn]) == pytest.approx(expected[metric], rel=0.06), metric


def test_majority_answers_one_class_of_the_commonest_subgroup() -> None:
    labels = np.array([4, 4, 4, 5, 0, 1, 2, 3])
    scores = majority_scores(labels, TREE)
    assert (scores == scores[0]).all()
    first = TREE.classes[int(scores[0].argmax())]
    assert first == "cat", "flags are commoner but take no part in the averages"
    found = _measure(np.asarray(scores), labels.tolist())
    assert found["subgroup_right"] == pytest.approx(1 / 3)
    assert found["group_right"] == pytest.approx(2 / 3)


def test_subgroups_one_by_one() -> None:
    names, statistic = subgroup_statistic(predict(_answers(0, 0, 2, 0, 4), np.array([0, 1, 2, 3, 5])), TREE)
    top1, top5 = statistic(np.ones((1, 5))).reshape(2, len(names))
    assert dict(zip(names, top1.tolist(), strict=True)) == {
        "mammal": 0.5,
        "amphibian": 1.0,
        "fruit": 0.0,
        "country-flag": 0.0,
    }
    assert dict(zip(names, top5.tolist(), strict=True))["fruit"] == 1.0


def test_prompts_of_a_class_are_averaged_and_unit_again() -> None:
    prompts = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=np.float32)
    assert class_vectors(prompts) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5]]))
