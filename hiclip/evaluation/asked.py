"""What an evaluation asks, read and checked before anything is computed, and the names of its answers."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from hiclip.data.mixture import datasets_of, fingerprint_of, mixture_of
from hiclip.evaluation.columns import AskedColumns, ask_columns
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluated_model import EvaluatedModel, evaluated_model
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.heads.measure_heads import AskedHead, ask_heads
from pipeline.jobfile import JobError
from pipeline.manifest import read_manifest

log = logging.getLogger(__name__)

_REVISION = 3
"""Of the definitions of the metrics; one more makes what was remembered be computed again."""
_WITHOUT = {
    "baselines.pixel_neighbours": "baselines.pixel_neighbours=null",
    "hierarchy.training_pairs": "hierarchy.training_pairs=0",
}


@dataclass(frozen=True)
class Asked:
    """What a job asks, read and checked before anything is computed."""

    job: EvaluateJob
    model: EvaluatedModel
    contents: tuple[EvaluationSet, ...]
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
        contents = [content.fingerprint for content in self.contents]
        columns = self.columns and [self.columns.to.root, self.columns.origin.model_dump(exclude={"checkpoint"})]
        asked = [_REVISION, job, self.model.weights, contents, self.dataset_fingerprint]
        heads = [head.fingerprint for head in self.heads]
        return _digest(*asked, *([columns] if columns else []), *([heads] if heads else []))

    def set_key(self, content: EvaluationSet) -> str:
        """Hex sha256 of what the numbers of one set depend on."""
        job = self.job
        return _digest(
            _REVISION,
            content.fingerprint,
            self.model.weights,
            job.seed,
            job.batch,
            job.precision,
            job.draws,
            job.centre_crop,
        )

    def baseline_key(self, content: EvaluationSet, px: int) -> str:
        """Hex sha256 of what the pixel neighbours of one set depend on: no weights."""
        return _digest(_REVISION, content.fingerprint, self.dataset_fingerprint, px)


def ask(job: EvaluateJob) -> Asked:
    """Reads what a job names. Raises CheckpointError or DatasetError for what is missing or altered."""
    model = evaluated_model(job.checkpoint)
    contents = tuple(settings.load() for settings in job.sets)
    lookers = ["baselines.pixel_neighbours"] if contents and job.baselines.pixel_neighbours is not None else []
    lookers += ["hierarchy.training_pairs"] if job.hierarchy is not None and job.hierarchy.training_pairs else []
    named = datasets_of(job.dataset) if job.dataset else model.trained_on
    datasets = named if lookers else ()
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
    return Asked(job, model, contents, paths, fingerprint, ask_columns(job, model), ask_heads(job.heads))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
