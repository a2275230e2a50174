"""Which hierarchies are drawn, and what is said about each: the picture, the same as JSON, and a tree in characters.

Every drawing shows the trained model beside an untrained one of the same shape. An untrained model merges upwards too,
because each layer adds to the one below and because a patch at the border shares its attention among fewer neighbours;
what both show is not learnt. (HiCLIP's figures have no such control.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hiclip.data.images import ImageError, Pixels, decode, eval_transform, normalise
from hiclip.data.tokenizer import Tokenizer, Word
from hiclip.evaluation.asked import Asked
from hiclip.evaluation.caption_figure import CaptionPanel, caption_figure
from hiclip.evaluation.evaluation_set import drawn
from hiclip.evaluation.even_shares import relative_groups
from hiclip.evaluation.picture_figure import PictureRow, picture_figure
from hiclip.evaluation.tree_text import tree_text
from hiclip.model.sizes import resolve
from hiclip.model.trees import (
    PatchLinkArrays,
    caption_links,
    patch_groups,
    picture_links,
    sentence_dendrogram,
    sentence_tree,
    word_links,
)
from hiclip.model.two_towers import TwoTowers
from pipeline.shards import DatasetReader

MODEL, CONTROL = "#2f7d6b", "#7f838a"
_SHOWN_PX = 224  # about the size of a panel
_SCANNED_PAIRS = 1000
_MOST_WORDS = 12  # of a training caption: more are drawn too small to read


@dataclass(frozen=True)
class Drawing:
    """A hierarchy that was drawn."""

    name: str
    """File name relative to the result, without its ending."""
    kind: str
    """caption or picture."""
    title: str
    png: bytes
    json: str
    text: str = ""
    """A caption's tree in characters."""


@dataclass(frozen=True)
class _Model:
    """One of the two models that a drawing compares."""

    name: str
    title: str
    color: str
    towers: TwoTowers


def draw_hierarchies(asked: Asked, towers: TwoTowers) -> list[Drawing]:
    """Draws what the job asks for, but no picture that cannot be read, and nothing of a tower whose hierarchy is off.

    `towers` are on the CPU.
    """
    settings = asked.job.hierarchy
    assert settings is not None
    models = (
        _Model("trained", f"trained, {asked.model.training}", MODEL, towers),
        _Model("untrained", "untrained control", CONTROL, untrained(towers, asked.job.seed)),
    )
    pairs = list(_training_pairs(asked.datasets[0], settings.training_pairs)) if asked.datasets else []
    drawings: list[Drawing] = []
    if towers.settings.text_hierarchy:
        captions = [*settings.captions, *(caption for caption, _ in pairs)]
        drawings += [_draw_caption(place, caption, models) for place, caption in enumerate(captions)]
    if towers.settings.image_hierarchy:
        pictures = [pair for pair in (*pairs, *_set_pictures(asked, settings.set_pictures)) if _is_readable(pair[1])]
        drawings += [_draw_picture(place, *pair, models) for place, pair in enumerate(pictures)]
    return drawings


def untrained(towers: TwoTowers, seed: int) -> TwoTowers:
    """A model of the same settings at its random start; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwoTowers(towers.settings).eval()


def _training_pairs(dataset: str, count: int) -> Iterator[tuple[str, bytes]]:
    """(caption, picture) of the longest captions that fit a page and are no lists, among the dataset's first pairs."""
    reader = DatasetReader(dataset)
    groups = range(min(reader.groups, -(-_SCANNED_PAIRS // reader.rows_per_group)))
    tables = [reader.read_group(group, ["caption", "image"]) for group in groups] if count else []
    pairs = [(row["caption"], row["image"]) for table in tables for row in table.to_pylist()]
    fitting = [pair for pair in pairs if 1 < _length(pair[0]) <= _MOST_WORDS and pair[0].count(",") < 2]
    yield from sorted(fitting, key=lambda pair: -_length(pair[0]))[:count]


def _is_readable(picture: bytes) -> bool:
    try:
        decode(picture)
    except ImageError:
        return False
    return True


def _length(caption: str) -> int:
    return len(caption.split())


def _set_pictures(asked: Asked, count: int) -> Iterator[tuple[str, bytes]]:
    """(label, picture) of some of the first labelled set's pictures, without those that averages leave out."""
    content = next((one for one in asked.contents if one.classification is not None), None)
    if content is None or content.classification is None:
        return
    classes = content.classification
    counted = np.flatnonzero(classes.tree.counted()[classes.labels]).tolist()
    names = [classes.tree.classes[classes.labels[place]] for place in counted]
    for place in drawn(names, count, key="drawn as groups"):
        yield names[place], content.pictures.read([int(classes.rows[counted[place]])])[0]


def _draw_caption(place: int, caption: str, models: Sequence[_Model]) -> Drawing:
    tokenizer = Tokenizer(resolve(models[0].towers.settings).context)
    tokens = tokenizer.encode([caption])
    words = tokenizer.words(tokens[0])
    panels = [_caption_panel(model, torch.from_numpy(tokens), words) for model in models]
    said: dict[str, Any] = {"caption": caption, "words": [word.text for word in words]}
    said |= {model.name: _caption_json(panel) for model, panel in zip(models, panels, strict=True)}
    return Drawing(
        f"hierarchy/caption-{place:02d}", "caption", caption, caption_figure(panels), _json(said),
        tree_text(panels[0].dendrogram),
    )  # fmt: skip


@torch.inference_mode()
def _caption_panel(model: _Model, tokens: torch.Tensor, words: Sequence[Word]) -> CaptionPanel:
    links = caption_links(model.towers.text_tower(tokens).affinities, 0)
    return CaptionPanel(
        title=model.title,
        color=model.color,
        words=tuple(word.text for word in words),
        links=word_links(links, words),
        dendrogram=sentence_dendrogram(links, words),
        parse=sentence_tree(links, words),
    )


def _caption_json(panel: CaptionPanel) -> dict[str, Any]:
    return {
        "links": panel.links.tolist(),
        "dendrogram": panel.dendrogram.to_json(),
        "parse": panel.parse.to_json(),
        "bracketed": {"dendrogram": panel.dendrogram.bracketed(), "parse": panel.parse.bracketed()},
    }


def _draw_picture(place: int, title: str, picture: bytes, models: Sequence[_Model]) -> Drawing:
    px = resolve(models[0].towers.settings).image_px
    links = [_picture_links(model, eval_transform(picture, px)) for model in models]
    relative, absolute = [relative_groups(one) for one in links], [patch_groups(one) for one in links]
    readings = [("beyond even shares,\nby quantiles", relative)]
    # The thresholds of twelve layers cut a shallow model's picture into single patches: that needs no panels to say.
    tells = any(1 < count <= one.labels[0].size // 2 for one in absolute for count in one.counts())
    readings += [("HiCLIP's thresholds", absolute)] if tells else []
    rows = [
        PictureRow(model.name, note, model.color, groups[number])
        for note, groups in readings
        for number, model in enumerate(models)
    ]
    said: dict[str, Any] = {"title": title} | {
        model.name: {
            "right": [right.tolist() for right, _ in links[number]],
            "down": [down.tolist() for _, down in links[number]],
            "relative": relative[number].to_json(),
            "absolute": absolute[number].to_json(),
        }
        for number, model in enumerate(models)
    }
    note = "" if tells else "HiCLIP's own thresholds leave single patches or one whole at this depth"
    figure = picture_figure(title, note, eval_transform(picture, _SHOWN_PX), rows)
    return Drawing(f"hierarchy/picture-{place:02d}", "picture", title, figure, _json(said))


@torch.inference_mode()
def _picture_links(model: _Model, pixels: Pixels) -> list[PatchLinkArrays]:
    return picture_links(model.towers.image_tower(normalise(torch.from_numpy(pixels[None]))).affinities, 0)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
