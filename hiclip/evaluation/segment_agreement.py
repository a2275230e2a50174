"""Do the groups of patches that a model finds agree with the things that people outlined in the same pictures?

A mask is cropped as the picture is and brought to the grid of patches by majority. Two measures: the adjusted Rand
index (Hubert and Arabie 1985), 0 for chance and 1 for the same groups, and the segmentation covering (Arbelaez et al.
2011), which asks for each segment how well the best group covers it. The layer that is quoted is fixed beforehand, the
middle one: chosen on the same pictures the best layer would always look good.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from hiclip.data.images import ImageError, Picture, eval_transform, normalise
from hiclip.evaluation.blocks import MapBlocks, cut
from hiclip.evaluation.bootstrap import FloatArray, estimate
from hiclip.evaluation.embed import Embedder, computing
from hiclip.evaluation.evaluate_job import MaskSettings
from hiclip.evaluation.even_shares import relative_groups
from hiclip.evaluation.ratio_parts import RatioParts, ratio_parts
from hiclip.evaluation.result import Result, results_of
from hiclip.evaluation.retrieval import IntArray
from hiclip.model.trees import picture_links
from pipeline.jobfile import Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, folder

METRICS = ("group_ari", "segment_covering")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Outlined(NamedTuple):
    """A picture and its mask, by name below their folders."""

    picture: str
    mask: str


class Grouped(Settings):
    """Agreement of a model's groups with given segments."""

    results: list[Result]
    """At the middle layer."""
    layers: dict[str, list[list[float]]]
    """METRICS -> at every layer, bottom first: the model, the untrained one, regular blocks."""
    pictures: int
    """That were compared."""
    left_out: int
    """With a mask of fewer than two segments on the grid, or a picture that cannot be read."""
    parts: RatioParts | None = None
    """Picture by picture; null in what earlier versions stored."""


def read_outlines(settings: MaskSettings) -> list[Outlined]:
    """The pictures that have a mask of the same name. DatasetError if there are none, or a mask has no picture."""
    pictures, masks = folder(settings.pictures), folder(settings.masks)
    named = {name.rpartition(".")[0]: name for name in pictures.names() if name.lower().endswith(_PICTURES)}
    found = []
    for mask in masks.names(suffix=".png"):
        stem = mask.rpartition(".")[0]
        if stem not in named:
            raise DatasetError(f"{masks.join(mask)}: expected a picture {stem}.jpg in {pictures.root}, came none")
        found.append(Outlined(named[stem], mask))
    if not found:
        raise DatasetError(f"{masks.root}: expected masks NAME.png, came none")
    return found


def outlines_states(settings: MaskSettings, outlines: Sequence[Outlined]) -> list[str]:
    """Of the pictures and of the masks, see `Folder.state`."""
    pictures, masks = [one.picture for one in outlines], [one.mask for one in outlines]
    return [folder(settings.pictures).state(pictures), folder(settings.masks).state(masks)]


@dataclass(frozen=True)
class _Shared:
    settings: MaskSettings
    untrained: Embedder


def group_agreement(
    name: str,
    settings: MaskSettings,
    outlines: Sequence[Outlined],
    embedder: Embedder,
    untrained: Embedder,
    batch: int,
    map_blocks: MapBlocks,
    seed: int,
    draws: int,
) -> Grouped:
    """Both measures with intervals over pictures, beside regular blocks and an untrained model."""
    blocks = cut(outlines, batch)
    shared = (embedder, _Shared(settings, untrained))
    found = [one for block in map_blocks(_measured, shared, blocks, f"{name}: groups") for one in block]
    kept = [one.values for one in found if one is not None]
    if not kept:
        raise DatasetError(f"{name}: expected masks of two segments or more on the grid of patches, came none")
    values = np.stack(kept)  # (pictures, metrics, layers, ways)
    middle = values.shape[2] // 2
    model = values[:, :, middle, 0]
    parts = ratio_parts((one.compared for one in found if one is not None), METRICS, model, np.ones_like(model))
    results = results_of(
        name,
        METRICS,
        estimate(parts.statistic, len(kept), seed, draws),
        np.array([0.0, float(values[:, 1, middle, 2].mean())]),  # no better guess of a covering than regular blocks
        [len(kept)] * len(METRICS),
    )
    means = values.mean(axis=0)
    baselines = {
        metric: {"untrained": float(means[place, middle, 1]), "blocks": float(means[place, middle, 2])}
        for place, metric in enumerate(METRICS)
    }
    return Grouped(
        results=[one.model_copy(update={"baselines": baselines[one.metric]}) for one in results],
        layers={metric: means[place].tolist() for place, metric in enumerate(METRICS)},
        pictures=len(kept),
        left_out=len(found) - len(kept),
        parts=parts,
    )


@dataclass(frozen=True)
class _Compared:
    compared: str
    """Hex sha256 of the picture and of its segments on the grid."""
    values: FloatArray
    """(metrics, layers, ways)"""


def _measured(shared: tuple[Embedder, _Shared], outlines: Sequence[Outlined]) -> list[_Compared | None]:
    """Of each picture; None for one that cannot be compared."""
    embedder, rest = shared
    pictures, masks = folder(rest.settings.pictures), folder(rest.settings.masks)
    px, grid = embedder.sizes.image_px, embedder.sizes.grid
    found: list[_Compared | None] = []
    for outlined in outlines:
        encoded = pictures.read_bytes(outlined.picture)
        try:
            pixels = eval_transform(encoded, px, embedder.centre_crop)
            upright = Picture(encoded)
        except ImageError:
            found.append(None)
            continue
        mask = _read_mask(masks, outlined.mask, (upright.width, upright.height), f"{pictures.root}/{outlined.picture}")
        segments = segments_on_grid(mask, grid, embedder.centre_crop, rest.settings.void)
        if len(np.unique(segments[segments >= 0])) < 2:
            found.append(None)
            continue
        labels = [_groups(one, pixels) for one in (embedder, rest.untrained)]
        ways = [*labels, np.stack([blocks_like(layer) for layer in labels[0]])]
        values = [
            [[measure(way[layer], segments) for way in ways] for layer in range(len(labels[0]))]
            for measure in (adjusted_rand, covering)
        ]
        found.append(_Compared(hashlib.sha256(encoded + segments.tobytes()).hexdigest(), np.array(values)))
    return found


def _read_mask(masks: Folder, name: str, size: tuple[int, int], picture: str) -> IntArray:
    encoded = masks.read_bytes(name)
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            mask = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:  # a damaged PNG is any of them to Pillow
        raise DatasetError(f"{masks.join(name)}: expected a PNG, it cannot be read: {error}") from None
    if mask.ndim == 3:  # COCO's panoptic PNGs: a segment's number in three colours
        mask = mask[..., 0].astype(np.int64) + 256 * mask[..., 1].astype(np.int64) + 65536 * mask[..., 2]
    if mask.shape != (size[1], size[0]):
        raise DatasetError(
            f"{masks.join(name)}: expected the size of {picture}, {size[0]} x {size[1]} px, came "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    return mask.astype(np.int64)


@torch.inference_mode()
def _groups(embedder: Embedder, pixels: npt.NDArray[np.uint8]) -> IntArray:
    """(layers, R, C)"""
    with computing(embedder):
        images = normalise(torch.from_numpy(pixels[None]).to(embedder.device))
        links = picture_links(embedder.towers.image_tower(images).affinities, 0)
    return relative_groups(links).labels


def segments_on_grid(mask: IntArray, grid: int, centre_crop: float, void: int) -> IntArray:
    """(H, W) numbers of segments -> (grid, grid): the commonest in each patch of the centre square, -1 for void.

    The square is that of `eval_transform`.
    """
    height, width = mask.shape
    side = max(1, round(centre_crop * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    square = mask[top : top + side, left : left + side]
    _, numbers = np.unique(square, return_inverse=True)
    numbers = numbers.reshape(square.shape)
    known = np.unique(square)
    cell = np.arange(side) * grid // side
    place = cell[:, None] * grid + cell[None, :]
    counts = np.zeros((grid * grid, len(known)), dtype=np.int64)
    np.add.at(counts, (place.ravel(), numbers.ravel()), 1)
    commonest = known[counts.argmax(axis=1)]
    return np.where((commonest == void) | (counts.sum(axis=1) == 0), -1, commonest).reshape(grid, grid)


def adjusted_rand(groups: IntArray, segments: IntArray) -> float:
    """Adjusted Rand index of two partitions of the same places; segments below 0 do not count.

    Example: the same groups under other names give 1; groups that know nothing give 0 on average.
    """
    table = _overlap(groups, segments)
    together = _pairs(table).sum()
    rows, columns = _pairs(table.sum(axis=1)).sum(), _pairs(table.sum(axis=0)).sum()
    expected = rows * columns / _pairs(table.sum())
    most = (rows + columns) / 2
    return 1.0 if most == expected else float((together - expected) / (most - expected))


def covering(groups: IntArray, segments: IntArray) -> float:
    """Mean over segments, weighed by size, of the intersection over union with the group that covers each best."""
    table = _overlap(groups, segments).astype(np.float64)
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    best = (table / union).max(axis=0)
    sizes = table.sum(axis=0)
    return float((best * sizes).sum() / sizes.sum())


def blocks_like(groups: IntArray) -> IntArray:
    """Regular blocks of about as many groups: what knows the number alone."""
    rows, columns = groups.shape
    count = int(groups.max()) + 1
    down = min(rows, max(1, round(np.sqrt(count * rows / columns))))
    across = min(columns, max(1, round(count / down)))
    found: IntArray = (np.arange(rows) * down // rows)[:, None] * across + (np.arange(columns) * across // columns)
    return found


def _overlap(groups: IntArray, segments: IntArray) -> IntArray:
    """(groups, segments): places in both."""
    counted = segments >= 0
    group = np.unique(groups[counted], return_inverse=True)[1]
    segment = np.unique(segments[counted], return_inverse=True)[1]
    table = np.zeros((int(group.max()) + 1, int(segment.max()) + 1), dtype=np.int64)
    np.add.at(table, (group.ravel(), segment.ravel()), 1)
    return table


def _pairs(count: IntArray) -> FloatArray:
    return np.asarray(count * (count - 1) / 2, dtype=np.float64)
