"""What an evaluation leaves behind: `result.json`, written last, with every number and where to look."""

from __future__ import annotations

from pydantic import Field, ValidationError

from hiclip.evaluation.columns import WrittenColumns
from hiclip.evaluation.measure import SubgroupResult
from hiclip.evaluation.result import Result
from pipeline.jobfile import Settings
from pipeline.storage import Folder

RESULT = "result.json"


class Outcome(Settings):
    """One evaluation of one checkpoint."""

    name: str
    key: str
    """Fingerprint of everything that the numbers and pictures depend on; the same one means: computed already."""
    checkpoint: str
    weights: str
    """Hex sha256 of the file of the weights."""
    step: int | None
    """Steps of its training; this and the next two are null for published weights, of which nothing is known."""
    seen: int | None
    """Pairs that the checkpoint had consumed."""
    parameters: int
    train_flops: float | None
    """Floating-point operations of the training up to here."""
    dataset: str | None
    """Fingerprint of the training data that baselines and drawings looked at."""
    sets: dict[str, str]
    """Name of each set and its fingerprint."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Sets that the job names and that are not there: name -> what was looked for."""
    broken: dict[str, int] = Field(default_factory=dict)
    """Sets some of whose pictures could not be read or decoded, and how many: they count as wrong."""
    results: list[Result]
    subgroups: dict[str, list[SubgroupResult]]
    """Subgroup by subgroup, for each set."""
    pictures: list[str]
    """Drawings of hierarchies, relative to the result; beside each one lies a JSON file of the same name."""
    tree: str = ""
    """The first caption's induced tree, in characters."""
    columns: WrittenColumns | None = None
    """What was written about a dataset, if the job asked for that."""
    report: str
    """The page, relative to the result."""
    mlflow_run_id: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time of each part."""


def finished_outcome(out: Folder, key: str) -> Outcome | None:
    """The outcome that lies in `out`, if it is whole and of this key."""
    if not out.exists(RESULT):
        return None
    try:
        outcome = Outcome.model_validate_json(out.read_text(RESULT))
    except ValidationError:
        return None
    whole = outcome.key == key and all(out.exists(name) for name in (*outcome.pictures, outcome.report))
    return outcome if whole else None
