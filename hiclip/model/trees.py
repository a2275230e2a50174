"""What the affinities of all layers say: a tree over a caption's words, nested groups over a picture's patches.

Nobody tells the model what a phrase or an object is; these are read off a normal forward pass, from the top layer down
(HiCLIP, Algorithm 1 and figure 2; for words the parser of Tree Transformer). Everything here is arithmetic on numpy
arrays of one caption or one picture, bottom layer first.

A caution that every figure needs: an untrained model merges upwards too, since each layer adds to the one below. Put
the untrained model beside the trained one, and prefer the readings that no absolute threshold enters
(`sentence_dendrogram`, `quantile_thresholds`, `linkage_groups`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]
PatchLinkArrays = tuple[Array, Array]
"""right (R, C-1) and down (R-1, C) of one layer of one picture."""

SPLIT_BELOW = 0.8
"""A phrase is split where its weakest link is not above this (Tree Transformer)."""
DESCEND_ABOVE = 0.7
"""A part whose links all exceed this is looked at one layer down (Tree Transformer's code; not in the paper)."""
PATCH_THRESHOLDS = (0.35, 0.5, 0.5, 0.6, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)
"""HiCLIP's hand-set thresholds of its twelve layers, bottom first: a link below its layer's is a border."""


class WordPlace(Protocol):
    """A word and its tokens, places `first` to `last` of the caption's row, both included."""

    @property
    def text(self) -> str: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


@dataclass(frozen=True)
class Phrase:
    """A stretch of words and the parts it falls into; a word has no parts, a flat phrase only words."""

    start: int
    end: int
    """Words start to end, the end not included."""
    text: str
    parts: tuple[Phrase, ...] = ()
    layer: int | None = None
    """Layer, from 0 at the bottom, at which the parts were found; None for a word."""
    link: float | None = None
    """Affinity of the weakest link between the parts, at that layer; None for a word."""

    def brackets(self) -> set[tuple[int, int]]:
        """Spans of the phrases below this one, of two words or more: what a parse is scored by (without the whole)."""
        return {(part.start, part.end) for part in _phrases(self) if part.parts} - {(self.start, self.end)}

    def bracketed(self) -> str:
        """One line of text, a pair of brackets for each phrase: `((a blue cat) (sitting on bench))`."""
        return f"({' '.join(part.bracketed() for part in self.parts)})" if self.parts else self.text

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries of JSON's types."""
        if not self.parts:
            return {"start": self.start, "end": self.end, "text": self.text}
        return {
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "layer": self.layer,
            "link": self.link,
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True)
class PatchGroups:
    """Groups of patches at every layer, bottom first; a group of one layer lies whole inside one of the next."""

    labels: npt.NDArray[np.int64]
    """(layers, R, C): number of each patch's group, counted from 0 in reading order."""
    thresholds: tuple[float, ...]
    """The affinity below which a link was cut, of every layer."""

    def counts(self) -> list[int]:
        """How many groups each layer has."""
        return [int(layer.max()) + 1 for layer in self.labels]

    def borders(self, layer: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Right (R, C-1) and down (R-1, C): true where two adjacent patches are in different groups."""
        return _borders(self.labels[layer])

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON's types."""
        return {"thresholds": list(self.thresholds), "counts": self.counts(), "labels": self.labels.tolist()}


def caption_links(affinities: Sequence[Tensor], row: int) -> Array:
    """Text tower's affinities and the caption's place in the batch -> (layers, N-1)."""
    return np.stack([layer[row].detach().double().cpu().numpy() for layer in affinities])


def picture_links(affinities: Sequence[tuple[Tensor, Tensor]], row: int) -> list[PatchLinkArrays]:
    """Image tower's affinities and the picture's place in the batch -> right and down of every layer."""
    return [
        (right[row].detach().double().cpu().numpy(), down[row].detach().double().cpu().numpy())
        for right, down in affinities
    ]


def word_links(links: Array, words: Sequence[WordPlace]) -> Array:
    """(layers, N-1) links of tokens -> (layers, W-1) links of W words.

    Pieces of one word are merged first, whatever their affinity; the link between two words is that of the last piece
    of the one and the first of the other. Links to the caption's start and end, and padding, drop out.
    """
    if any(left.last + 1 != right.first for left, right in pairwise(words)):
        raise ValueError("words: expected words that follow each other without a gap")
    return links[:, [word.last for word in words[:-1]]]


def sentence_tree(
    links: Array,
    words: Sequence[WordPlace],
    *,
    minimum_layer: int | None = None,
    split_below: float = SPLIT_BELOW,
    descend_above: float = DESCEND_ABOVE,
) -> Phrase:
    """(layers, N-1) links of a caption's tokens and its words -> constituency tree, by Tree Transformer's parser.

    From the top layer down: a phrase falls apart at its weakest link, unless that is above `split_below`; then it is
    looked at one layer down, and at `minimum_layer` it stays flat. None: `lowest_parsed_layer` of the depth.
    """
    lowest = lowest_parsed_layer(len(links)) if minimum_layer is None else minimum_layer
    if not 0 <= lowest < len(links):
        raise ValueError(f"minimum_layer: expected 0 to {len(links) - 1}, came {lowest}")
    between = word_links(links, words)
    leaves = _leaves(words)

    def parse(start: int, end: int, layer: int) -> Phrase:
        if end - start == 1:
            return leaves[start]
        inside = between[layer, start : end - 1]
        weakest = int(inside.argmin())
        link = float(inside[weakest])
        if end - start > 2 and link > split_below and layer > lowest:
            return parse(start, end, layer - 1)
        if end - start == 2 or link > split_below:
            return _phrase(leaves[start:end], layer, link)
        cut = start + weakest + 1
        sides = [parse(*side, below(*side, layer)) for side in ((start, cut), (cut, end))]
        return _phrase(sides, layer, link)

    def below(start: int, end: int, layer: int) -> int:
        merged = bool((between[layer, start : end - 1] > descend_above).all())
        return layer - 1 if merged and layer > lowest else layer

    return parse(0, len(words), len(links) - 1)


def sentence_dendrogram(links: Array, words: Sequence[WordPlace]) -> Phrase:
    """(layers, N-1) links and words -> binary tree by single linkage of the top layer, without any threshold.

    Every phrase falls apart at its weakest link; links that the top layer holds for equal are told apart by the layers
    below it, and then the first one counts.
    """
    between = word_links(links, words)
    leaves = _leaves(words)
    top = len(links) - 1

    def halve(start: int, end: int) -> Phrase:
        if end - start == 1:
            return leaves[start]
        weakest = min(range(start, end - 1), key=lambda place: tuple(between[::-1, place]))
        parts = (halve(start, weakest + 1), halve(weakest + 1, end))
        return _phrase(parts, top, float(between[top, weakest]))

    return halve(0, len(words))


def lowest_parsed_layer(layers: int) -> int:
    """The layer where the parser stops: index 2 of the papers' ten or twelve layers, the same share of other depths."""
    return round(layers / 6)


def patch_groups(links: Sequence[PatchLinkArrays], thresholds: Sequence[float] | None = None) -> PatchGroups:
    """Links of every layer of one picture -> its nested groups (HiCLIP, Algorithm 1).

    From the top layer down, a link below its layer's threshold is cut there and stays cut in the layers below (the
    paper's rule looks one layer up only and can record a cut twice); what still hangs together is a group, so that a
    cut around which patches are connected is no border. None: `scaled_thresholds` of the depth.
    """
    limits = scaled_thresholds(len(links)) if thresholds is None else tuple(thresholds)
    if len(limits) != len(links):
        raise ValueError(f"thresholds: expected {len(links)}, one a layer, came {len(limits)}")
    kept_right, kept_down = (np.ones_like(side, dtype=np.bool_) for side in links[0])
    labels = []
    for (right, down), limit in zip(reversed(links), reversed(limits), strict=True):
        kept_right, kept_down = kept_right & (right >= limit), kept_down & (down >= limit)
        labels.append(_components(kept_right, kept_down))
    return PatchGroups(np.stack(labels[::-1]), limits)


def scaled_thresholds(layers: int) -> tuple[float, ...]:
    """HiCLIP's twelve thresholds for twelve layers; for another depth the same curve, read at as many places.

    They partly measure depth, since affinities grow with each layer: for a shallow model prefer `quantile_thresholds`.
    """
    paper = np.linspace(0.0, 1.0, len(PATCH_THRESHOLDS))
    places = np.linspace(0.0, 1.0, layers) if layers > 1 else np.ones(1)
    return tuple(float(value) for value in np.interp(places, paper, PATCH_THRESHOLDS))


def quantile_thresholds(links: Sequence[PatchLinkArrays], shares: Sequence[float] | None = None) -> tuple[float, ...]:
    """Thresholds that cut a given share of each layer's links of this picture, whatever their absolute strength.

    None: shares that fall evenly from the bottom layer to the top, of four layers 0.8, 0.6, 0.4 and 0.2.
    """
    layers = len(links)
    wanted = [1 - (layer + 1) / (layers + 1) for layer in range(layers)] if shares is None else list(shares)
    together = (np.concatenate([right.ravel(), down.ravel()]) for right, down in links)
    return tuple(float(np.quantile(values, share)) for values, share in zip(together, wanted, strict=True))


def linkage_groups(links: PatchLinkArrays, groups: int) -> npt.NDArray[np.int64]:
    """One layer's links -> (R, C) labels of exactly `groups` groups by single linkage: strongest links merge first."""
    right, down = links
    rows, columns = right.shape[0], down.shape[1]
    if not 1 <= groups <= rows * columns:
        raise ValueError(f"groups: expected 1 to {rows * columns}, came {groups}")
    place = np.arange(rows * columns).reshape(rows, columns)
    first = np.concatenate([place[:, :-1].ravel(), place[:-1].ravel()])
    second = np.concatenate([place[:, 1:].ravel(), place[1:].ravel()])
    labels, left = place.ravel().copy(), rows * columns
    for link in np.argsort(-np.concatenate([right.ravel(), down.ravel()]), kind="stable"):
        one, other = labels[first[link]], labels[second[link]]
        if one != other and left > groups:
            labels[labels == max(one, other)] = min(one, other)
            left -= 1
    return _numbered(labels.reshape(rows, columns))


def _leaves(words: Sequence[WordPlace]) -> list[Phrase]:
    if not words:
        raise ValueError("words: expected at least one")
    return [Phrase(place, place + 1, word.text) for place, word in enumerate(words)]


def _phrase(parts: Sequence[Phrase], layer: int, link: float) -> Phrase:
    text = " ".join(part.text for part in parts)
    return Phrase(parts[0].start, parts[-1].end, text, tuple(parts), layer, link)


def _phrases(phrase: Phrase) -> Iterator[Phrase]:
    yield phrase
    for part in phrase.parts:
        yield from _phrases(part)


def _components(right: npt.NDArray[np.bool_], down: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Kept links right (R, C-1) and down (R-1, C) -> (R, C) connected components, numbered in reading order."""
    labels = np.arange(right.shape[0] * down.shape[1]).reshape(right.shape[0], down.shape[1])
    while True:  # every patch takes its connected neighbours' lowest number, until none changes
        lower = labels.copy()
        for kept, one, other in ((right, np.s_[:, :-1], np.s_[:, 1:]), (down, np.s_[:-1], np.s_[1:])):
            smaller = np.where(kept, np.minimum(lower[one], lower[other]), -1)
            lower[one] = np.where(kept, smaller, lower[one])
            lower[other] = np.where(kept, np.minimum(smaller, lower[other]), lower[other])
        if (lower == labels).all():
            return _numbered(labels)
        labels = lower


def _numbered(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Labels that are the lowest place of each group -> 0, 1, 2 ... in reading order."""
    _, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(labels.shape).astype(np.int64)


def _borders(labels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    return labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
