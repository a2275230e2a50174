"""Searches the learning rate and weight decay of one rung of a study, in short runs of it under Ray Tune.

A search that was killed goes on where it was: finished trials are read from the study's folder and tell ASHA again what
they had told it, broken off ones go on from their checkpoints. Which trials ASHA stops depends on the order in which
they come to a comparison; what is stored of a trial does not, and a choice that was made stands.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hiclip.evaluation.run_sets import sample_checkpoint
from hiclip.model.sizes import resolve
from hiclip.pretrain import pretrain
from hiclip.scaling.ladder import Rung
from hiclip.scaling.loss_curve import Curve, LossCurve, comparisons
from hiclip.scaling.rung_table import Failure, digest
from hiclip.scaling.search_plot import search_png
from hiclip.scaling.search_settings import SearchSettings
from hiclip.scaling.search_trials import (
    PICTURE,
    SEARCH,
    Search,
    Tried,
    best_of,
    finished,
    store,
    stored,
    trial_name,
    variants,
)
from hiclip.scaling.spending import Meter
from hiclip.scaling.study_folder import Study, placed
from hiclip.scaling.study_stop import stop_is_asked, stopped_by_sigterm
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import DivergedError
from hiclip.training.run_folder import PretrainResult
from pipeline.mlflow_address import tracking_uri, without_secrets
from pipeline.mlflow_tracker import open_tracker, recorded_run_id
from pipeline.storage import Folder


def search(
    study: Study, settings: SearchSettings, rung: Rung, parent_run_id: str | None, say: Callable[[str], None]
) -> Search:
    """Carries out the search of `rung`, or what is left of it; `say` hears a line of each trial that ended.

    Raises SearchFailedError if no trial reached the end of its run.
    """
    plan = _planned(study, settings, rung, parent_run_id)
    place, trials, points = plan.place, plan.trials, plan.points
    earlier = finished(place, plan.key)
    if earlier is not None:
        say(f"search: {place.join(SEARCH)} is finished: {_chosen(earlier)}")
        return earlier
    failed = _try_missing(plan, say)
    tried = [stored(place, trial, plan.asked) or failed[trial.id] for trial in trials]
    best = best_of(tried, settings.judged_by.at_end)
    found = Search(
        search=plan.key,
        rung=rung.name,
        width=resolve(rung.job.model).image.width,
        unit=study.job.error.what,
        judged_by=settings.judged_by.at_end,
        comparisons=points,
        chosen=best.trial,
        learning_rate=best.learning_rate,
        weight_decay=best.weight_decay if settings.weight_decay is not None else None,
        compute=sum(trial.compute for trial in tried),
        trials=tuple(tried),
    )
    place.write_bytes(PICTURE, search_png(found))
    place.write_text(SEARCH, found.model_dump_json(indent=1) + "\n")
    say(f"search: {_chosen(found)}")
    return found


def finished_search(study: Study, settings: SearchSettings, rung: Rung) -> Search | None:
    """What this very search has found, if it is finished."""
    plan = _planned(study, settings, rung, None)
    return finished(plan.place, plan.key)


def _planned(study: Study, settings: SearchSettings, rung: Rung, parent_run_id: str | None) -> _Plan:
    points = comparisons(rung.job.pairs, rung.job.data.batch, settings.grace_share, settings.reduction_factor)
    how = settings.model_dump(mode="json", include={"judged_by", "scheduler", "reduction_factor"})
    place = study.place.child(f"methods/{rung.method}") if rung.method else study.place
    return _Plan(
        study,
        place,
        settings,
        variants(rung, settings),
        points,
        digest(study.question(rung), how, points),
        parent_run_id,
    )


@dataclass(frozen=True)
class _Plan:
    """What every trial of a search is told."""

    study: Study
    place: Folder
    """Where the search lives: the study's folder, or one of the method's in it."""
    settings: SearchSettings
    trials: tuple[Rung, ...]
    points: tuple[float, ...]
    """Pairs seen at which trials are compared."""
    asked: str
    """See `Tried.question`."""
    parent_run_id: str | None

    @property
    def key(self) -> str:
        """Of everything that the choice depends on."""
        return digest(self.asked, [trial.id for trial in self.trials])

    def known(self, trial: Rung) -> Tried | None:
        """What became of a trial, if it came to an end."""
        return stored(self.place, trial, self.asked)

    def job(self, trial: Rung) -> PretrainJob:
        """The trial's job with its place in the study. All paths are absolute: it runs in a directory of its own."""
        job = self.study.job
        uri = without_secrets(tracking_uri(job.mlflow, job.out))  # a trial's job is stored
        return trial.job.model_copy(
            update={
                "name": f"{job.name}-search-{trial.id}",
                "out": self.place.join(f"search/{trial.id}"),
                "ray": job.ray,
                "mlflow": job.mlflow.model_copy(update={"tracking_uri": uri, "registered_model": False}),
                **placed(trial.job),
            }
        )

    def tried(self, trial: Rung, end: str, curve: Curve, seen: int, loss: float | None, **more: object) -> Tried:
        """What is stored of a trial."""
        optimizer = trial.job.optimizer
        return Tried.model_validate(
            {
                "trial": trial.id,
                "name": trial.name,
                "learning_rate": optimizer.learning_rate,
                "weight_decay": optimizer.weight_decay,
                "end": end,
                "seen": seen,
                "compute": training_flops(trial.job, seen),
                "curve": curve,
                "loss": loss,
                "question": self.asked,
                **more,
            }
        )

    def broken_off(self, trial: Rung, end: str, curve: Curve, reason: str | None = None) -> Tried:
        """What is known of a trial whose run did not reach its end."""
        seen, loss = curve[-1] if curve else (0, None)
        return self.tried(trial, end, curve, seen, loss, reason=reason)


def _try_missing(plan: _Plan, say: Callable[[str], None]) -> dict[str, Tried]:
    """Carries out the trials that are not stored; returns those that failed, by id."""
    before = {trial.id: tried for trial in plan.trials if (tried := plan.known(trial)) is not None}
    for tried in before.values():
        say(f"{_line(tried)}, tried before")
    missing = [trial for trial in plan.trials if trial.id not in before]
    if not missing:
        return {}
    from hiclip.scaling.ray_sweep import Halving, try_trials  # here, after the command has set what Ray reads at import
    from pipeline.ray_session import ray_session

    job, settings = plan.study.job, plan.settings
    failed: dict[str, Tried] = {}

    def on_end(trial: Rung, curve: Curve, failure: Failure | None) -> None:
        if trial.id in before:
            return
        tried = plan.known(trial)  # one that came to an end of its own has stored it
        if tried is None and stop_is_asked(plan.study.place):
            return  # neither failed nor fallen behind: it is gone on with
        if tried is None and failure is not None:
            tried = failed[trial.id] = plan.broken_off(trial, "failed", curve, failure.reason)
            plan.place.write_text(f"search/{trial.id}.failure.txt", f"{_line(tried)}\n\n{failure.trace}\n")
        elif tried is None:
            tried = plan.broken_off(trial, "stopped", curve)
            store(plan.place, tried)
        say(_line(tried))

    points, pairs = plan.points, plan.trials[0].job.pairs
    halves = settings.scheduler == "asha" and points
    halving = Halving(points[0], pairs, settings.reduction_factor) if halves else None
    # Those that are known first: they take no time, and ASHA compares the others with them.
    order = [*(trial for trial in plan.trials if trial.id in before), *missing]
    with ray_session(job.ray), stopped_by_sigterm(plan.study.place):
        try_trials(order, functools.partial(_attempt, plan), job.concurrent, job.retries, halving, on_end)
    for trial in missing:
        known = plan.known(trial)
        if known is not None and known.end == "stopped":
            _close_record(plan, trial)
    return failed


def _close_record(plan: _Plan, trial: Rung) -> None:
    """A stopped trial's process may have been gone before it could tell MLflow."""
    job = plan.job(trial)
    open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out), plan.parent_run_id).close("KILLED")


def _attempt(plan: _Plan, trial: Rung, report: Callable[[Curve], None]) -> float | None:
    """Trains one trial, measures it, and stores what was found. Runs in a trial of Tune, anywhere on the cluster.

    -> its last loss, infinity if it diverged; None for a known one, which only tells again what it told before.
    """
    before = plan.known(trial)
    if before is not None:
        for reached in range(1, len(before.curve) + 1):
            report(before.curve[:reached])
        return None
    job, judged_by = plan.job(trial), plan.settings.judged_by
    losses = LossCurve(plan.points, round(judged_by.loss_share * job.steps))
    meter = Meter(plan.study.place, trial_name(trial), job, plan.study.purse)

    def heard(row: StepRow) -> None:
        if losses.take(row):
            report(losses.points)

    def trained(row: StepRow) -> None:
        meter.on_row(row)
        heard(row)

    newest = newest_checkpoint(job.out)
    for row in [] if newest is None else read_checkpoint(newest).history():
        heard(row)
    try:
        here = job.engine.name == "plain"
        run = pretrain(job, plan.parent_run_id, here, on_row=trained, on_start=meter.on_start)
    except DivergedError as error:
        reason = " ".join(str(error).split())
        store(plan.place, plan.broken_off(trial, "diverged", losses.points, reason))
        return math.inf
    finally:
        meter.end()
    measured = _error(plan.study, job, run, plan.parent_run_id) if judged_by.at_end == "error" else {}
    store(plan.place, plan.tried(trial, "measured", losses.points, run.seen, losses.loss, **measured))
    return losses.loss


def _error(study: Study, job: PretrainJob, run: PretrainResult, parent_run_id: str | None) -> dict[str, float]:
    """The study's error of a trial's last checkpoint, with its interval; recorded in MLflow too."""
    asked = study.job.error
    value, draws = sample_checkpoint(run.checkpoint, study.asked, asked.metric, study.job.seed)
    error = asked.of(value)
    low, high = map(float, np.nanquantile(asked.of(draws), [0.025, 0.975]))
    if not math.isfinite(error):
        raise ArithmeticError(f"{asked.metric} on {asked.set.name} is {error}")
    record = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out) or run.mlflow_run_id, parent_run_id)
    record.metrics({"error": error, "compute": run.train_flops}, run.seen)
    record.close()
    return {"error": error, "error_low": low, "error_high": high}


def _line(tried: Tried) -> str:
    said = "" if tried.loss is None else f", loss {tried.loss:.4g} after {tried.seen:,} pairs"
    error = "" if tried.error is None else f", error {tried.error:.4g}"
    return f"search: {tried.name}: {tried.end}{said}{error}{f' ({tried.reason})' if tried.reason else ''}"


def _chosen(found: Search) -> str:
    best = next(trial for trial in found.trials if trial.trial == found.chosen)
    judged = best.loss if found.judged_by == "loss" or best.error is None else best.error
    return f"best of {len(found.trials)} for {found.rung}: {best.name}, {found.judged_by} {judged:.4g}"
