"""The picture of what the laws leave unexplained: each rung's distance from its law, and from the law of all others."""

from __future__ import annotations

from hiclip.scaling.findings import Findings, residual_rows
from hiclip.scaling.plot_style import INK, METHODS, SOFT, dress, legend_below, log_ticks_across, new_figure, png


def residual_png(findings: Findings) -> bytes:
    """The plot as PNG: measured over law less 1, in percent; hollow: over the law of the other rungs."""
    figure = new_figure(height=3.6)
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, linewidth=1, zorder=1)
    for number, found in enumerate(findings.methods):
        colour = METHODS[number % len(METHODS)]
        rows = residual_rows(found.law, found.stands_on)
        computes = [point.compute for point, _, _ in rows]
        own = [100 * (point.error / fitted - 1) for point, fitted, _ in rows]
        alone = [100 * (point.error / other - 1) for point, _, other in rows]
        name = f"{found.method}: " if found.method else ""
        spread = 100 * found.law.noise
        axes.axhspan(-spread, spread, color=colour, alpha=0.09, linewidth=0, zorder=0)
        axes.vlines(computes, own, alone, color=colour, alpha=0.35, zorder=2)
        axes.scatter(
            computes, alone, s=40, facecolor="none", edgecolor=colour, label=f"{name}the law of all others", zorder=3
        )
        axes.scatter(computes, own, s=34, color=colour, label=f"{name}the law (band: ±{spread:.1f} %)", zorder=4)
    log_ticks_across(axes)
    dress(axes, "Measured, over what the law says", f"training compute C ({findings.compute_unit})", "off by (%)")
    axes.title.set_color(SOFT)
    legend_below(figure, axes, columns=4)
    return png(figure)
