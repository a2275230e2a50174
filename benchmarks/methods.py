"""The methods and the hierarchy's switches on the walk's dataset: all see equally many pairs, with several seeds.

    python -m benchmarks.methods [--seeds 0 1 2] [--only NAME ...] [--parallel 2] [--pairs 40960] [--table]

Each run is the walk's job with a few keys changed, trained by one worker without Ray in a process of its own, asked
the evaluation set, and kept as a line of results/methods.jsonl; a run that has its line there (the same dataset and
pairs) is not repeated. `--table` prints the tables of what is there: mean and spread over seeds. Build the dataset
first: ./jobs/walk/build.yaml
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measurement import RESULTS, report
from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.evaluation.sets.openmoji import OpenmojiSettings
from hiclip.pretrain import stream_plan
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.run_folder import claim, finish
from hiclip.training.saving import RunPlace
from hiclip.training.source_commit import source_commit
from hiclip.training.this_process import run_here
from pipeline.jobfile import read_job
from pipeline.manifest import read_manifest

JOB = "jobs/walk/pretrain.yaml"
ONE_WORKER = ("engine={name: plain}", "workers={count: 1, cpus: 1}", "checkpoints={every_pairs: 1000000000, keep: 1}")
PLAIN = ("model.image_hierarchy=false", "model.text_hierarchy=false")
# A queue that is shorter than the dataset: in a longer one a caption would find itself, seen an epoch ago.
DECLIP = ("objective={name: declip, queue: 4096}", "model.vocabulary=49409")
PYRAMID = ("objective={name: pyramidclip, regions: false}",)
METHODS: dict[str, Sequence[str]] = {
    "CLIP": PLAIN,
    "TreeOnly": ("model.image_hierarchy=false",),
    "GroupOnly": ("model.text_hierarchy=false",),
    "HiCLIP": (),
    "DeCLIP": (*PLAIN, *DECLIP),
    "HiDeCLIP": DECLIP,
    "PyramidCLIP": (
        *PLAIN, *PYRAMID, "model.text_pooling=max", "model.leff=true", "model.front_layers=3",
        "model.frozen_patch_embedding=true",
    ),
}  # fmt: skip
SWITCHES: dict[str, Sequence[str]] = {
    "affinity_scale: 16": ("model.affinity_scale=16",),
    "self_link: zero": ("model.self_link=zero",),
    "path_merge: mean": ("model.path_merge=mean",),
    "causal: false": ("model.causal=false",),
    "cls_link: column_only": ("model.cls_link=column_only",),
    "special_tokens_in_chain: false": ("model.special_tokens_in_chain=false",),
    "hierarchy_layers: [0, 1]": ("model.hierarchy_layers=[0, 1]",),
    "affinity_width: 64": ("model.affinity_width=64",),
}
"""One key of HiCLIP changed at a time."""
METRICS = ("top1", "top5", "image_to_text_r10", "text_to_image_r10", "typical_rank")


def main() -> None:
    """Runs what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*METHODS, *SWITCHES], default=list(METHODS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--pairs", type=int, default=40_960)
    parser.add_argument("--dataset", default="runs/walk/build")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(tables(asked.pairs)))
    elif asked.one:
        run_one(asked.one[0], int(asked.one[1]), asked.pairs, asked.dataset)
    else:
        fingerprint = read_manifest(asked.dataset).fingerprint
        done = {(row["method"], row["seed"]) for row in kept(asked.pairs) if row["dataset"] == fingerprint}
        missing = [(name, seed) for seed in asked.seeds for name in asked.only if (name, seed) not in done]
        with ThreadPoolExecutor(asked.parallel) as pool:
            list(pool.map(lambda one: _in_a_process(*one, asked.pairs, asked.dataset), missing))


def run_one(name: str, seed: int, pairs: int, dataset: str) -> None:
    """Trains and measures one run in this process, and keeps its line."""
    out = tempfile.mkdtemp(prefix="hiclip-methods-")
    try:
        job = _job(name, [f"seed={seed}", f"out={out}", f"schedule.pairs={pairs}", f"data.dataset={dataset}"])
        plan = stream_plan(job)
        claim(job)
        began = time.process_time()
        run_here(job, RunPlace(out, plan.fingerprint, source_commit()), plan, lambda row: None)
        seconds = time.process_time() - began
        result = finish(job, None)
        found = evaluate_checkpoint(out, [OpenmojiSettings(name="openmoji", root="jobs/walk/crawl")], metrics=METRICS)
        numbers = {one.metric: round(one.value, 6) for one in found}
        seen = {"pairs": result.seen, "dataset": plan.fingerprint, "cpu_s": round(seconds), "loss": result.loss}
        report("methods", {"method": name, "seed": seed, "changes": _changes(name), **seen, **numbers}, keep=True)
    finally:
        shutil.rmtree(out)


def _job(name: str, more: Sequence[str]) -> PretrainJob:
    return read_job(JOB, [*_changes(name), *more], PretrainJob)


def _changes(name: str) -> tuple[str, ...]:
    return (*ONE_WORKER, *{**METHODS, **SWITCHES}[name])


def kept(pairs: int) -> list[dict[str, Any]]:
    """The lines of runs that saw so many pairs; of several of one method and seed the last."""
    file = RESULTS / "methods.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({(row["method"], row["seed"]): row for row in rows if row["pairs"] == pairs}.values())


def tables(pairs: int) -> Iterator[str]:
    """Markdown: the methods, then HiCLIP with one switch changed; shares in percent, mean ± deviation over seeds.

    FLOPs: of the training, by formula. CPU: processor time over plain CLIP's.
    """
    rows = kept(pairs)
    plain = [row["cpu_s"] for row in rows if row["method"] == "CLIP"]
    switched = {row["seed"] for row in rows if row["method"] in SWITCHES}
    unchanged = [row for row in rows if row["method"] == "HiCLIP" and row["seed"] in switched]
    methods = {name: [row for row in rows if row["method"] == name] for name in METHODS}
    switches = {name: [row for row in rows if row["method"] == name] for name in SWITCHES}
    for what, table in (("method", methods), ("HiCLIP with", {"nothing changed": unchanged, **switches})):
        yield f"| {what} | seeds | top-1 | top-5 | image → text R@10 | text → image R@10 | typical rank | FLOPs | CPU |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for name, runs in table.items():
            if runs:
                factors = [1 if metric == "typical_rank" else 100 for metric in METRICS]
                cells = [
                    _cell([row[metric] for row in runs], factor)
                    for metric, factor in zip(METRICS, factors, strict=True)
                ]
                flops = training_flops(_job(runs[0]["method"], [f"schedule.pairs={pairs}"]), pairs)
                cost = f"{statistics.mean(row['cpu_s'] for row in runs) / statistics.mean(plain):.2f}" if plain else "?"
                yield f"| {name} | {len(runs)} | {' | '.join(cells)} | {flops:.2g} | {cost} |"
        yield ""


def _cell(values: Sequence[float], factor: float) -> str:
    mean = statistics.mean(values) * factor
    return f"{mean:.3g}" if len(values) < 2 else f"{mean:.3g} ± {statistics.stdev(values) * factor:.2g}"


def _in_a_process(name: str, seed: int, pairs: int, dataset: str) -> None:
    """A run of its own process: its threads, its memory, its random state."""
    command = [sys.executable, "-m", "benchmarks.methods", "--one", name, str(seed), "--pairs", str(pairs)]
    # glibc would give memory back to the kernel at every step; see `hiclip.training.ray_workers`.
    thrifty = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_MMAP_MAX_": "0"}
    subprocess.run([*command, "--dataset", dataset], env=os.environ | thrifty, check=True)


if __name__ == "__main__":
    main()
