"""Draws how far a model's trees and groups agree with given ones, beside what knows nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hiclip.evaluation.parsing import Parsed
from hiclip.evaluation.result import Result
from hiclip.evaluation.segment_agreement import METRICS, Grouped
from hiclip.evaluation.table import BASELINES, TITLES

_MODEL, _OTHER, _INK = "#2f7d6b", "#b4b8be", "#1d1f21"
_DPI = 130
_WAYS = (("model", _MODEL, "-"), ("untrained", "#7f838a", "--"), ("regular blocks", "#d58a2a", ":"))


def parse_figure(parsed: Parsed) -> bytes:
    """F1 of every reading with its interval, and the baselines, as bars; PNG."""
    figure = Figure(figsize=(3.3 * len(parsed.results), 3.3), dpi=_DPI, layout="constrained")
    for axes, result in zip(_panels(figure, len(parsed.results)), parsed.results, strict=True):
        _bars(axes, result)
    return _png(figure)


def _bars(axes: Axes, result: Result) -> None:
    others = [(BASELINES.get(name, name), value) for name, value in result.baselines.items()]
    names, values = ["model", *(name for name, _ in others)], [result.value, *(value for _, value in others)]
    places = np.arange(len(names))
    axes.barh(places, [100 * value for value in values], color=[_MODEL, *[_OTHER] * len(others)], height=0.66)
    spread = [[100 * (result.value - result.low)], [100 * (result.high - result.value)]]
    axes.errorbar([100 * result.value], [0], xerr=spread, color=_INK, capsize=3, lw=1.2)
    for place, value in zip(places, values, strict=True):
        axes.text(
            1.0, float(place), f"{100 * value:.1f}", va="center", fontsize=8.5, color="white" if not place else _INK
        )
    axes.set_yticks(places, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(10.0, 108 * max(*values, result.high)))
    axes.set_title(f"{TITLES[result.metric]}, %", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def layers_figure(grouped: Grouped) -> bytes:
    """Both measures at every layer, bottom first, and the layer that is quoted; PNG."""
    figure = Figure(figsize=(9.6, 3.3), dpi=_DPI, layout="constrained")
    for axes, metric in zip(_panels(figure, len(METRICS)), METRICS, strict=True):
        values = np.array(grouped.layers[metric])
        layers = np.arange(1, len(values) + 1)
        for way, (name, color, line) in enumerate(_WAYS):
            axes.plot(layers, values[:, way], line, marker="o", ms=4, color=color, label=name)
        axes.axvline(len(values) // 2 + 1, color=_OTHER, lw=6, alpha=0.35, zorder=0)
        axes.set_xticks(layers)
        axes.set_xlabel("layer; the shaded one is quoted", fontsize=9)
        axes.set_title(TITLES[metric].partition(",")[0], fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, frameon=False)
    return _png(figure)


def _panels(figure: Figure, count: int) -> Sequence[Axes]:
    return [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _png(figure: Figure) -> bytes:
    figure.set_facecolor("white")
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
