"""A study on a trunk that is killed twice ends with the table of one that was not."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from small_checkpoint import small_openmoji
from small_dataset import small_dataset
from small_run import small_job

from hiclip.scale import main
from pipeline.jobfile import resolved_yaml

TIMES = {"seconds", "pairs_per_s", "trial_s", "checkpoint"}
"""Columns of the table that a second run of the same study need not repeat."""


def content(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "killed-scale",
        "out": str(out),
        "ray": {"num_cpus": 2},
        "base": {"job": str(place / "pretrain.yaml")},
        "ladder": {"axes": {"model.width": [64], "schedule.pairs": [32, 64, 160]}, "cooldown_share": 0.25},
        "held_out": {"model.width": 64, "schedule.pairs": 320},
        "error": {"set": {"name": "openmoji", "root": str(place / "crawl"), "retrieval_pairs": 20}, "metric": "loss"},
        "bootstrap": {"draws": 200},
        "concurrent": 2,
        **changes,
    }


def table(out: Path) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO((out / "rungs.csv").read_text()))
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def wait_for(what: Callable[[], bool], driver: subprocess.Popen[bytes], timeout_s: float = 150) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert driver.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_a_study_that_is_asked_to_stop_lets_its_trials_end(ray_session: None, tmp_path: Path) -> None:
    """`ray job stop` sends a SIGTERM: exit code 143, one line, no trial that MLflow takes for running."""
    from mlflow import MlflowClient

    small_dataset(tmp_path / "build", pairs=64)
    small_openmoji(tmp_path / "crawl")
    job = small_job("nowhere", str(tmp_path / "build"), checkpoints={"every_pairs": 64})
    (tmp_path / "pretrain.yaml").write_text(resolved_yaml(job))
    out, file = tmp_path / "stopped", tmp_path / "scale.yaml"
    axes = {"model.width": [64], "schedule.pairs": [80_000, 160_000, 320_000]}  # longer than anybody waits
    file.write_text(json.dumps(content(tmp_path, out, ladder={"axes": axes}, held_out=None)))
    words = [sys.executable, "-m", "hiclip.scale", str(file)]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    wait_for(lambda: any(out.glob("rungs/*/checkpoints/*/COMPLETE")), driver)
    driver.send_signal(signal.SIGTERM)
    said = driver.communicate(timeout=90)[1].decode()
    assert driver.returncode == 143, said
    assert said.splitlines()[-1] == f"hiclip.scale: stopped; the same command goes on from what is in {out}"
    assert not list(out.glob("rungs/*.failure.txt")), "nothing failed"
    assert not (out / "result.json").exists()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    noted = [out / "mlflow_run_id", *out.glob("rungs/*/mlflow_run_id")]
    assert len(noted) >= 2
    assert {client.get_run(one.read_text().strip()).info.status for one in noted} == {"KILLED"}


def run(file: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(file)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_study_killed_twice_ends_with_the_same_table(ray_session: None, tmp_path: Path) -> None:
    small_dataset(tmp_path / "build", pairs=64)
    small_openmoji(tmp_path / "crawl")
    (tmp_path / "pretrain.yaml").write_text(resolved_yaml(small_job("nowhere", str(tmp_path / "build"))))
    out, alone = tmp_path / "killed", tmp_path / "alone"
    file = tmp_path / "scale.yaml"
    file.write_text(json.dumps(content(tmp_path, out)))

    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def rows() -> int:
        return sum("." not in name.stem for name in out.glob("rungs/*.json"))

    for least in (1, 2):  # before the branches, and among them or later
        words = [sys.executable, "-m", "hiclip.scale", str(file)]
        driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
        wait_for(lambda least=least: rows() >= least, driver)  # type: ignore[misc]
        driver.kill()  # Ray ends the trials of a driver that is gone
        driver.wait()
        assert not (out / "result.json").exists()
    before = {name: name.read_bytes() for name in out.glob("rungs/*.json")}
    assert run(file) == 0
    assert {name: name.read_bytes() for name in before} == before, "what was measured is not measured again"

    file.write_text(json.dumps(content(tmp_path, alone)))
    assert run(file) == 0
    assert table(out) == table(alone)
    assert len(table(out)) == 4
    one, other = (json.loads((place / "result.json").read_text()) for place in (out, alone))
    for key in ("law", "methods", "held_out", "ratios", "missing", "next", "study"):
        assert one[key] == other[key], key

    # The branches took over what they have in common with the longest, and nothing was trained twice.
    assert [row["taken_over"] for row in table(alone)] == ["24", "48", "0", "120"]
    spent = [json.loads(name.read_text())["flops"] for name in alone.glob("spent/*.json")]
    own = [float(row["compute"]) * (1 - int(row["taken_over"]) / int(row["seen"])) for row in table(alone)]
    assert sum(spent) == pytest.approx(sum(own))
