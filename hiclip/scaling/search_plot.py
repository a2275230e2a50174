"""The picture of a search: what each trial came to against its learning rate, and how its loss fell on the way."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hiclip.scaling.search_trials import Search, Tried

_INK, _SOFT, _LINE, _PAPER = "#1d1f21", "#6b6f76", "#e3e2dc", "#ffffff"
_ONE, _BEST = "#33658a", "#b4503e"
_COLOURS = "viridis_r"
_SHAPES = ("o", "s", "^", "D", "v")  # of stopped trials, by when
_DPI = 160
_TALLEST = 3.0  # losses of this many times the lowest or more are drawn at the upper edge: they would flatten the rest

Colour = tuple[float, float, float, float]


def search_png(found: Search) -> bytes:
    """The plot as PNG."""
    by_error = found.judged_by == "error"
    figure = Figure(figsize=(8.6, 7.2 if by_error else 4.8), dpi=_DPI, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if by_error else 1, 1, sharex=True, squeeze=False)[:, 0].tolist()
    colour = _colours(figure, panels, found)
    if by_error:
        _draw_errors(panels[0], found, colour)
    _draw_losses(panels[-1], found, colour)
    rates = [trial.learning_rate for trial in found.trials]
    for axes in panels:
        _dress(axes, min(rates), max(rates))
    panels[0].set_title(_title(found), loc="left", color=_INK, fontsize=12, pad=12)
    panels[-1].set_xlabel("learning rate", color=_SOFT)
    panels[-1].legend(handles=_legend(found), frameon=False, fontsize=9, labelcolor=_INK)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _colours(figure: Figure, panels: Sequence[Axes], found: Search) -> Callable[[Tried], Colour]:
    """The colour of a trial: by its weight decay where that was searched, with a bar beside the panels."""
    if found.weight_decay is None:
        return lambda trial: to_rgba(_ONE)
    decays = [trial.weight_decay for trial in found.trials]
    norm = LogNorm(min(decays) / 1.01, max(decays) * 1.01)
    scale = ScalarMappable(norm, _COLOURS)
    bar = figure.colorbar(scale, ax=list(panels), pad=0.02, aspect=40)
    bar.set_label("weight decay", color=_SOFT)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(colors=_SOFT, which="both")
    bar.outline.set_visible(False)
    return lambda trial: to_rgba(scale.cmap(float(norm(trial.weight_decay))))


def _draw_errors(axes: Axes, found: Search, colour: Callable[[Tried], Colour]) -> None:
    for trial in found.trials:
        if trial.error is None:
            continue
        low, high = trial.error_low or trial.error, trial.error_high or trial.error
        axes.vlines(trial.learning_rate, low, high, color=colour(trial), alpha=0.6, zorder=3)
        _mark(axes, trial, trial.error, found, colour)
    axes.set_ylabel(f"{found.unit}\nat the end", color=_SOFT)


def _draw_losses(axes: Axes, found: Search, colour: Callable[[Tried], Colour]) -> None:
    known = [trial.loss for trial in found.trials if trial.loss is not None]
    edge = _TALLEST * min(known)
    for trial in found.trials:
        if trial.end in ("diverged", "failed") or trial.loss is None:
            place = axes.get_xaxis_transform()
            axes.scatter(trial.learning_rate, 0.97, marker="x", s=58, color=_SOFT, transform=place, zorder=4)
            continue
        height = min(trial.loss, edge)
        _mark(axes, trial, height, found, colour)
        if height < trial.loss:
            said: dict[str, Any] = {"textcoords": "offset points", "xytext": (7, -3), "fontsize": 8, "color": _SOFT}
            axes.annotate(f"{trial.loss:.3g}", (trial.learning_rate, height), **said)
    axes.set_ylabel("training loss (nats),\nthe newest", color=_SOFT)


def _mark(axes: Axes, trial: Tried, height: float, found: Search, colour: Callable[[Tried], Colour]) -> None:
    """A trial: full where it reached the end, hollow where it was stopped, ringed where it was best."""
    face = colour(trial) if trial.end == "measured" else _PAPER
    looks: dict[str, Any] = {
        "color": [face],
        "edgecolor": [colour(trial)],
        "linewidth": 1.6,
        "marker": _shape(trial, found),
    }
    axes.scatter(trial.learning_rate, height, s=58, zorder=4, **looks)
    if trial.trial == found.chosen:
        axes.scatter(trial.learning_rate, height, s=210, color="none", edgecolor=_BEST, linewidth=1.8, zorder=5)


def _shape(trial: Tried, found: Search) -> str:
    return "o" if trial.end == "measured" else _SHAPES[_stops(found).index(trial.seen) % len(_SHAPES)]


def _stops(found: Search) -> list[int]:
    """Pairs seen at which trials were stopped."""
    return sorted({trial.seen for trial in found.trials if trial.end == "stopped"})


def _legend(found: Search) -> list[Line2D]:
    def entry(label: str, **looks: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **looks)

    entries = [entry("reached the end", marker="o", color=_SOFT)]
    for seen, shape in zip(_stops(found), itertools.cycle(_SHAPES), strict=False):
        label = f"stopped after {seen:,} pairs"
        entries.append(entry(label, marker=shape, markerfacecolor=_PAPER, markeredgecolor=_SOFT))
    if any(trial.end in ("diverged", "failed") for trial in found.trials):
        entries.append(entry("diverged or failed", marker="x", color=_SOFT))
    return [*entries, entry("best", marker="o", markersize=12, markerfacecolor="none", markeredgecolor=_BEST)]


def _dress(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
    if math.log10(high / low) < 2:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)


def _title(found: Search) -> str:
    decay = "" if found.weight_decay is None else f", weight decay {found.weight_decay:g}"
    return f"{found.rung}: best of {len(found.trials)} is learning rate {found.learning_rate:g}{decay}"
