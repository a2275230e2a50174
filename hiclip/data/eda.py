"""EDA, "easy data augmentation" (Wei and Zou 2019), in DeCLIP's dose: one of three small changes of a caption.

A word is replaced by a synonym, or two words change places, or each word goes with a small probability; all three are
equally likely. DeCLIP takes synonyms from WordNet, which no package here carries: they come from a file that a job may
name (`eda_synonyms`). Without one the change is one of the other two, equally likely.
"""

from __future__ import annotations

import re
from functools import lru_cache

from numpy.random import Generator

from hiclip.data.view_settings import ViewSettings
from pipeline.manifest import DatasetError
from pipeline.storage import folder

Synonyms = dict[str, tuple[str, ...]]
"""Word in lower case -> words that may replace it."""

_WORD = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


def changed_text(text: str, random: Generator, settings: ViewSettings) -> str:
    """The text, its words (between spaces) changed by one of the three; one word alone is at most replaced."""
    words = text.split()
    synonyms = None if settings.eda_synonyms is None else read_synonyms(settings.eda_synonyms)
    kind = int(random.integers(2 if synonyms is None else 3))
    if kind == 2 and synonyms is not None:
        return " ".join(replace_one(words, random, synonyms))
    if kind == 1:
        return " ".join(swap_two(words, random))
    return " ".join(delete_some(words, random, settings.eda_deletion))


def replace_one(words: list[str], random: Generator, synonyms: Synonyms) -> list[str]:
    """One of the words that have synonyms becomes one of them; marks around it stay. None may have any."""
    parts = [_split(word) for word in words]
    known = [place for place, (_, word, _) in enumerate(parts) if word.lower() in synonyms]
    if not known:
        return words
    place = known[random.integers(len(known))]
    before, word, after = parts[place]
    others = synonyms[word.lower()]
    return [*words[:place], before + others[random.integers(len(others))] + after, *words[place + 1 :]]


def swap_two(words: list[str], random: Generator) -> list[str]:
    """Two different places exchange their words."""
    if len(words) < 2:
        return words
    one, other = random.choice(len(words), size=2, replace=False)
    swapped = list(words)
    swapped[one], swapped[other] = words[other], words[one]
    return swapped


def delete_some(words: list[str], random: Generator, probability: float) -> list[str]:
    """Each word goes with `probability`; if none were left, one stays."""
    if not words:
        return words
    kept = [word for word, drawn in zip(words, random.random(len(words)), strict=True) if drawn >= probability]
    return kept or [words[random.integers(len(words))]]


@lru_cache(maxsize=2)
def read_synonyms(path: str) -> Synonyms:
    """The file of a job, read once a process. DatasetError with the line that is not a word, tabs and words."""
    synonyms: Synonyms = {}
    for number, line in enumerate(folder(path).read_text("").splitlines(), 1):
        word, *others = (part.strip() for part in line.split("\t"))
        if not word or not others or not all(others):
            raise DatasetError(f"{path}, line {number}: expected a word, a tab, and its synonyms, came {line!r}")
        synonyms[word.lower()] = tuple(others)
    return synonyms


def _split(word: str) -> tuple[str, str, str]:
    """Marks before, the word, marks after."""
    match = _WORD.fullmatch(word)
    assert match is not None
    return match[1], match[2], match[3]
