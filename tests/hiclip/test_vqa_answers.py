"""VQA v2's official answers: each rule and each quirk by hand, and what agreement with ten people is worth."""

from __future__ import annotations

import pytest

from hiclip.evaluation.heads.vqa_answers import CONTRACTIONS, accuracy, normalised, worths


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        (" on\tthe\nleft ", "on left"),  # tabs and line ends are spaces
        ("the dog", "dog"),
        ("a man an apple", "man apple"),
        ("two", "2"),
        ("none", "0"),
        ("zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),  # the list ends at ten
        ("twenty-one", "twenty 1"),  # a mark between letters is a space, and then "one" is a word
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),  # beside a space a mark is nothing
        ("no!", "no"),
        ("(maybe)", "maybe"),
        ("1,000", "1000"),  # a comma between digits vanishes
        ("1,000-2", "10002"),  # and takes all other marks with it
        ("2.5", "2.5"),
        ("3.", "3"),  # the misspelt pattern: a full stop behind a digit goes
        ("u.s.a.", "usa"),
        ("1..5", "1.5"),
        ("." * 40 + "x", "." * 8 + "x"),  # 32 full stops at most
        ("dog's", "dog's"),  # apostrophes and colons are no marks
        ("10:30", "10:30"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # both apostrophes missing: not listed
        ("yall'd've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the wrong way round
        ("im", "im"),  # listed as "Im", which lower case never meets
        ("wed", "wed"),  # a word
        ("twas the night", "'twas night"),
        ("", ""),
        ("the", ""),
    ],
)
def test_answers_are_made_alike(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_the_list_of_contractions_is_the_official_one() -> None:
    assert len(CONTRACTIONS) == 114, "the official 120, without 4 with a capital and 2 that change nothing"
    assert all(key.replace("'", "") == spelt.replace("'", "") for key, spelt in CONTRACTIONS.items())


@pytest.mark.parametrize(("agreeing", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_a_guess_is_worth_what_ten_people_make_of_it(agreeing: int, worth: float) -> None:
    people = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert accuracy("red", people) == pytest.approx(worth)


def test_what_is_made_alike_counts_together() -> None:
    people = ["two", "2", "2.", "Two dogs", "the two", *["three"] * 5]
    assert worths(people) == pytest.approx({"2": 1.0, "2 dogs": 0.3, "3": 1.0})
    assert accuracy("Two", people) == 1.0
    assert accuracy("a 2", people) == 1.0


def test_people_of_one_mind_are_taken_at_their_word() -> None:
    assert accuracy("two", ["two"] * 10) == 1.0
    assert accuracy("2", ["two"] * 10) == 0.0
    assert accuracy("Two", ["two"] * 10) == 0.0
    assert accuracy(" two\n", [*["two"] * 9, "two\t"]) == 1.0, "spaces around it are no other mind"
    assert accuracy("2", [*["two"] * 9, "2"]) == 1.0, "one other hand, and all are made alike"
