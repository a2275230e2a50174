"""Pairs a second that one device trains on: every method beside plain CLIP and transformers' CLIPModel, by turns.

    OMP_NUM_THREADS=1 python -m benchmarks.train_step [--size vit_b_32] [--batch 16] [--precision bf16] [--compiled]
        [--methods clip hiclip ...] [--rounds 5] [--steps 1] [--json FILE] [--peak-tflops N]

Runs wherever torch is: no Ray, nothing of the pipeline. A step is forward, backward and AdamW, on a batch that is there
already. All methods live in one process and take turns, `--steps` each, after some turns to warm up: turns of one round
meet the same neighbours on the machine, so `over clip` is the median over rounds of the ratio of a method's time to
plain CLIP's. With one thread on CPU the clock is the processor's time; else the wall's, with the device waited for.

FLOPs are the model's: the forward's as torch counts them, three times. Utilisation (MFU) is against the peak in
`PEAK_TFLOPS`, or `--peak-tflops`. Peak memory of a method: its own weights, optimizer and batch, and the most that its
step added to what was there; null on CPU, where nobody counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch

from benchmarks.measurement import device as processor
from benchmarks.train_methods import METHODS, THEIRS, Setup, Trainee, trainable
from hiclip.model.sizes import SizeName
from hiclip.training.source_commit import source_commit

PEAK_TFLOPS = {
    "NVIDIA H100 80GB HBM3": {"bf16": 989.4, "fp32": 66.9},
    "NVIDIA H100 PCIe": {"bf16": 756.0, "fp32": 51.2},
    "NVIDIA H200": {"bf16": 989.4, "fp32": 66.9},
    "NVIDIA A100": {"bf16": 312.0, "fp32": 19.5},
}
"""Dense peaks by the beginning of the device's name, from NVIDIA's data sheets of H100 (SXM, PCIe), H200 and A100: bf16
on tensor cores without sparsity, and fp32 outside them, since matrix products in TF32 are off by torch's default."""

_WARM_UP_TURNS = {"cpu": 1, "cuda": 2}


@dataclass(frozen=True)
class Row:
    """What was measured of one method. `ms_low` and `ms_high` are the fastest and the slowest round."""

    method: str
    size: str
    batch: int
    precision: str
    compiled: bool
    pairs_per_s: float
    ms: float
    ms_low: float
    ms_high: float
    over_clip: float | None
    over_clip_low: float | None
    over_clip_high: float | None
    flops_over_clip: float | None
    train_gflops_per_pair: float
    tflops_per_s: float
    mfu: float | None
    peak_mib: float | None
    rounds: int
    steps: int


def measure(setup: Setup, methods: Sequence[str], rounds: int, steps: int, peak_tflops: float | None) -> list[Row]:
    """Times the methods by turns; each row's numbers are medians over rounds, a step each."""
    trainees = {name: Trainee(name, setup) for name in methods}
    clock = _clock(setup.device)
    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    peaks = dict.fromkeys(trainees, 0)
    warm_up = _WARM_UP_TURNS[setup.device]
    for turn in range(warm_up + rounds):
        for name, trainee in trainees.items():
            before = _begin_counting(setup.device)
            began = clock()
            for _ in range(steps):
                trainee.step()
            if turn >= warm_up:
                seconds[name].append((clock() - began) / steps)
                peaks[name] = max(peaks[name], _most_bytes(setup.device) - before + trainee.resident_bytes())
    return [_row(name, setup, trainees, seconds, peaks[name], steps, peak_tflops) for name in trainees]


def _row(
    name: str,
    setup: Setup,
    trainees: Mapping[str, Trainee],
    seconds: Mapping[str, list[float]],
    peak_bytes: int,
    steps: int,
    peak_tflops: float | None,
) -> Row:
    step_s, flops = statistics.median(seconds[name]), 3 * trainees[name].flops_per_pair
    ratios = [own / clip for own, clip in zip(seconds[name], seconds["clip"], strict=True)] if "clip" in seconds else []
    flops_per_s = flops * setup.pairs / step_s
    return Row(
        method=name,
        size=setup.size,
        batch=setup.pairs,
        precision="bf16" if setup.bf16 else "fp32",
        compiled=setup.compiled,
        pairs_per_s=round(setup.pairs / step_s, 2),
        ms=round(1e3 * step_s, 2),
        ms_low=round(1e3 * min(seconds[name]), 2),
        ms_high=round(1e3 * max(seconds[name]), 2),
        over_clip=round(statistics.median(ratios), 3) if ratios else None,
        over_clip_low=round(min(ratios), 3) if ratios else None,
        over_clip_high=round(max(ratios), 3) if ratios else None,
        flops_over_clip=round(flops / 3 / trainees["clip"].flops_per_pair, 3) if ratios else None,
        train_gflops_per_pair=round(flops / 1e9, 3),
        tflops_per_s=round(flops_per_s / 1e12, 3),
        mfu=round(flops_per_s / 1e12 / peak_tflops, 4) if peak_tflops else None,
        peak_mib=round(peak_bytes / 2**20, 1) if setup.device != "cpu" else None,
        rounds=len(seconds[name]),
        steps=steps,
    )


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def when_done() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return when_done


def _begin_counting(device: str) -> int:
    """Bytes in use before a turn."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _most_bytes(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated()


def known_peak(name: str, precision: str) -> float | None:
    """TFLOP/s that the device of this name can do, None where nobody has looked it up."""
    return next((peaks[precision] for start, peaks in PEAK_TFLOPS.items() if name.startswith(start)), None)


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'':14} {'pairs/s':>9} {'ms':>9} {'fastest':>9} {'slowest':>9} {'over clip':>9} {'its FLOPs':>9} "
        f"{'TFLOP/s':>8} {'MFU':>6} {'peak MiB':>9}"
    ]
    for row in rows:
        mfu = f"{row.mfu:.1%}" if row.mfu is not None else "-"
        peak, ratio, flops = (
            _number(value, digits)
            for value, digits in ((row.peak_mib, 0), (row.over_clip, 3), (row.flops_over_clip, 3))
        )
        lines.append(
            f"{row.method:14} {row.pairs_per_s:9,.1f} {row.ms:9,.1f} {row.ms_low:9,.1f} {row.ms_high:9,.1f} "
            f"{ratio:>9} {flops:>9} {row.tflops_per_s:8.2f} {mfu:>6} {peak:>9}"
        )
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=get_args(SizeName), default="vit_b_32")
    parser.add_argument("--batch", type=int, default=256 if cuda else 8, help="pairs of a step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if cuda else "fp32")
    parser.add_argument("--compiled", action="store_true", help="torch.compile both towers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, THEIRS], default=[*METHODS, THEIRS])
    parser.add_argument("--rounds", type=int, default=5, help="turns of every method that count")
    parser.add_argument("--steps", type=int, default=10 if cuda else 1, help="steps of a turn")
    parser.add_argument("--peak-tflops", type=float, help="of a device that is not in the table")
    parser.add_argument("--json", type=Path, help="append a line for every row to this file")
    parser.add_argument("--commit", help="of the code, where the checkout does not know it")
    return parser.parse_args()


def main() -> None:
    """The command."""
    asked = _arguments()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else processor()
    setup = Setup(asked.size, asked.batch, asked.precision == "bf16", asked.compiled, asked.device)
    methods = [method for method in asked.methods if trainable(method)]
    peak_tflops = asked.peak_tflops or known_peak(name, asked.precision)
    rows = measure(setup, methods, asked.rounds, asked.steps, peak_tflops)
    where = {
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": asked.commit or source_commit(),
    }
    print(f"{asked.size}, batch {asked.batch}, {asked.precision}{', compiled' if asked.compiled else ''}; {where}")
    print(table(rows))
    if asked.json is not None:
        with asked.json.open("a") as file:
            file.writelines(json.dumps({"benchmark": "train_step", **asdict(row), **where}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
