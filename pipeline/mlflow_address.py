"""Where a run is recorded, whether anyone answers there, and how it is said without its password."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.jobfile import JobError, MlflowSettings
from pipeline.storage import absolute, folder

ANSWERS_WITHIN_S = 5.0
"""Time in which a server that is there answers."""
_LONGEST_REASON = 200  # characters of an error that are repeated


def tracking_uri(settings: MlflowSettings, out: str) -> str:
    """`MLFLOW_TRACKING_URI`, else the job's, else an SQLite file in the folder above `out` (runs/ if out is remote)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri or file_above(out)


def file_above(out: str) -> str:
    """Address of the SQLite file in the folder above `out`."""
    place = absolute(out)
    above = absolute("runs") if "://" in place else str(Path(place).parent)
    return f"sqlite:///{above}/mlflow.db"


def without_secrets(text: str) -> str:
    """An address, or a message with addresses in it, without `user:password@`."""
    return re.sub(r"://[^/\s]*@", "://", text)


def check_reachable(settings: MlflowSettings, out: str) -> None:
    """JobError if no server answers within seconds, or no SQLite file can be there. For a command's start: it waits."""
    uri = tracking_uri(settings, out)
    given = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    if not given and folder(out).is_local:
        return  # beside `out`, which is checked as such
    database = sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        reason = _no_answer(uri)
    else:
        reason = None if database is None else _not_writable(database)
    if reason is not None:
        source = " (from MLFLOW_TRACKING_URI)" if os.environ.get("MLFLOW_TRACKING_URI") else ""
        raise JobError(f"mlflow.tracking_uri: {without_secrets(uri)}{source} cannot be reached: {reason}")


def _no_answer(uri: str) -> str | None:
    """Why no server answers there, None if one does. It asks as MLflow will: through proxies, with credentials."""
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWERS_WITHIN_S)
    except requests.exceptions.SSLError:
        return None  # a server answers, and MLflow has settings of its own for whom it trusts
    except requests.exceptions.RequestException as error:
        inner = getattr(error.args[0], "reason", error) if error.args else error
        return reason_of(inner).split("): ")[-1].removeprefix("Failed to establish a new connection: ")
    return f"it answers with status {answer.status_code}" if answer.status_code >= 500 else None


def _not_writable(file: Path) -> str | None:
    """Why an SQLite file cannot be there, None if it can."""
    there = next(place for place in (file, *file.absolute().parents) if place.exists())
    if there != file and not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK) else f"{there} cannot be written"


def reason_of(error: object) -> str:
    """The first line of an error, without secrets."""
    first = next(iter(without_secrets(str(error)).splitlines()), "") or type(error).__name__
    return first if len(first) <= _LONGEST_REASON else first[:_LONGEST_REASON] + "…"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other address."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None
