"""What a person sees while a run trains: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from hiclip.training.history import StepRow

_PLAIN_EVERY_S = 10.0
_RECENT_STEPS = 50


class TrainingProgress:
    """A context in which `show` is told of steps. `total`: pairs that the run sees in all, `batch` of them a step."""

    def __init__(self, console: Console, total: int, batch: int) -> None:
        self._console, self._total, self._batch = console, total, batch
        self._recent: deque[StepRow] = deque(maxlen=_RECENT_STEPS)
        self._seen, self._said, self._said_at = 0, 0, time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> TrainingProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("pretrain"), BarColumn(bar_width=24), TextColumn("{task.description}"), console=self._console
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

    def show(self, rows: list[StepRow]) -> None:
        """Takes the steps since the last call."""
        if rows[0].seen <= self._seen:
            self._recent.clear()
            self._console.print(f"pretrain: a worker was lost; going on from {rows[0].seen - self._batch:,} pairs")
        self._recent.extend(rows)
        self._seen = rows[-1].seen
        if self._bar is not None:
            self._bar.update(self._task, completed=self._seen, description=self._line())
        elif time.monotonic() - self._said_at >= _PLAIN_EVERY_S:
            self._say()

    def _say(self) -> None:
        self._console.print(f"pretrain: {self._line()}")
        self._said, self._said_at = self._seen, time.monotonic()

    def _line(self) -> str:
        last, rows = self._recent[-1], list(self._recent)
        seconds = sum(row.seconds for row in rows)
        speed = self._batch * len(rows) / seconds
        waiting = sum(row.wait_s for row in rows) / seconds
        return (
            f"{self._seen:,}/{self._total:,} pairs · loss {last.loss:.3f} · {speed:,.0f} pairs/s · "
            f"{_span((self._total - self._seen) / speed)} left · {waiting:.0%} waiting for data · "
            f"logit scale {last.logit_scale:.1f}"
        )


def _span(seconds: float) -> str:
    """3 -> 0:03, 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
