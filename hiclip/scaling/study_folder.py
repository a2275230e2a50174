"""The folder of a study: which rungs it has measured, what it predicted and when, and its result.

job.yaml            the resolved job
search/             what the search for hyperparameters has tried, and search.json what it found
rungs/ID.json       a measured rung; rungs/ID/ is its pretraining run, rungs/ID.failure.txt why it was not measured
spent/ID.json       what a trial has spent, over all its attempts
prediction.json     what the law says of the held-out rung, written before that rung is run
rungs.csv, .parquet the table; the pictures, report.html
result.json         all numbers, written last
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hiclip.evaluation.sets import SetSettings
from hiclip.scaling.analysis import MethodFindings
from hiclip.scaling.findings import Findings, HeldOut, held_out_numbers, law_numbers
from hiclip.scaling.ladder import Ladder, Rung
from hiclip.scaling.law import Interval
from hiclip.scaling.points import Point, point_of
from hiclip.scaling.rung_table import Row, digest, plain, question, stored, to_csv, to_parquet
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.search_trials import PICTURE, SEARCH
from hiclip.scaling.spending import Purse
from hiclip.scaling.study_page import study_page
from hiclip.scaling.study_pictures import pictures
from hiclip.training.cost import parameters
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import JobError, job_fingerprint, resolved_yaml
from pipeline.manifest import MANIFEST
from pipeline.storage import Folder, absolute

RESULT, PREDICTION, TABLE, REPORT = "result.json", "prediction.json", "rungs.csv", "report.html"
COMPUTE_UNIT = "FLOPs"
_DRAWN = re.compile(r"(law|residuals|compute_ratio|iso_flops(_[^/]+)?)\.png")
_SEARCHED = re.compile(rf"(methods/[^/]+/)?({re.escape(SEARCH)}|{re.escape(PICTURE)})")

_NOT_THE_RESULT = (
    "name",
    "out",
    "ray",
    "mlflow",
    "concurrent",
    "retries",
    "budget_flops",
    "budget_hours",
    "budget_money",
)
"""Keys that change no number of a study that goes well."""


@dataclass(frozen=True)
class Study:
    """A study and its place."""

    job: ScaleJob
    ladder: Ladder
    place: Folder
    datasets: Mapping[str, str]
    """Fingerprint of what a rung is trained on, by `dataset_key`."""
    set_fingerprint: str
    """Of the evaluation set's questions."""
    asked: SetSettings
    """The job's evaluation set, its path absolute."""
    purse: Purse

    def question(self, rung: Rung) -> str:
        """See `rung_table.question`."""
        error = self.job.error
        return question(self.datasets[dataset_key(rung)], self.set_fingerprint, error.metric, self.job.seed)

    @property
    def key(self) -> str:
        """Hex sha256 of everything that the study's numbers depend on."""
        own = job_fingerprint(self.job, leave_out=_NOT_THE_RESULT)
        return digest(own, [(rung.id, self.question(rung)) for rung in self.ladder.all])

    def row(self, rung: Rung) -> Row | None:
        """What was measured of a rung, if it was; called as this study calls it, whichever job measured it."""
        row = stored(self.place, rung, self.question(rung))
        called = {"name": rung.name, "group": rung.group, "method": rung.method}
        return None if row is None else row.model_copy(update=called)

    def missing(self, rungs: Sequence[Rung]) -> list[Rung]:
        """Those of the rungs that were not measured yet."""
        return [rung for rung in rungs if self.row(rung) is None]

    def points(self, rungs: Sequence[Rung]) -> tuple[Point, ...]:
        """The measured ones of the rungs, as the laws see them."""
        return tuple(point_of(row) for rung in rungs if (row := self.row(rung)) is not None)


def dataset_key(rung: Rung) -> str:
    """What tells the data of two rungs apart."""
    return digest(rung.job.data.model_dump(mode="json"))


def open_study(job: ScaleJob, ladder: Ladder, datasets: Mapping[str, str], set_fingerprint: str, purse: Purse) -> Study:
    """Makes the study's folder and notes the job there. JobError if something else than a study lies there."""
    place = Folder(absolute(job.out)).make()
    _check_is_a_study(place)
    place.write_text("job.yaml", resolved_yaml(job))
    asked = job.error.set.model_copy(update={"root": absolute(job.error.set.root)})
    return Study(job, ladder, place, datasets, set_fingerprint, asked, purse)


def placed(job: PretrainJob) -> dict[str, object]:
    """What of a rung's job holds paths, all absolute: a trial runs in a directory of its own."""
    parts: dict[str, object] = {"data": job.data.placed()}
    if job.evaluation is not None:
        sets = tuple(one.model_copy(update={"root": absolute(one.root)}) for one in job.evaluation.sets)
        parts["evaluation"] = job.evaluation.model_copy(update={"sets": sets})
    return parts


def _check_is_a_study(place: Folder) -> None:
    others = [name for name in (MANIFEST, REPORT, TABLE) if place.exists(name) and not place.exists("job.yaml")]
    if place.exists("job.yaml") and "ladder" not in _mapping(place, "job.yaml", yaml.safe_load):
        others.append("job.yaml")
    if place.exists(RESULT) and "study" not in _mapping(place, RESULT, json.loads):
        others.append(RESULT)
    if others:
        raise JobError(f"out: {place.root} holds something else than a study ({others[0]}); choose another out")


def _mapping(place: Folder, name: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """What a file says; nothing if it is torn, or says something else."""
    try:
        content = read(place.read_text(name))
    except (ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def begin_anew(place: Folder) -> None:
    """Removes what an earlier job, or an earlier state of this one, has concluded here, and nothing else."""
    for name in (RESULT, REPORT, *(name for name in place.names(suffix=".png") if _DRAWN.fullmatch(name))):
        place.remove(name)


def concluded(place: Folder) -> list[str]:
    """The files in which a study says what it has found, without its runs and whatever else may lie there."""
    own = {RESULT, REPORT, PREDICTION, TABLE, "rungs.parquet", "job.yaml"}
    return [name for name in place.names() if name in own or _DRAWN.fullmatch(name) or _SEARCHED.fullmatch(name)]


def finished(study: Study) -> dict[str, Any] | None:
    """The result of this very study if it is there and lacks no rung; a missing rung is worth another try."""
    if not study.place.exists(RESULT):
        return None
    result: dict[str, Any] = json.loads(study.place.read_text(RESULT))
    complete = result.get("study") == study.key and not result["missing"] and not study.missing(study.ladder.all)
    return result if complete else None


def predict(study: Study, found: MethodFindings) -> HeldOut | None:
    """Writes down what the first method's laws say of the held-out rung; `before`: whether that was still to be run.

    A prediction that an earlier start of the same study made from the same rungs stands as it is.
    """
    rung = study.ladder.held_out
    if rung is None:
        return None
    law = found.law
    basis = digest(study.key, [[point.name, point.compute, point.error] for point in found.points])
    if study.place.exists(PREDICTION):
        earlier = json.loads(study.place.read_text(PREDICTION))
        if earlier["basis"] == basis:
            said = Interval(earlier["predicted"], earlier["low"], earlier["high"])
            by_size = None if earlier["by_size"] is None else Interval(**earlier["by_size"])
            return HeldOut(rung.full_name, rung.compute, said, earlier["before"], None, by_size)
    predicted_by_size = None
    if found.size_law is not None:
        job = rung.job
        unique = job.data.unique_pairs or max(point.unique or 0 for point in found.points)
        predicted_by_size = found.size_law.prediction(parameters(job.model), job.pairs, unique or None)
    before = study.row(rung) is None
    held_out = HeldOut(rung.full_name, rung.compute, law.prediction(rung.compute), before, None, predicted_by_size)
    predicted = {key: value for key, value in held_out_numbers(held_out).items() if key not in ("measured", "covered")}
    content = predicted | {"rung": rung.id, "basis": basis, "law": law_numbers(law)}
    study.place.write_text(PREDICTION, json.dumps(content, indent=1) + "\n")
    return held_out


def write_findings(study: Study, findings: Findings, seconds: float) -> str:
    """Writes table, pictures, page and, last, result.json; returns the path of that."""
    rows = [row for rung in study.ladder.all if (row := study.row(rung)) is not None]
    fitted = {rung.id for rung in study.ladder.rungs}
    write_table(study, rows)
    return write_result(
        study.place,
        findings,
        {
            "study": study.key,
            "name": study.job.name,
            "error": study.job.error.model_dump(mode="json") | {"unit": study.job.error.unit},
            "rungs": [plain(row) for row in rows if row.rung in fitted],
            "table": study.place.join(TABLE),
            "seconds": seconds,
        },
    )


def write_result(place: Folder, findings: Findings, also: dict[str, Any]) -> str:
    """Writes pictures, page and, last, result.json, which has the findings' numbers and `also`; returns its path.

    All is drawn before the folder is touched.
    """
    drawn = pictures(findings)
    page = study_page(findings, drawn)
    begin_anew(place.make())
    for name, png in drawn.items():
        place.write_bytes(name, png)
    place.write_text(REPORT, page)
    result = findings.numbers() | also | {"pictures": {name: place.join(name) for name in drawn}}
    written = json.dumps(_known(result | {"report": place.join(REPORT)}), indent=1, allow_nan=False)
    place.write_text(RESULT, written + "\n")
    return place.join(RESULT)


def _known(content: Any) -> Any:
    """The same with null for numbers that are none, or infinite: JSON has no others."""
    if isinstance(content, Mapping):
        return {key: _known(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_known(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_table(study: Study, rows: Sequence[Row]) -> None:
    """Writes the measured rungs as rungs.csv and rungs.parquet."""
    held_out = None if study.ladder.held_out is None else study.ladder.held_out.id
    study.place.write_text(TABLE, to_csv(rows, held_out))
    study.place.write_bytes("rungs.parquet", to_parquet(rows, held_out))
