"""The model that an evaluation asks: what a run of ours left, or weights that somebody published."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from pydantic import TypeAdapter

from hiclip.data.mixture import DatasetSettings, MixedDataset, datasets_of
from hiclip.data.tokenizer import VOCABULARY
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import CheckpointError, TrainState, load_towers, read_checkpoint
from hiclip.training.published_weights import published_file, read_published
from pipeline.storage import folder

_MORE_TOKENS = 64
"""Rows that a table may have beyond CLIP's: a masked word, padding to a round number."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model and where it stands; its weights stay unread until `towers`."""

    root: str
    """Folder of the checkpoint, or file of the published weights."""
    weights: str
    """Hex sha256 of the file that holds the weights."""
    settings: ModelSettings
    state: TrainState | None
    """Where its run stood; None for published weights, of which nothing is known."""
    trained_on: tuple[MixedDataset, ...]
    """The dataset that its own job names, or several that it mixes; none for published weights."""

    def towers(self) -> TwoTowers:
        """In evaluation mode, on CPU."""
        return read_published(self.root) if self.state is None else load_towers(self.root)[0]

    @property
    def training(self) -> str:
        """Its training in a few words."""
        return "published weights" if self.state is None else f"{self.state.seen:,} pairs seen"


def evaluated_model(path: str) -> EvaluatedModel:
    """The checkpoint, the newest one of the run, or the published weights at `path`. CheckpointError if none is."""
    file = published_file(path)
    if file is not None:
        settings = read_published(file).settings
        _check_tokenizer(folder(file).root, settings)
        return EvaluatedModel(folder(file).root, folder(file).sha256(), settings, None, ())
    checkpoint = read_checkpoint(path)
    place = checkpoint.place
    _check_tokenizer(place.root, checkpoint.model)
    trained_on = datasets_of(
        TypeAdapter(DatasetSettings).validate_python(yaml.safe_load(place.read_text("job.yaml"))["data"]["dataset"])
    )
    weights = place.sha256("weights.safetensors")
    return EvaluatedModel(place.root, weights, checkpoint.model, checkpoint.state, trained_on)


def _check_tokenizer(root: str, settings: ModelSettings) -> None:
    """CheckpointError if the model's tokens cannot be those of CLIP's tokenizer, the only one that texts get here."""
    rows = settings.vocabulary
    if not VOCABULARY <= rows <= VOCABULARY + _MORE_TOKENS:
        raise CheckpointError(
            f"{root}: expected a table of CLIP's {VOCABULARY:,} tokens, came {rows:,} rows: another tokenizer's"
        )
