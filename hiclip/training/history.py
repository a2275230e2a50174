"""What was measured at every step, as rows and as the CSV that lies in the run's folder and in each checkpoint."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRow:
    """One step. Losses are means over all workers, times and memory are the first worker's."""

    seen: int
    """Pairs consumed, this step's included."""
    loss: float
    """Sum of the parts, in nats; not a number where the batch was left out."""
    learning_rate: float
    logit_scale: float
    seconds: float
    """Wall time of the step, the wait included."""
    wait_s: float
    """Of it, spent waiting for the batch."""
    parts: dict[str, float] = field(default_factory=dict)
    """The objective's weighted losses by name."""
    gradient_norm: float = math.nan
    """Length of the gradient of all weights before it is clipped."""
    applied: bool = True
    """False: loss or gradient were not finite, or the batch was left out, and the weights stayed as they were."""
    gather_s: float = 0.0
    """Of the step, spent gathering vectors from all workers, waiting for the last of them included."""
    checkpoint_s: float = 0.0
    """Time that a checkpoint before the step took from training; no part of `seconds`."""
    broken: int = 0
    """Pictures of the global batch that could not be decoded and were replaced."""
    pairs_digest: int = 0
    """Sum of the CRC-32 of all pair_ids of the global batch: which pairs these were, in whatever order."""
    workers: int = 1
    """That shared the step."""
    memory_bytes: int = 0
    """Most that was held so far: on the GPU, or without one by the process."""


_READ: dict[str, Callable[[str], float]] = {
    "seen": int,
    "loss": float,
    "learning_rate": float,
    "logit_scale": float,
    "seconds": float,
    "wait_s": float,
    "gradient_norm": float,
    "applied": lambda text: text == "True",
    "gather_s": float,
    "checkpoint_s": float,
    "broken": int,
    "pairs_digest": int,
    "workers": int,
    "memory_bytes": int,
}
"""Columns and how each is read; all others are parts of the loss."""


def to_csv(rows: Sequence[StepRow]) -> str:
    """The rows as CSV; floats are written so that reading gives the same bits."""
    names = dict.fromkeys(name for row in rows for name in row.parts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_READ, *names])
    for row in rows:
        parts = [repr(row.parts[name]) if name in row.parts else "" for name in names]
        writer.writerow([repr(getattr(row, name)) for name in _READ] + parts)
    return text.getvalue()


def from_csv(text: str) -> list[StepRow]:
    """The inverse of `to_csv`; columns that have come since the text was written keep their defaults."""
    rows = []
    for record in csv.DictReader(io.StringIO(text)):
        numbers = {name: read(record[name]) for name, read in _READ.items() if name in record}
        parts = {name: float(value) for name, value in record.items() if name not in _READ and value}
        rows.append(StepRow(**numbers, parts=parts))  # type: ignore[arg-type]  # each column has its own reader
    return rows
