"""A run is recorded in MLflow's SQLite file, resumed there, and never held up by a server that is away."""

from __future__ import annotations

import contextlib
import logging
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_mlflow import LoopbackMlflow

from pipeline.jobfile import Job, JobError, MlflowSettings, make_job
from pipeline.mlflow_address import check_reachable, tracking_uri
from pipeline.mlflow_tracker import UNDELIVERED, deliver_rest, open_tracker, recorded_run_id
from pipeline.record_items import End, Point, from_lines


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


def nobody_there() -> str:
    """An address on loopback at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackMlflow]:
    """One server for the tests of this file, for each of which it runs."""
    server = LoopbackMlflow(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def test_what_a_server_misses_in_an_outage_it_has_in_the_end_once(
    server: LoopbackMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    caplog.set_level(logging.WARNING, logger="pipeline")
    tracker = open_tracker(MlflowSettings(tracking_uri=server.uri), str(tmp_path / "one"), "a run")
    run_id = tracker.run_id
    assert run_id is not None
    slowest = 0.0
    try:
        for step in range(1, 301):
            if step == 100:
                server.kill()
            began = time.monotonic()
            tracker.metrics({"loss": 1 / step, "rate": float("nan")}, seen=8 * step)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)
        tracker.tag("commit", "abc")
    finally:
        server.start()
    # An empty key is what the server refuses: said, and the others' numbers of that step arrive.
    tracker.metrics({"": 1.0, "loss": 0.5}, seen=8 * 301)
    tracker.params({"seed": 1, "no\nname": 2})
    tracker.close()
    assert slowest < 1, "nobody waits"

    client = MlflowClient(tracking_uri=server.uri)
    assert history(client, run_id, "loss") == [*((8 * step, 1 / step) for step in range(1, 301)), (8 * 301, 0.5)]
    assert len(history(client, run_id, "rate")) == 300
    run = client.get_run(run_id)
    assert (run.data.tags["commit"], run.data.params, run.info.status) == ("abc", {"seed": "1"}, "FINISHED")
    assert not (tmp_path / "one" / UNDELIVERED).exists()
    away, back, point, params = (record.message for record in caplog.records)
    assert f"MLflow at {server.uri} is away; its numbers are kept and sent later: " in away
    assert f"MLflow at {server.uri} is back after " in back
    assert "refuses a point, which is passed over" in point
    assert "refuses a params, which is passed over" in params


def test_what_was_left_undelivered_is_sent_at_the_next_start(
    server: LoopbackMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    caplog.set_level(logging.WARNING, logger="pipeline")
    out, settings = str(tmp_path / "one"), MlflowSettings(tracking_uri=server.uri)
    tracker = open_tracker(settings, out, "a run", patience_s=2)
    tracker.metrics({"loss": 1.0}, seen=8)
    run_id = tracker.run_id or open_tracker(settings, out, "slow machine").run_id
    (tmp_path / "one" / "job.yaml").write_text("name: a\n")
    server.kill()
    try:
        tracker.metrics({"loss": 0.5}, seen=16)
        tracker.params({"seed": 1})
        tracker.tag("commit", "abc")
        tracker.artifact(str(tmp_path / "one" / "job.yaml"))
        began = time.monotonic()
        tracker.close()
        assert time.monotonic() - began < 4
        assert f"the rest is in {out}/{UNDELIVERED} and is sent when the run is started again" in caplog.text
        # A run that never reached the server keeps everything too; a second one of the folder keeps both.
        for loss in (0.25, 0.125):
            again = open_tracker(settings, out, "a run", run_id, patience_s=1)
            again.metrics({"loss": loss}, seen=int(8 / loss))
            again.close("FAILED")
        deliver_rest(settings, out, "a run", run_id)
        assert (
            "cannot be reached: [Errno 111] Connection refused; what MLflow lacks of this run stays in" in caplog.text
        )
    finally:
        server.start()
    deliver_rest(settings, out, "a run", run_id)
    assert not (tmp_path / "one" / UNDELIVERED).exists()
    client = MlflowClient(tracking_uri=server.uri)
    run = client.get_run(run_id)
    assert history(client, run_id, "loss") == [(8, 1.0), (16, 0.5), (32, 0.25), (64, 0.125)]
    assert (run.data.params, run.data.tags["commit"], run.info.status) == ({"seed": "1"}, "abc", "FINISHED")
    local = client.download_artifacts(run_id, "job.yaml", str(tmp_path))
    assert Path(local).read_text() == "name: a\n"


def test_a_server_that_is_never_there_costs_the_patience_and_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    nobody = nobody_there()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hushhush@{nobody}")
    with caplog.at_level(logging.DEBUG, logger="pipeline"):
        tracker = open_tracker(MlflowSettings(), str(tmp_path / "one"), "a run", patience_s=5)
        tracker.metrics({"loss": 1.0}, seen=8)
        began = time.monotonic()
        tracker.close()
    assert time.monotonic() - began < 7
    assert tracker.run_id is None
    away, kept = (record.message for record in caplog.records)
    assert away.startswith(f"MLflow at http://{nobody} is away; its numbers are kept and sent later: ")
    assert kept.startswith(f"MLflow at http://{nobody} did not take everything; the rest is in ")
    ((target, point), (_, end)) = from_lines((tmp_path / "one" / UNDELIVERED).read_text())
    assert (target, point) == (None, Point("loss", 1.0, 8, point.time_ms if isinstance(point, Point) else 0))
    assert end == End("FINISHED")
    said = capfd.readouterr()
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "hushhush" not in caplog.text + said.out + said.err + written


def test_a_sqlite_file_that_is_locked_is_only_away(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    caplog.set_level(logging.WARNING, logger="pipeline")
    tracker = open_tracker(MlflowSettings(), str(runs / "locked"), "a run")
    run_id = tracker.run_id
    assert run_id is not None
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.metrics({"loss": 1.0}, seen=8)
        ends = time.monotonic() + 90
        while not caplog.records:  # MLflow has SQLite wait 20 s for a lock
            assert time.monotonic() < ends
            time.sleep(0.1)
        other.execute("COMMIT")
    tracker.close()
    assert "database is locked" in caplog.records[0].message
    assert history(MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db"), run_id, "loss") == [(8, 1.0)]


@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_a_model_is_registered_once_with_its_parents(
    kind: str, runs: Path, server: LoopbackMlflow, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = server.uri if kind == "server" else f"sqlite:///{runs}/mlflow.db"
    out, settings = str(tmp_path / "one"), MlflowSettings(tracking_uri=uri)
    checkpoint = f"{out}/checkpoints/seen-000000000064"
    run_id = None
    for _ in range(2):
        tracker = open_tracker(settings, out, "a run", run_id)
        for where in (checkpoint, "s3://bucket/checkpoint"):
            tracker.model(f"model-{kind}", where, {"model.json": "{}"}, {"loss": 0.5, "seen": 64}, "Load it so.")
        tracker.close()
        run_id = tracker.run_id
    client = MlflowClient(tracking_uri=uri)
    remote, local = client.search_model_versions(f"name='model-{kind}'")
    assert (remote.version, local.version) == (2, 1) or (remote.version, local.version) == ("2", "1")
    assert local.tags == {"loss": "0.5", "seen": "64", "checkpoint": checkpoint}
    assert (local.run_id, local.description, local.status) == (run_id, "Load it so.", "READY")
    assert remote.source == remote.tags["checkpoint"] == "s3://bucket/checkpoint"
    assert local.source == (f"runs:/{run_id}/model" if kind == "server" else checkpoint)
    if kind == "server":
        assert Path(client.download_artifacts(run_id, "model/model.json", str(tmp_path))).read_text() == "{}"


def test_an_address_where_nobody_answers_is_a_mistake_in_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: LoopbackMlflow
) -> None:
    nobody, out = nobody_there(), str(tmp_path / "one")
    check_reachable(MlflowSettings(), out)
    check_reachable(MlflowSettings(tracking_uri=server.uri), out)
    with pytest.raises(JobError) as refused:
        check_reachable(MlflowSettings(tracking_uri=f"http://{nobody}"), out)
    shown = f"mlflow.tracking_uri: http://{nobody}"
    assert str(refused.value) == f"{shown} cannot be reached: [Errno 111] Connection refused"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hush@hush@{nobody}")
    with pytest.raises(JobError) as refused:
        check_reachable(MlflowSettings(), out)
    assert str(refused.value).startswith(f"{shown} (from MLFLOW_TRACKING_URI) cannot be reached: ")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(JobError, match=f"cannot be reached: {tmp_path}/file is no folder"):
        check_reachable(MlflowSettings(), out)


def test_a_job_holds_no_password_and_an_error_does_not_repeat_it() -> None:
    content = {"name": "a", "out": "b", "mlflow": {"tracking_uri": "http://someone:hushhush@server"}}
    with pytest.raises(JobError) as refused:
        make_job(content, Job, "job.yaml")
    assert str(refused.value).startswith("job.yaml: mlflow.tracking_uri: expected an address without user and password")
    assert "hushhush" not in str(refused.value)
    with pytest.raises(JobError, match=r"mlflow\.registered_model: expected true or false or text that matches"):
        make_job({"name": "a", "out": "b", "mlflow": {"registered_model": "a/b"}}, Job, "job.yaml")
