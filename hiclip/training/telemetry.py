"""What is told of a run's steps: the same numbers for the progress line and for the tracker, from rows and the job."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob

_RECENT_STEPS = 50


class Telemetry:
    """Takes steps as they are done. `before`: those of earlier starts, which have cost money too."""

    def __init__(self, job: PretrainJob, before: Sequence[StepRow] = ()) -> None:
        self._batch, self._pairs, self._price = job.data.batch, job.pairs, job.price
        self._step_flops = training_flops(job, job.data.batch)
        self._recent: deque[StepRow] = deque(maxlen=_RECENT_STEPS)
        self._device_s = sum(_device_seconds(row) for row in before)
        self._broken = {row.seen: row.broken for row in before if row.broken}

    def take(self, row: StepRow) -> dict[str, float]:
        """-> the numbers of this step, for a tracker; those that are not finite are left out."""
        if self._recent and row.seen <= self._recent[-1].seen:
            self._recent.clear()  # the run has gone back to a checkpoint
        self._recent.append(row)
        self._device_s += _device_seconds(row)
        if row.broken:
            self._broken[row.seen] = row.broken
        whole = row.seconds + row.checkpoint_s
        numbers = {
            "loss": row.loss,
            **{f"loss_{name}": value for name, value in row.parts.items() if len(row.parts) > 1},
            "learning_rate": row.learning_rate,
            "logit_scale": row.logit_scale,
            "gradient_norm": row.gradient_norm,
            "applied": float(row.applied),
            "pairs_per_s": self._batch / row.seconds,
            "pairs_per_s_per_worker": self._batch / row.seconds / row.workers,
            "loader_wait_share": row.wait_s / row.seconds,
            "gather_share": row.gather_s / row.seconds,
            "checkpoint_share": row.checkpoint_s / whole,
            "workers": row.workers,
            "memory_bytes": row.memory_bytes,
            "broken_pictures": self.broken,
            "mfu": self._mfu(row.seconds, row.workers),
            "money": self._money(),
        }
        return {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}

    @property
    def broken(self) -> int:
        """Pictures that were replaced so far."""
        return sum(self._broken.values())

    def line(self) -> str:
        """The last step, and speeds and shares over the last fifty."""
        last, rows = self._recent[-1], list(self._recent)
        seconds = sum(row.seconds for row in rows)
        paused = sum(row.checkpoint_s for row in rows)
        speed = self._batch * len(rows) / seconds
        parts = f" ({', '.join(f'{name} {value:.3f}' for name, value in last.parts.items())})" * (len(last.parts) > 1)
        mfu, money = self._mfu(seconds / len(rows), last.workers), self._money()
        fields = [
            f"{last.seen:,}/{self._pairs:,} pairs",
            f"loss {last.loss:.3f}{parts}",
            f"{speed:,.0f} pairs/s" + (f" ({speed / last.workers:,.0f} a worker)" if last.workers > 1 else ""),
            f"{_span((self._pairs - last.seen) / speed)} left",
            f"{sum(row.wait_s for row in rows) / seconds:.0%} waiting for data",
            f"{sum(row.gather_s for row in rows) / seconds:.0%} in gathers",
            f"{paused / (seconds + paused):.0%} in checkpoints",
            f"rate {last.learning_rate:.2g}",
            f"logit scale {last.logit_scale:.1f}",
            f"gradient {last.gradient_norm:.2g}",
            f"{last.memory_bytes / 1e9:.1f} GB",
        ]
        if mfu is not None:
            fields.append(f"MFU {mfu:.0%}")
        if money is not None and self._price is not None:
            fields.append(f"{money:,.2f} {self._price.currency}")
        if self.broken:
            fields.append(f"{self.broken:,} broken picture{'s' * (self.broken != 1)}")
        skipped = sum(not row.applied for row in rows)
        if skipped:
            fields.append(f"{skipped} of {len(rows)} steps not applied")
        return " · ".join(fields)

    def _mfu(self, seconds: float, workers: int) -> float | None:
        """Share of the devices' peak that the model's own arithmetic takes."""
        if self._price is None:
            return None
        return self._step_flops / seconds / (workers * self._price.peak_tflops * 1e12)

    def _money(self) -> float | None:
        return None if self._price is None else self._device_s / 3600 * self._price.per_hour


def _device_seconds(row: StepRow) -> float:
    return (row.seconds + row.checkpoint_s) * row.workers


def _span(seconds: float) -> str:
    """3 -> 0:03, 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
