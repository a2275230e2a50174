"""How long each step of a command took."""

from __future__ import annotations

import time


class Stopwatch:
    """Laps of one clock, so that the seconds of the steps add up to those of the whole."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self.laps: dict[str, float] = {}
        """Seconds by step."""

    def lap(self, step: str) -> None:
        """Books the time since the last lap on `step`."""
        now = time.monotonic()
        self.laps[step] = round(self.laps.get(step, 0.0) + now - self._last, 3)
        self._last = now

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self._began, 3)
