"""What MLflow is asked for: to begin a record, to take an item, to register a model (door: mlflow).

Every function asks once and raises what MLflow, SQLAlchemy or requests do; the tracker tries again.
MLflow is imported where it is used: that takes seconds, and a tracker's thread has them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.mlflow_address import sqlite_file
from pipeline.record_items import Artifact, Dataset, End, Item, Model, Params, Point, Tag
from pipeline.storage import Folder

_LONGEST_PARAM = 6000  # characters: MLflow's limit
_LONGEST_DIGEST = 36  # characters: MLflow's limit


@dataclass(frozen=True)
class Begins:
    """How a record is begun; see `pipeline.mlflow_tracker.open_tracker`."""

    experiment: str
    run_name: str
    earlier_id: str | None
    parent_run_id: str | None
    adds: bool


def begin_record(uri: str, begins: Begins) -> tuple[Any, str]:
    """-> MLflow's client and the id of the run, the earlier one's if MLflow still has it."""
    _prepare()
    from mlflow import MlflowClient

    # It would print the traceback of every try on a database that is locked or away.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _alone(uri):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment_id(client, begins.experiment, uri)
        if begins.earlier_id is not None and _reopened(client, begins.earlier_id, begins.adds):
            return client, begins.earlier_id
        tags = {"mlflow.parentRunId": begins.parent_run_id} if begins.parent_run_id else {}
        return client, client.create_run(experiment_id, run_name=begins.run_name, tags=tags).info.run_id


def send(client: Any, run_id: str, batch: list[Item], uri: str, place: Folder) -> None:
    """One batch: points, or one item that is none. Sent twice it changes nothing more."""
    from mlflow.entities import Metric

    match batch[0]:
        case Point():
            # MLflow keeps one of two points that agree in key, step, time and value.
            points = [Metric(p.key, p.value, p.time_ms, p.seen) for p in batch if isinstance(p, Point)]
            client.log_batch(run_id, metrics=points)
        case Params(values):
            _log_params(client, run_id, values)
        case Tag(key, value):
            client.set_tag(run_id, key, value)
        case Artifact() as artifact:
            _log_artifact(client, run_id, artifact, place)
        case Model() as model:
            _register(client, run_id, model, uri)
        case Dataset() as dataset:
            _log_dataset(client, run_id, dataset)
        case End(status):
            client.set_terminated(run_id, status)


def _log_artifact(client: Any, run_id: str, artifact: Artifact, place: Folder) -> None:
    if artifact.copy is not None:
        client.log_artifact(run_id, artifact.copy, artifact.folder or None)
    elif place.exists(artifact.name):
        with tempfile.TemporaryDirectory() as local:
            copy = str(Path(local, artifact.name))
            place.download(artifact.name, copy)
            client.log_artifact(run_id, copy, artifact.folder or None)


def _log_dataset(client: Any, run_id: str, dataset: Dataset) -> None:
    from mlflow import entities

    known = entities.Dataset(
        name=dataset.name,
        digest=dataset.fingerprint[:_LONGEST_DIGEST],
        source_type="s3" if dataset.place.startswith("s3://") else "local",
        source=json.dumps({"uri": dataset.place}),
        # The form that MLflow's page can show.
        schema=json.dumps({"mlflow_colspec": [{"name": name, "type": of} for name, of in dataset.columns.items()]}),
        profile=json.dumps({"num_rows": dataset.pairs, "fingerprint": dataset.fingerprint}),
    )
    tags = [entities.InputTag("mlflow.data.context", dataset.context)]
    client.log_inputs(run_id, [entities.DatasetInput(known, tags)])


def _register(client: Any, run_id: str, model: Model, uri: str) -> None:
    """A version of the registered model, unless this run has already made one of this checkpoint."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name='{model.name}' and run_id='{run_id}'")
    if any(version.tags.get("checkpoint") == model.checkpoint for version in known):
        return
    source = model.checkpoint
    if "://" not in source and sqlite_file(uri) is None:
        # A server takes no path of another machine; so the small files, and the tag says where the weights are.
        for name, text in model.files.items():
            client.log_text(run_id, text, f"model/{name}")
        source = f"runs:/{run_id}/model"
    tags = {**model.tags, "checkpoint": model.checkpoint}
    client.create_model_version(model.name, source, run_id, tags, None, model.description, await_creation_for=None)


def recorded_checkpoint(uri: str, name: str) -> str:
    """Where the checkpoint lies that `runs:/RUN_ID`, `models:/NAME/VERSION`, `models:/NAME/latest` or
    `models:/NAME@ALIAS` means. KeyError with a line for people if MLflow knows none.
    """
    _prepare()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with _alone(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        kind, _, which = name.partition(":/")
        try:
            if kind == "runs":
                found = client.get_run(which).data.tags.get("checkpoint")
                if found is None:
                    raise KeyError(f"the run {which} has no tag 'checkpoint': it is no finished pretraining")
                return str(found)
            version = _version(client, which)
            return str(version.tags.get("checkpoint", version.source))
        except MlflowException as error:
            raise KeyError(str(error).splitlines()[0]) from None


def _version(client: Any, which: str) -> Any:
    model, _, alias = which.partition("@")
    if alias:
        return client.get_model_version_by_alias(model, alias)
    model, _, version = which.rpartition("/")
    if version != "latest":
        return client.get_model_version(model, version)
    versions = client.search_model_versions(f"name='{model}'")
    if not versions:
        raise KeyError(f"no model is registered as {model}")
    return max(versions, key=lambda one: int(one.version))


def is_away(error: Exception) -> bool:
    """Whether it is the server's absence or trouble that an error tells of, and not what it was asked."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    status: int | None = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        status = error.response.status_code
    if status is not None:
        return status >= 500 or status in (408, 429)
    away = requests.exceptions.RequestException, ConnectionError, TimeoutError, OperationalError
    return isinstance(error, away)


def _experiment_id(client: Any, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Beside the SQLite file; MLflow's own default is the current directory. A server decides for itself.
    database = sqlite_file(uri)
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


def _log_params(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    # MLflow refuses to change a parameter; a resumed run repeats the ones it has, and may come with another `out`.
    known = client.get_run(run_id).data.params
    fresh = [Param(key, value[:_LONGEST_PARAM]) for key, value in values.items() if key not in known]
    for start in range(0, len(fresh), 100):
        client.log_batch(run_id, params=fresh[start : start + 100])


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Two processes that make the tables of one new SQLite file at once both fail; so one after the other."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare() -> None:
    """What MLflow reads at import: its defaults wait minutes for a dead server and tell of every table made."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the tracker tries again, and can be hurried
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
