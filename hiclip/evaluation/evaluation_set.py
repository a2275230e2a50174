"""What an evaluation set is: pictures, and what is asked about them: their class, their captions, or both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.retrieval import Fits, IntArray
from hiclip.evaluation.set_pictures import SetPictures

Convention = Literal["top1", "mean_per_class"]


@dataclass(frozen=True)
class Classification:
    """N pictures with one label each, of C classes."""

    rows: IntArray
    """(N,) pictures of the set."""
    labels: IntArray
    """(N,) class of each."""
    tree: LabelTree
    """The classes, in a hierarchy if the set has one."""
    templates: tuple[str, ...]
    """Prompts of a class; `{}` stands for its name."""
    convention: Convention | None = None
    """The metric that papers since CLIP quote for the set, None if none does; HiCLIP's says "top-1" for all."""

    def prompts(self) -> list[str]:
        """T·C prompts: all classes in the first template, then all in the second, and so on."""
        return [template.replace("{}", name) for template in self.templates for name in self.tree.classes]


@dataclass(frozen=True)
class Retrieval:
    """Q pictures and M captions, a caption or several a picture."""

    rows: IntArray
    """(Q,) pictures of the set."""
    captions: tuple[str, ...]
    """(M,) candidates of text retrieval, and queries of image retrieval."""
    owners: IntArray
    """(M,) which of the Q pictures each caption was written for; intervals draw them together."""
    right: Fits
    """Which captions are right for a picture; usually its own, more where others say the same."""

    @classmethod
    def of_own_captions(cls, captions: Sequence[Sequence[str]]) -> Retrieval:
        """Of Q pictures with captions each, of which only a picture's own are right."""
        owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
        texts = tuple(text for own in captions for text in own)
        return cls(np.arange(len(captions)), texts, owners, Fits.of_owners(owners, len(captions)))


@dataclass(frozen=True)
class EvaluationSet:
    """Pictures and the questions about them; at least one of both."""

    name: str
    fingerprint: str
    """Hex sha256 of the names of the pictures and of all that is asked: the same one means the same questions."""
    pictures: SetPictures
    classification: Classification | None = None
    retrieval: Retrieval | None = None

    @cached_property
    def state(self) -> str:
        """The fingerprint with the state of the pictures, looked at once: what numbers are remembered under."""
        return f"{self.fingerprint} {self.pictures.state()}"


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


def questions_fingerprint(
    name: str,
    pictures: SetPictures,
    classification: Classification | None = None,
    retrieval: Retrieval | None = None,
) -> str:
    """Hex sha256 of a set's name and its pictures' names, of every label, class and its place, prompt and caption."""
    digest = hashlib.sha256(name.encode())
    for part in pictures.names():
        digest.update(part.encode() + b"\0")
    if classification is not None:
        tree = classification.tree
        digest.update(classification.rows.tobytes() + classification.labels.tobytes())
        digest.update(repr((tree.classes, tree.subgroups, tree.groups, sorted(tree.left_out))).encode())
        digest.update(repr((classification.templates, classification.convention)).encode())
        if tree.heights is not None:
            digest.update(tree.heights.tobytes())
    if retrieval is not None:
        digest.update(retrieval.rows.tobytes() + retrieval.owners.tobytes() + retrieval.right.pairs.tobytes())
        digest.update(repr(retrieval.captions).encode())
    return digest.hexdigest()
