"""The picture of the best use of compute: for each budget, the error of every size of model that spends it."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

from hiclip.scaling.analysis import MethodFindings, cost_of_a_pair, size_of
from hiclip.scaling.findings import Findings
from hiclip.scaling.optimum import iso_flops
from hiclip.scaling.plot_style import INK, PAPER, dress, legend_below, log_ticks_across, log_ticks_up, new_figure, png

_CURVES = 5


def iso_flops_png(findings: Findings, found: MethodFindings) -> bytes:
    """The plot of one method as PNG; it must have a law of size and pairs."""
    law = found.size_law
    assert law is not None, "asked of a method that has one"
    cost = cost_of_a_pair(found.points)
    computes = np.array([point.compute for point in found.points])
    asked = [one.budget for one in found.allocations]
    budgets = np.geomspace(min(computes.min() * 2, *asked), max(computes.max(), *asked), _CURVES)
    unique = found.allocations[0].unique
    best = [one.size.value for one in found.allocations if not one.end]
    sizes, curves = iso_flops(law, cost, budgets.tolist(), unique, best)
    figure = new_figure(height=4.8)
    axes = figure.add_subplot()
    least, most = np.log(min(computes.min(), budgets.min())), np.log(budgets.max())

    def colour(compute: float) -> tuple[float, float, float, float]:
        return colormaps["viridis"](0.05 + 0.85 * (np.log(compute) - least) / (most - least))  # type: ignore[no-any-return]

    for budget, curve in zip(budgets, curves, strict=True):
        axes.plot(
            sizes, curve, color=colour(budget), linewidth=1.8, label=f"{budget:.2g} {findings.compute_unit}", zorder=2
        )
        lowest = int(curve.argmin())
        if 0 < lowest < len(sizes) - 1:
            axes.scatter(sizes[lowest], curve[lowest], s=70, marker="D", color=colour(budget), edgecolor=INK, zorder=4)
    known = [(size, point) for point in found.points if (size := size_of(point)) is not None]
    axes.scatter(
        [size for size, _ in known],
        [point.error for _, point in known],
        s=38,
        c=[colour(point.compute) for _, point in known],
        edgecolor=PAPER,
        zorder=3,
        label="measured, coloured likewise",
    )
    axes.scatter([], [], s=70, marker="D", facecolor=PAPER, edgecolor=INK, label="best size for a budget")
    log_ticks_across(axes)
    log_ticks_up(axes)
    what = "parameters N" if all(point.parameters is not None for point in found.points) else "compute of a pair"
    name = f"{found.method}: the" if found.method else "The"
    dress(axes, f"{name} best size of model for a compute", what, findings.what)
    legend_below(figure, axes, columns=4)
    return png(figure)
