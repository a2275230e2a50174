"""The results of one evaluation as tables: CSV with all digits for programs, Markdown for people and papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from hiclip.evaluation.averages import eleven_sets
from hiclip.evaluation.measure import MeasuredSet
from hiclip.evaluation.outcome import Outcome
from hiclip.evaluation.result import Result
from hiclip.evaluation.table import BASELINES, baselines_of, interval, metric_title, with_sign

_COLUMNS = ("set", "metric", "unit", "value", "low", "high", "chance")
_AFTER = ("count", "pictures", "broken", "seconds", "fingerprint", "missing")


def results_csv(outcome: Outcome, measured: Sequence[MeasuredSet] = ()) -> str:
    """A line a set and metric, shares from 0 to 1; of a set that is missing one line that says why.

    `measured` knows how many pictures of a set were looked at and broken, and the seconds that it took: empty without.
    """
    baselines = baselines_of(outcome.results)
    of_set = {one.set: one for one in measured}
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*_COLUMNS, *baselines, *_AFTER])
    for result in outcome.results:
        one = of_set.get(result.set)
        seen = one.seen if one else None
        writer.writerow(
            [
                *(getattr(result, column) for column in _COLUMNS),
                *(result.baselines.get(name, "") for name in baselines),
                result.count,
                *((seen.count, seen.broken) if seen else ("", "")),
                one.seconds if one else "",
                outcome.sets.get(result.set, ""),
                "",
            ]
        )
    for name, why in outcome.missing.items():
        writer.writerow([name, *[""] * (len(_COLUMNS) - 1 + len(baselines) + len(_AFTER) - 1), why])
    return lines.getvalue()


def results_markdown(outcome: Outcome, measured: Sequence[MeasuredSet] = ()) -> str:
    """The same for people: a table a set, its pictures, seconds and fingerprint below it, then what is missing."""
    return "\n".join(_markdown(outcome, {one.set: one for one in measured})) + "\n"


def _markdown(outcome: Outcome, of_set: Mapping[str, MeasuredSet]) -> Iterator[str]:
    yield f"# {escaped(outcome.name)}\n"
    seen = "published weights" if outcome.seen is None else f"{outcome.seen:,} pairs seen"
    yield f"`{outcome.checkpoint}`, {seen}, weights `{outcome.weights[:16]}`.\n"
    yield "Intervals are over pictures; * is the metric that papers quote for a set.\n"
    yield f"Average of the eleven sets: {eleven_sets(outcome.results)}.\n"
    for name, fingerprint in outcome.sets.items():
        results = [result for result in outcome.results if result.set == name]
        yield f"## {escaped(name)}\n"
        yield from _table(results)
        yield f"\n{_said(of_set.get(name))}questions `{fingerprint[:16]}`\n"
    if outcome.missing:
        yield "## Missing\n"
        yield from (f"- {escaped(name)}: {escaped(why)}" for name, why in outcome.missing.items())


def _table(results: Sequence[Result]) -> Iterator[str]:
    baselines = baselines_of(results)
    yield markdown_row(
        ["metric", "value", "95 % interval", "chance", *(BASELINES[name] for name in baselines), "count"]
    )
    yield "|---|" + "---:|" * (4 + len(baselines))
    for result in results:
        yield markdown_row(
            [
                metric_title(result),
                with_sign(result.value, result.unit),
                interval(result),
                with_sign(result.chance, result.unit),
                *(with_sign(result.baselines.get(name), result.unit) for name in baselines),
                f"{result.count:,}",
            ]
        )


def _said(one: MeasuredSet | None) -> str:
    if one is None:
        return ""
    pictures = "" if one.seen is None else f"{one.seen.count:,} pictures, {one.seen.broken:,} of them broken, "
    return f"{pictures}{one.seconds:,.1f} s, "


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def escaped(text: str) -> str:
    """A text that cannot be taken for a cell's border or a line's end."""
    return " ".join(text.split()).replace("|", "\\|")
