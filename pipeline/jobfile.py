"""A YAML file becomes one frozen, typed job, or an error in one line that names the key.

A job file is the whole truth about a run: no includes, no interpolation, no defaults in a second file. What the command
line changes is a dotted key (`model.width=128`), and what ran is the *resolved* job, which is hashed and stored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.job_mistakes import mistake


class InputError(ValueError):
    """Something given from outside cannot be used; its message is one line and the command ends with exit code 2."""


class EndedEarlyError(Exception):
    """A run ended before its end by no mistake in its input; its message is one line, the command's exit code is
    `exit_code`."""

    exit_code = 1


class JobError(InputError):
    """A job file says something that no job can mean."""


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number(value: object) -> object:
    # PyYAML follows YAML 1.1 and reads 5e-4 (no point) as text, which nobody means.
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


Number = Annotated[float, BeforeValidator(_number), AllowInfNan(False)]
"""A finite float that also accepts `5e-4`, which PyYAML reads as text."""


class Settings(BaseModel):
    """What every part of a job file is: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class RaySettings(Settings):
    """The Ray that a command starts inside its own process when no cluster is named by `RAY_ADDRESS`."""

    num_cpus: Annotated[int, Field(gt=0)] | None = None
    """CPUs that Ray counts with; null: as many as the machine has."""


class MlflowSettings(Settings):
    """Where the run is recorded. `MLFLOW_TRACKING_URI` in the environment wins over `tracking_uri`."""

    experiment: str = "hiclip"
    """Name of the MLflow experiment."""
    tracking_uri: str | None = None
    """Null: an SQLite file `mlflow.db` in the folder above `out`."""
    registered_model: bool | Annotated[str, Field(pattern=r"^[^/:'\"\s]+$")] = True
    """True: a run's final model is registered under the job's name; false: it is not; or the name for it."""

    @model_validator(mode="after")
    def _keeps_no_secret(self) -> MlflowSettings:
        # Of the whole section: a message about one key would repeat what came.
        if self.tracking_uri is not None and re.search(r"://[^/]*@", self.tracking_uri):
            raise ValueError(
                "tracking_uri: expected an address without user and password, because jobs are stored; "
                "give them by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all by MLFLOW_TRACKING_URI"
            )
        return self


class Job(Settings):
    """What every job has."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the run in MLflow and in Ray; letters, digits, `_`, `.`, `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The one seed from which every random choice of the job is derived."""
    out: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address that the job writes to."""
    ray: RaySettings = RaySettings()
    mlflow: MlflowSettings = MlflowSettings()


J = TypeVar("J", bound=Job)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without silent surprises: a key given twice is an error, not a quiet override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise JobError(f"line {key_node.start_mark.line + 1}: key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_job(path: str, overrides: Sequence[str], kind: type[J]) -> J:
    """Reads `path`, applies `key.path=value` overrides in order, and returns the checked job of type `kind`.

    Raises JobError in one line: which key, what was expected, what came, and the nearest key that exists.
    """
    content = _read_yaml(path)
    for override in overrides:
        _apply(content, override)
    return make_job(content, kind, where=path)


def make_job(content: Mapping[str, Any], kind: type[J], where: str) -> J:
    """The checked job of type `kind` from plain data; `where` stands at the start of every error."""
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise JobError(f"{where}: {mistake(error, kind, content)}") from None


def resolved(job: Job) -> dict[str, Any]:
    """The job as plain data with every default filled in."""
    return job.model_dump(mode="json")


def resolved_yaml(job: Job) -> str:
    """The job as the YAML text that repeats the run exactly."""
    return yaml.safe_dump(resolved(job), sort_keys=False, allow_unicode=True)


def job_fingerprint(job: Job, leave_out: Sequence[str] = ("name", "out", "ray", "mlflow")) -> str:
    """Hex sha256 of the job's canonical JSON without the top keys that cannot change a result."""
    content = {key: value for key, value in resolved(job).items() if key not in leave_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"{path}: expected a job file, found no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read as a job file: {error}") from None
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise JobError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise JobError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise JobError(f"'{override}': expected key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    here: Any = content
    for depth, parent in enumerate(parents):
        here = _step(here, parent, ".".join(parents[: depth + 1]), create=True)
    if isinstance(here, list):
        _step(here, last, key, create=False)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise JobError(f"'{override}': {'.'.join(parents)} is {here!r} and has no keys")


def _step(here: Any, key: str, path: str, create: bool) -> Any:
    if isinstance(here, list):
        if not key.isdigit() or int(key) >= len(here):
            raise JobError(f"'{path}': expected a number below {len(here)} after the list, came '{key}'")
        return here[int(key)]
    if not isinstance(here, dict):
        raise JobError(f"'{path}': {here!r} has no keys")
    if create and not isinstance(here.get(key), dict | list):
        here[key] = {}
    return here[key]
