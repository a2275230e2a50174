"""A run is recorded in MLflow's SQLite file, resumed there, and never held up by a server that is away."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest

from hiclip.training.mlflow_tracker import open_tracker, recorded_run_id, tracking_uri
from pipeline.jobfile import MlflowSettings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one SQLite file, which takes seconds to make."""
    return tmp_path_factory.mktemp("runs")


def test_the_record_lies_in_the_folder_above_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "runs" / "one")
    assert tracking_uri(MlflowSettings(), out) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(MlflowSettings(tracking_uri="http://a"), out) == "http://a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert tracking_uri(MlflowSettings(tracking_uri="http://a"), out) == "http://b"


def test_a_run_is_recorded_and_a_resumed_one_appends(runs: Path) -> None:
    from mlflow import MlflowClient

    out, settings = str(runs / "one"), MlflowSettings(experiment="tests")
    began = time.monotonic()
    tracker = open_tracker(settings, out, "a run")
    tracker.params({"model": {"width": 64, "long": "x" * 7000}, "seed": 1})
    for step in range(1, 1501):
        tracker.metrics({"loss": 1 / step, "rate": 0.5}, seen=8 * step)
    assert time.monotonic() - began < 1, "calls only join a queue"
    (runs / "job.yaml").write_text("name: a\n")
    tracker.artifact(str(runs / "job.yaml"), "job")
    (runs / "job.yaml").write_text("changed afterwards")
    tracker.tag("commit", "abc")
    tracker.close()

    run_id = recorded_run_id(out)
    assert run_id == tracker.run_id is not None
    again = open_tracker(settings, out, "a run", run_id)
    again.params({"model": {"width": 128}, "new": 2})
    again.metrics({"loss": 0.25}, seen=16_000)
    again.close("FAILED")
    child = open_tracker(settings, out, "a child", parent_run_id=run_id)
    child.close()

    client = MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert {key: run.data.params[key] for key in ("model.width", "seed", "new")} == {
        "model.width": "64",
        "seed": "1",
        "new": "2",
    }
    history = {point.step: point.value for point in client.get_metric_history(run_id, "loss")}
    assert len(history) == 1501
    assert (history[8], history[16_000]) == (1.0, 0.25)
    assert run.data.tags["commit"] == "abc"
    assert Path(run.info.artifact_uri, "job", "job.yaml").read_text() == "name: a\n"
    assert Path(run.info.artifact_uri).is_relative_to(runs / "mlartifacts")
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == run_id


def test_what_is_added_to_a_run_leaves_its_status_alone(runs: Path) -> None:
    from mlflow import MlflowClient

    out, settings = str(runs / "three"), MlflowSettings(experiment="tests")
    training = open_tracker(settings, out, "a run")
    run_id = training.run_id
    evaluation = open_tracker(settings, out, "an evaluation", run_id, adds=True)
    evaluation.metrics({"top1": 0.5}, seen=8)
    evaluation.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")
    assert (client.get_run(run_id).info.status, client.get_run(run_id).data.metrics["top1"]) == ("RUNNING", 0.5)
    training.close("KILLED")
    open_tracker(settings, out, "an evaluation", run_id, adds=True).close()
    assert client.get_run(run_id).info.status == "KILLED"
    alone = open_tracker(settings, out, "an evaluation", "0" * 32, adds=True)
    alone.close()
    assert client.get_run(alone.run_id).info.status == "FINISHED"


def test_a_record_that_is_gone_is_begun_anew(runs: Path) -> None:
    tracker = open_tracker(MlflowSettings(), str(runs / "two"), "a run", run_id="0" * 32)
    tracker.close()
    assert tracker.run_id is not None
    assert tracker.run_id == recorded_run_id(str(runs / "two")) != "0" * 32


def test_a_server_that_is_away_is_said_once_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, logger="hiclip"):
        tracker = open_tracker(MlflowSettings(), str(tmp_path / "one"), "a run")
        tracker.metrics({"loss": 1.0}, seen=8)
        began = time.monotonic()
        tracker.close()
    assert time.monotonic() - began < 20
    assert tracker.run_id is None
    assert [record.message for record in caplog.records if nobody in record.message] == [caplog.records[0].message]
    assert "this run is not recorded there" in caplog.text
