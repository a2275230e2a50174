"""The folder of a study: which rungs it has measured, what it predicted and when, and its result.

job.yaml            the resolved job
rungs/ID.json       a measured rung; rungs/ID/ is its pretraining run, rungs/ID.failure.txt why it was not measured
prediction.json     what the law says of the held-out rung, written before that rung is run
rungs.csv, .parquet the table; law.png, report.html
result.json         all numbers, written last
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiclip.evaluation.sets import SetSettings
from hiclip.scaling.findings import Findings, HeldOut, Point, held_out_numbers, law_numbers, point_of
from hiclip.scaling.ladder import Ladder, Rung
from hiclip.scaling.law import Interval, Law
from hiclip.scaling.law_plot import law_png
from hiclip.scaling.rung_table import Row, digest, question, stored, to_csv, to_parquet
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.study_page import study_page
from pipeline.jobfile import job_fingerprint, resolved_yaml
from pipeline.storage import Folder, absolute

RESULT, PREDICTION, TABLE, PLOT, REPORT = "result.json", "prediction.json", "rungs.csv", "law.png", "report.html"
COMPUTE_UNIT = "FLOPs"


@dataclass(frozen=True)
class Study:
    """A study and its place."""

    job: ScaleJob
    ladder: Ladder
    place: Folder
    manifest_fingerprint: str
    asked: SetSettings
    """The job's evaluation set, its path absolute."""

    @property
    def question(self) -> str:
        """See `rung_table.question`."""
        return question(self.manifest_fingerprint, self.job.error)

    @property
    def key(self) -> str:
        """Hex sha256 of everything that the study's numbers depend on."""
        return digest(job_fingerprint(self.job), [rung.id for rung in self.ladder.all], self.question)

    def row(self, rung: Rung) -> Row | None:
        """What was measured of a rung, if it was."""
        return stored(self.place, rung, self.question)

    def missing(self, rungs: Sequence[Rung]) -> list[Rung]:
        """Those of the rungs that were not measured yet."""
        return [rung for rung in rungs if self.row(rung) is None]


def open_study(job: ScaleJob, ladder: Ladder, manifest_fingerprint: str) -> Study:
    """Makes the study's folder and notes the job there."""
    place = Folder(absolute(job.out)).make()
    place.write_text("job.yaml", resolved_yaml(job))
    asked = job.error.set.model_copy(update={"root": absolute(job.error.set.root)})
    return Study(job, ladder, place, manifest_fingerprint, asked)


def finished(study: Study) -> dict[str, Any] | None:
    """The result of this very study if it is there and lacks no rung; a missing rung is worth another try."""
    if not study.place.exists(RESULT):
        return None
    result: dict[str, Any] = json.loads(study.place.read_text(RESULT))
    complete = result["study"] == study.key and not result["missing"] and not study.missing(study.ladder.all)
    return result if complete else None


def predict(study: Study, law: Law) -> HeldOut | None:
    """Writes down what the law says of the held-out rung; `before` tells whether that rung was still to be run.

    A prediction that an earlier start of the same study made from the same rungs stands as it is.
    """
    rung = study.ladder.held_out
    if rung is None:
        return None
    basis = digest(study.key, list(law.computes), list(law.errors))
    if study.place.exists(PREDICTION):
        earlier = json.loads(study.place.read_text(PREDICTION))
        if earlier["basis"] == basis:
            said = Interval(earlier["predicted"], earlier["low"], earlier["high"])
            return HeldOut(rung.name, rung.compute, said, earlier["before"], None)
    held_out = HeldOut(rung.name, rung.compute, law.prediction(rung.compute), study.row(rung) is None, None)
    predicted = {key: value for key, value in held_out_numbers(held_out).items() if key not in ("measured", "covered")}
    content = predicted | {"rung": rung.id, "basis": basis, "law": law_numbers(law)}
    study.place.write_text(PREDICTION, json.dumps(content, indent=1) + "\n")
    return held_out


def write_findings(study: Study, findings: Findings, seconds: float) -> str:
    """Writes table, plot, page and, last, result.json; returns the path of that."""
    place = study.place
    rows = [row for rung in study.ladder.all if (row := study.row(rung)) is not None]
    write_table(study, rows)
    plot = law_png(findings)
    place.write_bytes(PLOT, plot)
    place.write_text(REPORT, study_page(findings, plot))
    result = findings.numbers() | {
        "study": study.key,
        "name": study.job.name,
        "sentence": findings.sentence(),
        "error": study.job.error.model_dump(mode="json") | {"unit": study.job.error.unit},
        "compute_unit": COMPUTE_UNIT,
        "rungs": [row.model_dump() for row in rows if row.rung in {rung.id for rung in study.ladder.rungs}],
        "missing": [failure.model_dump(exclude={"trace"}) for failure in findings.failures],
        "plot": place.join(PLOT),
        "report": place.join(REPORT),
        "table": place.join(TABLE),
        "seconds": seconds,
    }
    place.write_text(RESULT, json.dumps(result, indent=1) + "\n")
    return place.join(RESULT)


def write_table(study: Study, rows: Sequence[Row]) -> None:
    """Writes the measured rungs as rungs.csv and rungs.parquet."""
    study.place.write_text(TABLE, to_csv(rows))
    study.place.write_bytes("rungs.parquet", to_parquet(rows))


def points(study: Study, rungs: Sequence[Rung]) -> tuple[Point, ...]:
    """The measured ones of the rungs, as the law sees them."""
    return tuple(point_of(row) for rung in rungs if (row := study.row(rung)) is not None)
