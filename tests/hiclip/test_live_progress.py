"""What a person is told while a run trains."""

from __future__ import annotations

import io

from rich.console import Console

from hiclip.training.history import StepRow
from hiclip.training.live_progress import TrainingProgress


def row(step: int, seconds: float = 0.5, wait_s: float = 0.1) -> StepRow:
    return StepRow(8 * step, 2.5, 1e-3, 14.25, seconds, wait_s, {"contrastive": 2.5})


def test_elsewhere_than_on_a_terminal_plain_lines_say_it() -> None:
    text = io.StringIO()
    with TrainingProgress(Console(file=text, width=200), total=8000, batch=8) as progress:
        progress.show([row(1), row(2)])
        progress.show([row(3)])
    lines = text.getvalue().splitlines()
    assert lines[0] == "pretrain: starting the workers"
    assert lines[1:] == [
        "pretrain: 24/8,000 pairs · loss 2.500 · 16 pairs/s · 8:18 left · 20% waiting for data · logit scale 14.2"
    ], "one line in ten seconds, and one at the end"


def test_a_restart_is_said_and_the_numbers_start_anew() -> None:
    text = io.StringIO()
    with TrainingProgress(Console(file=text, width=200), total=8000, batch=8) as progress:
        progress.show([row(1), row(2), row(3)])
        progress.show([row(2, seconds=1.0, wait_s=0.0)])
    said = text.getvalue()
    assert "a worker was lost; going on from 8 pairs" in said
    assert "16/8,000 pairs · loss 2.500 · 8 pairs/s" in said


def test_a_terminal_shows_one_live_line() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True, color_system=None)
    with TrainingProgress(console, total=80_000, batch=8) as progress:
        progress.show([row(1)])
    assert "8/80,000 pairs" in text.getvalue()
    assert "1:23:20 left" in text.getvalue()
