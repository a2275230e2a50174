"""`ray job submit jobs/JOB.yaml` as its user types it, to a cluster on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head started in the checkout, as a user does; what his shell knows. In a home without a token."""
    home = tmp_path_factory.mktemp("home")
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    known |= {"HOME": str(home), "PATH": f"{BIN}:{known['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    known |= {"RAY_JOB_STOP_WAIT_TIME_S": "600"}  # as all heads in cluster/
    port, dashboard = _free_port(), _free_port()
    started = [BIN / "ray", "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    log = (home / "head.log").open("w")
    head = subprocess.Popen(
        # Its agent runs the jobs, and by default takes a port that the other tests' Ray has already.
        [*started, f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_free_port()}"],
        env=known, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_for(dashboard, head)
        yield known | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.terminate()
        head.wait(timeout=90)
        log.close()


def test_a_job_file_is_its_own_entry_point(cluster: dict[str, str]) -> None:
    said = _submitted(cluster, "jobs/pretrain_30m.yaml")
    assert said.returncode == 1
    assert "hiclip.pretrain: " in said.stdout
    assert "runs/build_30m" in said.stdout, said.stdout  # which is what has to be built first
    assert "exit code 2" in said.stdout


def test_a_mistake_in_a_folder_that_is_sent_along_is_one_line(cluster: dict[str, str]) -> None:
    said = _submitted(cluster, "--working-dir", ".", "--", "jobs/walk/pretrain.yaml", "schedule.pair=1280")
    assert said.returncode == 1
    assert "hiclip.pretrain: jobs/walk/pretrain.yaml: schedule.pair: no such key; did you mean 'pairs'?" in said.stdout
    assert "exit code 2" in said.stdout


_SLOW_TO_END = """
import signal, sys, time

def end(*_):
    time.sleep(6)  # twice what Ray waits by default
    print("saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(120)
"""


def test_ray_job_stop_waits_for_a_driver_that_saves(cluster: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "slow_to_end.py"
    script.write_text(_SLOW_TO_END)
    sent = _submitted(cluster, "--no-wait", "--submission-id=slow", "--", "python", str(script))
    assert sent.returncode == 0, sent.stdout
    until = time.monotonic() + 180
    while "ready\n" not in _job(cluster, "logs", "slow") and time.monotonic() < until:
        time.sleep(0.5)
    assert "Job 'slow' was stopped" in _job(cluster, "stop", "slow")
    assert "saved\n" in _job(cluster, "logs", "slow")


def _job(cluster: dict[str, str], *words: str) -> str:
    return subprocess.run(
        [BIN / "ray", "job", *words], env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=240,
        stderr=subprocess.STDOUT, check=True,
    ).stdout  # fmt: skip


def _submitted(cluster: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    until = time.monotonic() + 180
    while True:
        said = subprocess.run(
            [BIN / "ray", "job", "submit", *words],
            env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240,
        )  # fmt: skip
        # A head that has just started has a job server before it has anyone to run a job.
        if "No available agent" not in said.stdout or time.monotonic() > until:
            return said


def _wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    """Until the head's job server listens."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert head.poll() is None, "the head ended"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("the job server did not come up")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
