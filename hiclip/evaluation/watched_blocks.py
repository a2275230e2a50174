"""Lets a person watch blocks being done: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hiclip.evaluation.blocks import MapBlocks

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Answer = TypeVar("Answer")

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class WatchedBlocks:
    """A `MapBlocks` that passes everything on to `inner` and tells the console how far it is."""

    inner: MapBlocks
    console: Console

    def __call__(
        self, function: Callable[[Shared, Block], Answer], shared: Shared, blocks: Iterable[Block], what: str
    ) -> Iterator[Answer]:
        """Yields function(shared, block) for every block, in order."""
        total = len(blocks) if isinstance(blocks, Sized) else None
        answers = self.inner(function, shared, blocks, what)
        yield from self._with_bar(answers, total, what) if self.console.is_terminal else self._plain(answers, what)

    def _with_bar(self, answers: Iterator[Answer], total: int | None, what: str) -> Iterator[Answer]:
        columns = (
            TextColumn("evaluate {task.description:<40}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("blocks"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=total)
            for answer in answers:
                progress.advance(task)
                yield answer
            progress.update(task, total=progress.tasks[0].completed)

    def _plain(self, answers: Iterator[Answer], what: str) -> Iterator[Answer]:
        began = said = time.monotonic()
        done = 0
        for answer in answers:
            done += 1
            yield answer
            if time.monotonic() - said > _PLAIN_EVERY_S:
                said = time.monotonic()
                self.console.print(f"evaluate: {what}: {done} blocks done")
        self.console.print(f"evaluate: {what}: {done} blocks in {time.monotonic() - began:.1f} s")
