"""Results in words and columns, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from hiclip.evaluation.result import Result

TITLES = {
    "top1": "top-1, all concepts",
    "top5": "top-5, all concepts",
    "subgroup_mean_top1": "top-1, mean over subgroups",
    "subgroup_mean_top5": "top-5, mean over subgroups",
    "subgroup_right": "right subgroup",
    "group_right": "right group",
    "error_distance": "distance of errors in the label tree",
    "left_out_top1": "top-1, country flags",
    "left_out_top5": "top-5, country flags",
    "image_to_text_r1": "image → text R@1",
    "image_to_text_r5": "image → text R@5",
    "image_to_text_r10": "image → text R@10",
    "text_to_image_r1": "text → image R@1",
    "text_to_image_r5": "text → image R@5",
    "text_to_image_r10": "text → image R@10",
    "rsum": "Rsum",
    "loss": "contrastive loss",
}
BASELINES = {"majority": "majority", "pixel_neighbours": "pixel neighbours"}
"""Columns of the table that a job may have, in their order."""


def number(value: float | None, unit: str, sign: bool = True) -> str:
    """A value as it is written for people: shares in percent, the rest with its unit; a dash where there is none."""
    if value is None:
        return "–"
    if unit == "share":
        digits = 2 if value < 0.0995 else 1
        return f"{100 * value:.{digits}f}" + (" %" if sign else "")
    text = f"{value:.1f}" if unit == "points" else f"{value:.3f}"
    return f"{text} {unit}" if sign and unit != "points" else text


def interval(result: Result) -> str:
    """The ends of a result's interval."""
    return f"{number(result.low, result.unit, sign=False)} to {number(result.high, result.unit, sign=False)}"


def baselines_of(results: Sequence[Result]) -> list[str]:
    """The baselines that any result stands beside, in the order of the table."""
    return [name for name in BASELINES if any(name in result.baselines for result in results)]


def results_table(results: Sequence[Result]) -> Table:
    """Metric by metric: the model with its interval, and what would be reached without one."""
    columns = baselines_of(results)
    table = Table(title="results", title_style="bold", header_style="bold")
    table.add_column("set")
    table.add_column("metric")
    table.add_column("model", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    table.add_column("chance", justify="right")
    for name in columns:
        table.add_column(BASELINES[name], justify="right")
    table.add_column("pictures", justify="right")
    for place, result in enumerate(results):
        table.add_row(
            result.set if place == 0 or results[place - 1].set != result.set else "",
            TITLES[result.metric],
            number(result.value, result.unit),
            interval(result),
            number(result.chance, result.unit, sign=False),
            *(number(result.baselines.get(name), result.unit, sign=False) for name in columns),
            f"{result.count:,}",
        )
    return table
