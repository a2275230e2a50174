"""Draws what a model finds in a caption: its tree above the words, the affinities of every layer below them.

The tree is the one that needs no threshold: every phrase falls apart at its weakest link, and the higher two parts
meet, the looser they hang together. Above it stands what Tree Transformer's parser makes of the same affinities.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hiclip.model.trees import Phrase

INK, SOFT, LINE = "#1d1f21", "#6b6f76", "#e3e2dc"
_DPI = 130

Links = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CaptionPanel:
    """What one model finds in a caption of W words."""

    title: str
    color: str
    words: tuple[str, ...]
    links: Links
    """(layers, W-1): the link between each word and the next, bottom layer first."""
    dendrogram: Phrase
    parse: Phrase
    """By Tree Transformer's parser."""


def caption_figure(panels: Sequence[CaptionPanel]) -> bytes:
    """The panels as a PNG: beside each other if the caption is short, else below each other."""
    words = panels[0].words
    across = len(words) <= 8
    rows, columns = (1, len(panels)) if across else (len(panels), 1)
    width = max(5.2, 0.4 + len(words) * _word_width(words))
    height = 1.3 + 1.9 + 0.27 * len(panels[0].links)
    figure = Figure(figsize=(width * columns, height * rows), dpi=_DPI, facecolor="white")
    grid = figure.add_gridspec(rows, columns, wspace=0.06, hspace=0.05, left=0.01, right=0.99, top=0.99, bottom=0.01)
    spread = max(np.ptp(strength(panel.links[-1])) for panel in panels)
    ends = _ends([panel.links for panel in panels])
    for place, panel in enumerate(panels):
        inner = grid[place].subgridspec(2, 1, height_ratios=[3.2, 0.27 * len(panel.links)], hspace=0.0)
        tree, strips = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
        _draw_tree(tree, panel, float(spread))
        _draw_strips(strips, panel, ends)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def strength(links: Links) -> Links:
    """-ln(1 - a): the evidence of all layers below added up, since 1 - a is a product over layers (paper, eq. 5)."""
    return -np.log(np.maximum(1.0 - links, 1e-12))


def _word_width(words: Sequence[str]) -> float:
    """Inches that a word and its margins take."""
    return float(min(1.15, max(0.62, 0.098 * max(map(len, words)) + 0.14)))


def _ends(links: Sequence[Links]) -> npt.NDArray[np.float64]:
    """(layers, 2): weakest and strongest link of each layer over all panels, so that their colours can be compared."""
    together = np.concatenate(links, axis=1)
    return np.stack([together.min(axis=1), together.max(axis=1)], axis=1)


def _draw_tree(axes: Axes, panel: CaptionPanel, spread: float) -> None:
    axes.set_xlim(-0.75, len(panel.words) - 0.25)
    axes.set_ylim(-0.30, 1.42)
    axes.axis("off")
    parse = "\n".join(textwrap.wrap("parser: " + panel.parse.bracketed(), int(11.5 * _inches(axes)), max_lines=2))
    left = -0.7
    axes.text(left, 1.40, panel.title, color=panel.color, fontsize=12.5, fontweight="bold", va="top")
    axes.text(left, 1.26, parse, color=SOFT, fontsize=8.5, va="top", linespacing=1.35)
    for place, word in enumerate(panel.words):
        axes.text(place, -0.07, word, ha="center", va="top", fontsize=11, color=INK)
    if panel.dendrogram.parts:
        top = float(strength(panel.links[-1]).min())
        _draw_phrase(axes, panel.dendrogram, panel.color, top, spread)


def _inches(axes: Axes) -> float:
    return float(axes.get_window_extent().width / axes.figure.dpi)


def _draw_phrase(axes: Axes, phrase: Phrase, color: str, loosest: float, spread: float) -> tuple[float, float]:
    """Draws the phrase's brackets; returns where it hangs from above, (x, y)."""
    if not phrase.parts:
        return float(phrase.start), 0.0
    hung = [_draw_phrase(axes, part, color, loosest, spread) for part in phrase.parts]
    assert phrase.link is not None
    looser = 1.0 - (float(strength(np.array(phrase.link))) - loosest) / max(spread, 1e-9)
    # Never below its parts, which equal links could do, and never flat on the words.
    y = max(0.16 + 0.86 * looser, max(below for _, below in hung) + 0.03)
    for x, below in hung:
        axes.plot([x, x], [below, y], color=color, linewidth=1.9, solid_capstyle="round")
    axes.plot([hung[0][0], hung[-1][0]], [y, y], color=color, linewidth=1.9, solid_capstyle="round")
    return (hung[0][0] + hung[-1][0]) / 2, y


def _draw_strips(axes: Axes, panel: CaptionPanel, ends: npt.NDArray[np.float64]) -> None:
    """A row a layer, the top layer on top; a cell a link, tinted by its place between the layer's ends."""
    layers, links = panel.links.shape
    axes.set_xlim(-0.75, len(panel.words) - 0.25)
    axes.set_ylim(layers, 0)
    axes.axis("off")
    for layer in range(layers):
        row = layers - 1 - layer
        axes.text(-0.7, row + 0.5, f"layer {layer + 1}", fontsize=8, color=SOFT, va="center")
        low, high = ends[layer]
        for place in range(links):
            share = (panel.links[layer, place] - low) / max(high - low, 1e-9)
            cell = FancyBboxPatch(
                (place + 0.09, row + 0.10), 0.82, 0.80, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=_tint(panel.color, share), edgecolor="none", mutation_aspect=2.0,
            )  # fmt: skip
            axes.add_patch(cell)
            ink = "white" if sum(cell.get_facecolor()[:3]) < 1.6 else INK
            axes.text(place + 0.5, row + 0.52, _short(panel.links[layer, place]), ha="center", va="center",
                      fontsize=8, color=ink)  # fmt: skip


def _tint(color: str, share: float) -> tuple[float, float, float]:
    """From nearly white to the colour."""
    full = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    red, green, blue = 1.0 + (full - 1.0) * (0.10 + 0.90 * share)
    return float(red), float(green), float(blue)


def _short(link: float) -> str:
    """Three digits without the leading zero, as in the paper's figure 14; more where they would all be nines."""
    text = f"{link:.3f}" if link < 0.9995 else f"{link:.5f}"
    return text.removeprefix("0")
