"""Records a run in MLflow, from a thread of its own (door: mlflow).

MLflow takes seconds to import, seconds more to make a new SQLite file, and a server may be slow or away for minutes;
none of that may hold up a step. So calls only join a queue, and the thread sends what has gathered in batches. If the
server cannot be reached the thread says so once and the run goes on: its numbers are in its own folder anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiclip.training.tracker import Tracker
from pipeline.jobfile import MlflowSettings
from pipeline.storage import absolute, folder

log = logging.getLogger(__name__)

RUN_ID = "mlflow_run_id"
"""File in a run's folder that holds MLflow's id of the run, so that a resumed run can append to its record."""
PATIENCE_S = 120.0
"""How long `run_id` and `close` wait for MLflow before they go on without it."""
_MOST_METRICS = 1000  # of one request: MLflow's limit
_LONGEST_PARAM = 6000  # characters: MLflow's limit


def open_tracker(
    settings: MlflowSettings,
    out: str,
    run_name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    adds: bool = False,
) -> Tracker:
    """A tracker for a run that writes to `out`, where the record's id is noted in the file RUN_ID.

    `run_id` appends to an earlier record (see `recorded_run_id`), `parent_run_id` nests a new one below another. With
    `adds` the earlier run goes its own way: whether it counts as running or finished is left as it is.
    """
    uri = tracking_uri(settings, out)
    return MlflowTracker(uri, settings.experiment, out, run_name, run_id, parent_run_id, adds)


def recorded_run_id(out: str) -> str | None:
    """The id of the record that an earlier run in `out` made, if there is one."""
    place = folder(out)
    return place.read_text(RUN_ID).strip() if place.exists(RUN_ID) else None


def tracking_uri(settings: MlflowSettings, out: str) -> str:
    """`MLFLOW_TRACKING_URI`, else the job's, else an SQLite file in the folder above `out` (runs/ if out is remote)."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    if given:
        return given
    place = absolute(out)
    above = absolute("runs") if "://" in place else str(Path(place).parent)
    return f"sqlite:///{above}/mlflow.db"


@dataclass(frozen=True)
class _Point:
    """One measured number."""

    key: str
    value: float
    seen: int
    time_ms: int


_Call = Callable[[Any, str], None]


class MlflowTracker:
    """See `Tracker`."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        out: str,
        run_name: str,
        run_id: str | None,
        parent_run_id: str | None,
        adds: bool,
    ) -> None:
        self._uri, self._experiment, self._out, self._run_name = uri, experiment, out, run_name
        self._earlier_id, self._parent_run_id, self._adds = run_id, parent_run_id, adds
        self._queue: queue.SimpleQueue[_Point | _Call | None] = queue.SimpleQueue()
        self._opened: Future[str] = Future()
        self._status = "FINISHED"
        self._copies = tempfile.mkdtemp(prefix="hiclip-artifacts-")
        # A daemon: a server that hangs must not keep a finished process alive.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits until MLflow has answered, at most PATIENCE_S."""
        try:
            return self._opened.result(PATIENCE_S)
        except Exception:  # whatever MLflow, SQLAlchemy or HTTP raised; the thread has said it
            return None

    def params(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        flat = dict(_flatten(values))
        self._put(lambda client, run_id: _log_params(client, run_id, flat))

    def metrics(self, values: Mapping[str, float], seen: int) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            self._put(_Point(key, float(value), seen, now))

    def tag(self, key: str, value: str) -> None:
        """See `Tracker`."""
        self._put(lambda client, run_id: client.set_tag(run_id, key, value))

    def artifact(self, path: str, folder: str = "") -> None:
        """See `Tracker`."""
        if not self._thread.is_alive():
            return
        # The copy is the file of this moment, whatever the caller does to it before the thread gets there.
        copy = Path(tempfile.mkdtemp(dir=self._copies)) / Path(path).name
        shutil.copyfile(path, copy)
        self._put(lambda client, run_id: client.log_artifact(run_id, str(copy), folder or None))

    def close(self, status: str = "FINISHED") -> None:
        """See `Tracker`."""
        self._status = status
        self._queue.put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            log.warning("MLflow at %s did not take everything within %.0f s; the rest is lost", self._uri, PATIENCE_S)

    def _put(self, item: _Point | _Call) -> None:
        if self._thread.is_alive():  # or nobody would ever empty the queue
            self._queue.put(item)

    def _work(self) -> None:
        try:
            client, run_id = self._open()
            folder(self._out).write_text(RUN_ID, run_id + "\n")
            self._opened.set_result(run_id)
            self._deliver(client, run_id)
            if not (self._adds and run_id == self._earlier_id):
                client.set_terminated(run_id, self._status)
        # MLflow, SQLAlchemy and requests each have their own errors, and none of them may end a run.
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("MLflow at %s cannot be used, this run is not recorded there: %s", self._uri, first)
            if not self._opened.done():
                self._opened.set_exception(error)
        finally:
            shutil.rmtree(self._copies, ignore_errors=True)

    def _open(self) -> tuple[Any, str]:
        _prepare()
        from mlflow import MlflowClient  # here, in the thread: the import alone takes seconds

        with _alone(self._uri):
            client = MlflowClient(tracking_uri=self._uri)
            experiment_id = _experiment_id(client, self._experiment, self._uri)
            if self._earlier_id is not None and _reopened(client, self._earlier_id, self._adds):
                return client, self._earlier_id
            tags = {"mlflow.parentRunId": self._parent_run_id} if self._parent_run_id else {}
            return client, client.create_run(experiment_id, run_name=self._run_name, tags=tags).info.run_id

    def _deliver(self, client: Any, run_id: str) -> None:
        points: list[_Point] = []
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Point):
                points.append(item)
            else:
                item(client, run_id)
            if len(points) == _MOST_METRICS or self._queue.empty():
                _log_points(client, run_id, points)
                points = []
                time.sleep(0.2)  # lets a batch gather: ten requests a second serve nobody
        _log_points(client, run_id, points)


def _experiment_id(client: Any, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Beside the SQLite file; MLflow's own default is the current directory. A server decides for itself.
    database = _sqlite_file(uri)
    location = str(database.parent / "mlartifacts") if database else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process was faster
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _reopened(client: Any, run_id: str, adds: bool) -> bool:
    """Whether MLflow still has the run, which then counts as running again unless something is only added."""
    from mlflow.exceptions import MlflowException

    try:
        if adds:
            client.get_run(run_id)
        else:
            client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _log_points(client: Any, run_id: str, points: list[_Point]) -> None:
    from mlflow.entities import Metric

    if points:
        client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.time_ms, p.seen) for p in points])


def _log_params(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    # MLflow refuses to change a parameter; a resumed run repeats the ones it has, and may come with another `out`.
    known = client.get_run(run_id).data.params
    fresh = [Param(key, value[:_LONGEST_PARAM]) for key, value in values.items() if key not in known]
    for start in range(0, len(fresh), 100):
        client.log_batch(run_id, params=fresh[start : start + 100])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Two processes that make the tables of one new SQLite file at once both fail; so one after the other."""
    database = _sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare() -> None:
    """What MLflow reads at import: its defaults retry a dead server for minutes and tell of every table made."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
