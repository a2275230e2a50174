"""Several checkpoints in one evaluation: a job each, read together, and what all of them reached in one result.

Every checkpoint has a folder of its own below `out`, whole as if it had been asked alone, so that another evaluation of
more checkpoints in the same place takes what is there.
"""

from __future__ import annotations

import hashlib

from pydantic import Field, ValidationError

from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.outcome import RESULT, Outcome
from pipeline.jobfile import Settings
from pipeline.mlflow_address import file_above
from pipeline.storage import Folder, folder


class Outcomes(Settings):
    """One evaluation of several checkpoints: `result.json` in its `out`, written last."""

    name: str
    key: str
    """Fingerprint of all outcomes' keys and names."""
    outcomes: dict[str, Outcome]
    """By the name that the job gives a checkpoint; paths in it are relative to the folder of that name."""
    files: list[str] = Field(min_length=1)
    """What sets them side by side, relative to the result: a page, Markdown, CSV."""


def one_by_one(job: EvaluateJob) -> dict[str, EvaluateJob]:
    """The jobs of its checkpoints by name: each in a folder of its own, all recorded in the same MLflow."""
    assert not isinstance(job.checkpoint, str)
    tracking = {"tracking_uri": job.mlflow.tracking_uri or file_above(job.out)}
    return {
        name: job.model_copy(
            update={
                "name": f"{job.name}-{name}",
                "out": folder(job.out).join(name),
                "checkpoint": address,
                "mlflow": job.mlflow.model_copy(update=tracking),
            }
        )
        for name, address in job.checkpoint.items()
    }


def key_of(keys: dict[str, str]) -> str:
    """Hex sha256 of the checkpoints' names, in their order, and of the keys of what is asked of them."""
    return hashlib.sha256(repr(list(keys.items())).encode()).hexdigest()


def finished_outcomes(out: Folder, key: str) -> Outcomes | None:
    """What lies in `out`, if it is whole and of this key."""
    found = outcomes_in(out.read_text(RESULT)) if out.exists(RESULT) else None
    return found if found and found.key == key and all(out.exists(name) for name in found.files) else None


def outcomes_in(text: str) -> Outcomes | None:
    """What a result.json says, if it is that of several checkpoints."""
    try:
        return Outcomes.model_validate_json(text)
    except ValidationError:
        return None
