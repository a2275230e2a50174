"""What was measured at every step, as rows and as the CSV that lies in the run's folder and in each checkpoint."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRow:
    """One step. Losses are means over all workers."""

    seen: int
    """Pairs consumed, this step's included."""
    loss: float
    """Sum of the parts, in nats."""
    learning_rate: float
    logit_scale: float
    seconds: float
    """Wall time of the step, the wait included."""
    wait_s: float
    """Of it, spent waiting for the batch."""
    parts: dict[str, float] = field(default_factory=dict)
    """The objective's weighted losses by name."""


_FIXED = ("seen", "loss", "learning_rate", "logit_scale", "seconds", "wait_s")


def to_csv(rows: Sequence[StepRow]) -> str:
    """The rows as CSV; floats are written so that reading gives the same bits."""
    names = tuple(rows[0].parts) if rows else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED, *names])
    for row in rows:
        writer.writerow([repr(getattr(row, name)) for name in _FIXED] + [repr(row.parts[name]) for name in names])
    return text.getvalue()


def from_csv(text: str) -> list[StepRow]:
    """The inverse of `to_csv`."""
    rows = []
    for record in csv.DictReader(io.StringIO(text)):
        numbers = {name: float(record[name]) for name in _FIXED[1:]}
        parts = {name: float(value) for name, value in record.items() if name not in _FIXED}
        rows.append(StepRow(seen=int(record["seen"]), parts=parts, **numbers))
    return rows
