"""Parse F1: do the trees that a model finds in captions, without ever being shown one, agree with given ones?

HiCLIP's authors report it in their rebuttal (34.9 for ViT-B/32 and 15M pairs) on MSCOCO's test captions with the trees
of VG-NSL (Shi et al. 2019). A number means something only beside trees that need no model: all branches to the left or
to the right, halves, chance; and beside a model of the same shape that never learnt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hiclip.batch import trim_padding
from hiclip.data.tokenizer import Tokenizer, Word
from hiclip.evaluation.blocks import MapBlocks, cut
from hiclip.evaluation.bootstrap import FloatArray, Statistic, estimate, weighted_mean
from hiclip.evaluation.embed import Embedder, computing
from hiclip.evaluation.ratio_parts import RatioParts, ratio_parts
from hiclip.evaluation.result import Result, results_of
from hiclip.model.trees import Phrase, caption_links, sentence_dendrogram, sentence_tree
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import folder

Spans = frozenset[tuple[int, int]]
"""Words start to end, the end not included, of phrases of two words or more."""

METRICS = ("parse_f1", "parse_corpus_f1", "dendrogram_f1", "dendrogram_corpus_f1")
"""parse: Tree Transformer's parser, as HiCLIP reads its trees; dendrogram: every phrase cut at its weakest link.

f1: mean over sentences, without the span of the whole sentence, as is usual for unsupervised parsing.
corpus_f1: of all spans of all sentences together, the whole ones included, as VG-NSL's code counts it.
"""
_RANDOM_TREES = 20
"""Random trees of each sentence, whose F1 is averaged."""


class GivenTree(NamedTuple):
    """A sentence and its constituents."""

    words: tuple[str, ...]
    spans: Spans
    """With the whole sentence."""


class Parsed(Settings):
    """Parse F1 of a model on given trees."""

    results: list[Result]
    sentences: int
    """That were compared."""
    unaligned: list[str]
    """Sentences that were left out, because a word of theirs has no token or does not fit the context."""
    parts: RatioParts | None = None
    """Sentence by sentence; null in what earlier versions stored."""


def read_trees(path: str, labelled: bool) -> list[GivenTree]:
    """Bracketed trees, one a line; a lone word, or an empty line, has none. DatasetError names the line that is wrong.

    Example: "( ( a cat ) ( sits ( on it ) ) )"; labelled as in the Penn Treebank, "(S (NP (DT a) (NN cat)) ...)".
    """
    place = folder(path)
    if not place.exists():
        raise DatasetError(f"{place.root}: the given trees are not there")
    try:
        text = place.read_text("")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{place.root}: expected text in UTF-8: {error}") from None
    trees = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            tree = _tree(line, labelled)
        except ValueError as error:
            raise DatasetError(f"{place.root}: line {number}: {error}") from None
        if len(tree.words) > 1:
            trees.append(tree)
    if not trees:
        raise DatasetError(f"{place.root}: expected trees of two words or more, came none")
    return trees


def _tree(line: str, labelled: bool) -> GivenTree:
    words: list[str] = []
    spans: set[tuple[int, int]] = set()
    opened: list[int] = []
    after_bracket = False
    for item in re.findall(r"[()]|[^\s()]+", line):
        if item == "(":
            opened.append(len(words))
        elif item == ")":
            if not opened:
                raise ValueError("expected a bracket to close, came one too many")
            spans.add((opened.pop(), len(words)))
        elif not (labelled and after_bracket):
            words.append(item)
        after_bracket = item == "("
    if opened:
        raise ValueError(f"expected every bracket closed, came {len(opened)} open")
    return GivenTree(tuple(words), frozenset(span for span in spans if span[1] - span[0] > 1))


@dataclass(frozen=True)
class _Found:
    """The two readings of a sentence; None for one that cannot be aligned."""

    parse: Spans
    dendrogram: Spans


def parse_f1(
    name: str,
    trees: Sequence[GivenTree],
    embedder: Embedder,
    untrained: Embedder,
    batch: int,
    map_blocks: MapBlocks,
    seed: int,
    draws: int,
) -> Parsed:
    """F1 of both readings with intervals over sentences, beside trivial trees and an untrained model."""
    blocks = cut([tree.words for tree in trees], batch)
    found = [one for block in map_blocks(_induced, (embedder, ""), blocks, f"{name}: trees") for one in block]
    control = [one for block in map_blocks(_induced, (untrained, ""), blocks, f"{name}: control") for one in block]
    kept = [place for place, one in enumerate(found) if one is not None]
    if not kept:
        raise DatasetError(f"{name}: expected sentences whose words have tokens, came none")
    given = [trees[place] for place in kept]
    induced = [one for one in found if one is not None]
    readings = [[one.parse for one in induced], [one.dendrogram for one in induced]]
    parts = ratio_parts(
        (f"{one.words} {sorted(one.spans)}" for one in given),
        METRICS,
        *np.concatenate([f1_parts(given, spans) for spans in readings], axis=2),
    )
    values = results_of(
        name,
        METRICS,
        estimate(parts.statistic, len(given), seed, draws),
        np.full(len(METRICS), np.nan),  # set below
        [len(given)] * len(METRICS),
    )
    drawn = [_random(given, seed + number) for number in range(_RANDOM_TREES)]
    scores = [_ones(_of_readings(given, [spans] * 2), len(given)) for spans in drawn]
    others: dict[str, FloatArray] = {"random": np.mean(scores, axis=0)}
    for baseline, tree in (("left", _left), ("right", _right), ("halves", _halves)):
        trivial = [frozenset(tree(0, len(one.words))) for one in given]
        others[baseline] = _ones(_of_readings(given, [trivial] * 2), len(given))
    never = [one for one in (control[place] for place in kept) if one is not None]
    others["untrained"] = _ones(
        _of_readings(given, [[one.parse for one in never], [one.dendrogram for one in never]]), len(given)
    )
    place_of = {metric: place for place, metric in enumerate(METRICS)}
    results = [
        one.model_copy(
            update={
                "chance": float(others["random"][place_of[one.metric]]),
                "baselines": {name: float(numbers[place_of[one.metric]]) for name, numbers in others.items()},
            }
        )
        for one in values
    ]
    left_out = [" ".join(trees[place].words) for place, one in enumerate(found) if one is None]
    return Parsed(results=results, sentences=len(given), unaligned=left_out, parts=parts)


def _ones(statistic: Statistic, count: int) -> FloatArray:
    values: FloatArray = statistic(np.ones((1, count)))[0]
    return values


def _of_readings(given: Sequence[GivenTree], readings: Sequence[Sequence[Spans]]) -> Statistic:
    """METRICS as a function of the weights of the sentences."""
    sums, counts = np.concatenate([f1_parts(given, spans) for spans in readings], axis=2)
    return lambda weights: weighted_mean(weights, sums, counts)


def f1_parts(given: Sequence[GivenTree], spans: Sequence[Spans]) -> FloatArray:
    """(2, N, 2): sums and counts, of N sentences, of F1 over sentences and over the corpus.

    Example: given ((a b) (c d)), found (a (b (c d))): of the inner spans 1 of 2 agrees on both sides, F1 0.5; with the
    whole sentence 2 of 3, 0.667.
    """
    sums, counts = np.zeros((2, len(given), 2))
    for place, (tree, induced) in enumerate(zip(given, spans, strict=True)):
        whole = (0, len(tree.words))
        inner_given, inner_found = tree.spans - {whole}, induced - {whole}
        if inner_given:
            counts[place, 0] = 1.0
            sums[place, 0] = 2 * len(inner_given & inner_found) / (len(inner_given) + len(inner_found))
        all_given, all_found = tree.spans | {whole}, induced | {whole}
        sums[place, 1], counts[place, 1] = 2 * len(all_given & all_found), len(all_found) + len(all_given)
    return np.stack([sums, counts])


def _induced(shared: tuple[Embedder, str], sentences: Sequence[tuple[str, ...]]) -> list[_Found | None]:
    """Both readings of some sentences."""
    embedder, _ = shared
    tokenizer = Tokenizer(embedder.sizes.context)
    places = [aligned(tokenizer, words) for words in sentences]
    tokens = torch.from_numpy(tokenizer.encode([" ".join(words) for words in sentences]))
    with computing(embedder):
        affinities = embedder.towers.text_tower(trim_padding(tokens).to(embedder.device)).affinities
    found: list[_Found | None] = []
    for row, words in enumerate(places):
        if words is None:
            found.append(None)
            continue
        links = caption_links(affinities, row)
        found.append(_Found(_spans(sentence_tree(links, words)), _spans(sentence_dendrogram(links, words))))
    return found


def _spans(tree: Phrase) -> Spans:
    return frozenset(tree.brackets() | {(tree.start, tree.end)})


def aligned(tokenizer: Tokenizer, words: Sequence[str]) -> list[Word] | None:
    """Where the tokens of each given word stand; None if a word has none, or they do not fit, or they run together."""
    single = [row[(row != 0)][1:-1] for row in tokenizer.encode(list(words))]
    together = tokenizer.encode([" ".join(words)])[0]
    if not all(len(row) for row in single) or sum(map(len, single)) > tokenizer.context - 2:
        return None
    joined = np.concatenate(single)
    if not np.array_equal(together[1 : len(joined) + 1], joined):
        return None
    places, first = [], 1
    for word, row in zip(words, single, strict=True):
        places.append(Word(word, first, first + len(row) - 1))
        first += len(row)
    return places


def _random(given: Sequence[GivenTree], seed: int) -> list[Spans]:
    """Binary trees, each cut at a place drawn evenly."""
    chance = np.random.default_rng(seed)

    def tree(start: int, end: int) -> Iterator[tuple[int, int]]:
        if end - start > 1:
            yield start, end
            middle = int(chance.integers(start + 1, end))
            yield from tree(start, middle)
            yield from tree(middle, end)

    return [frozenset(tree(0, len(one.words))) for one in given]


def _left(start: int, end: int) -> Collection[tuple[int, int]]:
    return [(start, stop) for stop in range(start + 2, end + 1)]


def _right(start: int, end: int) -> Collection[tuple[int, int]]:
    return [(first, end) for first in range(start, end - 1)]


def _halves(start: int, end: int) -> Iterator[tuple[int, int]]:
    if end - start > 1:
        yield start, end
        middle = (start + end + 1) // 2
        yield from _halves(start, middle)
        yield from _halves(middle, end)
