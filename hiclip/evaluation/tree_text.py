"""A tree over words in characters, for a terminal: a word a line, phrases closing to the right."""

from __future__ import annotations

from hiclip.model.trees import Phrase

_STEP = 3
"""Characters between a phrase and the phrase around it."""


def tree_text(tree: Phrase) -> str:
    """The tree as lines of text. A phrase goes on to the right from the line of its first word.

    Example, ((a (blue cat)) sleeps):

        a       ───┬──┐
        blue    ┬──┘  │
        cat     ┘     │
        sleeps  ──────┘
    """
    words = _words(tree)
    height = _height(tree)
    grid = [[" "] * (_STEP * height + 1) for _ in words]
    _draw(tree, grid)
    if tree.parts:
        grid[0][_STEP * (height - 1)] = "┐"  # nothing lies around the whole
    longest = max(len(word) for word in words)
    return "\n".join(
        f"{word:<{longest}}  {''.join(row).rstrip()}".rstrip() for word, row in zip(words, grid, strict=True)
    )


def _draw(tree: Phrase, grid: list[list[str]]) -> None:
    """Lines of every phrase: each part runs to the phrase's column, where the first one goes on and the last ends."""
    column = _STEP * (_height(tree) - 1)
    for place, part in enumerate(tree.parts):
        _draw(part, grid)
        began = _STEP * (_height(part) - 1) + 1 if part.parts else 0
        row = grid[part.start]
        row[began:column] = "─" * (column - began)
        row[column] = "┬" if place == 0 else "┘" if place == len(tree.parts) - 1 else "┤"
        if place:
            for between in range(tree.parts[place - 1].start + 1, part.start):
                grid[between][column] = "│"


def _height(tree: Phrase) -> int:
    """Phrases on the longest way down to a word; 0 for a word."""
    return 1 + max(map(_height, tree.parts)) if tree.parts else 0


def _words(tree: Phrase) -> list[str]:
    return [word for part in tree.parts for word in _words(part)] if tree.parts else [tree.text]
