"""Results in words and columns, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hiclip.evaluation.result import LOWER_IS_BETTER, Result

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "top-1, mean per class",
    "subgroup_mean_top1": "top-1, by subgroup",
    "subgroup_mean_top5": "top-5, by subgroup",
    "subgroup_right": "right subgroup",
    "group_right": "right group",
    "error_distance": "error distance, steps",
    "left_out_top1": "top-1, country flags",
    "left_out_top5": "top-5, country flags",
    "image_to_text_r1": "image → text R@1",
    "image_to_text_r5": "image → text R@5",
    "image_to_text_r10": "image → text R@10",
    "text_to_image_r1": "text → image R@1",
    "text_to_image_r5": "text → image R@5",
    "text_to_image_r10": "text → image R@10",
    "rsum": "Rsum, of 600",
    "loss": "loss, nats",
    "parse_f1": "F1 of the parse",
    "parse_corpus_f1": "F1 of the parse, all spans",
    "dendrogram_f1": "F1 of the dendrogram",
    "dendrogram_corpus_f1": "F1 of the dendrogram, all spans",
    "group_ari": "adjusted Rand index, middle layer",
    "segment_covering": "covering of segments, middle layer",
    "typical_rank": "typical rank",
    "accuracy": "accuracy",
    "accuracy_yes_no": "accuracy, yes/no",
    "accuracy_number": "accuracy, number",
    "accuracy_other": "accuracy, other",
    "accuracy_val_test": "accuracy, val+test",
    "accuracy_dev": "accuracy, dev",
    "accuracy_test": "accuracy, test",
}
BASELINES = {
    "majority": "majority",
    "pixel_neighbours": "pixels",
    "untrained": "untrained",
    "left": "left",
    "right": "right",
    "halves": "halves",
    "blocks": "blocks",
}
"""Columns of the table that a job may have, in their order: pixels is the nearest neighbour in pixels; left, right and
halves are trees, blocks are groups that know nothing of the caption or picture."""


_MOST_COLUMNS = 3
"""Baselines that fit a terminal of 80 columns side by side."""


def metric_title(result: Result) -> str:
    """What a result's metric is called; starred where it is the one that papers quote for the set."""
    return TITLES.get(result.metric, result.metric) + (" *" if result.quoted else "")


def number(value: float | None, unit: str) -> str:
    """A value as it is written for people: shares in percent; a dash where there is none."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:.{2 if value < 0.0995 else 1}f}"
    return f"{value:.1f}" if unit in ("points", "places") else f"{value:.2f}"


def with_sign(value: float | None, unit: str) -> str:
    """The same, with a percent sign where it is percent."""
    return number(value, unit) + (" %" if unit == "share" and value is not None else "")


def interval(result: Result) -> str:
    """The ends of a result's interval."""
    return f"{number(result.low, result.unit)} to {number(result.high, result.unit)}"


def baselines_of(results: Sequence[Result]) -> list[str]:
    """The baselines that any result stands beside, in the order of the table."""
    return [name for name in BASELINES if any(name in result.baselines for result in results)]


def results_table(name: str, results: Sequence[Result]) -> Table:
    """One set, metric by metric: the model with its interval, and what would be reached without one. 80 columns."""
    columns = baselines_of(results)
    wide = len(columns) > _MOST_COLUMNS
    table = Table(title=name, title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric, in %", no_wrap=True)
    table.add_column("model", justify="right", style="bold")
    names = ["best baseline"] if wide else [BASELINES[name] for name in columns]
    for title in ("95 % interval", "chance", *names):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(
            metric_title(result),
            number(result.value, result.unit),
            interval(result),
            number(result.chance, result.unit),
            *([_best(result)] if wide else [number(result.baselines.get(name), result.unit) for name in columns]),
        )
    return table


def _best(result: Result) -> str:
    """The baseline that comes furthest, and which one it is."""
    best = min if result.metric in LOWER_IS_BETTER else max
    name = best((name for name in result.baselines if name in BASELINES), key=result.baselines.__getitem__)
    return f"{number(result.baselines[name], result.unit)} {BASELINES[name]}"
