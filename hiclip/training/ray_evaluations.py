"""Evaluates checkpoints while training goes on: one Ray task beside the workers, which never wait for it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import ray
from ray.exceptions import RayError, RayTaskError

from hiclip.evaluation.measure import METRICS
from hiclip.evaluation.result import Result
from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.pretrain_job import EvaluationSettings, PretrainJob
from pipeline.jobfile import InputError, JobError
from pipeline.storage import folder

log = logging.getLogger(__name__)

FOLDER = "evaluations"
"""In a run's folder: `seen-000000040960.json`, ... each with the results of one checkpoint."""
_LOOKS_EVERY_S = 5.0
_WAITS_S = 0.5  # between two looks at a task, so that it can be left when training fails

Record = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name and the pairs seen."""


class Evaluations:
    """While it is open, a checkpoint is evaluated whenever another multiple of `every_pairs` lies behind the newest.

    Whatever is the newest when the task is free is asked, so a slow evaluation leaves checkpoints out and never falls
    behind. The end waits for the last checkpoint's. A checkpoint that cannot be evaluated is said and passed over, and
    so is a look at a store that is away: training is worth more than a number about it.
    """

    def __init__(self, job: PretrainJob, record: Record, say: Callable[[str], None]) -> None:
        assert job.evaluation is not None
        self._job, self._settings, self._record, self._say = job, job.evaluation, record, say
        self._place = folder(job.out).child(FOLDER)
        self._ended, self._broken_off = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="evaluations", daemon=True)

    def __enter__(self) -> Evaluations:
        _check_room(self._job, self._settings)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._broken_off.set()
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        every, asked, at_the_end = self._settings.every_pairs, 0, False
        while not self._broken_off.is_set():
            try:
                asked = max(asked, *(int(name[5:17]) for name in self._place.names("seen-", ".json")), 0)
                newest = newest_checkpoint(self._job.out)
                seen = 0 if newest is None else int(newest.rpartition("-")[2])
                if newest is not None and (seen // every > asked // every or (at_the_end and seen > asked)):
                    asked = seen
                    self._evaluate(newest, seen)
                    continue
            except InputError as error:
                log.warning("checkpoints are not evaluated for now: %s", error)
            if at_the_end:
                return
            # Looked at before the last look at the checkpoints, so that none is overlooked.
            at_the_end = self._ended.wait(_LOOKS_EVERY_S)

    def _evaluate(self, checkpoint: str, seen: int) -> None:
        settings = self._settings
        task = ray.remote(_results).options(num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=1)
        reference = task.remote(checkpoint, settings, self._job.seed)
        try:
            while not ray.wait([reference], timeout=_WAITS_S)[0]:
                if self._broken_off.is_set():
                    ray.cancel(reference, force=True)
                    return
            results: list[Result] = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, InputError):
                raise
            # It may have made room for a newer one while it was read.
            log.warning("%s was not evaluated: %s", checkpoint, error.cause)
            return
        except RayError as error:
            log.warning("%s was not evaluated: %s", checkpoint, str(error).splitlines()[0])
            return
        numbers = {f"{result.set}/{result.metric}": result.value for result in results}
        self._record(numbers, seen)
        self._place.write_text(
            f"seen-{seen:012d}.json", json.dumps([result.model_dump() for result in results], indent=1) + "\n"
        )
        self._say(f"pretrain: after {seen:,} pairs {_summary(results)}")


def _results(checkpoint: str, settings: EvaluationSettings, seed: int) -> list[Result]:
    """In the task: every number of every set."""
    state = read_checkpoint(checkpoint).state
    log.info("evaluating %s, %d pairs seen", checkpoint, state.seen)
    return evaluate_checkpoint(
        checkpoint,
        settings.sets,
        metrics=settings.metrics or METRICS,
        seed=seed,
        batch=settings.batch,
        draws=settings.draws,
        centre_crop=settings.centre_crop,
        device="cuda" if settings.gpus else "cpu",
        threads=max(1, int(settings.cpus)),
    )


def _summary(results: list[Result]) -> str:
    """A word about each set: its first share, for people who watch."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.set, result)
    return ", ".join(
        f"{name} {result.metric} {100 * result.value:.1f} %"
        if result.unit == "share"
        else f"{name} {result.metric} {result.value:.3f}"
        for name, result in first.items()
    )


def _check_room(job: PretrainJob, settings: EvaluationSettings) -> None:
    """JobError if the task would wait until training has ended."""
    there = ray.cluster_resources()
    for key, asked, name in (
        ("cpus", job.ray_cpus + settings.cpus, "CPU"),
        ("gpus", job.worlds[0] * job.workers.gpus + settings.gpus, "GPU"),
    ):
        if getattr(settings, key) and asked > there.get(name, 0.0):
            raise JobError(
                f"evaluation.{key}: expected room for {getattr(settings, key):g} beside training, which takes "
                f"{asked - getattr(settings, key):g} of {there.get(name, 0.0):g} Ray {name}s; 0 shares the machine"
            )
