"""Asks a checkpoint every set of a job, and remembers the answers: a finished set is never computed twice.

`evaluate_checkpoint` is the short way for one who wants numbers only, in the process he is in (a trial of a scaling
study); `measure_sets` is the long one with baselines and a folder that a killed evaluation resumes from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from pydantic import ValidationError

from hiclip.data.images import CENTRE_CROP
from hiclip.evaluation.asked import Asked
from hiclip.evaluation.blocks import MapBlocks, map_here
from hiclip.evaluation.bootstrap import FloatArray
from hiclip.evaluation.embed import Embedder
from hiclip.evaluation.evaluate_job import PixelNeighboursSettings
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.hierarchies import untrained
from hiclip.evaluation.linear_probe import probe, probe_name
from hiclip.evaluation.measure import (
    METRICS,
    MeasuredSet,
    Scores,
    asked_metrics,
    baseline_values,
    class_only_scores,
    measure,
    model_scores,
    sample_metric,
)
from hiclip.evaluation.parsing import Parsed, parse_f1
from hiclip.evaluation.pixel_neighbours import pixel_scores
from hiclip.evaluation.result import Result
from hiclip.evaluation.segment_agreement import Grouped, group_agreement
from hiclip.evaluation.sets import SetSettings
from hiclip.evaluation.zero_shot import majority_scores
from hiclip.training.published_weights import towers_at
from pipeline.jobfile import JobError, Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    checkpoint: str,
    sets: Sequence[SetSettings],
    *,
    metrics: Collection[str] = METRICS,
    seed: int = 0,
    batch: int = 128,
    draws: int = 1000,
    precision: Literal["fp32", "bf16"] = "fp32",
    centre_crop: float = CENTRE_CROP,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 1,
    map_blocks: MapBlocks = map_here,
) -> list[Result]:
    """`metrics` of the checkpoint, or of the published weights, at `checkpoint` on every set; nothing is written.

    Everything is computed in this process, on one thread unless `threads` says otherwise.

    Only what the metrics need is embedded: `metrics={"loss"}` looks at the pictures of retrieval alone.
    Raises CheckpointError, DatasetError; JobError names a metric that does not exist.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise JobError(f"metrics: expected some of {', '.join(METRICS)}, came {unknown[0]}")
    embedder = Embedder(towers_at(checkpoint), precision, device, threads, centre_crop)
    results: list[Result] = []
    contents = [settings.load() for settings in sets]
    for content, scores in zip(contents, model_scores(embedder, contents, batch, map_blocks, metrics), strict=True):
        found = measure(content, scores, seed, draws, map_blocks)
        results += [result for result in found.results if result.metric in metrics]
    return results


def sample_checkpoint(
    checkpoint: str, settings: SetSettings, metric: str, seed: int = 0, draws: int = 1000, batch: int = 128
) -> tuple[float, FloatArray]:
    """One metric of the checkpoint on one set, and (draws,) what it is on resamples of the pictures: draw k is the same
    resample for every checkpoint. Computed as by `evaluate_checkpoint`; DatasetError if the set cannot have it.
    """
    content = settings.load()
    if metric not in asked_metrics(content):
        raise DatasetError(f"{content.name}: has no {metric}; it has {', '.join(asked_metrics(content))}")
    embedder = Embedder(towers_at(checkpoint), "fp32", "cpu", 1, CENTRE_CROP)
    (scores,) = model_scores(embedder, [content], batch, map_here, {metric})
    return sample_metric(content, scores, metric, seed, draws)


def measure_sets(
    asked: Asked, embedder: Embedder, map_blocks: MapBlocks, out: Folder, shared: Folder
) -> list[MeasuredSet]:
    """Every set with its baselines; each set is stored in `out` when it is finished, and taken from there if it is.

    The baselines, which know no model, are stored in `shared`.
    """
    known = {content.name: _stored(asked, content, out) for content in asked.contents}
    left = [content for content in asked.contents if known[content.name] is None]
    for content, measured in zip(left, _measured(asked, left, embedder, map_blocks), strict=True):
        out.write_text(_set_name(asked, content), measured.model_dump_json() + "\n")
        known[content.name] = measured
    found = [(content, known[content.name]) for content in asked.contents]
    return [_with_baselines(asked, content, one, map_blocks, shared) for content, one in found if one is not None]


def _measured(
    asked: Asked, contents: Sequence[EvaluationSet], embedder: Embedder, map_blocks: MapBlocks
) -> Iterator[MeasuredSet]:
    job, began = asked.job, time.monotonic()
    scores = model_scores(embedder, contents, job.batch, map_blocks, METRICS) if contents else iter(())
    for content, one in zip(contents, scores, strict=True):
        found = measure(content, one, job.seed, job.draws, map_blocks)
        yield found.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
        began = time.monotonic()


def _stored(asked: Asked, content: EvaluationSet, out: Folder) -> MeasuredSet | None:
    return _read_stored(out, _set_name(asked, content), MeasuredSet)


def measure_probes(asked: Asked, embedder: Embedder, map_blocks: MapBlocks, out: Folder) -> list[MeasuredSet]:
    """The linear probe of every set; remembered likewise."""
    job = asked.job

    def compute(splits: tuple[EvaluationSet, EvaluationSet]) -> MeasuredSet:
        assert job.linear_probe is not None
        began = time.monotonic()
        found = probe(job.linear_probe, splits, embedder, job.batch, map_blocks, job.seed, job.draws)
        return found.model_copy(update={"seconds": round(time.monotonic() - began, 3)})

    return [
        _once(out, f"sets/{probe_name(splits[1])}", asked.probe_key(splits), MeasuredSet, partial(compute, splits))
        for splits in asked.probed
    ]


class MeasuredHierarchies(Settings):
    """How a model's trees and groups agree with given ones; null for what was not asked."""

    parsed: Parsed | None = None
    grouped: Grouped | None = None

    @property
    def results(self) -> list[Result]:
        """Of both."""
        return [one for part in (self.parsed, self.grouped) if part is not None for one in part.results]


def measure_hierarchies(asked: Asked, embedder: Embedder, map_blocks: MapBlocks, out: Folder) -> MeasuredHierarchies:
    """Parse F1 and group agreement as far as the job asks for them; remembered likewise."""
    job, parsed, grouped = asked.job, None, None
    if not asked.trees and not asked.outlines:
        return MeasuredHierarchies()
    control = replace(embedder, towers=untrained(embedder.towers, job.seed))
    if asked.trees:
        parsed = _once(
            out, "sets/parsing", asked.trees_key, Parsed,
            lambda: parse_f1("parsing", asked.trees, embedder, control, job.batch, map_blocks, job.seed, job.draws),
        )  # fmt: skip
    if asked.outlines:
        assert job.hierarchy is not None
        assert job.hierarchy.masks is not None
        masks = job.hierarchy.masks
        grouped = _once(
            out, "sets/segments", asked.outlines_key, Grouped,
            lambda: group_agreement(
                "segments", masks, asked.outlines, embedder, control, job.batch, map_blocks, job.seed, job.draws
            ),
        )  # fmt: skip
    return MeasuredHierarchies(parsed=parsed, grouped=grouped)


def measured_before(asked: Asked, content: EvaluationSet, out: Folder) -> bool:
    """Whether `out` holds the model's numbers on this set already."""
    return out.exists(_set_name(asked, content))


def _set_name(asked: Asked, content: EvaluationSet) -> str:
    return _stored_name(f"sets/{content.name}", asked.set_key(content))


def _with_baselines(
    asked: Asked, content: EvaluationSet, measured: MeasuredSet, map_blocks: MapBlocks, shared: Folder
) -> MeasuredSet:
    """The same results, each beside the baselines that have its metric."""
    columns: dict[str, dict[str, float]] = {}
    settings, classes = asked.job.baselines.pixel_neighbours, content.classification
    if classes is not None:
        majority = Scores(majority_scores(classes.labels, classes.tree), None)
        columns["majority"] = baseline_values(content, majority)
    if settings is not None and classes is not None:
        name = f"sets/{content.name}-pixel_neighbours"
        key = asked.baseline_key(content, settings.px)
        columns["pixel_neighbours"] = _once(
            shared, name, key, BaselineValues, lambda: _pixel_values(asked, content, settings, map_blocks)
        ).values
    results = [
        result.model_copy(
            update={
                "baselines": {
                    name: values[result.metric] for name, values in columns.items() if result.metric in values
                }
            }
        )
        for result in measured.results
    ]
    return measured.model_copy(update={"results": results})


class BaselineValues(Settings):
    """What a baseline reaches on a set, by metric."""

    values: dict[str, float]
    voters: int
    """Training pictures that took part."""


def _pixel_values(
    asked: Asked, content: EvaluationSet, settings: PixelNeighboursSettings, map_blocks: MapBlocks
) -> BaselineValues:
    assert asked.datasets
    assert content.classification is not None
    per_class, voters = pixel_scores(
        asked.datasets, content.classification, content.pictures, settings.px, asked.job.batch, map_blocks
    )
    # A likeness of pixels is no probability: it has no contrastive loss.
    values = baseline_values(content, class_only_scores(content, per_class), without=("loss",))
    return BaselineValues(values=values, voters=voters)


S = TypeVar("S", bound=Settings)


def _once(out: Folder, name: str, key: str, kind: type[S], compute: Callable[[], S]) -> S:
    """What `compute` returns, stored in `out` under a name that carries its key, or what was stored there before."""
    stored = _stored_name(name, key)
    found = _read_stored(out, stored, kind)
    if found is not None:
        return found
    computed = compute()
    out.write_text(stored, computed.model_dump_json() + "\n")
    return computed


def _read_stored(out: Folder, stored: str, kind: type[S]) -> S | None:
    """What was stored under a name; None if nothing was, or nothing that can be read."""
    if not out.exists(stored):
        return None
    try:
        found = kind.model_validate_json(out.read_text(stored))
    except ValidationError:
        log.warning("%s is not what it should be and is computed again", out.join(stored))
        return None
    log.info("%s was computed before", out.join(stored))
    return found


def _stored_name(name: str, key: str) -> str:
    return f"{name}-{key[:16]}.json"
