"""What an annotation takes of the cluster; it decides how fast the columns come, never what they hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.jobfile import Number, Settings

_Count = Annotated[int, Field(ge=1)]


class Resources(Settings):
    """Of one worker of the annotation, and how many there are."""

    cpus: Annotated[Number, Field(ge=0)] = 1
    """CPU cores that Ray sets aside for one worker."""
    gpus: Annotated[Number, Field(ge=0)] = 0
    """GPUs for one worker; 0.25: four workers share one."""
    workers: _Count | tuple[_Count, _Count] | None = None
    """Actors, each loading its model once: a number, or the least and the most. null: tasks as the work comes."""

    @model_validator(mode="after")
    def _least_before_most(self) -> Resources:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers: expected the least before the most, came {list(self.workers)}")
        return self
