"""Measures the rungs of a study, and tries hyperparameters of one, as trials of Ray Tune, several at a time (door:
ray.tune).

Tune places the trials, runs as many at once as fit, tries a failed one again, and in a search has its ASHA stop those
that fall behind. What a trial does is the caller's function, and what it finds is stored by that function: nothing that
matters lives in Tune's own state, so a study killed at any moment is taken up by asking which rungs are stored.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before Tune is imported, which reads them then: no second progress display, no event files for viewers that nobody
# here opens, and Ctrl-C ends the study instead of fitting a law to the rungs that happened to be done.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from hiclip.scaling.ladder import Rung
from hiclip.scaling.loss_curve import Curve
from hiclip.scaling.rung_table import Failure
from hiclip.training.ray_workers import check_room
from pipeline.jobfile import EndedEarlyError, JobError

log = logging.getLogger(__name__)

_BYSTANDER_CPUS = 0.01  # of a trial that only waits for workers of its own
_LETTING_GO_S = 300
_WORST = 1e30  # ASHA interpolates between losses, which infinity would spoil


def measure_rungs(
    rungs: Sequence[Rung],
    measure: Callable[[Rung], None],
    concurrent: int,
    retries: int,
    on_end: Callable[[Rung, Failure | None], None],
) -> None:
    """Calls `measure(rung)` in a trial for every rung, at most `concurrent` at a time, the largest first.

    The largest first, because then the shortest are left for the end, where trials no longer fill all places.
    `on_end` hears in this process of each rung that ended; one that failed `retries` times more ends as a Failure, and
    the others go on.
    """
    order = sorted(rungs, key=lambda rung: rung.compute, reverse=True)

    def trial(config: dict[str, Any]) -> None:
        measure(order[config["rung"]])
        tune.report({"measured": True})

    _fit(order, trial, concurrent, retries, lambda rung, failure, _: on_end(rung, failure))


@dataclass(frozen=True)
class Halving:
    """When ASHA compares trials: after `first` pairs seen, then after `factor` times as many each, until `last`; one in
    `factor` goes on."""

    first: float
    last: int
    factor: float


class TrialStoppedError(EndedEarlyError):
    """The trial fell behind the others and is not worth going on with."""

    exit_code = 128 + signal.SIGTERM


Report = Callable[[Curve], None]
"""Tells, in a trial, how far it has come; TrialStoppedError if it is to go no further."""


def try_trials(
    trials: Sequence[Rung],
    attempt: Callable[[Rung, Report], float | None],
    concurrent: int,
    retries: int,
    halving: Halving | None,
    on_end: Callable[[Rung, Curve, Failure | None], None],
) -> None:
    """Calls `attempt(trial, report)` in a trial of Tune for every variant of a rung, in their order, at most
    `concurrent` at a time, and lets ASHA stop those whose reported loss falls behind; without `halving` none is.

    `attempt` lets TrialStoppedError pass, and returns the trial's last loss; None: it has no more to tell ASHA.
    `on_end` hears in this process of each trial that ended, with the last curve that it reported.
    """

    def trial(config: dict[str, Any]) -> None:
        # A process goes on to the next trial when the stopped one has let go of all; after 2 s Tune would fail that.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_LETTING_GO_S)
        rung = trials[config["rung"]]
        curve: Curve = ()

        def report(reached: Curve) -> None:
            nonlocal curve
            curve = reached
            seen, loss = reached[-1]
            try:
                tune.report({"seen": seen, "loss": loss, "curve": reached})
            except SystemExit:  # Tune's way of saying so
                raise TrialStoppedError("stopped by ASHA") from None

        try:
            loss = attempt(rung, report)
        except TrialStoppedError:
            sys.exit(0)
        if loss is not None:
            tune.report({"seen": rung.job.pairs, "loss": min(loss, _WORST), "curve": curve})

    scheduler = None
    if halving is not None:
        times = {"max_t": halving.last, "grace_period": halving.first, "reduction_factor": halving.factor}
        scheduler = ASHAScheduler(time_attr="seen", metric="loss", mode="min", **times)

    def ended(rung: Rung, failure: Failure | None, last: dict[str, Any]) -> None:
        on_end(rung, tuple((seen, loss) for seen, loss in last.get("curve", ())), failure)

    _fit(trials, trial, concurrent, retries, ended, scheduler)


def _fit(
    rungs: Sequence[Rung],
    trial: Callable[[dict[str, Any]], None],
    concurrent: int,
    retries: int,
    on_end: Callable[[Rung, Failure | None, dict[str, Any]], None],
    scheduler: TrialScheduler | None = None,
) -> None:
    """Runs `trial({"rung": k})` for every place k of `rungs`, in their order; `on_end` hears what was reported last."""
    _quieten()
    for rung in rungs:
        _check_room(rung)
    with tempfile.TemporaryDirectory(prefix="hiclip-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(trial, lambda config: trial_resources(rungs[config["rung"]])),
            param_space={"rung": tune.grid_search(list(range(len(rungs))))},
            # A trial's process goes on to the next trial: importing torch and Ray again would take seconds each time.
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True, scheduler=scheduler),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=retries),
                callbacks=[_Ends(rungs, on_end), JsonLoggerCallback()],  # Tune misses its own files if none are written
            ),
        ).fit()


def trial_resources(rung: Rung) -> dict[str, float]:
    """What Ray holds for a trial: one that trains in its own process (plain engine) takes what the worker would."""
    workers = rung.job.workers
    if rung.job.engine.name != "plain":
        return {"CPU": _BYSTANDER_CPUS}
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


def _check_room(rung: Rung) -> None:
    """JobError if a Ray of our own is too small for the rung, for nothing could make it grow: Tune would wait for ever.

    Here and not in the trial, which cannot know whose Ray it runs in.
    """
    if rung.job.engine.name != "plain":
        check_room(rung.job)
        return
    wanted = trial_resources(rung)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(machine.get(name, 0.0) >= count for name, count in wanted.items()) for machine in machines):
        return
    takes = " and ".join(f"{count:g} {name}" for name, count in wanted.items())
    needed = f"'{rung.full_name}' takes {takes} of one machine, and no machine of Ray has that"
    if not os.environ.get("RAY_ADDRESS"):
        raise JobError(f"ray.num_cpus: {needed}; see workers.cpus and workers.gpus")
    log.warning("%s; waiting for the cluster to grow", needed)


def _quieten() -> None:
    """Keeps Tune's pages about each failed trial from the terminal: `on_end` is told, and may say it in one line."""
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Ends(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tells of the end of each trial."""

    def __init__(self, rungs: Sequence[Rung], on_end: Callable[[Rung, Failure | None, dict[str, Any]], None]) -> None:
        self._rungs, self._on_end = rungs, on_end

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles all it is given for its own restoring, which is not used here

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._on_end(self._rungs[trial.config["rung"]], None, trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        rung = self._rungs[trial.config["rung"]]
        # Not by trial.get_pickled_error(): that looks where Tune copies the file to a little later.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        cause = getattr(error, "cause", None) or error  # Ray wraps what the trial raised
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        failure = Failure(rung=rung.id, name=rung.full_name, compute=rung.compute, reason=reason, trace=str(error))
        self._on_end(rung, failure, trial.last_result)
