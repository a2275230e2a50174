"""Where a step's time goes, and what a second worker brings: `python -m benchmarks.step_shares [--rounds 5] [--keep]`.

Weak scaling: one worker, then two, each with the same number of pairs, a thread and DeepSpeed ZeRO-1 on gloo; by turns,
and `efficiency` is the median over rounds of one's step time by two's. The shares are of a step of the walk's model:
gathers (two workers), a checkpoint as often as the walk writes one, all that is told of a step (against forward,
backward and update alone, in one process by turns), and the hierarchy (HiCLIP's step against plain CLIP's).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.measurement import report
from benchmarks.train_methods import random_batch
from hiclip.batch import Batch
from hiclip.model.sizes import resolve
from hiclip.training.history import StepRow
from hiclip.training.loop import Plan, train
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import build_module, make_engine, run_rank
from hiclip.training.saving import RunPlace
from pipeline.jobfile import read_job

_JOB = "jobs/walk/pretrain.yaml"
_PAIRS = 64
_WARM_UP, _STEPS, _SAVED_EVERY = 3, 12, 5
_PLAIN = ["model.image_hierarchy=false", "model.text_hierarchy=false"]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="append the result to benchmarks/results/step_shares.jsonl")
    given = parser.parse_args()
    walk = read_job(_JOB, [], PretrainJob)
    steps_between = walk.checkpoints.every_pairs // walk.data.batch
    found: dict[str, list[float]] = {
        name: [] for name in ("efficiency", "gather", "checkpoint", "telemetry", "hierarchy")
    }
    for _ in range(given.rounds):
        one, two, plain = _measure(1, []), _measure(2, []), _measure(1, _PLAIN)
        step = statistics.median(two["seconds"])
        found["efficiency"].append(statistics.median(one["seconds"]) / step)
        found["gather"].append(statistics.median(two["gather_s"]) / step)
        found["checkpoint"].append(statistics.median(two["checkpoint_s"]) / (steps_between * step))
        found["telemetry"].append(1 - statistics.median(a / b for a, b in zip(one["bare"], one["told"], strict=True)))
        found["hierarchy"].append(1 - statistics.median(plain["seconds"]) / statistics.median(one["seconds"]))
    numbers = {
        name: {
            "median": round(statistics.median(values), 4),
            "low": round(min(values), 4),
            "high": round(max(values), 4),
        }
        for name, values in found.items()
    }
    report("step_shares", {"pairs_a_worker": _PAIRS, "rounds": given.rounds, **numbers}, given.keep)


def _measure(world: int, overrides: list[str]) -> dict[str, list[float]]:
    """What the first of `world` ranks measured."""
    with tempfile.TemporaryDirectory(prefix="hiclip-shares-") as place:
        answers: Any = mp.get_context("spawn").SimpleQueue()
        mp.spawn(_rank, (world, place, overrides, answers), nprocs=world)
        measured: dict[str, list[float]] = answers.get()
        return measured


def _rank(rank: int, world: int, place: str, overrides: list[str], answers: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    batch = _PAIRS * world
    sizes = [f"data.batch={batch}", f"workers.count={world}", f"schedule.pairs={batch * (_WARM_UP + _STEPS)}"]
    saves = [f"checkpoints.every_pairs={batch * _SAVED_EVERY}", "schedule.warmup_pairs=0", f"out={place}/run"]
    job = read_job(_JOB, [*sizes, *saves, *overrides], PretrainJob)
    shown = random_batch(job.objective.views, resolve(job.model), _PAIRS)
    rows: list[StepRow] = []
    run_rank(job, RunPlace(job.out, "noise", None), None, partial(_batches, job, shown), rows.append)
    timed = rows[_WARM_UP:]
    measured = {
        "seconds": [row.seconds for row in timed],
        "gather_s": [row.gather_s for row in timed],
        "checkpoint_s": [row.checkpoint_s for row, before in zip(timed, rows[_WARM_UP - 1 :], strict=False)
                         if before.seen // batch % _SAVED_EVERY == 0],
    }  # fmt: skip
    if world == 1:
        measured |= _told_and_bare(job, shown)
    if rank == 0:
        answers.put(measured)
    dist.destroy_process_group()


def _batches(job: PretrainJob, shown: Batch, first_step: int) -> Iterator[Batch]:
    return itertools.repeat(shown, job.steps - first_step)


def _told_and_bare(job: PretrainJob, shown: Batch) -> dict[str, list[float]]:
    """Processor time of steps of the loop, and of the same without anything told, by turns."""
    engine = make_engine(job, build_module(job))
    times: dict[str, list[float]] = {"told": [], "bare": []}

    def told() -> None:
        train(engine, [shown], Plan(0, _PAIRS, 0, lambda _: 1e-4), lambda row, wish: None)

    def bare() -> None:
        engine.update(torch.stack(list(engine.losses(shown).values())).sum(), 1e-4)

    for number in range(_WARM_UP + _STEPS):
        for name, way in (("told", told), ("bare", bare)):
            began = time.process_time()
            way()
            if number >= _WARM_UP:
                times[name].append(time.process_time() - began)
    return times


if __name__ == "__main__":
    assert Path(_JOB).exists(), "run it in the project's folder"
    main()
