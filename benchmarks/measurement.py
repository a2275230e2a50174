"""What every benchmark says beside its numbers: where it ran, on which commit; and where its line is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hiclip.training.source_commit import source_commit

RESULTS = Path(__file__).parent / "results"


def report(benchmark: str, numbers: Mapping[str, object], keep: bool) -> None:
    """Prints one JSON line; with `keep` it is also appended to benchmarks/results/BENCHMARK.jsonl."""
    line = json.dumps({"benchmark": benchmark, **numbers, "device": device(), "commit": source_commit()})
    print(line)
    if keep:
        with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
            file.write(line + "\n")


def device() -> str:
    """The processor's name and the number of cores that this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def interleaved(ways: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Runs all ways by turns, `rounds` times after one to warm up. Each returns how many things it did.

    Gives things per second of processor time in every round: turns of one round meet the same neighbours on the
    machine, so the ratio of their rates means more than that of two runs.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            done = way()
            if number:
                rates[name].append(done / (time.process_time() - began))
    return rates


def summary(rates: Mapping[str, list[float]], against: Mapping[str, tuple[str, str]]) -> dict[str, object]:
    """Median rate of every way, and the median over rounds of the ratios `name: (way, other way)`."""
    return {
        "per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": {
            name: round(statistics.median(a / b for a, b in zip(rates[left], rates[right], strict=True)), 3)
            for name, (left, right) in against.items()
        },
    }
