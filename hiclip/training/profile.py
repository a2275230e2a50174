"""A trace of a few steps by torch's profiler, left in the run's folder for chrome://tracing or Perfetto."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile

from hiclip.distributed import rank
from pipeline.jobfile import Settings
from pipeline.storage import folder

TRACE = "profile/trace.json.gz"
"""The trace, in a run's folder."""


class ProfileSettings(Settings):
    """Which steps are traced, on the first worker."""

    after_steps: Annotated[int, Field(ge=1)] = 10
    """Steps after a start that are not traced: the first ones warm up."""
    steps: Annotated[int, Field(ge=1)] = 3
    """Steps that are traced; a trace of one takes some megabytes."""


@contextlib.contextmanager
def profiled(settings: ProfileSettings | None, run_folder: str) -> Iterator[Callable[[], None]]:
    """Yields what to call after every step. The trace is written as soon as its steps are done."""
    if settings is None or rank() > 0:
        yield lambda: None
        return
    target = folder(run_folder)

    def keep(done: profile) -> None:
        with tempfile.TemporaryDirectory(prefix="hiclip-profile-") as local:
            file = f"{local}/trace.json.gz"
            done.export_chrome_trace(file)
            target.upload(file, TRACE)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    schedule = torch.profiler.schedule(wait=settings.after_steps - 1, warmup=1, active=settings.steps, repeat=1)
    with profile(activities=activities, schedule=schedule, on_trace_ready=keep) as tracing:
        yield tracing.step
