"""A checkpoint becomes a folder that is loaded with torch and safetensors alone, with a card that says what it is.

weights.safetensors    the towers, fp32, without what the objective and the optimizer had beside them
TOKENIZER.md           how captions become numbers
README.md              the card
config.json            written last: without it the folder is not loaded
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from hiclip.data.mixture import DatasetSettings, MixedDataset, datasets_of
from hiclip.evaluation.compare import read_outcome
from hiclip.evaluation.model_card import TOKENIZER, TrainingData, model_card, preprocessing, tokenizer_note
from hiclip.evaluation.outcome import Outcome
from hiclip.model.exported import CONFIG, WEIGHTS, config_of
from hiclip.training.checkpoint import Checkpoint, load_towers, read_checkpoint
from pipeline.jobfile import InputError
from pipeline.manifest import DatasetError, read_manifest
from pipeline.storage import Folder, StorageError, folder

CARD = "README.md"


def export_checkpoint(checkpoint: str, out: str, result: str | None = None) -> Folder:
    """Writes the export of a checkpoint (a folder, a run's folder, s3://) into the new folder `out` and returns it.

    result: folder of a finished evaluation of the same weights, whose results the card shows.
    Raises InputError before anything is written.
    """
    place = folder(out)
    found = place.names()
    if found:
        raise InputError(f"{place.root}: expected an empty or a new folder, found {found[0]}")
    read = read_checkpoint(checkpoint)
    towers, state = load_towers(read.place.root)
    outcome = _outcome(result, read) if result is not None else None
    job: dict[str, Any] = yaml.safe_load(read.place.read_text("job.yaml")) or {}
    card = model_card(towers.settings, state, job, [_data(one) for one in _datasets(job)], outcome)
    place.make()
    with tempfile.TemporaryDirectory(prefix="hiclip-export-") as local:
        weights = {name: tensor.detach().contiguous() for name, tensor in towers.state_dict().items()}
        save_file(weights, f"{local}/{WEIGHTS}", metadata={"format": "pt"})
        place.upload(f"{local}/{WEIGHTS}", WEIGHTS)
    place.write_text(TOKENIZER, tokenizer_note(towers.settings))
    place.write_text(CARD, card)
    content = config_of(towers.settings) | preprocessing(towers.settings)
    place.write_text(CONFIG, json.dumps(content, indent=1) + "\n")
    return place


def _outcome(result: str, checkpoint: Checkpoint) -> Outcome:
    outcome = read_outcome(folder(result))
    weights = checkpoint.place.sha256(WEIGHTS)
    if outcome.weights != weights:
        raise InputError(
            f"{folder(result).root}: expected an evaluation of the weights {weights[:16]} of {checkpoint.place.root}, "
            f"came one of {outcome.weights[:16]} ({outcome.checkpoint})"
        )
    return outcome


def _datasets(job: dict[str, Any]) -> tuple[MixedDataset, ...]:
    """What the checkpoint's job says it was trained on; none where it says nothing that can be read."""
    data = job.get("data")
    named = data.get("dataset") if isinstance(data, dict) else None
    if named is None:
        return ()
    try:
        return datasets_of(TypeAdapter(DatasetSettings).validate_python(named))
    except ValidationError:
        return ()


def _data(dataset: MixedDataset) -> TrainingData:
    try:
        manifest = read_manifest(dataset.path)
    except (DatasetError, StorageError):  # the data may lie elsewhere, or be gone: the model is exported all the same
        return TrainingData(dataset.path, None, None, None, {})
    card = manifest.job.get("card") or {}
    licences = {str(source): str(licence) for source, licence in card.get("licences", {}).items()}
    return TrainingData(dataset.path, manifest.name, manifest.fingerprint, manifest.pairs, licences)
