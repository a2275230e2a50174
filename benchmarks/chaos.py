"""Kills a run again and again and shows that it ends as the undisturbed one.

    make chaos
    python -m benchmarks.chaos jobs/walk/pretrain.yaml [--kills 20] [--seed 0] [--s3] [--keep] [key.path=value ...]

A Ray cluster of two nodes on this machine runs the job twice, once undisturbed. In the other run a worker, the second
node, the driver (`kill -9`) or the driver politely (SIGTERM) is killed at a random moment after every new checkpoint,
and what died is started again as its operator would. Then every step's pairs are compared with what the order's
arithmetic says, and losses and weights with the undisturbed run, bit for bit. With `--s3` dataset, checkpoints and
results are on a loopback S3 that fails 5 % of its requests.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measurement import report
from benchmarks.two_nodes import TwoNodes, free_port, wait_for_port
from hiclip.pretrain import stream_plan
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow, from_csv
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import read_job
from pipeline.shards import DatasetReader
from pipeline.storage import absolute, folder

KINDS = ("worker", "node", "driver", "sigterm")
_PATIENCE_S = 300.0
_FAILING = 0.05


@dataclass(frozen=True)
class Kill:
    """One kill; times in seconds since the epoch."""

    kind: str
    at: float


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="on a loopback S3 that fails 5 %% of its requests")
    parser.add_argument("--keep", action="store_true", help="append the result to benchmarks/results/chaos.jsonl")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="hiclip-chaos-") as work, contextlib.ExitStack() as stack:
        place = stack.enter_context(flaky_bucket(Path(work), given.seed)) if given.s3 else work
        (mixed,) = read_job(given.job, given.overrides, PretrainJob).data.datasets
        dataset = absolute(mixed.path)
        if given.s3:
            dataset = _copied(dataset, f"{place}/dataset")
        changed = [
            f"data.dataset={dataset}",
            "workers.restarts=1000",
            "workers.cpus=1",  # all that a node has: to lose a node is to lose a worker
            "loader.cpus_per_task=0",
            f"mlflow.tracking_uri=sqlite:///{work}/mlflow.db",
        ]
        runs = {
            name: _Run(given.job, [*given.overrides, *changed, f"out={place}/{name}"], Path(work, f"{name}.log"))
            for name in ("undisturbed", "disturbed")
        }
        cluster = stack.enter_context(TwoNodes(Path(work), head_cpus=1, node_cpus=1))
        runs["undisturbed"].start(cluster)
        began = time.time()
        runs["undisturbed"].wait()
        print(f"chaos: undisturbed in {time.time() - began:.0f} s", flush=True)
        began = time.time()
        kills = _disturb(runs["disturbed"], cluster, given.kills, random.Random(given.seed))
        taken = time.time() - began
        numbers = _compare(runs["undisturbed"], runs["disturbed"], kills, f"sqlite:///{work}/mlflow.db")
    report("chaos", {"job": given.job, "overrides": given.overrides, "s3": given.s3, "seed": given.seed,
                     "seconds": round(taken), **numbers}, given.keep)  # fmt: skip
    wrong = [name for name in ("lost_pairs", "repeated_pairs", "losses_that_differ", "weights_that_differ")
             if numbers[name]]  # fmt: skip
    sys.exit(f"chaos: not as the undisturbed run: {', '.join(wrong)}" if wrong else 0)


class _Run:
    """One run of the job by the command, which may have to be started more than once."""

    def __init__(self, job: str, overrides: list[str], log: Path) -> None:
        self.job = read_job(job, overrides, PretrainJob)
        self._words, self._log = [sys.executable, "-m", "hiclip.pretrain", job, *overrides], log
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, cluster: TwoNodes) -> None:
        environment = cluster.environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with self._log.open("a") as log:
            self.driver = subprocess.Popen(self._words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def code(self) -> int | None:
        assert self.driver is not None
        return self.driver.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        assert self.driver is not None
        code = self.driver.wait(timeout_s)
        if code not in (0, -signal.SIGKILL, 128 + signal.SIGTERM):
            raise RuntimeError(f"the run ended with {code}: {self.said()}")
        return code

    def said(self) -> str:
        return self._log.read_text()[-3000:]

    def seen(self) -> int:
        newest = newest_checkpoint(self.job.out)
        return 0 if newest is None else int(newest.rsplit("-", 1)[1])

    def rows(self) -> list[StepRow]:
        return from_csv(folder(self.job.out).read_text("losses.csv"))


def _disturb(run: _Run, cluster: TwoNodes, count: int, chance: random.Random) -> list[Kill]:
    """Runs to the end, killing something after each new checkpoint until there were enough kills."""
    kills: list[Kill] = []
    kinds = [kind for _ in range(-(-count // len(KINDS))) for kind in chance.sample(KINDS, len(KINDS))]
    run.start(cluster)
    try:
        for kind in kinds[:count]:
            if not _next_checkpoint(run):
                break
            time.sleep(chance.uniform(0, 3))
            if run.code() is not None:
                break
            kills.append(Kill(kind, time.time()))
            _kill(kind, run, cluster, chance)
            print(f"chaos: {len(kills)}. {kind} at {run.seen():,} pairs", flush=True)
        run.wait()
    finally:
        if run.driver is not None and run.code() is None:
            run.driver.kill()
            run.driver.wait()
    return kills


def _next_checkpoint(run: _Run) -> bool:
    """Waits for one more than there are; False if the run ended first."""
    before, ends = run.seen(), time.monotonic() + _PATIENCE_S
    while run.seen() <= before:
        if run.code() is not None:
            run.wait()
            return False
        if time.monotonic() > ends:
            raise TimeoutError(f"no checkpoint after {_PATIENCE_S:g} s: {run.said()}")
        time.sleep(0.1)
    return True


def _kill(kind: str, run: _Run, cluster: TwoNodes, chance: random.Random) -> None:
    """Kills one thing and starts again what does not come back by itself."""
    assert run.driver is not None
    if kind == "worker":
        workers = [process for node in (cluster.head, cluster.node) for process in node.processes("RayTrainWorker")]
        if workers:  # none while they are being started
            chance.choice(workers).kill()
    elif kind == "node":
        cluster.node.lose()
        cluster.start_node()
    else:
        run.driver.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
        if run.wait(_PATIENCE_S) != 0:  # 0: it was at its end
            run.start(cluster)


def _compare(undisturbed: _Run, disturbed: _Run, kills: Sequence[Kill], tracking_uri: str) -> dict[str, object]:
    """What differs, and what each kind of kill cost; printed as a table too."""
    ours, theirs = disturbed.rows(), undisturbed.rows()
    lost, repeated = _pairs_amiss(disturbed.job, ours)
    weights = [read_checkpoint(run.job.out).weights() for run in (disturbed, undisturbed)]
    costs = _costs(disturbed, kills, tracking_uri)
    print(f"\n{'kill':10} {'times':>5} {'lost steps':>16} {'back after':>18}")
    for kind, (times, steps, seconds) in costs.items():
        print(f"{kind:10} {times:5} {_spread(steps):>16} {_spread(seconds):>16} s")
    return {
        "kills": len(kills),
        "steps": len(ours),
        "lost_pairs": lost,
        "repeated_pairs": repeated,
        "losses_that_differ": sum(a.loss != b.loss for a, b in zip(ours, theirs, strict=True)),
        "weights_that_differ": sum(not torch.equal(weights[0][name], weights[1][name]) for name in weights[1]),
        "final_loss": ours[-1].loss,
        "by_kind": {
            kind: {"times": times, "lost_steps": steps, "recovery_s": [round(s, 1) for s in seconds]}
            for kind, (times, steps, seconds) in costs.items()
        },
    }


def _pairs_amiss(job: PretrainJob, rows: Sequence[StepRow]) -> tuple[int, int]:
    """Pairs of steps that are missing or are not those of the arithmetic, and pairs of steps that came twice."""
    (source,) = stream_plan(job).sources
    reader = DatasetReader(source.dataset)
    ids = [
        name for group in range(reader.groups) for name in reader.read_group(group, ["pair_id"])["pair_id"].to_pylist()
    ]
    digests = np.array([zlib.crc32(name.encode()) for name in ids], dtype=np.int64)
    batch, found = job.data.batch, {row.seen: row.pairs_digest for row in rows}
    expected = {
        (step + 1) * batch: int(digests[source.order.rows_of_step(step, batch)].sum()) for step in range(job.steps)
    }
    wrong = sum(found.get(seen) != digest for seen, digest in expected.items())
    return wrong * batch, (len(rows) - len(found)) * batch


def _costs(run: _Run, kills: Sequence[Kill], tracking_uri: str) -> dict[str, tuple[int, list[int], list[float]]]:
    """Kind -> how often, steps that were done and had to be done again, seconds until the next step.

    From MLflow's record, which has every step that was done, but for the last second of a driver that is killed. The
    run stood still where the record has its longest gap after a kill.
    """
    from mlflow import MlflowClient

    run_id = folder(run.job.out).read_text("mlflow_run_id").strip()
    history = MlflowClient(tracking_uri).get_metric_history(run_id, "loss")
    points = sorted((point.timestamp / 1000, point.step) for point in history)
    costs: dict[str, tuple[int, list[int], list[float]]] = {kind: (0, [], []) for kind in KINDS}
    for kill, until in zip(kills, [*(kill.at for kill in kills[1:]), math.inf], strict=True):
        done = max((seen for at, seen in points if at <= kill.at), default=0)
        window = [(kill.at, done), *((at, seen) for at, seen in points if kill.at < at <= until)]
        times, steps, seconds = costs[kill.kind]
        costs[kill.kind] = times + 1, steps, seconds
        if len(window) > 1:
            (_, before), (back, again) = max(itertools.pairwise(window), key=lambda pair: pair[1][0] - pair[0][0])
            steps.append(before // run.job.data.batch - (again // run.job.data.batch - 1))
            seconds.append(back - kill.at)
    return costs


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})" if values else "-"


@contextlib.contextmanager
def flaky_bucket(work: Path, seed: int, share: float = _FAILING) -> Iterator[str]:
    """A bucket on a loopback S3 that fails a share of its requests; the environment points at it meanwhile."""
    import boto3

    port = free_port()
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.flaky_s3", f"--port={port}", f"--share={share}"]
    before = dict(os.environ)
    with (work / "s3.log").open("w") as log:
        server = subprocess.Popen([*words, f"--seed={seed}"], stdout=log, stderr=subprocess.STDOUT)
    try:
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
        )
        wait_for_port(port)
        boto3.client("s3").create_bucket(Bucket="chaos")
        yield "s3://chaos"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def _copied(dataset: str, target: str) -> str:
    source = folder(dataset)
    for name in source.names():
        folder(target).upload(source.join(name), name)
    return target


if __name__ == "__main__":
    main()
