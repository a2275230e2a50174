"""Writes checkpoints from a thread of its own, so that training goes on while a disk or S3 takes its time.

One at a time: the next one waits for the one before. What a checkpoint holds is copied before training may change it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.storage import StorageError

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Checkpoints in a row that may fail to be written before the run does; the next one is another try."""


class CheckpointWriter:
    """Does one write after the other. Errors that are not the storage's come out at the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failures = 0

    def begin(self, write: Callable[[], None]) -> None:
        """Waits for the write before, then lets `write` begin. StorageError when too many in a row have failed."""
        self._wait(MOST_FAILURES)
        self._writing = self._thread.submit(write)

    def finish(self) -> None:
        """Waits for the last write. StorageError if it failed."""
        self._wait(1)

    def close(self) -> None:
        """Lets go of the thread once what it writes is written."""
        self._thread.shutdown()

    def _wait(self, most: int) -> None:
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except StorageError as error:
            self._failures += 1
            if self._failures >= most:
                raise
            log.warning("a checkpoint could not be written, training goes on: %s", error)
        else:
            self._failures = 0
