"""Progress says in one plain line what was done, and does not boast of what an earlier run did."""

from __future__ import annotations

import re
import time

import pytest

from pipeline.progress import progress
from pipeline.stopwatch import Stopwatch


def test_the_last_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("download", 1200, "rows") as advance:
        advance(1000, from_before=True)
        time.sleep(0.1)
        advance(200)
    (line,) = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"download +1,200 rows in 0\.\d s, ([\d,]+) a second, 1,000 of them from an earlier run", line)
    assert found, line
    assert int(found[1].replace(",", "")) <= 2000


def test_nothing_new_has_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("download", 5, "rows") as advance:
        advance(5, from_before=True)
    assert capsys.readouterr().out.endswith("5 rows in 0.0 s, 5 of them from an earlier run\n")


def test_laps_add_up() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    watch.lap("a")
    time.sleep(0.03)
    watch.lap("b")
    watch.lap("a")
    assert watch.laps["a"] >= 0.02
    assert watch.laps["b"] >= 0.03
    assert sum(watch.laps.values()) == pytest.approx(watch.seconds, abs=0.01)
