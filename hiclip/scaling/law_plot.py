"""The picture of a law: rungs, the law with its 95 % band, and the held-out rung as predicted and as measured."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hiclip.scaling.findings import Findings, HeldOut, Point

_INK, _SOFT, _LINE, _PAPER = "#1d1f21", "#6b6f76", "#e3e2dc", "#ffffff"
_LAW = "#2f7d6b"
_GROUPS = ("#33658a", "#e0a458", "#8d5a97", "#86a873", "#b4503e", "#5a6a72")
_MARKS = ("o", "s", "^", "D", "v", "P")
_HELD_OUT = "#b4503e"
_DPI = 160


def law_png(findings: Findings) -> bytes:
    """The plot as PNG."""
    figure = Figure(figsize=(8.6, 5.4), dpi=_DPI, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_law(axes, findings)
    _draw_points(axes, findings.points)
    if findings.held_out is not None:
        _draw_held_out(axes, findings.held_out)
    _dress(axes, findings)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_law(axes: Axes, findings: Findings) -> None:
    law = findings.law
    least, most = min(law.computes), max(law.computes)
    furthest = max(most * 1.5, findings.held_out.compute * 1.6 if findings.held_out else 0)
    line = np.geomspace(least / 1.5, furthest, 200)
    low, high = law.band(line.tolist())
    errors = np.array([law.error(compute) for compute in line])
    inside = line <= most
    axes.fill_between(line, low, high, color=_LAW, alpha=0.14, linewidth=0, label="95 % band of the law", zorder=1)
    axes.plot(line[inside], errors[inside], color=_LAW, linewidth=2, label="law", zorder=2)
    axes.plot(line[~inside], errors[~inside], color=_LAW, linewidth=2, linestyle=(0, (4, 3)), zorder=2)


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    groups = list(dict.fromkeys(point.group for point in points))
    for number, group in enumerate(groups):
        members = [point for point in points if point.group == group]
        colour, mark = _GROUPS[number % len(_GROUPS)], _MARKS[number % len(_MARKS)]
        computes = [point.compute for point in members]
        axes.vlines(computes, [p.low for p in members], [p.high for p in members], color=colour, alpha=0.6, zorder=3)
        axes.scatter(
            computes,
            [p.error for p in members],
            s=58,
            color=colour,
            marker=mark,
            edgecolor=_PAPER,
            label=group,
            zorder=4,
        )


def _draw_held_out(axes: Axes, held_out: HeldOut) -> None:
    predicted = held_out.predicted
    axes.errorbar(
        held_out.compute,
        predicted.value,
        yerr=[[predicted.value - predicted.low], [predicted.high - predicted.value]],
        fmt="o",
        markersize=10,
        markerfacecolor=_PAPER,
        markeredgecolor=_HELD_OUT,
        markeredgewidth=1.8,
        color=_HELD_OUT,
        capsize=5,
        label=f"predicted: {held_out.name}, 95 %",
        zorder=5,
    )
    if held_out.point is not None:
        axes.scatter(
            held_out.compute,
            held_out.point.error,
            s=58,
            color=_HELD_OUT,
            edgecolor=_PAPER,
            label="measured",
            zorder=6,
        )


def _dress(axes: Axes, findings: Findings) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Errors seldom span decades: ticks at 1, 2 and 5 times powers of ten, and at round numbers where those are too few.
    few = high / low < 5
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=[float(k) for k in range(2, 10)]))
    axes.set_xlabel(f"training compute C ({findings.compute_unit})", color=_SOFT)
    axes.set_ylabel(findings.what, color=_SOFT)
    axes.set_title(_title(findings), loc="left", color=_INK, fontsize=12, pad=12)
    axes.grid(which="major", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] == "measured")  # after what was predicted
    shown = [handles[place] for place in order], [labels[place] for place in order]
    axes.legend(*shown, frameon=False, fontsize=9, labelcolor=_INK)


def _title(findings: Findings) -> str:
    b = findings.law.b
    return f"{findings.name}: b = {b.value:.3f}, 95 % from {b.low:.3f} to {b.high:.3f}"
