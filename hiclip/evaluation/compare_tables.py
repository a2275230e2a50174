"""A comparison as Markdown, as CSV with all digits, and as a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from hiclip.evaluation.averages import eleven_sets
from hiclip.evaluation.compare import Comparison, Difference, Line
from hiclip.evaluation.paired import McNemar
from hiclip.evaluation.published_rows import PublishedRow, rows_with
from hiclip.evaluation.result_tables import escaped, markdown_row
from hiclip.evaluation.table import TITLES, interval, number

_COLUMNS = (
    "set", "metric", "unit", "run", "folder", "value", "low", "high", "count", "best", "over", "difference",
    "difference_low", "difference_high", "no_difference_because", "only_first_right", "only_this_right",
    "mcnemar_exact", "mcnemar_mid", "fingerprint",
)  # fmt: skip


def difference_text(difference: Difference, unit: str) -> str:
    """Example: "+3.1 (2.2 .. 4.0)"; shares in percentage points."""
    numbers = [one * (100 if unit == "share" else 1) for one in (difference.value, difference.low, difference.high)]
    digits = 2 if max(abs(one) for one in numbers) < 0.995 else 1
    value, low, high = (f"{one:.{digits}f}".replace("-", "−") for one in numbers)
    return f"{'+' if numbers[0] > 0 else ''}{value} ({low} .. {high})"


def mcnemar_text(test: McNemar) -> str:
    """McNemar's test in a few words."""
    p = "p < 0.0001" if test.mid < 0.0001 else f"p = {test.mid:.2g}"
    return f"{test.only_second:,} gained, {test.only_first:,} lost, {p}"


def by_set(comparison: Comparison) -> Iterator[tuple[str, list[Line]]]:
    """The lines of each set."""
    for name, lines in groupby(comparison.lines, key=lambda line: line.set):
        yield name, list(lines)


def title(metric: str) -> str:
    """A metric as people call it."""
    return TITLES.get(metric, metric.replace("_", " "))


def comparison_csv(comparison: Comparison) -> str:
    """A line for each run, set and metric; shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in comparison.lines:
        for place, result in enumerate(line.results):
            run = comparison.runs[place]
            if result is None:
                continue
            difference, test = line.differences[place], line.tests[place]
            if isinstance(difference, Difference):
                over = [difference.value, difference.low, difference.high, ""]
            else:
                over = ["", "", "", difference]
            writer.writerow(
                [
                    *(line.set, line.metric, line.unit, run.label, run.place.root),
                    *(result.value, result.low, result.high, result.count, int(line.best == place)),
                    comparison.runs[0].label if place else "",
                    *over,
                    *((test.only_first, test.only_second, test.exact, test.mid) if test else [""] * 4),
                    run.outcome.sets[line.set],
                ]
            )
    return text.getvalue()


def comparison_markdown(comparison: Comparison, published: Sequence[PublishedRow] = ()) -> str:
    """For people: a table a set; the runs, what the numbers mean, and published rows apart from them."""
    return "\n".join(_markdown(comparison, published)) + "\n"


def _markdown(comparison: Comparison, published: Sequence[PublishedRow]) -> Iterator[str]:
    labels = [run.label for run in comparison.runs]
    yield f"# {escaped(', '.join(labels))}\n"
    for run in comparison.runs:
        outcome = run.outcome
        seen = "published weights" if outcome.seen is None else f"{outcome.seen:,} pairs seen"
        yield f"- {escaped(run.label)}: `{outcome.checkpoint}`, {seen}; eleven sets: {eleven_sets(outcome.results)}"
    yield f"\n{explained(comparison)}\n"
    for name, lines in by_set(comparison):
        yield f"## {escaped(name)}\n"
        yield markdown_row(["metric", *labels])
        yield "|---|" + "---:|" * len(labels)
        for line in lines:
            yield markdown_row([title(line.metric), *(_cell(line, place) for place in range(len(labels)))])
        for said in remarks(comparison, lines):
            yield f"\n{escaped(said)}."
        yield ""
    columns = published_columns(comparison)
    rows = rows_with(published, columns)
    if rows:
        columns = shown_columns(rows, columns)
        yield "## As published\n"
        yield "Other pictures, prompts or transforms are possible; no intervals are known.\n"
        yield markdown_row(["method", "data", "encoder", *(f"{name}, {title(one)}" for name, one in columns), "source"])
        yield "|---|---|---|" + "---:|" * len(columns) + "---|"
        for row in rows:
            cells = [printed(row, name, metric) for name, metric in columns]
            yield markdown_row([row.method, row.data or "", row.encoder or "", *cells, source_text(row)])


def explained(comparison: Comparison) -> str:
    """What the numbers of a comparison mean."""
    first = comparison.runs[0].label
    return (
        f"In percent where nothing else is said, with 95 % bootstrap intervals over pictures. Below: the difference to "
        f"{first} with its paired interval ({comparison.draws:,} resamples, the same ones for both). Bold: better than "
        "every other run beyond its paired interval. Each interval holds for itself: of twenty differences of nothing, "
        "one is expected to exclude zero. One seed of training stands behind a run, and no interval knows of that."
    )


def remarks(comparison: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """McNemar's test, and why there are no differences, for the lines of one set."""
    first = comparison.runs[0].label
    for place, run in enumerate(comparison.runs[1:], 1):
        for line in lines:
            test = line.tests[place]
            if test is not None:
                yield f"top-1, {run.label} over {first}: {mcnemar_text(test)} (McNemar's mid-p)"
        reasons: dict[str, list[str]] = {}
        for line in lines:
            difference = line.differences[place]
            if isinstance(difference, str):
                reasons.setdefault(difference, []).append(title(line.metric))
        for reason, metrics in reasons.items():
            what = "" if len(metrics) == len(lines) else f"{', '.join(metrics)}: "
            yield f"{run.label} over {first}: {what}no difference, {reason}"


def published_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """(set, metric) of every line, and the average of the eleven sets if a run has it."""
    averages = [eleven_sets(run.outcome.results).top1 for run in comparison.runs]
    return comparison.columns + [("eleven_sets", "top1")] * any(one is not None for one in averages)


def shown_columns(rows: Sequence[PublishedRow], columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The columns (set, metric) in which any of the rows has a number."""
    return [column for column in columns if rows_with(rows, [column])]


def printed(row: PublishedRow, name: str, metric: str) -> str:
    """A published number as it was printed."""
    value = row.values.get(name, {}).get(metric)
    return "–" if value is None else f"{value:.1f}"


def source_text(row: PublishedRow) -> str:
    """Where a row stands, and what is uncertain about it."""
    return f"{row.source}; {row.table}" + (f" ({row.note})" if row.note else "")


def _cell(line: Line, place: int) -> str:
    result, difference = line.results[place], line.differences[place]
    if result is None:
        return "–"
    value = number(result.value, line.unit)
    value = f"**{value}**" if line.best == place else value
    over = f"; {difference_text(difference, line.unit)}" if isinstance(difference, Difference) else ""
    return f"{value} ({interval(result)}){over}"


def comparison_table(comparison: Comparison, name: str, lines: Sequence[Line]) -> Table:
    """One set for the terminal."""
    table = Table(title=escape(name), title_style="bold", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric, in %", no_wrap=True)
    for place, run in enumerate(comparison.runs):
        table.add_column(escape(run.label), justify="right")
        if place:
            table.add_column(f"over {escape(comparison.runs[0].label)}", justify="right")
    for line in lines:
        cells: list[str] = []
        for place, result in enumerate(line.results):
            value = "–" if result is None else number(result.value, line.unit)
            cells.append(f"[bold]{value}[/]" if line.best == place else value)
            difference = line.differences[place]
            if place:
                cells.append(difference_text(difference, line.unit) if isinstance(difference, Difference) else "–")
        table.add_row(title(line.metric), *cells)
    return table
