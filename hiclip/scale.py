"""Fits scaling laws to a ladder of short runs: `python -m hiclip.scale JOB.yaml [key.path=value ...] [--dry-run]`.

The rungs are trained and measured under Ray Tune, the laws are fitted, a larger rung is predicted from them, and only
then run. The same command again goes on where it was stopped: no measured rung is run twice. `--fit-only TABLE.csv`
fits the laws to a table that somebody else has measured, and trains nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from rich.console import RenderableType

from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.measure import asked_metrics
from hiclip.evaluation.run_sets import sample_checkpoint
from hiclip.model.sizes import resolve
from hiclip.pretrain import pretrain, stream_plan
from hiclip.scaling.analysis import Analysis, Laws, MethodFindings, analyse, compare
from hiclip.scaling.findings import Findings
from hiclip.scaling.fit_table import FIT_ONLY, fit_table
from hiclip.scaling.ladder import Ladder, Rung, candidates, read_ladder, searched_rungs
from hiclip.scaling.law import LawError
from hiclip.scaling.next_rung import Suggestion, most_informative
from hiclip.scaling.rung_table import Failure, Row, store, store_failure
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.search import finished_search, search
from hiclip.scaling.search_trials import SEARCHED, trial_name, variants
from hiclip.scaling.spending import Meter, Purse, spent
from hiclip.scaling.study_bill import bill, check_budget
from hiclip.scaling.study_folder import (
    COMPUTE_UNIT,
    RESULT,
    Study,
    begin_anew,
    concluded,
    dataset_key,
    finished,
    open_study,
    placed,
    predict,
    write_findings,
    write_table,
)
from hiclip.scaling.study_stop import StudyStoppedError, stop_is_asked, stopped_by_sigterm
from hiclip.scaling.study_view import StudyProgress, answers, findings_table
from hiclip.scaling.transfer import Best
from hiclip.scaling.trunk import run_folder, take_over
from hiclip.training.pretrain_job import PretrainJob
from pipeline.command import console, program, run_command, run_to_end
from pipeline.jobfile import JobError, resolved
from pipeline.manifest import MANIFEST, DatasetError
from pipeline.mlflow_address import check_reachable, tracking_uri, without_secrets
from pipeline.mlflow_tracker import deliver_rest, open_tracker, recorded_run_id
from pipeline.storage import folder
from pipeline.tracker import Tracker


def scale(job: ScaleJob) -> str:
    """Carries out the study, or what is left of it; returns the path of its result.json.

    Raises InputError before anything is started if the study cannot work, LawError if too few rungs could be measured.
    """
    ladder = read_ladder(job)
    searched = searched_rungs(job, ladder)
    budget = check_budget(job, ladder, searched)
    asked = _asked_set(job).fingerprint  # or every rung would be trained before one finds that it cannot be asked
    rungs = (*ladder.all, *searched)
    datasets = {dataset_key(rung): stream_plan(rung.job).fingerprint for rung in rungs}  # says what one lacks
    if not folder(job.out).exists(RESULT):
        check_reachable(job.mlflow, job.out)
    purse = Purse(budget, _planned(job, ladder, searched), job.concurrent)
    study = open_study(job, ladder, datasets, asked, purse)
    earlier = _finished(study, searched)
    if earlier is not None:
        console.print(f"scale: {study.place.root} is finished\n{earlier['sentence']}", markup=False)
        deliver_rest(job.mlflow, job.out, job.name, recorded_run_id(job.out))
        return study.place.join(RESULT)
    begin_anew(study.place)
    tracker = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out))
    try:
        findings = _carry_out(study, searched, tracker)
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, StudyStoppedError) else "FAILED")
        raise
    tracker.close()
    console.print(findings_table(findings))
    console.print(findings.sentence(), markup=False)
    for line in answers(findings):
        console.print(f"scale: {line}.", markup=False)
    return study.place.join(RESULT)


def _asked_set(job: ScaleJob) -> EvaluationSet:
    """The set that rungs are asked. DatasetError if it is not what it should be, JobError if it has no such metric."""
    content, metric = job.error.set.load(), job.error.metric
    known = asked_metrics(content)
    if metric not in known:
        raise JobError(f"error.metric: {content.name} has no {metric}; it has {', '.join(known)}")
    return content


def _planned(job: ScaleJob, ladder: Ladder, searched: Sequence[Rung]) -> dict[str, float]:
    """FLOPs of everything that the study means to train, by the name under which it is spent."""
    planned = {rung.id: ladder.own_compute(rung) for rung in ladder.all}
    if job.search is not None:
        trials = [trial for rung in searched for trial in variants(rung, job.search)]
        planned |= {trial_name(trial): trial.compute for trial in trials}
    return planned


def _finished(study: Study, searched: Sequence[Rung]) -> dict[str, Any] | None:
    """The result of this very study, if it is there."""
    settings, found = study.job.search, {}
    for rung in searched:
        assert settings is not None, "or nothing would be searched"
        known = finished_search(study, settings, rung)
        if known is None:
            return None
        found[rung.method] = known.best
    return finished(_with_found(study, found))


def _with_found(study: Study, found: Mapping[str, Best]) -> Study:
    """The study with the hyperparameters that were found."""
    if not found:
        return study
    ladder = read_ladder(study.job, found)
    planned = {name: flops for name, flops in study.purse.planned.items() if name.startswith(SEARCHED)}
    planned |= {rung.id: ladder.own_compute(rung) for rung in ladder.all}
    return replace(study, ladder=ladder, purse=replace(study.purse, planned=planned))


def measure_rung(study: Study, jobs: Mapping[str, PretrainJob], parent_run_id: str | None, rung: Rung) -> None:
    """Trains a rung, asks its last checkpoint, and stores the row. Runs in a trial, anywhere on the cluster.

    `jobs`: by rung, the jobs to run, see `_placed`.
    """
    began = time.monotonic()
    job, asked = jobs[rung.id], study.job.error
    meter = Meter(study.place, rung.id, job, study.purse)
    try:
        taken_over = take_over(study.place, study.ladder, rung, job)
        here = job.engine.name == "plain"
        run = pretrain(job, parent_run_id, here, on_row=meter.on_row, on_start=meter.on_start)
        meter.on_trained()
        if run.manifest_fingerprint != study.datasets[dataset_key(rung)]:
            raise DatasetError(f"{run.manifest_fingerprint[:12]}: the dataset changed while the study ran; start again")
        value, draws = sample_checkpoint(run.checkpoint, study.asked, asked.metric, study.job.seed)
    finally:
        meter.end()
    error, drawn = asked.of(value), asked.of(draws)
    if not math.isfinite(error):
        raise ArithmeticError(f"{asked.metric} on {asked.set.name} is {error}")
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    size = resolve(job.model)
    row = Row(
        rung=rung.id,
        name=rung.name,
        group=rung.group,
        method=rung.method,
        width=size.image.width,
        text_width=size.text.width,
        depth=size.image.depth,
        seen=run.seen,
        unique=sum(source.order.pairs for source in stream_plan(job).sources),
        parameters=run.parameters,
        learning_rate=job.optimizer.learning_rate,
        weight_decay=job.optimizer.weight_decay,
        compute=run.train_flops,
        taken_over=taken_over,
        loss=run.loss,
        error=error,
        error_low=float(low),
        error_high=float(high),
        seconds=run.seconds,
        pairs_per_s=run.pairs_per_s,
        trial_s=time.monotonic() - began,
        checkpoint=run.checkpoint,
        error_draws=tuple(float(f"{one:.7g}") if math.isfinite(one) else None for one in drawn),
        question=study.question(rung),
    )
    # A run that ended while MLflow was away does not know its record; its folder may.
    record = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out) or run.mlflow_run_id, parent_run_id)
    record.metrics({"error": error, "compute": run.train_flops}, run.seen)
    record.close()
    store(study.place, row)


def _placed(study: Study, rung: Rung) -> PretrainJob:
    """The rung's job with its place in the study. All paths are absolute: a trial runs in a directory of its own."""
    job = study.job
    uri = without_secrets(tracking_uri(job.mlflow, job.out))  # a rung's job is stored
    stays = tuple(sorted({*rung.job.checkpoints.at, *study.ladder.branches(rung)}))
    return rung.job.model_copy(
        update={
            "name": f"{job.name}-{rung.id}",
            "out": study.place.join(run_folder(rung)),
            "ray": job.ray,
            "mlflow": job.mlflow.model_copy(update={"tracking_uri": uri, "registered_model": False}),
            **placed(rung.job),
            "checkpoints": rung.job.checkpoints.model_copy(update={"at": stays}),
        }
    )


def _carry_out(study: Study, searched: Sequence[Rung], tracker: Tracker) -> Findings:
    from pipeline.ray_session import ray_session  # here, after the command has set what Ray reads at import

    began, job = time.monotonic(), study.job
    tracker.params(resolved(job))
    found = {
        rung.method: search(study, job.search, rung, tracker.run_id, _say)
        for rung in searched
        if job.search is not None
    }
    study = _with_found(study, {method: one.best for method, one in found.items()})
    ladder = study.ladder
    with contextlib.ExitStack() as stack:
        if study.missing(ladder.all):
            stack.enter_context(ray_session(job.ray))
        progress = stack.enter_context(StudyProgress(console, ladder, job.error.metric))
        failures: list[Failure] = []
        for wave in ladder.waves:
            failures += _measure(study, wave, tracker, progress)
        laws = _analysed(study, failures)
        # Of the method that others are compared with; another's law would say nothing of its held-out rung.
        first = next((found for found in laws.found if found.method == ladder.methods[0]), None)
        held_out = None if first is None else predict(study, first)
        if held_out is not None and ladder.held_out is not None:
            said = held_out.predicted
            progress.say(f"{held_out.name}: predicted {said.value:.4g} ({said.low:.4g} to {said.high:.4g}, 95 %)")
            failures += _measure(study, [ladder.held_out], tracker, progress)
            held_out = replace(held_out, point=next(iter(study.points([ladder.held_out])), None))
    findings = Findings(
        job.name,
        job.error.what,
        COMPUTE_UNIT,
        laws.found,
        held_out,
        tuple(failures),
        compare(laws.found),
        None if first is None else _suggested(study, first),
        found,
        laws.refused,
        ladder.held_out.full_name if first is None and ladder.held_out is not None else "",
    )
    write_findings(study, findings, time.monotonic() - began)
    _record(tracker, study, findings)
    return findings


def _say(line: str) -> None:
    console.print(f"scale: {line}", markup=False)


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
        if failure is not None and stop_is_asked(study.place):
            return  # it did not fail, and is gone on with
        found = failure or study.row(rung)
        assert found is not None, "a trial that ends well has stored its row"
        if failure is not None:
            store_failure(study.place, failure)
            failures.append(failure)
        progress.ended(rung, found)

    jobs = {rung.id: _placed(study, rung) for rung in missing}
    measure = functools.partial(measure_rung, study, jobs, tracker.run_id)
    with stopped_by_sigterm(study.place):
        measure_rungs(missing, measure, study.job.concurrent, study.job.retries, on_end)
    return failures


def _analysed(study: Study, failures: Sequence[Failure]) -> Laws:
    job, settings = study.job, study.job.bootstrap
    how = Analysis(job.form, job.selection, job.bins, settings.draws, settings.seed, job.budgets)
    try:
        return analyse(study.points(study.ladder.rungs), how, study.ladder.methods)
    except LawError as error:
        write_table(study, [row for rung in study.ladder.rungs if (row := study.row(rung)) is not None])
        reasons = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures)
        raise LawError(f"{error}{f' ({len(failures)} failed: {reasons})' if failures else ''}") from None


def _suggested(study: Study, found: MethodFindings) -> Suggestion:
    """The rung to run next: within what is left of the budget, or without one for as much as the study took."""
    law, groups = found.law, {point.group for point in found.stands_on}
    ladder, budget = study.ladder, study.purse.budget.flops
    left = ladder.compute if budget is None else budget - sum(one.flops for one in spent(study.place).values())
    target = ladder.held_out.compute if ladder.held_out is not None else 10 * max(law.computes)
    return most_informative(law, candidates(ladder, groups), target, left)


def _record(tracker: Tracker, study: Study, findings: Findings) -> None:
    law, held_out = findings.law, findings.held_out
    numbers = {"law_a": law.a.value, "law_b": law.b.value, "law_b_low": law.b.low, "law_b_high": law.b.high}
    numbers |= {"law_E": law.E.value, "leave_one_out": law.leave_one_out}
    for found in findings.methods[1:]:
        numbers[f"law_b_{found.method}"] = found.law.b.value
    for ratio in findings.ratios:
        if math.isfinite(ratio.ratio.value):
            numbers[f"compute_ratio_{ratio.method}_over_{ratio.other}"] = ratio.ratio.value  # the last: at the end
    if held_out is not None:
        numbers["held_out_predicted"] = held_out.predicted.value
        if held_out.point is not None:
            numbers["held_out_measured"] = held_out.point.error
    tracker.metrics(numbers, sum(rung.job.pairs for rung in study.ladder.all))
    tracker.tag("law", findings.sentence())
    with tempfile.TemporaryDirectory() as local:
        for name in concluded(study.place):
            here = Path(local, name)
            here.parent.mkdir(parents=True, exist_ok=True)
            study.place.download(name, str(here))
            tracker.artifact(str(here), str(PurePosixPath(name).parent).removeprefix("."))


def _plan(job: ScaleJob) -> RenderableType:
    ladder = read_ladder(job)
    searched = searched_rungs(job, ladder)
    check_budget(job, ladder, searched)
    for rung in ladder.all:
        if all(folder(dataset.path).exists(MANIFEST) for dataset in rung.job.data.datasets):
            stream_plan(rung.job)  # says what a dataset lacks
    return bill(job, ladder, searched)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command."""
    words = sys.argv[1:] if argv is None else list(argv)
    if FIT_ONLY in words:
        run_to_end(program() or "hiclip.scale", lambda: fit_table(words, program(), console))
    run_command(
        ScaleJob, _plan, scale, argv, epilog=f"{FIT_ONLY} TABLE.csv fits a measured table; see --fit-only --help"
    )


if __name__ == "__main__":
    main()
