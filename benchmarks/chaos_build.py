"""Kills a build again and again and shows that its dataset is the undisturbed one's, byte for byte.

    make chaos
    python -m benchmarks.chaos_build jobs/walk/build.yaml [--kills 10] [--seed 0] [--s3] [--keep] [key.path=value ...]

The job is built undisturbed; with 1, 2 and 4 Ray CPUs; from a list whose rows are shuffled; on a loopback S3. Then a
Ray cluster of two nodes on this machine builds it into fresh folders (with `--s3` on an S3 that fails 5 % of its
requests), and at random moments a task's process, the second node or the driver is killed with `kill -9`, and what
died is started again as its operator would, until there were enough kills. All builds must have one fingerprint and one
ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.chaos import flaky_bucket
from benchmarks.measurement import report
from benchmarks.two_nodes import TwoNodes
from pipeline.build_job import BuildJob
from pipeline.jobfile import read_job
from pipeline.list_files import count_rows
from pipeline.manifest import Manifest, check_shards, read_manifest
from pipeline.storage import absolute, folder

KINDS = ("task", "node", "driver")
_MOST_KILLS_A_BUILD = 3
_PATIENCE_S = 600.0


class Build:
    """One build of the job into a folder of its own, by the command, which may have to be started more than once."""

    def __init__(self, name: str, job: str, overrides: Sequence[str], place: str, log: Path) -> None:
        self.name, self.out, self._log = name, f"{place}/{name}", log
        words = [f"out={self.out}", f"mlflow.tracking_uri=sqlite:///{log.parent}/mlflow.db"]
        self._words = [sys.executable, "-m", "pipeline.build", job, *overrides, *words]
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str] | None = None) -> None:
        with self._log.open("a") as log:
            self.driver = subprocess.Popen(self._words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def running(self) -> bool:
        assert self.driver is not None
        return self.driver.poll() is None

    def wait(self) -> None:
        assert self.driver is not None
        if (code := self.driver.wait(_PATIENCE_S)) not in (0, -signal.SIGKILL):
            said = self._log.read_text()
            raise RuntimeError(
                f"{self.name} ended with {code}: {said[max(said.rfind('Traceback'), len(said) - 9000) :]}"
            )

    def step(self) -> str:
        """The last step that has said something."""
        lines = [line for line in self._log.read_text().splitlines() if line and not line.startswith(" ")]
        return lines[-1].split()[0] if lines else "start"

    def manifest(self) -> Manifest:
        found = read_manifest(self.out)
        check_shards(self.out, found)
        return found

    def ends(self) -> list[tuple[str, str, str | None]]:
        """(pair_id, step, reason) of every row of the lists, in order of names."""
        place = folder(self.out).child("ledger")
        tables = []
        for name in place.names(suffix=".parquet"):
            with place.open(name) as file:
                tables.append(pq.read_table(file, columns=["pair_id", "step", "reason"]))
        rows = pa.concat_tables(tables).to_pylist()
        return sorted((row["pair_id"], row["step"], row["reason"]) for row in rows)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="kill builds on an S3 that fails 5 %% of its requests")
    parser.add_argument("--keep", action="store_true", help="append the result to benchmarks/results/chaos_build.jsonl")
    given = parser.parse_intermixed_args()
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="hiclip-chaos-") as work, contextlib.ExitStack() as stack:
        first = Build("undisturbed", given.job, given.overrides, work, Path(work, "undisturbed.log"))
        first.start()
        first.wait()
        expected = first.manifest().fingerprint, first.ends()
        listed = sum(count_rows(one) for one in read_job(given.job, given.overrides, BuildJob).lists)
        assert len(expected[1]) == listed, f"{len(expected[1])} rows in the ledger, {listed} in the lists"
        print(f"chaos: undisturbed in {time.time() - began:.0f} s: {expected[0][:16]}", flush=True)
        wrong = _other_ways(given, Path(work), expected)
        place = stack.enter_context(flaky_bucket(Path(work), given.seed)) if given.s3 else work
        cluster = stack.enter_context(TwoNodes(Path(work), head_cpus=1, node_cpus=1))
        kills: Counter[tuple[str, str]] = Counter()
        chance, builds = random.Random(given.seed), 0
        while kills.total() < given.kills:
            builds += 1
            if builds > 3 * given.kills:
                raise TimeoutError(f"{builds} builds ended before they could be killed: only {kills.total()} kills")
            build = Build(f"killed-{builds}", given.job, given.overrides, place, Path(work, f"killed-{builds}.log"))
            _disturb(build, cluster, min(_MOST_KILLS_A_BUILD, given.kills - kills.total()), chance, kills)
            wrong += _differs(build, expected)
    by_kind = {kind: sum(count for (of, _), count in kills.items() if of == kind) for kind in KINDS}
    by_step = {f"{kind} in {step}": count for (kind, step), count in sorted(kills.items())}
    numbers = {"kills": kills.total(), "builds": builds, "by_kind": by_kind, "by_step": by_step, "differ": wrong,
               "fingerprint": expected[0], "rows": len(expected[1])}  # fmt: skip
    report("chaos_build", {"job": given.job, "overrides": given.overrides, "s3": given.s3, "seed": given.seed,
                           "seconds": round(time.time() - began), **numbers}, given.keep)  # fmt: skip
    sys.exit(f"chaos: not as the undisturbed build: {', '.join(wrong)}" if wrong else 0)


def _other_ways(given: argparse.Namespace, work: Path, expected: tuple[str, object]) -> list[str]:
    """Builds with other numbers of CPUs, a shuffled list and on S3; the names of those that differ."""
    shuffled = work / "shuffled.parquet"
    (one, *_) = read_job(given.job, given.overrides, BuildJob).lists
    rows = pq.read_table(absolute(one.path))
    pq.write_table(rows.take(np.random.default_rng(given.seed).permutation(rows.num_rows)), shuffled)
    ways = {f"{cpus} CPU{'s' * (cpus > 1)}": [f"ray.num_cpus={cpus}"] for cpus in (1, 2, 4)}
    ways["shuffled"] = [f"lists.0.path={shuffled}", "tasks.rows=1500", "download.rows_per_task=300"]
    wrong = []
    with contextlib.ExitStack() as stack:
        for name, more in [*ways.items(), ("on S3", [])]:
            place = str(work) if name != "on S3" else stack.enter_context(flaky_bucket(work, given.seed, share=0.0))
            build = Build(name.replace(" ", "-"), given.job, [*given.overrides, *more], place, work / f"{name}.log")
            began = time.time()
            build.start()
            build.wait()
            wrong += _differs(build, expected)
            print(f"chaos: {name} in {time.time() - began:.0f} s", flush=True)
    return wrong


def _differs(build: Build, expected: tuple[str, object]) -> list[str]:
    """The build's name, if its dataset or ledger is another one or something of its work is left."""
    place = folder(build.out)
    left = place.names("work/") or (place.is_local and Path(place.root, "work").exists())
    same = (build.manifest().fingerprint, build.ends()) == expected
    return [] if same and not left else [build.name]


def _disturb(
    build: Build, cluster: TwoNodes, most: int, chance: random.Random, kills: Counter[tuple[str, str]]
) -> None:
    """Builds to the end with up to so many kills on the way."""
    build.start(cluster.environment)
    try:
        for _ in range(most):
            time.sleep(chance.uniform(4, 20))
            if not build.running():
                break
            kind, step = chance.choice(KINDS), build.step()
            if _kill(kind, build, cluster, chance):
                kills[kind, step] += 1
                print(f"chaos: {kills.total()}. {kind} after {step} of {build.name}", flush=True)
        build.wait()
    finally:
        if build.running():
            assert build.driver is not None
            build.driver.kill()
            build.driver.wait()


def _kill(kind: str, build: Build, cluster: TwoNodes, chance: random.Random) -> bool:
    """Kills one thing and starts again what does not come back by itself; whether there was anything to kill."""
    if kind == "task":
        # Not Ray's own agents: a node dies with them, and the driver with the head.
        found = [process for node in (cluster.head, cluster.node) for process in node.processes("ray::")
                 if not any(name in " ".join(process.cmdline()) for name in ("ray::IDLE", "Agent"))]  # fmt: skip
        if not found:
            return False
        chance.choice(found).kill()
    elif kind == "node":
        cluster.node.lose()
        cluster.start_node()
    else:
        assert build.driver is not None
        build.driver.kill()
        if build.driver.wait() == -signal.SIGKILL:  # 0: it was at its end
            build.start(cluster.environment)
    return True


if __name__ == "__main__":
    main()
