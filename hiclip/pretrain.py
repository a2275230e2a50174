"""Trains a model on a dataset: `python -m hiclip.pretrain JOB.yaml [key.path=value ...] [--dry-run]`.

The same command again resumes the run from its newest checkpoint; a finished run says so and trains nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType

from hiclip.data.stream_plan import StreamPlan, plan_stream
from hiclip.model.sizes import resolve
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.live_progress import TrainingProgress
from hiclip.training.pretrain_bill import bill
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.run_folder import RESULT, PretrainResult, check_datasets, claim, finish, finished
from hiclip.training.saving import RunPlace
from hiclip.training.source_commit import source_commit
from hiclip.training.telemetry import Telemetry
from hiclip.training.this_process import run_here
from pipeline.command import console, run_command
from pipeline.jobfile import EndedEarlyError, resolved, resolved_yaml
from pipeline.manifest import MANIFEST, DatasetError, read_manifest, unsound_shards
from pipeline.mlflow_address import check_reachable
from pipeline.mlflow_tracker import deliver_rest, open_tracker, recorded_run_id
from pipeline.storage import absolute, folder
from pipeline.tracker import Tracker

_VERIFIED = "verify-resume.json"
_DIFFERENCES = 20
"""Printed; the file has all."""


def pretrain(
    job: PretrainJob,
    parent_run_id: str | None = None,
    here: bool = False,
    on_row: Callable[[StepRow], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> PretrainResult:
    """Runs, resumes, or finds finished the job; `parent_run_id` nests its MLflow run below another.

    `here` trains in this process, not in workers of Ray Train: for one worker that Ray has placed already, as a trial.
    `on_row` hears of every step that is done now; an EndedEarlyError that it raises ends the run, and is raised here.
    It goes on to hear of steps that workers do until they have heard of that. `on_start` hears that workers have begun.

    Raises InputError (JobError, DatasetError, CheckpointError, StorageError) before a worker starts if it cannot work.
    """
    stream = stream_plan(job)
    claim(job)
    check_datasets(job, stream)
    result = finished(job, stream)
    if result is not None:
        console.print(f"pretrain: {result.run_folder} is finished: {result.seen:,} pairs seen, loss {result.loss:.3f}")
        deliver_rest(job.mlflow, job.out, job.name, recorded_run_id(job.out), parent_run_id)
        return result
    _announce(job)
    stream = _sound(stream, job)
    for settings in job.evaluation.sets if job.evaluation is not None else ():
        settings.load()  # says now what is missing
    tracker = open_tracker(job.mlflow, job.out, job.name, recorded_run_id(job.out), parent_run_id)
    try:
        result = _train(job, stream, tracker, here, on_row, on_start)
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, EndedEarlyError) and error.exit_code > 1 else "FAILED")
        raise
    _record_end(job, tracker, result)
    return result


def _sound(stream: StreamPlan, job: PretrainJob) -> StreamPlan:
    """The stream without shards that are damaged; DatasetError if the job will not do without them."""
    sources = []
    for source in stream.sources:
        manifest = read_manifest(source.dataset)
        unsound = set()
        for number, why in unsound_shards(source.dataset, manifest):
            if job.loader.unsound_shards == "refuse":
                raise DatasetError(why)
            console.print(f"pretrain: {why}; {manifest.shards[number].pairs:,} pairs are not read", markup=False)
            unsound.add(number)
        sources.append(replace(source, unsound=frozenset(unsound)))
        sources[-1].sound_row(0)  # is there one?
    return replace(stream, sources=tuple(sources))


def _announce(job: PretrainJob) -> None:
    newest = newest_checkpoint(job.out)
    if newest is not None:
        console.print(f"pretrain: resuming {folder(job.out).root} from {read_checkpoint(newest).state.seen:,} pairs")


def stream_plan(job: PretrainJob) -> StreamPlan:
    """Which pairs the job sees and how. DatasetError if the dataset is missing or lacks a column that a view reads."""
    sizes, data = resolve(job.model), job.data
    synonyms = data.views.eda_synonyms
    settings = replace(data.views, eda_synonyms=None if synonyms is None else absolute(synonyms))
    return plan_stream(
        data.absolute_dataset,
        data.batch,
        data.window_groups,
        job.seed,
        job.objective.views,
        sizes.image_px,
        sizes.context,
        settings,
        job.model.region_width,
        f"objective {job.objective.name} asks for the views",
        data.unique_pairs,
    )


def _train(
    job: PretrainJob,
    stream: StreamPlan,
    tracker: Tracker,
    here: bool,
    on_row: Callable[[StepRow], None] | None,
    on_start: Callable[[], None] | None,
) -> PretrainResult:
    from pipeline.ray_session import ray_session  # only now that the command has set what Ray reads at import

    commit = source_commit()
    tracker.params(resolved(job))
    tracker.tag("manifest_fingerprint", stream.fingerprint)
    tracker.tag("commit", commit or "not a git checkout")
    _artifact(tracker, "job.yaml", resolved_yaml(job))
    place = RunPlace(absolute(job.out), stream.fingerprint, commit)
    newest = newest_checkpoint(job.out)
    telemetry = Telemetry(job, [] if newest is None else read_checkpoint(newest).history())
    with ray_session(job.ray), TrainingProgress(console, telemetry, job.pairs, job.data.batch) as progress:

        def on_steps(rows: list[StepRow]) -> None:
            # Steps that come again after a restart carry the same losses, so that they may be recorded twice.
            ended: EndedEarlyError | None = None
            for row, numbers in zip(rows, progress.show(rows), strict=True):
                tracker.metrics(numbers, row.seen)
                try:
                    if on_row is not None:
                        on_row(row)
                except EndedEarlyError as error:
                    ended = ended or error  # the steps behind it were done too
            if ended is not None:
                raise ended

        with _evaluations(job, tracker):
            if here:
                run_here(job, place, stream, lambda row: on_steps([row]))
            else:
                from hiclip.training.ray_workers import WorkerTask, run_workers

                run_workers(WorkerTask(job, place, stream), on_steps, on_start)
    return finish(job, tracker.run_id or recorded_run_id(job.out))


def _evaluations(job: PretrainJob, tracker: Tracker) -> AbstractContextManager[object]:
    """What asks the checkpoints while training goes on, if the job wants that."""
    if job.evaluation is None:
        return nullcontext()
    from hiclip.training.ray_evaluations import Evaluations

    return Evaluations(job, tracker.metrics, lambda line: console.print(line, markup=False))


def _record_end(job: PretrainJob, tracker: Tracker, result: PretrainResult) -> None:
    summary = {
        "pairs_per_s_of_run": result.pairs_per_s,
        "loader_wait_share_of_run": result.loader_wait_share,
        "gather_share_of_run": result.gather_share,
        "checkpoint_share_of_run": result.checkpoint_share,
        "parameters": result.parameters,
        "train_flops": result.train_flops,
    }
    tracker.metrics(summary, result.seen)
    tracker.tag("checkpoint", result.checkpoint)
    _artifact(tracker, "losses.csv", folder(result.run_folder).read_text("losses.csv"))
    _register(job, tracker, result)
    tracker.close()


def _register(job: PretrainJob, tracker: Tracker, result: PretrainResult) -> None:
    name = job.mlflow.registered_model
    if name is False:
        return
    place = folder(result.checkpoint)
    tags = {
        "job_fingerprint": result.job_fingerprint,
        "manifest_fingerprint": result.manifest_fingerprint,
        "commit": result.commit or "not a git checkout",
        "seen": result.seen,
        "loss": result.loss,
    }
    tracker.model(
        job.name if name is True else name,
        place.root,
        {file: place.read_text(file) for file in ("model.json", "job.yaml")},
        tags,
        f"Load it with hiclip.training.checkpoint.load_towers('{place.root}').",
    )


def _artifact(tracker: Tracker, name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as local:
        file = Path(local, name)
        file.write_text(text, encoding="utf-8")
        tracker.artifact(str(file))


def plan(job: PretrainJob) -> RenderableType:
    """What `--dry-run` prints, with or without the dataset."""
    paths = [dataset.path for dataset in job.data.datasets]
    manifests = [read_manifest(path) if folder(path).exists(MANIFEST) else None for path in paths]
    if None not in manifests:
        stream_plan(job)  # says what a dataset lacks
    return bill(job, *manifests)


def run(job: PretrainJob) -> str:
    """Carries the job out and returns the path of its result.json."""
    if not folder(job.out).exists(RESULT):
        check_reachable(job.mlflow, job.out)
    result = pretrain(job)
    console.print(
        f"pretrain: {result.seen:,} pairs in {result.steps:,} steps, loss {result.loss:.3f}, "
        f"{result.pairs_per_s:,.0f} pairs/s, {result.loader_wait_share:.1%} waiting for data"
    )
    return folder(result.run_folder).join(RESULT)


def verify(job: PretrainJob) -> str:
    """Train a few steps, and half of them again from a checkpoint: are they the same bit for bit? Then stop.

    Exit code 1 if not, after saying what differs; the two runs then stay below `verify-resume` in `out`.
    """
    from hiclip.training.ray_workers import WorkerTask, run_workers
    from hiclip.training.verify_resume import verify_resume
    from pipeline.ray_session import ray_session

    stream = stream_plan(job)
    stream = _sound(stream, job)
    place = RunPlace(absolute(job.out), stream.fingerprint, source_commit())

    def train(job: PretrainJob, place: RunPlace) -> None:
        assert place.steps is not None
        pairs = place.steps * job.data.batch
        with TrainingProgress(console, Telemetry(job), pairs, job.data.batch) as progress:
            run_workers(WorkerTask(job, place, stream), progress.show)

    with ray_session(job.ray):
        steps, differences = verify_resume(job, place, train)
    for difference in differences[:_DIFFERENCES]:
        console.print(f"verify-resume: {difference}", markup=False)
    if len(differences) > _DIFFERENCES:
        console.print(f"verify-resume: and {len(differences) - _DIFFERENCES:,} more")
    if not differences:
        console.print(
            f"verify-resume: {steps} steps after a checkpoint are those of the run without a stop, bit for bit"
        )
    result = folder(job.out).make().join(_VERIFIED)
    folder(job.out).write_text(_VERIFIED, json.dumps({"steps": steps, "differences": differences}, indent=1) + "\n")
    if differences:
        sys.exit(1)
    return result


if __name__ == "__main__":
    run_command(PretrainJob, plan, run, instead={"verify-resume": verify})
