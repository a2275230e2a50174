"""Trees of captions and groups of patches, on small cases that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiclip.model.trees import (
    PATCH_THRESHOLDS,
    Array,
    PatchLinkArrays,
    caption_links,
    linkage_groups,
    lowest_parsed_layer,
    patch_groups,
    picture_links,
    quantile_thresholds,
    scaled_thresholds,
    sentence_dendrogram,
    sentence_tree,
    word_links,
)

FIGURE_14 = np.array([[0.40, 0.66, 0.24, 0.71, 0.34], [0.43, 0.99, 0.25, 0.99, 0.54], [0.79, 1.00, 0.32, 0.99, 0.90]])
"""The paper's affinities of "a blue cat sitting on bench", first three layers."""


@dataclass(frozen=True)
class Word:
    """A word and its tokens, as the tokenizer gives it."""

    text: str
    first: int
    last: int


def words(text: str, pieces: dict[str, int] | None = None) -> list[Word]:
    """Words of a text behind one start token; `pieces` says which are more than one token long."""
    found, place = [], 1
    for word in text.split():
        tokens = (pieces or {}).get(word, 1)
        found.append(Word(word, place, place + tokens - 1))
        place += tokens
    return found


def with_specials(between: Array) -> Array:
    """Links between words -> with the strong links of start and end tokens around them."""
    outer = np.full((len(between), 1), 0.95)
    return np.concatenate([outer, between, outer], axis=1)


CAT = words("a blue cat sitting on bench")


def test_the_papers_example_splits_at_its_weakest_link() -> None:
    """Top layer: .32 separates the cat from its sitting, .79 separates "a"; the rest is above the threshold."""
    tree = sentence_tree(with_specials(FIGURE_14), CAT, minimum_layer=2)
    assert tree.bracketed() == "((a (blue cat)) (sitting on bench))"
    assert (tree.layer, tree.link, tree.text) == (2, 0.32, "a blue cat sitting on bench")
    assert tree.brackets() == {(0, 3), (1, 3), (3, 6)}


def test_a_merged_phrase_is_looked_at_a_layer_down() -> None:
    """ "sitting on bench" is one at the top (.99 .90); one layer down .54 separates the bench."""
    tree = sentence_tree(with_specials(FIGURE_14), CAT, minimum_layer=0)
    assert tree.bracketed() == "((a (blue cat)) ((sitting on) bench))"
    bench = tree.parts[1]
    assert (bench.layer, bench.link) == (1, 0.54)


def test_a_part_above_the_second_threshold_goes_down_before_it_is_split() -> None:
    links = np.array([[0.2, 0.1, 0.3, 0.3, 0.3], [0.75, 0.72, 0.1, 0.6, 0.65]])
    tree = sentence_tree(with_specials(links), words("a b c d e f"), minimum_layer=0)
    # Left part: .75 .72 both exceed .7, so layer 0 decides (.2 .1). Right part: .6 does not, so layer 1 does.
    assert tree.bracketed() == "(((a b) c) (d (e f)))"
    assert (tree.parts[0].layer, tree.parts[1].layer) == (0, 1)
    higher = sentence_tree(with_specials(links), words("a b c d e f"), minimum_layer=0, descend_above=0.9)
    assert higher.parts[0].layer == 1
    never = sentence_tree(with_specials(links), words("a b c d e f"), minimum_layer=0, split_below=0.05)
    assert never.bracketed() == "(a b c d e f)"


def test_words_of_many_pieces_hold_together() -> None:
    """The link between words is that of the last piece and the next first piece, whatever is inside a word."""
    caption = words("new skateboarder jumps", {"skateboarder": 3})
    links = np.array([[0.9, 0.6, 0.1, 0.2, 0.7, 0.9, 0.0]])
    assert word_links(links, caption).tolist() == [[0.6, 0.7]]
    assert sentence_tree(links, caption).bracketed() == "(new (skateboarder jumps))"
    assert sentence_dendrogram(links, caption).link == 0.6


def test_short_captions() -> None:
    links = np.full((2, 5), 0.5)
    assert sentence_tree(links, words("cat")).bracketed() == "cat"
    assert sentence_tree(links, words("cat")).brackets() == set()
    assert sentence_tree(links, words("blue cat")).bracketed() == "(blue cat)"
    assert sentence_dendrogram(links, words("cat")).to_json() == {"start": 0, "end": 1, "text": "cat"}
    with pytest.raises(ValueError, match="at least one"):
        sentence_tree(links, [])
    with pytest.raises(ValueError, match="without a gap"):
        sentence_tree(links, [Word("a", 1, 1), Word("b", 3, 3)])
    with pytest.raises(ValueError, match="minimum_layer: expected 0 to 1, came 2"):
        sentence_tree(links, CAT, minimum_layer=2)


def test_the_lowest_parsed_layer_follows_the_depth() -> None:
    assert [lowest_parsed_layer(depth) for depth in (1, 4, 6, 10, 12)] == [0, 1, 1, 2, 2]


def test_a_dendrogram_needs_no_threshold() -> None:
    tree = sentence_dendrogram(with_specials(FIGURE_14), CAT)
    assert tree.bracketed() == "((a (blue cat)) ((sitting on) bench))"


def test_a_dendrogram_tells_ties_apart_by_lower_layers() -> None:
    links = np.array([[0.3, 0.1, 0.2], [0.9, 0.9, 0.9]])
    assert sentence_dendrogram(with_specials(links), words("a b c d")).bracketed() == "((a b) (c d))"


@given(st.lists(st.lists(st.floats(0.01, 1.0), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_every_tree_holds_every_word_once(rows: list[list[float]], count: int) -> None:
    links, caption = np.array(rows), words("a b c d e f")[:count]
    for tree in (sentence_tree(links, caption), sentence_dendrogram(links, caption)):
        assert tree.bracketed().replace("(", "").replace(")", "").split() == [word.text for word in caption]
        json.dumps(tree.to_json())
    dendrogram = sentence_dendrogram(links, caption)
    assert len(dendrogram.brackets()) == max(count - 2, 0)


def grid_links(right: list[list[float]], down: list[list[float]]) -> PatchLinkArrays:
    return np.array(right), np.array(down)


TOP = grid_links([[0.9, 0.1], [0.9, 0.2]], [[0.9, 0.9, 0.9]])
BOTTOM = grid_links([[0.9, 0.0], [0.1, 0.0]], [[0.1, 0.9, 0.2]])
"""2 x 3 patches: at the top two columns against one; at the bottom only two links are left."""


def test_groups_refine_downwards() -> None:
    groups = patch_groups([BOTTOM, TOP], [0.5, 0.5])
    assert groups.labels.tolist() == [[[0, 0, 1], [2, 0, 3]], [[0, 0, 1], [0, 0, 1]]]
    assert groups.counts() == [4, 2]
    right, down = groups.borders(1)
    assert right.tolist() == [[False, True], [False, True]]
    assert not down.any()


def test_a_link_cut_above_stays_cut_below() -> None:
    """Strong again at the bottom (a given mask may do that), it must not join what the top has separated."""
    rejoined = grid_links([[0.9, 0.9], [0.9, 0.9]], [[0.9, 0.9, 0.9]])
    assert patch_groups([rejoined, TOP], [0.5, 0.5]).counts() == [2, 2]


def test_a_cut_that_is_connected_around_is_no_border() -> None:
    ring = grid_links([[0.1], [0.9]], [[0.9, 0.9]])
    groups = patch_groups([ring], [0.5])
    assert groups.counts() == [1]
    assert not groups.borders(0)[0].any()


def test_a_winding_group_is_found_whole() -> None:
    """A snake through 5 x 5 patches: connected only from end to end."""
    right = np.full((5, 4), 0.9)
    down = np.zeros((4, 5))
    down[[0, 2], 4] = down[[1, 3], 0] = 0.9
    assert patch_groups([(right, down)], [0.5]).counts() == [1]
    down[2, 4] = 0.1
    assert patch_groups([(right, down)], [0.5]).labels[0].tolist() == [[0] * 5] * 3 + [[1] * 5] * 2


def test_thresholds_of_other_depths_follow_the_papers_curve() -> None:
    assert scaled_thresholds(12) == PATCH_THRESHOLDS
    assert scaled_thresholds(1) == (0.9,)
    four = scaled_thresholds(4)
    assert (four[0], four[-1]) == (0.35, 0.9)
    assert list(four) == sorted(four)
    assert patch_groups([BOTTOM, TOP]).thresholds == (0.35, 0.9)
    with pytest.raises(ValueError, match="thresholds: expected 2, one a layer, came 1"):
        patch_groups([BOTTOM, TOP], [0.5])


def test_quantiles_cut_their_share_whatever_the_strength() -> None:
    generator = np.random.default_rng(0)
    weak = [(generator.random((8, 7)), generator.random((7, 8))) for _ in range(4)]
    strong = [(0.9 + right / 10, 0.9 + down / 10) for right, down in weak]
    for layer, (limit, (right, down)) in enumerate(zip(quantile_thresholds(strong), strong, strict=True)):
        values = np.concatenate([right.ravel(), down.ravel()])
        assert (values < limit).mean() == pytest.approx([0.8, 0.6, 0.4, 0.2][layer], abs=0.02)
    same, other = (patch_groups(links, quantile_thresholds(links)).labels for links in (weak, strong))
    assert (same == other).all()
    assert quantile_thresholds([TOP], [0.0]) == (0.1,)


def test_linkage_makes_as_many_groups_as_asked() -> None:
    assert linkage_groups(TOP, 2).tolist() == [[0, 0, 1], [0, 0, 1]]
    assert linkage_groups(TOP, 1).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert linkage_groups(TOP, 6).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="groups: expected 1 to 6, came 7"):
        linkage_groups(TOP, 7)


def test_groups_become_json() -> None:
    shown = json.loads(json.dumps(patch_groups([BOTTOM, TOP], [0.5, 0.5]).to_json()))
    assert shown == {
        "thresholds": [0.5, 0.5],
        "counts": [4, 2],
        "labels": [[[0, 0, 1], [2, 0, 3]], [[0, 0, 1], [0, 0, 1]]],
    }


def test_links_of_one_caption_and_one_picture_are_taken_from_a_batch() -> None:
    captions = [torch.rand(3, 5).requires_grad_() for _ in range(2)]
    assert caption_links(captions, 1).tolist() == [layer[1].double().tolist() for layer in captions]
    pictures = [(torch.rand(3, 2, 1), torch.rand(3, 1, 2)) for _ in range(2)]
    right, down = picture_links(pictures, 2)[1]
    assert right.tolist() == pictures[1][0][2].double().tolist()
    assert down.shape == (1, 2)
