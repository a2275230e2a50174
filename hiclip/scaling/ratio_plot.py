"""The picture of how much compute the first method needs for what another reaches, over the compute of the other."""

from __future__ import annotations

import numpy as np

from hiclip.scaling.compute_ratio import common_computes, ratio_curve
from hiclip.scaling.findings import Findings
from hiclip.scaling.plot_style import INK, METHODS, dress, legend_below, log_ticks_across, log_ticks_up, new_figure, png

_HIGHEST = 100.0  # drawn for a ratio without an end


def ratio_png(findings: Findings) -> bytes:
    """The plot as PNG, of the methods that are compared. Dashed beyond the rungs of either."""
    first, *others = findings.methods
    figure = new_figure(height=3.8)
    axes = figure.add_subplot()
    axes.axhline(1, color=INK, linewidth=1, zorder=1)
    for number, other in enumerate(others, 1):
        colour = METHODS[number % len(METHODS)]
        if all(ratio.other != other.method for ratio in findings.ratios):
            continue
        common = common_computes(first.law, other.law)
        line = np.geomspace(common[0], common[1] * 3, 60)
        curve = ratio_curve(first.law, other.law, line.tolist())
        value, low, high = (
            np.minimum([getattr(one, end) for one in curve], _HIGHEST) for end in ("value", "low", "high")
        )
        inside = line <= common[1]
        name = f"{first.method} over {other.method}, with its 95 % band"
        axes.fill_between(line, low, high, color=colour, alpha=0.15, linewidth=0, zorder=0)
        axes.plot(line[inside], value[inside], color=colour, linewidth=2, label=name, zorder=2)
        axes.plot(line[~inside], value[~inside], color=colour, linewidth=2, linestyle=(0, (4, 3)), zorder=2)
    log_ticks_across(axes)
    log_ticks_up(axes)
    title = f"Compute that {first.method} needs for the same error"
    dress(axes, title, f"training compute of the other ({findings.compute_unit})", "share of its compute")
    legend_below(figure, axes)
    return png(figure)
