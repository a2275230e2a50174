"""Progress of a long step for whoever watches: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.command import console

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Told how many more are done, and whether an earlier run had done them."""

    def __call__(self, more: int, from_before: bool = False) -> None:
        """`more` are done."""


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Yields a function that is told of what is done; a last line says how many there were and how long they took."""
    began = time.monotonic()
    done = before = 0
    with _bar(what, total, unit) if console.is_terminal else _lines(what, total, unit) as show:

        def advance(more: int, from_before: bool = False) -> None:
            nonlocal done, before
            done += more
            before += more * from_before
            show(done)

        yield advance
    seconds = time.monotonic() - began
    rate = f", {(done - before) / seconds:,.0f} a second" if done > before else ""
    kept = f", {before:,} of them from an earlier run" if before else ""
    console.print(f"{what:<11}{done:>10,} {unit} in {seconds:.1f} s{rate}{kept}")


def told(things: Iterable[T], advance: Advance) -> Iterator[T]:
    """The things as they come, each told of."""
    for one in things:
        yield one
        advance(1)


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
