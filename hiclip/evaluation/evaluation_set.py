"""What an evaluation set is: labelled pictures, their captions, and which of both take part in retrieval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.retrieval import IntArray


@dataclass(frozen=True)
class EvaluationSet:
    """N pictures with one label each; Q of them are retrieved by their captions and the other way round."""

    name: str
    fingerprint: str
    """Hex sha256 of everything below: the same one means the same questions."""
    pictures: tuple[bytes, ...]
    """(N,) encoded pictures."""
    labels: IntArray
    """(N,) class of each picture."""
    tree: LabelTree
    templates: tuple[str, ...]
    """Prompts of a class; `{}` stands for its name."""
    queries: IntArray
    """(Q,) pictures that take part in retrieval."""
    captions: tuple[str, ...]
    """(Q,) the caption of each of them, a candidate of text retrieval."""
    wordings: tuple[frozenset[str], ...]
    """(Q,) every caption that is right for the picture, folded by `folded`."""

    def prompts(self) -> list[str]:
        """T·C prompts: all classes in the first template, then all in the second, and so on."""
        return [template.format(name) for template in self.templates for name in self.tree.classes]


def folded(caption: str) -> str:
    """A caption without differences that no reader would see: case and spaces."""
    return " ".join(caption.casefold().split())


def drawn(names: Sequence[str], count: int, key: str) -> list[int]:
    """`count` positions of `names`, ascending: those whose sha256 with `key` is smallest.

    A draw that depends on the names alone: another order of the same names draws the same ones, and of a longer list
    the drawn ones are drawn again unless newcomers push them out.
    """
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(f"{key}\0{names[place]}".encode()).digest())
    return sorted(order[:count])
