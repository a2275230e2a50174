"""Whose pair comes when, as arithmetic: a stream is split among datasets by weight, exactly, with no list and no state.

The first p positions of the stream are split as a purse is: the heaviest dataset takes its share of them, rounded to
whole pairs; the next takes its share of what is left, and so on; the lightest takes the rest. Each split gives one more
position to one side or to the other when p grows by one, so every position of the stream is one dataset's and no count
ever falls, whatever the weights. (Differences of rounded cumulative weights are nearer to this but do not keep it: of
the weights 5, 1 and 4 the second would have one pair of the first five and none of the first six.)

A count is off its exact share by less than one pair for up to three datasets, by less than two for up to ten, and by
nothing where all exact shares are whole: with the weights in proportion to pairs, one pass shows every pair once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag

from hiclip.data.order import Rows
from pipeline.jobfile import Number, Settings
from pipeline.manifest import Manifest


class MixedDataset(Settings):
    """A dataset of several."""

    path: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address that `pipeline.build` wrote."""
    weight: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its part of every batch, beside the others' weights; null in all of them: in proportion to their pairs."""


def _one_or_several(value: object) -> str | None:
    return "one" if isinstance(value, str) else "several" if isinstance(value, list | tuple) else None


def _check_mixed(datasets: tuple[MixedDataset, ...]) -> tuple[MixedDataset, ...]:
    if len(datasets) < 2:
        raise ValueError(f"expected a list of two datasets or more, came {len(datasets)}")
    weighed = sum(dataset.weight is not None for dataset in datasets)
    if weighed not in (0, len(datasets)):
        raise ValueError(f"expected a weight for each dataset or for none, came {weighed} for {len(datasets)}")
    return datasets


DatasetSettings = Annotated[
    Annotated[str, Field(min_length=1), Tag("one")]
    | Annotated[tuple[MixedDataset, ...], AfterValidator(_check_mixed), Tag("several")],
    Discriminator(
        _one_or_several,
        custom_error_type="dataset_type",
        custom_error_message="expected a folder, an s3:// address or a list of datasets",
    ),
]
"""What a job may say of its training data: a dataset, or two or more that are mixed."""


def datasets_of(said: str | Sequence[MixedDataset]) -> tuple[MixedDataset, ...]:
    """The datasets that `DatasetSettings` names: one, or several."""
    return (MixedDataset(path=said),) if isinstance(said, str) else tuple(said)


@dataclass(frozen=True)
class Mixture:
    """How the positions of a stream are split among datasets."""

    weights: tuple[int, ...]
    """One for each dataset, without a common divisor."""

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 1 or math.gcd(*self.weights) != 1:
            raise ValueError(f"weights are at least 1 and have no common divisor, came {self.weights}")

    def counts(self, positions: int) -> tuple[int, ...]:
        """How many of the first `positions` positions of the stream are each dataset's."""
        counts, rest, left = [0] * len(self.weights), positions, sum(self.weights)
        # From the heaviest on: what rounding leaves over then weighs least on those that come after.
        for place in sorted(range(len(self.weights)), key=lambda place: -self.weights[place]):
            weight = self.weights[place]
            counts[place] = (2 * rest * weight + left) // (2 * left)
            rest, left = rest - counts[place], left - weight
        return tuple(counts)

    def share(self, place: int) -> Fraction:
        """The part of the stream that is the dataset's at `place`, of 1."""
        return Fraction(self.weights[place], sum(self.weights))


def mixture_of(datasets: Sequence[MixedDataset], manifests: Sequence[Manifest]) -> Mixture:
    """The mixture of datasets with these manifests: by weights, as their decimals say them, else by pairs."""
    weights = [
        Fraction(manifest.pairs) if dataset.weight is None else Fraction(str(dataset.weight))
        for dataset, manifest in zip(datasets, manifests, strict=True)
    ]
    whole = [int(weight * math.lcm(*(weight.denominator for weight in weights))) for weight in weights]
    return Mixture(tuple(weight // math.gcd(*whole) for weight in whole))


def fingerprint_of(mixture: Mixture, fingerprints: Sequence[str]) -> str:
    """What stands for the bytes of all datasets and their weights: hex sha256; one dataset's is its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    content = list(zip(fingerprints, mixture.weights, strict=True))
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def interleaved(counts: Sequence[int]) -> tuple[Rows, Rows]:
    """A batch with `counts` pairs of each dataset -> (n,) the dataset at each place, (n,) which of its pairs it is.

    Every dataset's pairs keep their order and lie evenly over the batch, so that each equal slice of it, which is a
    rank's, has its part of every dataset.
    """
    sizes = np.array(counts, dtype=np.int64)
    owners = np.repeat(np.arange(sizes.size), sizes)
    numbers = np.arange(owners.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.argsort((2 * numbers + 1) * owners.size // (2 * sizes[owners]), kind="stable")
    return owners[places], numbers[places]
