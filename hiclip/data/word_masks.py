"""Masked words: some tokens of a caption are to be guessed (BERT's recipe, Devlin et al. 2018, as in DeCLIP)."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from hiclip.batch import MASK_TOKEN, NOT_PREDICTED
from hiclip.data.tokenizer import END, START, Tokens

_MASKED, _REPLACED = 0.8, 0.1  # the last tenth stays as it is


def mask_words(tokens: Tokens, random: Generator, share: float) -> tuple[Tokens, Tokens]:
    """(L,) tokens of a caption -> the same with some changed, and the targets, both (L,).

    Each token between start and end is chosen with probability `share`. Of those chosen 80 % become `MASK_TOKEN`, 10 %
    any token of the vocabulary (never start or end), 10 % stay. Targets hold the tokens that were chosen, as they
    stood, and elsewhere `NOT_PREDICTED`. A short caption may have none.
    """
    places = np.arange(len(tokens))
    words = (places > 0) & (places < int(tokens.argmax()))
    chosen = words & (random.random(len(tokens)) < share)
    fate = random.random(len(tokens))
    assert END == START + 1, "other tokens are those below the start"
    other = random.integers(0, START, len(tokens))
    changed = np.where(fate < _MASKED, MASK_TOKEN, np.where(fate < _MASKED + _REPLACED, other, tokens))
    return np.where(chosen, changed, tokens), np.where(chosen, tokens, NOT_PREDICTED)
