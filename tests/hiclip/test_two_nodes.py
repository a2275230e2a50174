"""A run on a cluster of two nodes is warned, loses one of them, and ends as if nothing had happened: the same pairs in
every step, and the same losses but for the order of sums.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_dataset import small_dataset
from small_run import small_job

from benchmarks.two_nodes import TwoNodes
from hiclip.pretrain import stream_plan
from hiclip.training.history import StepRow, from_csv
from hiclip.training.saving import RunPlace
from hiclip.training.this_process import run_here
from pipeline.jobfile import resolved_yaml

ROOT = Path(__file__).parent.parent.parent
STEPS, EVERY = 320, 40
"""Of the run, and between two checkpoints."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TwoNodes]:
    with TwoNodes(tmp_path / "cluster", head_cpus=1, node_cpus=1) as nodes:
        yield nodes


def test_a_run_that_is_warned_and_loses_a_node_is_the_undisturbed_one(cluster: TwoNodes, tmp_path: Path) -> None:
    small_dataset(tmp_path / "data", pairs=64, px=32)
    out = tmp_path / "run"
    job = small_job(
        str(out),
        str(tmp_path / "data"),
        schedule={"pairs": 8 * STEPS},
        engine={"name": "deepspeed"},
        workers={"count": 2, "least": 1, "cpus": 1, "restarts": 2},
        loader={"cpus_per_task": 0},
        checkpoints={"every_pairs": 8 * EVERY, "keep": 99},
    )
    file, said = tmp_path / "job.yaml", tmp_path / "said.txt"
    file.write_text(resolved_yaml(job))

    def start() -> subprocess.Popen[bytes]:
        environment = cluster.environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with said.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "hiclip.pretrain", str(file)],
                cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def wait_for(what: Callable[[], bool]) -> None:
        ends = time.monotonic() + 300
        while not what():
            assert driver.poll() is None, said.read_text()
            assert time.monotonic() < ends, "it did not happen"
            time.sleep(0.05)

    def saved() -> list[int]:
        return sorted(int(path.parent.name.removeprefix("seen-")) // 8 for path in out.glob("checkpoints/*/COMPLETE"))

    driver = start()
    try:
        wait_for(lambda: len(saved()) > 0)
        _warn(cluster)
        wait_for(lambda: any(step % EVERY for step in saved()))
        cluster.node.lose()
        assert not (out / "result.json").exists()
        lost = saved()[-1]
        assert driver.wait(400) == 0, said.read_text()
    finally:
        driver.kill()
        driver.wait()

    rows = from_csv((out / "losses.csv").read_text())
    workers = [row.workers for row in rows]
    assert workers == sorted(workers, reverse=True), "two, then one"
    assert set(workers) == {1, 2}
    assert lost < STEPS
    undisturbed: list[StepRow] = []
    whole = small_job(str(tmp_path / "whole"), str(tmp_path / "data"), schedule={"pairs": 8 * STEPS})
    stream = stream_plan(whole)
    run_here(whole, RunPlace(whole.out, stream.fingerprint, None), stream, undisturbed.append)
    assert [(row.seen, row.pairs_digest) for row in rows] == [(row.seen, row.pairs_digest) for row in undisturbed]
    assert [row.loss for row in rows[:100]] == pytest.approx([row.loss for row in undisturbed[:100]], abs=1e-4)


def _warn(cluster: TwoNodes) -> None:
    """Tells Ray that the second node will be taken away, as a cloud's notice does."""
    script = (
        "import ray, subprocess, sys\n"
        "ray.init(log_to_driver=False, logging_level='ERROR')\n"
        "node = next(n for n in ray.nodes() if n['Alive'] and 'node:__internal_head__' not in n['Resources'])\n"
        "print(node['NodeID'])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], env=cluster.environment, capture_output=True, text=True, check=True
    )
    address = cluster.environment["RAY_ADDRESS"]
    words = ["drain-node", f"--address={address}", f"--node-id={answer.stdout.split()[-1]}"]
    words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=20"]
    ray = str(Path(sys.executable).parent / "ray")
    subprocess.run([ray, *words], env=cluster.environment, check=True, capture_output=True)
