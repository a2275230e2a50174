"""All pictures of a study, by the name of their file."""

from __future__ import annotations

from hiclip.scaling.findings import Findings
from hiclip.scaling.iso_flops_plot import iso_flops_png
from hiclip.scaling.law_plot import law_png
from hiclip.scaling.ratio_plot import ratio_png
from hiclip.scaling.residual_plot import residual_png

LAW, RESIDUALS, RATIO = "law.png", "residuals.png", "compute_ratio.png"


def pictures(findings: Findings) -> dict[str, bytes]:
    """File name -> PNG, in the order in which a page shows them."""
    drawn = {LAW: law_png(findings), RESIDUALS: residual_png(findings)}
    if findings.ratios:
        drawn[RATIO] = ratio_png(findings)
    for found in findings.methods:
        if found.size_law is not None:
            drawn[f"iso_flops{f'_{found.method}' if found.method else ''}.png"] = iso_flops_png(findings, found)
    return drawn
