"""What a trial is judged by on the way: its smoothed training loss, at the points where trials are compared."""

from __future__ import annotations

import math

from hiclip.training.history import StepRow

Curve = tuple[tuple[int, float], ...]
"""(pairs seen, smoothed loss) at each comparison that was reached, in order."""


def comparisons(pairs: int, batch: int, grace_share: float, reduction_factor: float) -> tuple[float, ...]:
    """Pairs seen at which trials of a run of `pairs` are compared: after its `grace_share`, at least a batch, and then
    after `reduction_factor` times as many each, the end left out."""
    points, at = [], max(float(batch), grace_share * pairs)
    while at < pairs:
        points.append(at)
        at *= reduction_factor
    return tuple(points)


class LossCurve:
    """Takes the steps of a run as they are done; `window` is how many of the newest are averaged."""

    def __init__(self, comparisons: tuple[float, ...], window: int) -> None:
        self._comparisons, self._window = comparisons, max(1, window)
        self._losses: list[tuple[int, float]] = []
        self.points: Curve = ()

    @property
    def loss(self) -> float:
        """Mean of the newest losses that are numbers, in nats; not a number before the first one."""
        newest = [loss for _, loss in self._losses[-self._window :]]
        return sum(newest) / len(newest) if newest else math.nan

    def take(self, row: StepRow) -> bool:
        """-> whether the run has come to a comparison. Steps that come again after a restart replace what they were."""
        while self._losses and self._losses[-1][0] >= row.seen:
            self._losses.pop()
        self.points = tuple(point for point in self.points if point[0] < row.seen)
        if math.isfinite(row.loss):
            self._losses.append((row.seen, row.loss))
        earlier = self.points[-1][0] if self.points else 0
        due = any(earlier < at <= row.seen for at in self._comparisons) and bool(self._losses)
        if due:
            self.points = (*self.points, (row.seen, self.loss))
        return due
