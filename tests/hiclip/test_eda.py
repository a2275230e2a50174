"""EDA: one small change of a caption, by chance alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hiclip.data.chance import Chance
from hiclip.data.eda import changed_text, delete_some, read_synonyms, replace_one, swap_two
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.view_settings import ViewSettings
from pipeline.jobfile import InputError

WORDS = ["a", "small", "dog,", "in", "the", "(green)", "grass"]
SYNONYMS = {"dog": ("hound", "puppy"), "green": ("verdant",)}


def chance(epoch: int) -> np.random.Generator:
    return Chance(3, "00ff", epoch, "eda").generator()


def test_a_swap_moves_two_words() -> None:
    seen = Counter()
    for epoch in range(300):
        swapped = swap_two(WORDS, chance(epoch))
        assert sorted(swapped) == sorted(WORDS)
        moved = [place for place, (a, b) in enumerate(zip(WORDS, swapped, strict=True)) if a != b]
        assert len(moved) == 2
        seen.update(moved)
    assert len(seen) == len(WORDS)
    assert swap_two(["alone"], chance(0)) == ["alone"]
    assert swap_two([], chance(0)) == []


def test_words_go_as_often_as_told_but_one_stays() -> None:
    left = sum(len(delete_some(WORDS, chance(epoch), 0.1)) for epoch in range(1000)) / (1000 * len(WORDS))
    assert abs(left - 0.9) < 0.02
    last = {delete_some(WORDS, chance(epoch), 1.0)[0] for epoch in range(100)}
    assert last == set(WORDS)
    assert delete_some(WORDS, chance(0), 0.0) == WORDS
    assert delete_some([], chance(0), 0.5) == []


def test_one_word_becomes_a_synonym_within_its_marks() -> None:
    seen = {" ".join(replace_one(WORDS, chance(epoch), SYNONYMS)) for epoch in range(100)}
    assert seen == {
        "a small hound, in the (green) grass",
        "a small puppy, in the (green) grass",
        "a small dog, in the (verdant) grass",
    }
    assert replace_one(["A", "DOG!"], chance(0), {"dog": ("hound",)}) == ["A", "hound!"]
    assert replace_one(["a", "--", "cat"], chance(0), SYNONYMS) == ["a", "--", "cat"]


def kind_of(text: str) -> str:
    words = text.split()
    if any(word.strip("(),") in ("hound", "puppy", "verdant") for word in words):
        return "replaced"
    return "swapped" if sorted(words) == sorted(WORDS) and words != WORDS else "deleted"


@pytest.fixture
def synonyms(tmp_path: Path) -> str:
    path = tmp_path / "synonyms.tsv"
    path.write_text("Dog\thound\tpuppy\ngreen\tverdant\n")
    return str(path)


def test_the_three_changes_are_equally_likely(synonyms: str) -> None:
    assert read_synonyms(synonyms) == SYNONYMS
    with_file = ViewSettings(eda_deletion=0.5, eda_synonyms=synonyms)
    kinds = Counter(kind_of(changed_text(" ".join(WORDS), chance(epoch), with_file)) for epoch in range(900))
    assert all(250 < kinds[kind] < 350 for kind in ("replaced", "swapped", "deleted"))


def test_without_a_file_words_are_only_swapped_and_deleted() -> None:
    without = ViewSettings(eda_deletion=0.5)
    kinds = Counter(kind_of(changed_text(" ".join(WORDS), chance(epoch), without)) for epoch in range(600))
    assert 250 < kinds["swapped"] < 350
    assert 250 < kinds["deleted"] < 350


def test_the_view_is_a_function_of_its_chance() -> None:
    view, pair = TEXT_VIEWS["eda"], {"caption": " ".join(WORDS)}
    drawn = [view.draw(pair, Chance(1, "00ff", epoch, "eda"), ViewSettings()) for epoch in range(30)]
    assert drawn == [view.draw(pair, Chance(1, "00ff", epoch, "eda"), ViewSettings()) for epoch in range(30)]
    assert len(set(drawn)) > 10
    assert view.draw({"caption": ""}, Chance(1, "00ff", 0, "eda"), ViewSettings()) == ""


@pytest.mark.parametrize("line", ["dog", "dog\t", "\thound", "dog\thound\t"])
def test_a_line_that_is_not_words_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_text(f"cat\ttom\n{line}\n")
    with pytest.raises(InputError, match=r"synonyms\.tsv, line 2: expected a word, a tab, and its synonyms"):
        read_synonyms(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.tsv"):
        read_synonyms(str(tmp_path / "nowhere.tsv"))
