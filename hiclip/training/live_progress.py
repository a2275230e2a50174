"""What a person sees while a run trains: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hiclip.training.history import StepRow
from hiclip.training.telemetry import Telemetry

_PLAIN_EVERY_S = 10.0


class TrainingProgress:
    """A context in which `show` is told of steps. `total`: pairs that the run sees in all, `batch` of them a step."""

    def __init__(self, console: Console, telemetry: Telemetry, total: int, batch: int) -> None:
        self._console, self._telemetry, self._total, self._batch = console, telemetry, total, batch
        self._seen, self._said, self._said_at = 0, 0, time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> TrainingProgress:
        if self._console.is_terminal:
            # The line wraps: nothing of it is cut off.
            line = TextColumn("{task.description}", table_column=Column(ratio=1))
            self._bar = Progress(
                TextColumn("pretrain"), BarColumn(bar_width=24), line, console=self._console, expand=True
            )
            self._task = self._bar.add_task("starting the workers", total=self._total)
            self._bar.start()
        else:
            self._console.print("pretrain: starting the workers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._said < self._seen:
            self._say()

    def show(self, rows: list[StepRow]) -> list[dict[str, float]]:
        """Takes the steps since the last call; -> their numbers, for a tracker."""
        if rows[0].seen <= self._seen:
            self._console.print(f"pretrain: going on again from {rows[0].seen - self._batch:,} pairs")
        numbers = [self._telemetry.take(row) for row in rows]
        self._seen = rows[-1].seen
        if self._bar is not None:
            self._bar.update(self._task, completed=self._seen, description=self._telemetry.line())
        elif time.monotonic() - self._said_at >= _PLAIN_EVERY_S:
            self._say()
        return numbers

    def _say(self) -> None:
        self._console.print(f"pretrain: {self._telemetry.line()}")
        self._said, self._said_at = self._seen, time.monotonic()
