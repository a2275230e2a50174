"""Fits a scaling law to a ladder of short runs: `python -m hiclip.scale JOB.yaml [key.path=value ...] [--dry-run]`.

The rungs are trained and measured under Ray Tune, the law is fitted, a larger rung is predicted from it, and only then
run. The same command again goes on where it was stopped: no measured rung is run twice.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich.console import RenderableType

from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.model.sizes import resolve
from hiclip.pretrain import pretrain, stream_plan
from hiclip.scaling.findings import Findings
from hiclip.scaling.ladder import Rung, bill, read_ladder
from hiclip.scaling.law import Law, LawError, fit_law
from hiclip.scaling.rung_table import Failure, Row, store, store_failure
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.study_folder import (
    COMPUTE_UNIT,
    PLOT,
    REPORT,
    RESULT,
    TABLE,
    Study,
    finished,
    open_study,
    points,
    predict,
    write_findings,
    write_table,
)
from hiclip.scaling.study_view import StudyProgress, findings_table
from hiclip.training.pretrain_job import PretrainJob
from pipeline.command import console, run_command
from pipeline.jobfile import resolved
from pipeline.mlflow_address import check_reachable, tracking_uri, without_secrets
from pipeline.mlflow_tracker import deliver_rest, open_tracker, recorded_run_id
from pipeline.storage import folder
from pipeline.tracker import Tracker


def scale(job: ScaleJob) -> str:
    """Carries out the study, or what is left of it; returns the path of its result.json.

    Raises InputError before anything is started if the study cannot work, LawError if too few rungs could be measured.
    """
    ladder = read_ladder(job)
    job.error.set.load()  # or every rung would be trained before one finds that it cannot be asked
    if not folder(job.out).exists(RESULT):
        check_reachable(job.mlflow, job.out)
    study = open_study(job, ladder, stream_plan(ladder.rungs[0].job).fingerprint)
    earlier = finished(study)
    if earlier is not None:
        console.print(f"scale: {study.place.root} is finished\n{earlier['sentence']}")
        deliver_rest(job.mlflow, job.out, job.name, recorded_run_id(job.out))
        return study.place.join(RESULT)
    tracker = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out))
    try:
        findings = _carry_out(study, tracker)
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close()
    console.print(findings_table(findings))
    console.print(findings.sentence())
    return study.place.join(RESULT)


def measure_rung(study: Study, jobs: Mapping[str, PretrainJob], parent_run_id: str | None, rung: Rung) -> None:
    """Trains a rung, asks its last checkpoint, and stores the row. Runs in a trial, anywhere on the cluster.

    `jobs`: by rung, the jobs to run, see `_placed`.
    """
    began = time.monotonic()
    job, asked = jobs[rung.id], study.job.error
    run = pretrain(job, parent_run_id, here=job.engine.name == "plain")
    results = evaluate_checkpoint(run.checkpoint, [study.asked], metrics={asked.metric}, seed=study.job.seed)
    error, low, high = asked.of(results)
    if not math.isfinite(error):
        raise ArithmeticError(f"{asked.metric} on {asked.set.name} is {error}")
    size = resolve(job.model)
    row = Row(
        rung=rung.id,
        name=rung.name,
        group=rung.group,
        width=size.image.width,
        text_width=size.text.width,
        depth=size.image.depth,
        seen=run.seen,
        parameters=run.parameters,
        compute=run.train_flops,
        loss=run.loss,
        error=error,
        error_low=low,
        error_high=high,
        seconds=run.seconds,
        pairs_per_s=run.pairs_per_s,
        trial_s=time.monotonic() - began,
        checkpoint=run.checkpoint,
        question=study.question,
    )
    record = open_tracker(job.mlflow, job.out, job.name, run.mlflow_run_id)
    record.metrics({"error": error, "compute": run.train_flops}, run.seen)
    record.close()
    store(study.place, row)


def _placed(study: Study, rung: Rung) -> PretrainJob:
    """The rung's job with its place in the study. All paths are absolute: a trial runs in a directory of its own."""
    job = study.job
    uri = without_secrets(tracking_uri(job.mlflow, job.out))  # a rung's job is stored
    return rung.job.model_copy(
        update={
            "name": f"{job.name}-{rung.id}",
            "out": study.place.join(f"rungs/{rung.id}"),
            "ray": job.ray,
            "mlflow": job.mlflow.model_copy(update={"tracking_uri": uri, "registered_model": False}),
            "data": rung.job.data.model_copy(update={"dataset": rung.job.data.absolute_dataset}),
        }
    )


def _carry_out(study: Study, tracker: Tracker) -> Findings:
    from pipeline.ray_session import ray_session  # here, after the command has set what Ray reads at import

    began, job, ladder = time.monotonic(), study.job, study.ladder
    tracker.params(resolved(job))
    with contextlib.ExitStack() as stack:
        if study.missing(ladder.all):
            stack.enter_context(ray_session(job.ray))
        progress = stack.enter_context(StudyProgress(console, ladder, job.error.metric))
        failures = _measure(study, ladder.rungs, tracker, progress)
        law = _law(study, failures)
        held_out = predict(study, law)
        if held_out is not None and ladder.held_out is not None:
            said = held_out.predicted
            progress.say(f"{held_out.name}: predicted {said.value:.4g} ({said.low:.4g} to {said.high:.4g}, 95 %)")
            failures += _measure(study, [ladder.held_out], tracker, progress)
            held_out = replace(held_out, point=next(iter(points(study, [ladder.held_out])), None))
    findings = Findings(
        job.name, job.error.what, COMPUTE_UNIT, points(study, ladder.rungs), law, held_out, tuple(failures)
    )
    write_findings(study, findings, time.monotonic() - began)
    _record(tracker, study, findings)
    return findings


def _measure(study: Study, rungs: Sequence[Rung], tracker: Tracker, progress: StudyProgress) -> list[Failure]:
    """Measures those of the rungs that were not measured yet; returns those that failed."""
    for rung in rungs:
        row = study.row(rung)
        if row is not None:
            progress.ended(rung, row, earlier=True)
    missing = study.missing(rungs)
    if not missing:
        return []
    from hiclip.scaling.ray_sweep import measure_rungs

    failures: list[Failure] = []

    def on_end(rung: Rung, failure: Failure | None) -> None:
        found = failure or study.row(rung)
        assert found is not None, "a trial that ends well has stored its row"
        progress.ended(rung, found)
        if failure is not None:
            store_failure(study.place, failure)
            failures.append(failure)

    jobs = {rung.id: _placed(study, rung) for rung in missing}
    measure_rungs(missing, functools.partial(measure_rung, study, jobs, tracker.run_id), study.job.concurrent, on_end)
    return failures


def _law(study: Study, failures: Sequence[Failure]) -> Law:
    found = points(study, study.ladder.rungs)
    settings = study.job.bootstrap
    try:
        return fit_law(
            [p.compute for p in found], [p.error for p in found], study.job.form, settings.draws, settings.seed
        )
    except LawError as error:
        write_table(study, [row for rung in study.ladder.rungs if (row := study.row(rung)) is not None])
        reasons = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures)
        raise LawError(f"{error}{f' ({len(failures)} failed: {reasons})' if failures else ''}") from None


def _record(tracker: Tracker, study: Study, findings: Findings) -> None:
    law, held_out = findings.law, findings.held_out
    numbers = {"law_a": law.a.value, "law_b": law.b.value, "law_b_low": law.b.low, "law_b_high": law.b.high}
    numbers |= {"law_E": law.E.value, "leave_one_out": law.leave_one_out}
    if held_out is not None:
        numbers["held_out_predicted"] = held_out.predicted.value
        if held_out.point is not None:
            numbers["held_out_measured"] = held_out.point.error
    tracker.metrics(numbers, sum(rung.job.pairs for rung in study.ladder.all))
    tracker.tag("law", findings.sentence())
    with tempfile.TemporaryDirectory() as local:
        for name in (RESULT, TABLE, PLOT, REPORT):
            study.place.download(name, str(Path(local, name)))
            tracker.artifact(str(Path(local, name)))


def _plan(job: ScaleJob) -> RenderableType:
    return bill(job, read_ladder(job))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command."""
    run_command(ScaleJob, _plan, scale, argv)


if __name__ == "__main__":
    main()
