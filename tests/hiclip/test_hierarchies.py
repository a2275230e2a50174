"""Drawings of hierarchies: what they are drawn from is checked by hand, that they are pictures by reading them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoint import SMALL_MODEL

from hiclip.evaluation.caption_figure import CaptionPanel, caption_figure, strength
from hiclip.evaluation.even_shares import beyond_even_shares, even_shares
from hiclip.evaluation.hierarchies import relative_groups, untrained
from hiclip.evaluation.picture_figure import PictureRow, picture_figure
from hiclip.evaluation.tree_text import tree_text
from hiclip.model.trees import Phrase, patch_groups, sentence_dendrogram, sentence_tree
from hiclip.model.two_towers import TwoTowers


class _Word:
    def __init__(self, text: str, place: int) -> None:
        self.text, self.first, self.last = text, place, place


def _phrase(*parts: Phrase) -> Phrase:
    return Phrase(parts[0].start, parts[-1].end, " ".join(part.text for part in parts), parts, 0, 0.5)


def _words(*texts: str) -> list[Phrase]:
    return [Phrase(place, place + 1, text) for place, text in enumerate(texts)]


def test_a_tree_in_characters() -> None:
    a, blue, cat, sleeps = _words("a", "blue", "cat", "sleeps")
    assert tree_text(_phrase(_phrase(a, _phrase(blue, cat)), sleeps)) == (
        "a       ───┬──┐\n"
        "blue    ┬──┘  │\n"
        "cat     ┘     │\n"
        "sleeps  ──────┘"
    )  # fmt: skip


def test_a_flat_phrase_and_a_single_word_in_characters() -> None:
    one, two, three = _words("one", "two", "three")
    assert tree_text(_phrase(one, two, three)) == "one    ┐\ntwo    ┤\nthree  ┘"
    assert tree_text(one) == "one"


def test_even_shares_follow_from_the_number_of_neighbours() -> None:
    right, down = even_shares(3, 4, 2)[0]
    assert right.shape == (3, 3)
    assert down.shape == (2, 4)
    assert right[0, 0] == pytest.approx((1 / 2 * 1 / 3) ** 0.5), "corner to edge"
    assert right[1, 1] == pytest.approx(1 / 4), "inside to inside"
    assert down[0, 1] == pytest.approx((1 / 3 * 1 / 4) ** 0.5), "edge to inside"
    second = even_shares(3, 4, 2)[1][0]
    assert second[1, 1] == pytest.approx(1 - (1 - 1 / 4) ** 2)


def test_what_is_beyond_even_shares_has_no_border() -> None:
    even = even_shares(4, 4, 3)
    for right, down in beyond_even_shares(even):
        assert right == pytest.approx(np.ones((4, 3)))
        assert down == pytest.approx(np.ones((3, 4)))
    stronger = [(right.copy(), down.copy()) for right, down in even]
    stronger[1][0][2, 1] = 1 - (1 - stronger[1][0][2, 1]) ** 1.5
    beyond = beyond_even_shares(stronger)[1][0]
    assert beyond[2, 1] == pytest.approx(1.5)
    # Raw affinities put the border first, whatever the picture: that is what the ratio takes away.
    assert even[0][0][0].min() > even[0][0][1].max() > even[0][0][1, 1]


def test_relative_groups_find_two_halves_of_a_grid() -> None:
    links = [(right.copy(), down.copy()) for right, down in even_shares(4, 4, 2)]
    for right, _ in links:
        right[:, 1] *= 0.5  # a seam down the middle
    groups = relative_groups(links)
    assert groups.counts()[1] <= groups.counts()[0]
    right_border, _ = groups.borders(1)
    assert right_border[:, 1].all()


def test_strength_adds_up_over_layers() -> None:
    links = np.array([0.5, 0.75, 0.875, 1.0])
    assert strength(links)[:3] == pytest.approx(np.log(2) * np.array([1, 2, 3]))
    assert np.isfinite(strength(links)).all()


@pytest.mark.parametrize("count", [2, 5, 18])
def test_captions_of_any_length_become_a_picture(count: int) -> None:
    words = [_Word(f"word{place}" + "s" * (place % 9), place) for place in range(count)]
    links = np.sort(np.random.default_rng(count).uniform(0.3, 1.0, (4, count - 1)), axis=0)
    dendrogram, parse = sentence_dendrogram(links, words), sentence_tree(links, words)
    panels = [
        CaptionPanel(title, "#2f7d6b", tuple(word.text for word in words), links, dendrogram, parse)
        for title in ("trained", "untrained")
    ]
    picture = Image.open(io.BytesIO(caption_figure(panels)))
    assert picture.width > 600
    assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10, "something is drawn"


def test_borders_are_drawn_where_groups_meet() -> None:
    right, down = np.ones((2, 1)), np.ones((1, 2))
    apart = patch_groups([(right * 0.1, down)], [0.5])
    whole = patch_groups([(right, down)], [0.5])
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    figures = [
        np.asarray(Image.open(io.BytesIO(picture_figure("t", "", pixels, [PictureRow("a", "b", "#ff0000", groups)]))))
        for groups in (apart, whole)
    ]
    red = [int(((figure[..., 0] > 200) & (figure[..., 1] < 60)).sum()) for figure in figures]
    assert red[0] > 1.1 * red[1] > 0, "the frame, and in one of them a line down the middle"


def test_the_control_has_the_same_shape_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    towers = TwoTowers(SMALL_MODEL)
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    control = untrained(towers, seed=0)
    assert torch.rand(1) == expected
    assert control.settings == towers.settings
    first, second = towers.state_dict(), untrained(towers, seed=0).state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in control.state_dict().items())
    assert not torch.equal(first["text_tower.positions"], second["text_tower.positions"])
