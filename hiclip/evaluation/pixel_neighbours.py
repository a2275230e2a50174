"""The baseline without a model: what would the training picture say that looks most alike, pixel by pixel?

A training picture votes for a class if its caption holds that class's label. A picture's score for a class is its
likeness to the nearest such picture, so the same metrics apply as to a model: classification by the nearest neighbour,
retrieval by the nearest picture whose caption speaks of the thing that a candidate caption was written for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiclip.data.images import ImageError, eval_transform
from hiclip.evaluation.blocks import MapBlocks, cut
from hiclip.evaluation.evaluation_set import Classification
from hiclip.evaluation.set_pictures import SetPictures
from pipeline.shards import DatasetReader

NOTHING = -2.0
"""Score of a class that no training picture shows; likeness is between -1 and 1."""

Vectors = npt.NDArray[np.float32]


def pixel_vectors(px: int, pictures: Sequence[bytes]) -> Vectors:
    """B encoded pictures -> (B, 3·px·px): small, without their mean, of length one; NaN for one that cannot be read.

    The product of two is the correlation of their pixels: brightness and contrast do not count.
    """
    vectors = np.full((len(pictures), 3 * px * px), np.nan, dtype=np.float32)
    for row, picture in enumerate(pictures):
        try:
            pixels = eval_transform(picture, px).astype(np.float32).ravel()
        except ImageError:
            continue
        pixels -= pixels.mean()
        vectors[row] = pixels / max(float(np.linalg.norm(pixels)), 1e-6)
    return vectors


@dataclass(frozen=True)
class Labels:
    """Finds the label that a caption speaks of."""

    numbers: dict[tuple[str, ...], int]
    """Words of a label -> its class."""
    longest: int
    """Words of the longest label."""

    @classmethod
    def of(cls, classes: Sequence[str]) -> Labels:
        """The finder for C classes."""
        numbers = {_words(name): number for number, name in enumerate(classes)}
        return cls(numbers, max(map(len, numbers)))

    def in_caption(self, caption: str) -> int | None:
        """The class of the longest label that stands in the caption word for word; of equally long ones the first.

        Example: with labels "cat" and "black cat", "animals and nature: black cat" speaks of "black cat".
        """
        words = _words(caption)
        for length in range(min(self.longest, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                number = self.numbers.get(words[start : start + length])
                if number is not None:
                    return number
        return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+|[^\w\s]", text.casefold()))


def pixel_scores(
    datasets: Sequence[str],
    asked: Classification,
    pictures: SetPictures,
    px: int,
    batch: int,
    map_blocks: MapBlocks,
) -> tuple[npt.NDArray[np.float32], int]:
    """N pictures and the datasets at `datasets` -> scores (N, C), and how many training pictures had a label.

    Training pictures are read, compared and forgotten block by block: memory does not grow with the datasets.
    """
    classes, shown = asked.tree.classes, cut(asked.rows.tolist(), batch)
    queries = np.concatenate(list(map_blocks(_queries, (px, pictures), shown, "pictures as pixels")))
    scores = np.full((len(classes), len(queries)), NOTHING, dtype=np.float32)
    voters = 0
    labels = Labels.of(classes)
    blocks = itertools.chain.from_iterable(_labelled_blocks(dataset, labels) for dataset in datasets)
    for numbers, vectors in map_blocks(_voters, px, blocks, "training pictures as pixels"):
        likeness = vectors @ queries.T
        for number, row in zip(numbers, likeness, strict=True):
            np.fmax(scores[number], row, out=scores[number])
        voters += len(numbers)
    scores[:, np.isnan(queries[:, 0])] = np.nan
    return scores.T, voters


def _queries(shared: tuple[int, SetPictures], rows: Sequence[int]) -> Vectors:
    px, pictures = shared
    return pixel_vectors(px, pictures.read(rows))


def _labelled_blocks(dataset: str, labels: Labels) -> Iterator[list[tuple[int, bytes]]]:
    """(class, encoded picture) of every pair whose caption holds a label, a row group a block."""
    reader = DatasetReader(dataset)
    for group in range(reader.groups):
        rows = reader.read_group(group, ["caption", "image"])
        found = [labels.in_caption(caption) for caption in rows["caption"].to_pylist()]
        block = [(number, rows["image"][row].as_py()) for row, number in enumerate(found) if number is not None]
        if block:
            yield block


def _voters(px: int, block: Sequence[tuple[int, bytes]]) -> tuple[list[int], Vectors]:
    """One block of training pictures: their classes and vectors, without those that cannot be read."""
    vectors = pixel_vectors(px, [picture for _, picture in block])
    readable = ~np.isnan(vectors[:, 0])
    return [number for (number, _), kept in zip(block, readable, strict=True) if kept], vectors[readable]
