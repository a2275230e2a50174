"""What one worker of an annotation is given on the cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.jobfile import Number, Settings


class Resources(Settings):
    """CPUs, GPUs and processes of an annotation; they decide nothing of the dataset."""

    cpus: Annotated[Number, Field(ge=0)] = 1.0
    """Of one worker."""
    gpus: Annotated[Number, Field(ge=0)] = 0.0
    """Of one worker; 0.25 lets four share a GPU."""
    workers: int | tuple[int, int] | None = None
    """Processes that each load their model once, or the least and the most of them; null: tasks as the work comes."""
