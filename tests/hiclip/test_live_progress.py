"""What a person is told while a run trains, and what a tracker is."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from small_run import small_job

from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.live_progress import TrainingProgress
from hiclip.training.telemetry import Telemetry

PRICED = small_job("nowhere", price={"device": "one", "peak_tflops": 1e-3, "per_hour": 3600}, schedule={"pairs": 8000})


def row(step: int, seconds: float = 0.5, wait_s: float = 0.1, **more: object) -> StepRow:
    parts = {"contrastive": 2.5}
    return StepRow(8 * step, 2.5, 1e-3, 14.25, seconds, wait_s, parts, 0.75, memory_bytes=2 * 10**9, **more)  # type: ignore[arg-type]


def progress_on(console: Console, total: int = 8000) -> TrainingProgress:
    job = small_job("nowhere", schedule={"pairs": total})
    return TrainingProgress(console, Telemetry(job), total=total, batch=8)


def test_elsewhere_than_on_a_terminal_plain_lines_say_it() -> None:
    text = io.StringIO()
    with progress_on(Console(file=text, width=300)) as progress:
        progress.show([row(1), row(2)])
        progress.show([row(3, gather_s=0.15, checkpoint_s=0.5, broken=2)])
    lines = text.getvalue().splitlines()
    assert lines[0] == "pretrain: starting the workers"
    assert lines[1:] == [
        "pretrain: 24/8,000 pairs · loss 2.500 · 16 pairs/s · 8:18 left · 20% waiting for data · 10% in gathers · "
        "25% in checkpoints · rate 0.001 · logit scale 14.2 · gradient 0.75 · 2.0 GB · 2 broken pictures"
    ], "one line in ten seconds, and one at the end"


def test_a_restart_is_said_and_the_numbers_start_anew() -> None:
    text = io.StringIO()
    with progress_on(Console(file=text, width=300)) as progress:
        progress.show([row(1), row(2, broken=3), row(3)])
        progress.show([row(2, seconds=1.0, wait_s=0.0, broken=3)])
    said = text.getvalue()
    assert "going on again from 8 pairs" in said
    assert "16/8,000 pairs · loss 2.500 · 8 pairs/s" in said
    assert "3 broken pictures" in said, "each step's counted once"


def test_a_terminal_shows_one_live_line_and_cuts_nothing_off() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    with progress_on(console, 80_000) as progress:
        progress.show([row(1)])
    said = " ".join(text.getvalue().split())
    assert "8/80,000 pairs" in said
    assert "1:23:20 left" in said
    assert "2.0 GB" in said


def test_money_and_the_share_of_the_peak_come_from_the_price() -> None:
    telemetry = Telemetry(PRICED, [row(1, seconds=2.0, checkpoint_s=1.0, workers=2)])
    numbers = telemetry.take(row(2, seconds=1.0, workers=4))
    assert numbers["money"] == pytest.approx(2 * 3 + 4 * 1), "seconds of all devices, one unit each"
    assert numbers["mfu"] == pytest.approx(training_flops(PRICED, 8) / (4 * 1e9))
    assert numbers["pairs_per_s_per_worker"] == 2
    assert "10.00 USD" in telemetry.line()
    assert "2 a worker" in telemetry.line()


def test_numbers_that_are_not_finite_are_not_tracked() -> None:
    telemetry = Telemetry(small_job("nowhere"))
    numbers = telemetry.take(StepRow(8, math.nan, 1e-3, 14.25, 0.5, 0.1, {"contrastive": math.nan}, applied=False))
    assert numbers["applied"] == 0
    assert not {"loss", "gradient_norm", "mfu", "money"} & set(numbers)
    assert "1 of 1 steps not applied" in telemetry.line()
