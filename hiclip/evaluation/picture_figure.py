"""Draws what a model finds in a picture: the groups of patches that each layer holds together, as borders over it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hiclip.data.images import Pixels
from hiclip.model.trees import PatchGroups

INK, SOFT = "#1d1f21", "#6b6f76"
_PANEL, _LABEL = 1.72, 1.35  # inches
_DPI = 130


@dataclass(frozen=True)
class PictureRow:
    """One reading of a picture's affinities: a panel a layer."""

    title: str
    note: str
    color: str
    groups: PatchGroups


def picture_figure(title: str, note: str, pixels: Pixels, rows: Sequence[PictureRow]) -> bytes:
    """The picture (H, W, 3) as the tower sees it and each reading in a row, bottom layer to top, as PNG.

    `note` stands at the upper right, for what the rows do not show.
    """
    layers = len(rows[0].groups.labels)
    figure = Figure(figsize=(_LABEL + _PANEL * (layers + 1), 0.42 + (_PANEL + 0.2) * len(rows)), dpi=_DPI)
    figure.set_facecolor("white")
    top = 1 - 0.09 / figure.get_figheight()
    figure.text(0.012, top, textwrap.shorten(title, 75, placeholder=" ..."), fontsize=11.5, color=INK, va="top",
                fontweight="bold")  # fmt: skip
    figure.text(0.994, top, note, fontsize=8.5, color=SOFT, va="top", ha="right")
    grid = figure.add_gridspec(
        len(rows), layers + 2, width_ratios=[_LABEL, *[_PANEL] * (layers + 1)], wspace=0.07, hspace=0.16,
        left=0.012, right=0.994, bottom=0.012, top=1 - 0.58 / figure.get_figheight(),
    )  # fmt: skip
    for place, row in enumerate(rows):
        label = figure.add_subplot(grid[place, 0])
        label.axis("off")
        label.text(0, 0.62, row.title, fontsize=10.5, fontweight="bold", color=row.color, va="bottom", wrap=True)
        label.text(0, 0.56, row.note, fontsize=8.5, color=SOFT, va="top", linespacing=1.4)
        _draw_picture(figure.add_subplot(grid[place, 1]), pixels, "as the tower sees it" if place == 0 else "")
        for layer in range(layers):
            axes = figure.add_subplot(grid[place, layer + 2])
            count = row.groups.counts()[layer]
            _draw_picture(axes, pixels, f"layer {layer + 1}: {count} group{'s' if count > 1 else ''}")
            _draw_borders(axes, pixels.shape[0], row.groups, layer, row.color)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw_picture(axes: Axes, pixels: Pixels, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest", extent=(0, pixels.shape[1], pixels.shape[0], 0))
    axes.set_xlim(-1, pixels.shape[1] + 1)
    axes.set_ylim(pixels.shape[0] + 1, -1)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c9c7bf")
        side.set_linewidth(0.6)
    if title:
        axes.set_title(title, fontsize=8.5, color=SOFT, pad=3)


def _draw_borders(axes: Axes, height: int, groups: PatchGroups, layer: int, color: str) -> None:
    """Lines between patches of different groups and around the picture, cased in white to show on any ground."""
    right, down = groups.borders(layer)
    patch = height / groups.labels.shape[1]
    lines = [[((c + 1) * patch, r * patch), ((c + 1) * patch, (r + 1) * patch)] for r, c in np.argwhere(right)]
    lines += [[(c * patch, (r + 1) * patch), ((c + 1) * patch, (r + 1) * patch)] for r, c in np.argwhere(down)]
    rows, columns = groups.labels.shape[1:]
    corners = [(0.0, 0.0), (columns * patch, 0.0), (columns * patch, rows * patch), (0.0, rows * patch), (0.0, 0.0)]
    lines += [[start, end] for start, end in pairwise(corners)]
    for width, shade in ((3.4, "white"), (1.9, color)):
        axes.add_collection(LineCollection(lines, colors=shade, linewidths=width, capstyle="round"))
