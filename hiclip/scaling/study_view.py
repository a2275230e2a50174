"""What a person sees of a study in a terminal: a bar over its compute, a line a rung, and the table at its end."""

from __future__ import annotations

from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from hiclip.scaling.analysis import Prediction
from hiclip.scaling.findings import Findings, residual_rows
from hiclip.scaling.ladder import Ladder, Rung
from hiclip.scaling.rung_table import Failure, Row


class StudyProgress:
    """A context in which `ended` is told of every rung; on a terminal it also shows the share of compute done."""

    def __init__(self, console: Console, ladder: Ladder, unit: str) -> None:
        self._console, self._rungs, self._unit = console, len(ladder.all), unit
        self._ended = 0
        self._bar = Progress(
            TextColumn("scale"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:.0f} % of the compute, {task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("starting", total=ladder.compute)

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def ended(self, rung: Rung, found: Row | Failure, earlier: bool = False) -> None:
        """Takes the end of a rung, or one that an `earlier` start had measured."""
        self._ended += 1
        count = f"{self._ended}/{self._rungs} rungs"
        self._bar.update(self._task, advance=rung.compute, description=count)
        if isinstance(found, Failure):
            self.say(f"{rung.full_name}: failed, {found.reason} ({count})")
        elif earlier:
            self.say(f"{rung.full_name}: {self._unit} {found.error:.4g}, measured before ({count})")
        else:
            speed = f"{found.trial_s:.0f} s, {found.pairs_per_s:,.0f} pairs/s"
            self.say(f"{rung.full_name}: {self._unit} {found.error:.4g}, {speed} ({count})")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(f"scale: {line}", markup=False)


def findings_table(findings: Findings) -> Table:
    """The rungs beside the law and beside the law of all others, those that failed, and last the held-out one."""
    table = Table(title=escape(f"{findings.name}: {findings.what}"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("rung")
    for name in (escape(findings.compute_unit), "measured", "law", "others", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in findings.methods:
        for point, fitted, alone in residual_rows(found.law, found.stands_on):
            name = f"{found.method}: {point.name}" if found.method else point.name
            off = f"{alone / point.error - 1:+.1%}"
            table.add_row(
                escape(name), f"{point.compute:.3g}", f"{point.error:.4g}", f"{fitted:.4g}", f"{alone:.4g}", off
            )
    for refused in findings.refused:
        for point in refused.points:
            table.add_row(
                escape(f"{refused.method}: {point.name}"),
                f"{point.compute:.3g}",
                f"{point.error:.4g}",
                "no law",
                "",
                "",
            )
    for failure in findings.failures:
        table.add_row(escape(failure.name), f"{failure.compute:.3g}", "failed", "", "", "")
    held_out = findings.held_out
    if held_out is not None and held_out.point is not None:
        measured, predicted = held_out.point.error, held_out.predicted.value
        said = f"{predicted:.4g}"
        off = f"{predicted / measured - 1:+.1%}"
        table.add_section()
        table.add_row(
            escape(f"{held_out.name} (held out)"), f"{held_out.compute:.3g}", f"{measured:.4g}", said, said, off
        )
    return table


def prediction_sentence(one: Prediction, unit: str) -> str:
    """What the law of compute says of a budget, in words."""
    run = f"{one.run.value:.4g} ({one.run.low:.4g} to {one.run.high:.4g})"
    return f"With {one.compute:.3g} {unit} a run would reach {run}, if the law holds there"


def answers(findings: Findings) -> list[str]:
    """What follows from the laws, a sentence each: the best use of compute, and the rung to run next."""
    said = []
    for found in findings.methods:
        whose = f"{found.method}: " if found.method else ""
        if found.size_law is None:
            said.append(f"{whose}no law of size and pairs: {found.size_law_refused}")
        what = (
            "parameters"
            if all(point.parameters is not None for point in found.points)
            else f"{findings.compute_unit} a pair"
        )
        said += [f"{whose}{best.sentence(findings.compute_unit, what)}" for best in found.allocations]
        said += [f"{whose}{caveat}" for caveat in found.caveats]
        if not found.allocations:
            said += [f"{whose}{prediction_sentence(one, findings.compute_unit)}" for one in found.predictions[1:]]
    if findings.suggestion is not None:
        said.append(findings.suggestion.sentence(findings.compute_unit))
    return said
