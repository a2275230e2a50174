"""The picture of the laws: rungs, each method's law with its band, and the held-out rung as predicted and measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes

from hiclip.scaling.analysis import MethodFindings
from hiclip.scaling.findings import Findings, HeldOut
from hiclip.scaling.plot_style import (
    GROUPS,
    HELD_OUT,
    INK,
    MARKS,
    METHODS,
    PAPER,
    SOFT,
    dress,
    legend_below,
    log_ticks_across,
    log_ticks_up,
    new_figure,
    png,
)
from hiclip.scaling.points import Point


def law_png(findings: Findings) -> bytes:
    """The plot as PNG. Rungs that a law does not stand on are hollow."""
    figure = new_figure()
    axes = figure.add_subplot()
    everywhere = [found.points for found in findings.methods] + [refused.points for refused in findings.refused]
    groups = list(dict.fromkeys(point.group for points in everywhere for point in points))
    several = len(everywhere) > 1
    for number, found in enumerate(findings.methods):
        colour = METHODS[number % len(METHODS)]
        _draw_law(axes, found, colour, _furthest(findings, found))
        _draw_points(axes, found.points, set(found.selected), groups, colour if several else None)
    for number, refused in enumerate(findings.refused, len(findings.methods)):
        colour = METHODS[number % len(METHODS)]
        _draw_points(axes, refused.points, set(), groups, colour)
        axes.scatter([], [], s=48, facecolor=PAPER, edgecolor=colour, label=f"{refused.method}, which has no law")
    for number, group in enumerate(groups):
        colour = SOFT if several else GROUPS[number % len(GROUPS)]  # of all methods, whose colours are their laws'
        axes.scatter([], [], s=48, color=colour, marker=MARKS[number % len(MARKS)], label=group)
    if findings.held_out is not None:
        _draw_held_out(axes, findings.held_out)
    if any(len(found.selected) < len(found.points) for found in findings.methods):
        axes.scatter([], [], s=48, facecolor=PAPER, edgecolor=INK, label="hollow: the law does not stand on it")
    log_ticks_across(axes)
    log_ticks_up(axes)
    dress(axes, _title(findings), f"training compute C ({findings.compute_unit})", findings.what)
    legend_below(figure, axes)
    return png(figure)


def _furthest(findings: Findings, found: MethodFindings) -> float:
    held_out = findings.held_out
    beyond = held_out.compute * 1.6 if held_out is not None and found is findings.methods[0] else 0.0
    return max(max(point.compute for point in found.points) * 1.5, beyond)


def _draw_law(axes: Axes, found: MethodFindings, colour: str, furthest: float) -> None:
    law = found.law
    least, most = min(law.computes), max(law.computes)
    line = np.geomspace(least / 1.5, furthest, 200)
    low, high = law.band(line.tolist())
    errors = np.array([law.error(compute) for compute in line])
    inside = line <= most
    name = f"law of {found.method}, with its 95 % band" if found.method else "law, with its 95 % band"
    axes.fill_between(line, low, high, color=colour, alpha=0.14, linewidth=0, zorder=1)
    axes.plot(line[inside], errors[inside], color=colour, linewidth=2, label=name, zorder=2)
    axes.plot(line[~inside], errors[~inside], color=colour, linewidth=2, linestyle=(0, (4, 3)), zorder=2)


def _draw_points(
    axes: Axes, points_of_method: Sequence[Point], stands: Collection[int], groups: Sequence[str], colour: str | None
) -> None:
    for number, group in enumerate(groups):
        members = [(place, point) for place, point in enumerate(points_of_method) if point.group == group]
        if not members:
            continue
        own, mark = colour or GROUPS[number % len(GROUPS)], MARKS[number % len(MARKS)]
        points = [point for _, point in members]
        axes.vlines(
            [p.compute for p in points],
            [p.low for p in points],
            [p.high for p in points],
            color=own,
            alpha=0.5,
            zorder=3,
        )
        axes.scatter(
            [p.compute for p in points],
            [p.error for p in points],
            s=48,
            c=[own if place in stands else PAPER for place, _ in members],
            marker=mark,
            edgecolor=[PAPER if place in stands else own for place, _ in members],
            linewidth=1.1,
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
        markerfacecolor=PAPER,
        markeredgecolor=HELD_OUT,
        markeredgewidth=1.8,
        color=HELD_OUT,
        capsize=5,
        label="held out: predicted, with 95 %",
        zorder=5,
    )
    measured: Point | None = held_out.point
    if measured is not None:
        axes.scatter(
            held_out.compute, measured.error, s=58, color=HELD_OUT, edgecolor=INK, label="held out: measured", zorder=6
        )


def _title(findings: Findings) -> str:
    said = [
        f"{f'{found.method} ' if found.method else ''}b = {found.law.b.value:.3f} ({found.law.b.low:.3f} to "
        f"{found.law.b.high:.3f})"
        for found in findings.methods
    ]
    return f"{findings.name}: {', '.join(said)}"
