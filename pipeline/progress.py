"""Progress of a long step for whoever watches: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.command import console

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more are done; a last line says how long `total` of them took."""
    began = time.monotonic()
    done = 0
    with _bar(what, total, unit) if console.is_terminal else _lines(what, total, unit) as show:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            show(done)

        yield advance
    seconds = time.monotonic() - began
    console.print(f"{what:<11}{done:>10,} {unit} in {seconds:.1f} s, {done / max(seconds, 1e-9):,.0f} a second")


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn(f"{what:<11}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{what:<11}{done:>10,} of {total:,} {unit}")

    yield show
