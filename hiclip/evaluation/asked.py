"""What an evaluation asks, read and checked before anything is computed, and the names of its answers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hiclip.data.mixture import datasets_of, fingerprint_of, mixture_of
from hiclip.evaluation.columns import AskedColumns, ask_columns
from hiclip.evaluation.evaluate_job import EvaluateJob, HierarchySettings
from hiclip.evaluation.evaluated_model import EvaluatedModel, evaluated_model
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.heads.head_task import head_label
from hiclip.evaluation.heads.measure_heads import AskedHead, ask_heads
from hiclip.evaluation.linear_probe import load_splits
from hiclip.evaluation.parsing import GivenTree, read_trees
from hiclip.evaluation.segment_agreement import Outlined, outlines_states, read_outlines
from hiclip.evaluation.sets import SetSettings
from pipeline.jobfile import JobError
from pipeline.manifest import DatasetError, read_manifest
from pipeline.mlflow_tracker import recorded_checkpoint
from pipeline.storage import folder

log = logging.getLogger(__name__)

_REVISION = 5
"""Of the definitions of the metrics; one more makes what was remembered be computed again."""
_WITHOUT = {
    "baselines.pixel_neighbours": "baselines.pixel_neighbours=null",
    "hierarchy.training_pairs": "hierarchy.training_pairs=0",
}


@dataclass(frozen=True)
class Questions:
    """What a job asks of any checkpoint."""

    contents: tuple[EvaluationSet, ...]
    probed: tuple[tuple[EvaluationSet, EvaluationSet], ...]
    heads: tuple[AskedHead, ...]
    trees: tuple[GivenTree, ...]
    outlines: tuple[Outlined, ...]
    missing: dict[str, str]


@dataclass(frozen=True)
class Asked:
    """What a job asks of one checkpoint, read and checked before anything is computed."""

    job: EvaluateJob
    model: EvaluatedModel
    contents: tuple[EvaluationSet, ...]
    probed: tuple[tuple[EvaluationSet, EvaluationSet], ...]
    """(train, test) of each set of the linear probe."""
    trees: tuple[GivenTree, ...]
    outlines: tuple[Outlined, ...]
    missing: dict[str, str]
    """Sets whose root is not there, and hierarchies that the model has not: name -> why. They are told of beside the
    results of the others."""
    datasets: tuple[str, ...]
    """Where the training data lies, if anything looks at it; several if it was mixed."""
    dataset_fingerprint: str | None
    columns: AskedColumns | None
    heads: tuple[AskedHead, ...] = ()

    @property
    def key(self) -> str:
        """Hex sha256 of everything that the evaluation's numbers and pictures depend on."""
        apart = {"name", "out", "ray", "mlflow", "workers", "checkpoint", "columns"}
        job = self.job.model_dump(mode="json", exclude=apart)
        contents = [content.state for content in self.contents]
        columns = self.columns and [self.columns.to.root, self.columns.origin.model_dump(exclude={"checkpoint"})]
        probed = [content.state for splits in self.probed for content in splits]
        heads = [head.state for head in self.heads]
        heads += [self.trees_key, self.outlines_key]
        asked = [_REVISION, job, self.model.weights, contents, probed, heads, sorted(self.missing)]
        return _digest(*asked, self.dataset_fingerprint, *([columns] if columns else []))

    def set_key(self, content: EvaluationSet) -> str:
        """Hex sha256 of what the numbers of one set depend on."""
        job = self.job
        return _digest(
            _REVISION,
            content.state,
            self.model.weights,
            job.seed,
            job.batch,
            job.precision,
            job.draws,
            job.centre_crop,
        )

    def probe_key(self, splits: tuple[EvaluationSet, EvaluationSet]) -> str:
        """Hex sha256 of what the linear probe's numbers of one set depend on."""
        job = self.job
        assert job.linear_probe is not None
        how = job.linear_probe.model_dump(mode="json", exclude={"sets"})
        return _digest(how, *(self.set_key(content) for content in splits))

    @property
    def trees_key(self) -> str:
        """Hex sha256 of what parse F1 depends on."""
        return self._hierarchy_key([(tree.words, sorted(tree.spans)) for tree in self.trees])

    @cached_property
    def outlines_key(self) -> str:
        """Hex sha256 of what the agreement with segments depends on."""
        masks = None if self.job.hierarchy is None else self.job.hierarchy.masks
        states = [] if masks is None else outlines_states(masks, self.outlines)
        return self._hierarchy_key(masks and masks.model_dump(mode="json"), self.outlines, states)

    def _hierarchy_key(self, *given: object) -> str:
        job = self.job
        how = (job.seed, job.draws, job.batch, job.precision, job.centre_crop)
        return _digest(_REVISION, self.model.weights, *how, *given)

    @property
    def hierarchy_questions(self) -> dict[str, str]:
        """Fingerprints of the given trees and of the pictures with masks, which hold for every model."""
        masks = self.job.hierarchy and self.job.hierarchy.masks
        segments = [masks.void, *self.outlines] if masks and self.outlines else []
        trees = [(tree.words, sorted(tree.spans)) for tree in self.trees]
        given: dict[str, Sequence[object]] = {"parsing": trees, "segments": segments}
        return {name: _digest(name, repr(asked)) for name, asked in given.items() if asked}

    def baseline_key(self, content: EvaluationSet, px: int) -> str:
        """Hex sha256 of what the pixel neighbours of one set depend on: no weights."""
        return _digest(_REVISION, content.state, self.dataset_fingerprint, px)


def ask(job: EvaluateJob) -> Asked:
    """Reads what a job of one checkpoint names. CheckpointError or DatasetError for what is missing or altered."""
    model = _model(job)
    trees, outlines, without = _readable(job, model)
    if without:
        raise JobError(next(iter(without.values())))
    return _asked(job, model, _questions(job, trees, outlines))


def ask_each(jobs: Mapping[str, EvaluateJob]) -> dict[str, Asked]:
    """The same of jobs that differ in their checkpoint alone: what they ask is read once.

    Given trees or masks are missing for a model without affinities, if another one has some.
    """
    models = {name: _model(job) for name, job in jobs.items()}
    readable = {name: _readable(job, models[name]) for name, job in jobs.items()}
    everything = _questions(
        next(iter(jobs.values())),
        trees=any(trees for trees, _, _ in readable.values()),
        outlines=any(outlines for _, outlines, _ in readable.values()),
    )
    found = {}
    for name, job in jobs.items():
        trees, outlines, without = readable[name]
        questions = replace(
            everything,
            trees=everything.trees if trees else (),
            outlines=everything.outlines if outlines else (),
            missing=everything.missing | without,
        )
        found[name] = _asked(job, models[name], questions)
    return found


def _model(job: EvaluateJob) -> EvaluatedModel:
    assert isinstance(job.checkpoint, str)
    named = job.checkpoint.startswith(("runs:/", "models:/"))
    return evaluated_model(recorded_checkpoint(job.mlflow, job.out, job.checkpoint) if named else job.checkpoint)


def _questions(job: EvaluateJob, trees: bool, outlines: bool) -> Questions:
    """Reads them, the given trees and masks only if any model has such."""
    contents, missing = _contents(job)
    probed, without = _probed(job)
    heads = [head for head in job.heads if folder(head.root).exists()]
    missing |= without | {head_label(head): _not_there(head.root) for head in job.heads if head not in heads}
    given = job.hierarchy or HierarchySettings()
    return Questions(
        contents,
        probed,
        ask_heads(heads),
        tuple(read_trees(given.trees.path, given.trees.labelled)) if given.trees and trees else (),
        tuple(read_outlines(given.masks)) if given.masks and outlines else (),
        missing,
    )


def _asked(job: EvaluateJob, model: EvaluatedModel, questions: Questions) -> Asked:
    contents, probed, heads, missing = questions.contents, questions.probed, questions.heads, questions.missing
    if missing and not (contents or probed or heads or job.columns or questions.trees or questions.outlines):
        name, why = next(iter(missing.items()))
        raise DatasetError(f"sets: expected one that is there at least; {name}: {why}")
    labelled = any(content.classification is not None for content in contents)
    lookers = ["baselines.pixel_neighbours"] if labelled and job.baselines.pixel_neighbours is not None else []
    lookers += ["hierarchy.training_pairs"] if job.hierarchy is not None and job.hierarchy.training_pairs else []
    trained_on = datasets_of(job.dataset) if job.dataset else model.trained_on
    datasets = trained_on if lookers else ()
    if lookers and not datasets:
        raise JobError(
            f"dataset: expected a build, for {' and '.join(lookers)}, came null; {model.root} names none. "
            f"Without it: {' '.join(_WITHOUT[looker] for looker in lookers)}"
        )
    paths, fingerprint = tuple(dataset.path for dataset in datasets), None
    if datasets:
        manifests = [read_manifest(path) for path in paths]
        mixture = mixture_of(datasets, manifests)
        fingerprint = fingerprint_of(mixture, [manifest.fingerprint for manifest in manifests])
        if model.state and fingerprint != model.state.manifest_fingerprint:
            log.warning("%s is not the build that %s was trained on", ", ".join(paths), model.root)
    columns = ask_columns(job, model)
    return Asked(
        job,
        model,
        contents,
        probed,
        questions.trees,
        questions.outlines,
        missing,
        paths,
        fingerprint,
        columns,
        heads,
    )


def _readable(job: EvaluateJob, model: EvaluatedModel) -> tuple[bool, bool, dict[str, str]]:
    """Whether the model has trees of captions, and groups of patches; and why it cannot be asked for given ones."""
    settings, there = job.hierarchy, (model.settings.text_hierarchy, model.settings.image_hierarchy)
    given = (None, None) if settings is None else (settings.trees, settings.masks)
    without = {
        name: f"hierarchy.{key}: expected a model with affinities to read, came {model.root} without"
        for name, key, asked, has in zip(("parsing", "segments"), ("trees", "masks"), given, there, strict=True)
        if asked is not None and not has
    }
    return *there, without


def _contents(job: EvaluateJob) -> tuple[tuple[EvaluationSet, ...], dict[str, str]]:
    """The sets that are there, and those that are not; one that is there and is not what it should be is an error."""
    there, missing = _there("sets", job.sets)
    return tuple(settings.load() for settings in there), missing


def _probed(job: EvaluateJob) -> tuple[tuple[tuple[EvaluationSet, EvaluationSet], ...], dict[str, str]]:
    """The same of the linear probe's sets, in both splits."""
    there, missing = _there("linear_probe.sets", job.linear_probe.sets if job.linear_probe is not None else ())
    return tuple(load_splits(settings) for settings in there), {
        f"linear_probe/{name}": why for name, why in missing.items()
    }


def _there(key: str, sets: Sequence[SetSettings]) -> tuple[list[SetSettings], dict[str, str]]:
    names = [getattr(settings, "called", None) or settings.name for settings in sets]
    again = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if again is not None:
        raise JobError(f"{key}: expected each set once, came {again} again; `called` renames a dataset or webdataset")
    there = [settings for settings in sets if folder(settings.root).exists()]
    missing = {
        name: _not_there(settings.root) for name, settings in zip(names, sets, strict=True) if settings not in there
    }
    return there, missing


def _not_there(root: str) -> str:
    return f"{folder(root).root} is not there"


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
