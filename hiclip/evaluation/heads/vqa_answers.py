"""The official answers of VQA v2: how they are made alike, and how many people a guess must agree with.

After the evaluation code that the makers of VQA published (GT-Vision-Lab/VQA, `vqaEval.py`), quirks included, because
every published number has them:

- Where all ten people gave the same text, nothing is made alike: "2" does not match ten times "two", nor "Yes" "yes".
- Its pattern for a full stop behind a digit is misspelt and never holds: every full stop that no digit follows goes,
  also that of "3.". Of more than 32 full stops the rest stays, since a flag stands where the count belongs.
- A mark becomes a space, and nothing beside a space; but a comma between two digits anywhere in an answer makes all of
  its marks vanish ("1,000-2" becomes "10002"). Apostrophes and colons are no marks.
- "none" is "0"; number words end at "ten", and "twenty-one" becomes "twenty 1".
- Contractions with a capital ("Im", "Ive", "Id've") are listed, but answers are in lower case by then; "somebody'd"
  loses its apostrophe; "wed", "shed" and "id" stay words.

Older versions of that code make the guess alike always, and of people's answers only the punctuation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

PEOPLE = 10
"""Who answered each question."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_SPELT = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd",
    "it'd've", "it'll", "ma'am", "mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't", "not've",
    "o'clock", "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've",
    "somebody'd've", "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's",
    "something'd", "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's",
    "they'd", "they'd've", "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't",
    "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've",
    "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've",
    "y'all", "y'all'll", "y'all'd've", "you'd", "you'd've", "you'll", "you're", "you've",
)  # fmt: skip
CONTRACTIONS = {
    spelt[:place] + spelt[place + 1 :]: spelt for spelt in _SPELT for place, letter in enumerate(spelt) if letter == "'"
} | {"somebody'd": "somebodyd"}
"""What lacks one apostrophe -> how it is spelt."""


def stripped(answer: str) -> str:
    """An answer without line ends, tabs and spaces around it; all that is done where people are of one mind."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalised(answer: str) -> str:
    """An answer in lower case without marks and articles, with digits and apostrophes. "The Two dogs!" -> "2 dogs"."""
    words = [_NUMBERS.get(word, word) for word in _without_marks(stripped(answer)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _MARKS:
        vanishes = in_number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if vanishes else " ")
    return _FULL_STOP.sub("", found, count=_FULL_STOPS)


def worths(answers: Sequence[str]) -> dict[str, float]:
    """What each guess is worth, 0 to 1, made alike as `accuracy` does; a guess that is not in it is worth nothing.

    Of each choice of nine people, min(how many of them say so / 3, 1), and the mean of that: of ten people one gives
    0.3, two 0.6, three 0.9, four or more 1.
    """
    given = [stripped(answer) for answer in answers]
    if len(set(given)) > 1:
        given = [normalised(answer) for answer in given]
    people = len(given)
    return {
        answer: ((people - same) * min(same / 3, 1.0) + same * min((same - 1) / 3, 1.0)) / people
        for answer, same in Counter(given).items()
    }


def accuracy(guess: str, answers: Sequence[str]) -> float:
    """What the official code gives a guess beside the answers of ten people, 0 to 1."""
    alike = len({stripped(answer) for answer in answers}) == 1
    return worths(answers).get(stripped(guess) if alike else normalised(guess), 0.0)
