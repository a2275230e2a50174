"""CLIP's byte-pair tokenizer: captions become numbers, and numbers become the words that a tree of a caption shows.

The vocabulary is that of Radford et al. 2021 (lower case, 49,408 entries), carried by `instant_clip_tokenizer`. Texts
are taken as they come: to unescape and clean them is the build's work, done once and visible in the dataset.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import instant_clip_tokenizer
import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

VOCABULARY = 49_408
START = 49_406
END = 49_407
PADDING = 0
"""Also the number of a "!" inside a word, so the place of `END` says where a caption stops, not the first 0."""

_CONTRACTIONS = frozenset(("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"))  # CLIP splits exactly these from their word
_CLOSING = frozenset(".,;:!?%)]}'’”…")
_OPENING = frozenset("([{#$€£“‘")
_JOINING = frozenset("-–/_&@")


@dataclass(frozen=True)
class Word:
    """A word of a caption and its tokens: places `first` to `last` of the row of tokens, both included."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Tokenizer:
    """Captions to rows of `context` tokens, and back to words."""

    context: int
    """Tokens of a row, start and end included; at least 3."""

    def __post_init__(self) -> None:
        if self.context < 3:
            raise ValueError(f"context is at least 3 (start, a token, end), came {self.context}")

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Texts (B,) -> (B, L) int64: `START`, the first L-2 tokens of the text, `END`, then `PADDING`."""
        if not texts:
            return np.zeros((0, self.context), dtype=np.int64)
        tokens: Tokens = _vocabulary().tokenize_batch(list(texts), context_length=self.context).astype(np.int64)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """One row of tokens (L,) -> its text, with spaces between `words`; start, end and padding left out."""
        return " ".join(word.text for word in self.words(tokens))

    def words(self, tokens: Iterable[int]) -> list[Word]:
        """One row of tokens (L,) -> its words in order, punctuation joined to the word that it stands at.

        The tokens do not say where spaces were, so a rule sets them: closing marks join the word before, opening marks
        the word after, hyphens and the like both, and digits (CLIP takes them one by one) join into numbers.
        """
        words: list[Word] = []
        in_quotes = False
        joins_next = False
        for piece in _pieces(tokens):
            is_quote = piece.text == '"'
            closes = is_quote and in_quotes
            if words and (joins_next or closes or _joins(words[-1].text, piece.text)):
                words[-1] = Word(words[-1].text + piece.text, words[-1].first, piece.last)
            else:
                words.append(piece)
            in_quotes ^= is_quote
            joins_next = is_quote and in_quotes
        return words


def _joins(left: str, right: str) -> bool:
    """Whether `right` follows `left` without a space."""
    if right in _CONTRACTIONS or (left[-1].isdigit() and right.isdigit()):
        return True
    if _is_mark(right) and right[0] in _CLOSING | _JOINING:
        return True
    return left[-1] in _OPENING | _JOINING


def _is_mark(text: str) -> bool:
    return all(letter in string.punctuation or unicodedata.category(letter)[0] == "P" for letter in text)


def _pieces(tokens: Iterable[int]) -> list[Word]:
    """Whole entries between the vocabulary's marks of a word's end, which its decoder shows as a space."""
    vocabulary = _vocabulary()
    pieces: list[Word] = []
    collected: list[int] = []
    for place, token in enumerate(map(int, tokens)):
        if token == END:
            break
        if token == START:
            continue
        collected.append(token)
        if vocabulary.decode([token]).endswith(" "):
            pieces.append(Word(vocabulary.decode(collected).removesuffix(" "), place + 1 - len(collected), place))
            collected = []
    if collected:  # the context ended inside a word
        last = pieces[-1].last + len(collected) if pieces else len(collected)
        pieces.append(Word(vocabulary.decode(collected), last + 1 - len(collected), last))
    return pieces


@lru_cache(maxsize=1)
def _vocabulary() -> instant_clip_tokenizer.Tokenizer:
    """Read once a process: it takes a tenth of a second, and the object cannot be sent to another process."""
    return instant_clip_tokenizer.Tokenizer()
