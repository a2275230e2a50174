"""A build is a run in MLflow: its job, its funnel, its seconds, and the dataset with its fingerprint."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.build_job import BuildJob
from pipeline.jobfile import resolved
from pipeline.manifest import Manifest
from pipeline.mlflow_tracker import deliver_rest, open_tracker, recorded_run_id
from pipeline.storage import Folder
from pipeline.tracker import Tracker

PATIENCE_S = 30.0
"""How long a build that is whole waits for an MLflow that is away; the rest is sent when the job is run again."""
_NOT_OF_A_NAME = re.compile(r"[^\w.:/ -]", re.ASCII)


@contextlib.contextmanager
def build_record(job: BuildJob) -> Iterator[Tracker]:
    """The record of a build that begins, or goes on; it ends as FAILED or KILLED where the build does not end well.

    MLflow takes seconds to import: its thread does so while the build is at work.
    """
    tracker = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out), patience_s=PATIENCE_S)
    try:
        tracker.params(_plain_names(resolved(job)))
        tracker.tag("job_fingerprint", job.fingerprint())
        yield tracker
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close()


def record_dataset(
    tracker: Tracker, manifest: Manifest, result: dict[str, Any], target: Folder, files: tuple[str, ...]
) -> None:
    """Notes what was built: numbers of `result`, the dataset, and copies of small `files` of the build's folder."""
    tracker.metrics(dict(_numbers(manifest, result)), manifest.pairs)
    tracker.tag("manifest_fingerprint", manifest.fingerprint)
    tracker.dataset(manifest.name, manifest.fingerprint, target.root, manifest.columns, manifest.pairs, "built")
    for name in files:
        with tempfile.TemporaryDirectory() as local:
            copy = Path(local, name)
            target.download(name, str(copy))
            tracker.artifact(str(copy))


def _plain_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with `_` for letters that MLflow takes in no name: a host's wildcards, a source's accents."""
    return {
        _NOT_OF_A_NAME.sub("_", key): _plain_names(value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def record_rest(job: BuildJob) -> None:
    """Sends what MLflow did not take when the job's dataset was built."""
    deliver_rest(job.mlflow, job.out, job.name, recorded_run_id(job.out), patience_s=PATIENCE_S)


def _numbers(manifest: Manifest, result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("listed", "kept", "seconds", "pairs_per_s", "bytes", "shards"):
        yield name, result[name]
    for step, seconds in result["seconds_by_step"].items():
        yield f"seconds.{step}", seconds
    for one in manifest.funnel:
        yield f"came_out.{one['step']}", one["came_out"]
        for reason, count in one["refused"].items():
            yield f"refused.{one['step']}.{reason}", count
