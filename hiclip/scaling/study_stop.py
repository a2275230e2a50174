"""How a study ends at a SIGTERM (`ray job stop`): its trials are told by a file in its folder, which they look for as
they look at what others have spent, for a signal reaches the driver alone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from pipeline.jobfile import EndedEarlyError
from pipeline.storage import Folder

_STOP = "spent/stop"
_PATIENCE_S = 60
"""That trials have to end by themselves; one that waits for its machines never hears of anything."""


class StudyStoppedError(EndedEarlyError):
    """The study was asked to stop, or a trial was because of that."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def stopped_by_sigterm(place: Folder) -> Iterator[None]:
    """While trials of the study in `place` run: the first SIGTERM lets them end, and what was stored stays; another one
    does what it did before. Raises StudyStoppedError at the end if there was one. In the main thread, with Ray started,
    which sets a handler of its own.
    """
    place.remove(_STOP)
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGTERM, before)
        signal.alarm(_PATIENCE_S)
        place.write_text(_STOP, "")

    def give_up(*_: object) -> None:
        raise StudyStoppedError("trials did not end")

    before = signal.signal(signal.SIGTERM, ask)
    alarm_before = signal.signal(signal.SIGALRM, give_up)
    try:
        yield
    except Exception as error:
        if asked:
            raise _stopped(place) from error
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGALRM, alarm_before)
    if asked:
        raise _stopped(place)


def stop_is_asked(place: Folder) -> bool:
    """Whether a SIGTERM has come to the driver."""
    return place.exists(_STOP)


def _stopped(place: Folder) -> StudyStoppedError:
    return StudyStoppedError(f"stopped; the same command goes on from what is in {place.root}")
