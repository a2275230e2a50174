"""The folder of a run: whose it is, whether the run is finished, and its result.

job.yaml       the resolved job, written first: another job is refused
datasets.json  fingerprints of the datasets of a mixture, in the job's order
checkpoints/   see `hiclip.training.checkpoint`
losses.csv     every step
result.json    all numbers of the finished run, written last
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from hiclip.data.stream_plan import StreamPlan
from hiclip.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from hiclip.training.cost import parameters
from hiclip.training.history import StepRow, to_csv
from hiclip.training.job_cost import training_flops
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import JobError, resolved, resolved_yaml
from pipeline.manifest import DatasetError
from pipeline.storage import folder

RESULT, DATASETS = "result.json", "datasets.json"
_DIFFERENCES = 10  # keys of another job that are told


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run came to; its fields are the keys of result.json."""

    run_folder: str
    """Absolute path or s3://."""
    checkpoint: str
    """The last checkpoint."""
    seen: int
    steps: int
    loss: float
    """Of the last step, in nats."""
    losses: tuple[tuple[int, float], ...]
    """(seen, loss) of every step whose loss is a number."""
    pairs_per_s: float
    """Pairs a second over all steps of all starts; starting and saving are not in it."""
    seconds: float
    """Time spent in steps."""
    loader_wait_share: float
    """Share of `seconds` spent waiting for data."""
    parameters: int
    train_flops: float
    job_fingerprint: str
    manifest_fingerprint: str
    commit: str | None
    mlflow_run_id: str | None
    gather_share: float = 0.0
    """Share of `seconds` spent gathering vectors from all workers, waiting for the last one included."""
    checkpoint_share: float = 0.0
    """Time that checkpoints took from training, of all time."""
    broken: int = 0
    """Pictures that could not be decoded and were replaced."""
    not_applied: tuple[int, ...] = ()
    """`seen` after the steps that moved no weight: numbers were not finite there, or their batches were left out."""


def claim(job: PretrainJob) -> None:
    """Makes `out` the folder of this job. JobError, with the keys that differ, if it is another job's."""
    place = folder(job.out)
    if not place.exists("job.yaml"):
        place.make().write_text("job.yaml", resolved_yaml(job))
        return
    earlier = _of_today(yaml.safe_load(place.read_text("job.yaml")))
    others = [
        f"{key} is {before!r}, here {now!r}"
        for key, before, now in _differences(earlier, resolved(job))
        if key.split(".")[0] not in job.not_the_result
    ]
    if others:
        more = f" (and {len(others) - _DIFFERENCES} more)" if len(others) > _DIFFERENCES else ""
        raise JobError(
            f"out: {place.root} holds a run of another job: there {'; '.join(others[:_DIFFERENCES])}{more}; "
            "choose another out, or remove that folder to start over"
        )


def _of_today(earlier: Any) -> Any:
    """A stored job with the defaults of keys that have come since: they stand for what was done without them."""
    try:
        return resolved(PretrainJob.model_validate(earlier))
    except ValidationError:  # a key has gone or has another meaning: shown as it is
        return earlier


def check_datasets(job: PretrainJob, stream: StreamPlan) -> None:
    """Notes the datasets of a mixture. DatasetError names the one that is another now than the run was begun with.

    One dataset alone needs no note: checkpoints and result have its fingerprint.
    """
    place = folder(job.out)
    if len(stream.sources) == 1:
        return
    if place.exists(DATASETS) and newest_checkpoint(job.out) is not None:
        for source, before in zip(stream.sources, json.loads(place.read_text(DATASETS)), strict=True):
            if before != source.fingerprint:
                raise DatasetError(
                    f"{source.dataset}: the run in {place.root} was begun with dataset {before[:12]}, "
                    f"this is {source.fingerprint[:12]}; choose another out"
                )
    place.write_text(DATASETS, json.dumps([source.fingerprint for source in stream.sources]) + "\n")


def finished(job: PretrainJob, stream: StreamPlan) -> PretrainResult | None:
    """The result of this job's finished run, None if it is not finished. DatasetError if the dataset is another now."""
    place = folder(job.out)
    if not place.exists(RESULT):
        return None
    content = json.loads(place.read_text(RESULT))
    losses = tuple((seen, loss) for seen, loss in content["losses"])
    not_applied = tuple(content.get("not_applied", ()))
    result = PretrainResult(**{**content, "losses": losses, "not_applied": not_applied})
    if result.manifest_fingerprint != stream.fingerprint:
        datasets = ", ".join(source.dataset for source in stream.sources)
        raise DatasetError(
            f"{datasets}: the finished run in {place.root} was trained on dataset "
            f"{result.manifest_fingerprint[:12]}, this is {stream.fingerprint[:12]}; choose another out"
        )
    return result


def finish(job: PretrainJob, mlflow_run_id: str | None) -> PretrainResult:
    """Writes losses.csv and, last, result.json from the run's last checkpoint."""
    place = folder(job.out)
    checkpoint = read_checkpoint(place.root)
    rows = checkpoint.history()
    result = _result(job, checkpoint, rows, mlflow_run_id)
    place.write_text("losses.csv", to_csv(rows))
    place.write_text(RESULT, json.dumps(vars(result), indent=1) + "\n")
    return result


def _result(job: PretrainJob, checkpoint: Checkpoint, rows: list[StepRow], mlflow_run_id: str | None) -> PretrainResult:
    state = checkpoint.state
    paused = sum(row.checkpoint_s for row in rows)
    return PretrainResult(
        run_folder=folder(job.out).root,
        checkpoint=checkpoint.place.root,
        seen=state.seen,
        steps=state.step,
        loss=next((row.loss for row in reversed(rows) if math.isfinite(row.loss)), math.nan),
        losses=tuple((row.seen, row.loss) for row in rows if math.isfinite(row.loss)),
        pairs_per_s=state.seen / state.seconds,
        seconds=state.seconds,
        loader_wait_share=state.wait_s / state.seconds,
        gather_share=sum(row.gather_s for row in rows) / state.seconds,
        checkpoint_share=paused / (state.seconds + paused),
        broken=sum(row.broken for row in rows),
        not_applied=tuple(row.seen for row in rows if not row.applied),
        parameters=parameters(job.model),
        train_flops=training_flops(job, state.seen),
        job_fingerprint=state.job_fingerprint,
        manifest_fingerprint=state.manifest_fingerprint,
        commit=state.commit,
        mlflow_run_id=mlflow_run_id,
    )


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, in the order of the job."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*now, *before]):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now
