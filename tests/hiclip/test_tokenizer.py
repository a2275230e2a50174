"""The tokenizer against CLIP's known numbers, and words against the captions that they came from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiclip.data.tokenizer import END, PADDING, START, VOCABULARY, Tokenizer

CAT = [320, 1125, 539, 320, 2368]


def test_known_numbers_of_clip() -> None:
    tokens = Tokenizer(77).encode(["a photo of a cat", "A PHOTO of a  cat"])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == np.int64
    assert tokens[0].tolist() == [START, *CAT, END] + [PADDING] * 70
    assert (tokens[0] == tokens[1]).all()
    assert Tokenizer(77).encode(["a diagram", "a dog"])[:, :4].tolist() == [
        [49406, 320, 22697, 49407],
        [49406, 320, 1929, 49407],
    ]


def test_long_texts_keep_start_and_end() -> None:
    tokens = Tokenizer(5).encode(["a photo of a cat"])
    assert tokens.tolist() == [[START, *CAT[:3], END]]


def test_empty_text_and_empty_list() -> None:
    assert Tokenizer(4).encode([""]).tolist() == [[START, END, PADDING, PADDING]]
    assert Tokenizer(4).encode([]).shape == (0, 4)


def test_context_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3.*came 2"):
        Tokenizer(2)


def test_zero_is_also_a_letter() -> None:
    """Whoever masks padding by `tokens == 0` cuts this caption short."""
    tokens = Tokenizer(8).encode(["!$x"])[0].tolist()
    assert tokens[1] == 0
    assert tokens.index(END) == 4


def test_goes_to_other_processes() -> None:
    tokenizer = Tokenizer(6)
    assert (pickle.loads(pickle.dumps(tokenizer)).encode(["a cat"]) == tokenizer.encode(["a cat"])).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a blue cat sitting on bench", ["a", "blue", "cat", "sitting", "on", "bench"]),
        ("It's a t-shirt, (really) from 2019!", ["it's", "a", "t-shirt,", "(really)", "from", "2019!"]),
        ('a "very nice" one', ["a", '"very', 'nice"', "one"]),
        ("50% off; don't / do", ["50%", "off;", "don't/do"]),
        ("boys' room", ["boys'", "room"]),
        ("ünder 猫猫 😀", ["ünder", "猫猫", "😀"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    tokenizer = Tokenizer(40)
    tokens = tokenizer.encode([text])[0]
    assert [word.text for word in tokenizer.words(tokens)] == words
    assert tokenizer.decode(tokens) == " ".join(words)


def test_a_word_knows_its_tokens() -> None:
    tokenizer = Tokenizer(20)
    words = tokenizer.words(tokenizer.encode(["supercalifragilistic dog 猫!"])[0])
    assert [(word.text, word.first, word.last) for word in words] == [
        ("supercalifragilistic", 1, 5),
        ("dog", 6, 6),
        ("猫!", 7, 10),
    ]


def test_a_word_cut_by_the_context_is_kept() -> None:
    tokenizer = Tokenizer(5)
    assert [(w.text, w.first, w.last) for w in tokenizer.words(tokenizer.encode(["a supercalifragilistic"])[0])] == [
        ("a", 1, 1),
        ("supercali", 2, 3),
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(3, 40))
def test_any_text_is_covered_by_its_words(text: str, context: int) -> None:
    tokenizer = Tokenizer(context)
    tokens = tokenizer.encode([text])[0]
    end = int(tokens.argmax())
    assert tokens[0] == START
    assert tokens[end] == END
    assert not tokens[end + 1 :].any()
    assert tokens.max() < VOCABULARY
    words = tokenizer.words(tokens)
    assert [place for word in words for place in range(word.first, word.last + 1)] == list(range(1, end))
