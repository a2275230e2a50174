"""The learning rate as a function of pairs seen, so that it is the same for every batch size and after every resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class ScheduleSettings:
    """Keys under `schedule:` in a job. All lengths are in pairs seen."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    pairs: int
    """Pairs that the run sees in total, epoch after epoch; rounded down to whole batches."""
    warmup_pairs: int = 0
    """Pairs over which the rate rises linearly from 0."""
    kind: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to 0 (the papers), or constant until the cool-down."""
    cooldown_pairs: int = 0
    """With `constant`: pairs at the end over which the rate falls linearly to 0."""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs: expected at least 1, came {self.pairs}")
        for name, value in {"warmup_pairs": self.warmup_pairs, "cooldown_pairs": self.cooldown_pairs}.items():
            if value < 0:
                raise ValueError(f"{name}: expected 0 or more, came {value}")
        if self.kind == "cosine" and self.cooldown_pairs:
            raise ValueError(
                f"cooldown_pairs: expected 0 with kind cosine, which cools down by itself, came {self.cooldown_pairs}"
            )
        if self.warmup_pairs + self.cooldown_pairs > self.pairs:
            raise ValueError(
                f"warmup_pairs: expected warm-up and cool-down within the {self.pairs} pairs of the run, "
                f"came {self.warmup_pairs} and {self.cooldown_pairs}"
            )


def rate_factor(schedule: ScheduleSettings, seen: float) -> float:
    """The share of the full learning rate, 0 to 1, after `seen` pairs."""
    if seen < schedule.warmup_pairs:
        return seen / schedule.warmup_pairs
    if schedule.kind == "cosine":
        progress = (seen - schedule.warmup_pairs) / max(1, schedule.pairs - schedule.warmup_pairs)
        return (1 + math.cos(math.pi * min(1.0, progress))) / 2
    left = max(0.0, schedule.pairs - seen)
    return left / schedule.cooldown_pairs if left < schedule.cooldown_pairs else 1.0


def rate_factor_of_step(schedule: ScheduleSettings, step: int, batch: int) -> float:
    """The factor for step `step` (from 0): the schedule in the middle of its pairs, so neither end is wasted at 0."""
    return rate_factor(schedule, (step + 0.5) * batch)
