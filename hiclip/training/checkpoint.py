"""A checkpoint is a folder: everything that a run needs to go on as if it had never stopped, and that a reader needs to
use the model without Ray or DeepSpeed.

    weights.safetensors    `towers.*` and `objective.*`, fp32
    model.json             the keys under `model:`
    optimizer.safetensors  what AdamW remembers of each weight, by name: any engine on any ranks goes on with it
    job.yaml               the resolved job
    losses.csv             every step up to here
    state.json             TrainState
    COMPLETE               written last: names of all files; a folder without it is no checkpoint

Order of the data, random numbers and learning rate are arithmetic on `seen` and need no state.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers, differing_weights
from hiclip.training.history import StepRow, from_csv, to_csv
from pipeline.jobfile import InputError, Settings
from pipeline.storage import Folder, StorageError, folder

COMPLETE = "COMPLETE"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_CHECKPOINTS = "checkpoints"
_MODEL = TypeAdapter(ModelSettings)


class CheckpointError(InputError):
    """A checkpoint is missing, torn, or not of this run."""


class TrainState(Settings):
    """Where a run stands, beside its weights."""

    step: int
    """Steps done."""
    seen: int
    """Pairs consumed."""
    world: int
    """Workers that wrote it."""
    seconds: float
    """Time spent in steps so far, over all restarts, in seconds."""
    wait_s: float
    """Of it, waiting for data."""
    job_fingerprint: str
    manifest_fingerprint: str
    train_flops: float | None = None
    """FLOPs of training so far."""
    recent_loss: float | None = None
    """Mean loss of the steps since the checkpoint before, by which checkpoints are compared; null: there were none."""
    left_out: tuple[int, ...] = ()
    """Steps whose batches are not learnt from, because a number was not finite there or right after."""
    rollbacks: int = 0
    """How often the run has gone back to a checkpoint for that."""
    mlflow_run_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, its large files still unread."""

    place: Folder
    state: TrainState
    model: ModelSettings

    def history(self) -> list[StepRow]:
        """Every step up to the checkpoint."""
        return from_csv(self.place.read_text("losses.csv"))

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, on CPU."""
        return self._tensors(WEIGHTS)

    def optimizer_state(self) -> dict[str, Tensor]:
        """What AdamW remembered, see `hiclip.training.optimizer.optimizer_state`."""
        return self._tensors(OPTIMIZER)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if not self.place.exists(name):
            raise CheckpointError(
                f"{self.place.root}: expected {name}, found none: an earlier version wrote the optimizer otherwise, "
                "and such a run cannot be resumed; choose another out"
            )
        with local_files(self.place, [name]) as here:
            try:
                tensors: dict[str, Tensor] = load_file(here / name)
                return tensors
            except SafetensorError as error:
                raise CheckpointError(f"{self.place.join(name)}: cannot be read: {error}") from None


def checkpoint_name(seen: int) -> str:
    """The checkpoint's folder inside the run's folder."""
    return f"{_CHECKPOINTS}/seen-{seen:012d}"


def newest_checkpoint(run_folder: str) -> str | None:
    """The whole checkpoint of a run that has seen most; torn ones are passed over. None if there is none."""
    run = folder(run_folder)
    names = _checkpoints(run)
    return run.join(names[-1]) if names else None


def go_back(run_folder: str, seen: int) -> str | None:
    """The newest whole checkpoint of at most `seen` pairs, else the oldest there is; None if there is none.

    Removes all later ones, so that the run goes on from it whenever it is started again.
    """
    run = folder(run_folder)
    names = _checkpoints(run)
    if not names:
        return None
    chosen = max((name for name in names if name <= checkpoint_name(seen)), default=names[0])
    for name in names:
        if name > chosen:
            _remove(run, name)
    return run.join(chosen)


def checkpoints(run_folder: str) -> dict[int, str]:
    """The whole checkpoints of a run by pairs seen, ascending."""
    run = folder(run_folder)
    return {_seen(name): run.join(name) for name in _checkpoints(run)}


def adopt_checkpoint(path: str, run_folder: str, job_fingerprint: str, job: str) -> str:
    """Makes a checkpoint of another run the one that the run in `run_folder` starts from; returns its address there.

    For a job that would have come to the very same checkpoint by itself, which only its caller can know: one that is
    equal up to there, in what it learns from and how. `job`: the resolved job as YAML. CheckpointError if it is torn.
    """
    found = read_checkpoint(path)
    own = folder(run_folder).child(checkpoint_name(found.state.seen))
    begin_checkpoint(own)
    state = found.state.model_copy(update={"job_fingerprint": job_fingerprint, "mlflow_run_id": None})
    files = [name for name in found.place.names() if name not in ("job.yaml", "state.json", COMPLETE)]
    with local_files(found.place, files) as here:
        for name in files:
            own.upload(str(here / name), name)
    own.write_text("job.yaml", job)
    own.write_text("state.json", state.model_dump_json(indent=1) + "\n")
    complete_checkpoint(own)
    return own.root


def read_checkpoint(path: str) -> Checkpoint:
    """The checkpoint at `path`, or the newest of the run at `path`. CheckpointError if it is torn or not there."""
    place = folder(path)
    if place.exists(_CHECKPOINTS):
        newest = newest_checkpoint(path)
        if newest is None:
            raise CheckpointError(f"{place.root}: the run has no whole checkpoint yet")
        place = folder(newest)
    if not place.exists(COMPLETE):
        what = "was not finished: it has no COMPLETE" if place.exists("state.json") else "no checkpoint is here"
        raise CheckpointError(f"{place.root}: {what}")
    present = set(place.names())
    missing = [name for name in json.loads(place.read_text(COMPLETE))["files"] if name not in present]
    if missing:
        raise CheckpointError(f"{place.root}: {missing[0]} is missing though the checkpoint was complete")
    try:
        state = TrainState.model_validate_json(place.read_text("state.json"))
        model = _MODEL.validate_json(place.read_text("model.json"))
    except ValidationError as error:
        raise CheckpointError(f"{place.root}: cannot be read: {' '.join(str(error).split())}") from None
    return Checkpoint(place, state, model)


def load_towers(path: str) -> tuple[TwoTowers, TrainState]:
    """The trained towers in evaluation mode on CPU, and where their run stood. Needs neither Ray nor DeepSpeed."""
    checkpoint = read_checkpoint(path)
    try:
        towers = TwoTowers(checkpoint.model)
    except ValueError as error:  # settings that an earlier version took
        raise CheckpointError(f"{checkpoint.place.join('model.json')}: {error}") from None
    weights = checkpoint.weights()
    own = {name.removeprefix("towers."): tensor for name, tensor in weights.items() if name.startswith("towers.")}
    said = differing_weights(towers, own)
    if said:
        raise CheckpointError(f"{checkpoint.place.root}: the weights are not those of the model in model.json; {said}")
    towers.load_state_dict(own)
    return towers.eval(), checkpoint.state


def begin_checkpoint(place: Folder) -> None:
    """Clears what an interrupted attempt left; the first thing to do, by one rank."""
    place.remove()
    place.make()


def write_contents(
    place: Folder,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    model: ModelSettings,
    job: str,
    state: TrainState,
    history: list[StepRow],
) -> None:
    """Writes everything but COMPLETE; by one rank. `job`: the resolved job as YAML."""
    for name, tensors in {WEIGHTS: weights, OPTIMIZER: optimizer}.items():
        with tempfile.TemporaryDirectory(prefix="hiclip-checkpoint-") as local:
            try:
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{local}/{name}")
            except (SafetensorError, OSError) as error:  # a full disk
                raise StorageError(f"{local}/{name}: cannot be written: {error}") from None
            place.upload(f"{local}/{name}", name)
    place.write_text("model.json", json.dumps(_MODEL.dump_python(model, mode="json"), indent=1) + "\n")
    place.write_text("job.yaml", job)
    place.write_text("losses.csv", to_csv(history))
    place.write_text("state.json", state.model_dump_json(indent=1) + "\n")


def complete_checkpoint(place: Folder) -> None:
    """Declares the checkpoint whole; by one rank, after everything is written."""
    place.write_text(COMPLETE, json.dumps({"files": place.names()}, indent=1) + "\n")


def prune_checkpoints(
    run_folder: str, keep: int, keep_best: int = 0, stays: Callable[[int], bool] = lambda seen: False
) -> None:
    """Removes all but the newest `keep` whole checkpoints, the `keep_best` of lowest `recent_loss` and those that
    `stays` names by pairs seen; and torn ones older than the newest."""
    run = folder(run_folder)
    whole = _checkpoints(run)
    newest = whole[-keep:]
    kept = {*newest, *sorted(whole, key=lambda name: _recent_loss(run, name))[:keep_best]}
    kept |= {name for name in whole if stays(_seen(name))}
    folders = {f"{_CHECKPOINTS}/{name.split('/')[1]}" for name in run.names(f"{_CHECKPOINTS}/")}
    for name in sorted(folders - kept):
        if newest and name < newest[0]:
            _remove(run, name)


def _remove(run: Folder, name: str) -> None:
    run.remove(f"{name}/{COMPLETE}")  # first, so that a half-removed one does not look whole
    run.remove(name)


def _seen(name: str) -> int:
    return int(name.rsplit("-", 1)[-1])


def _recent_loss(run: Folder, name: str) -> float:
    loss = json.loads(run.read_text(f"{name}/state.json")).get("recent_loss")
    return math.inf if loss is None else float(loss)


@contextlib.contextmanager
def local_files(place: Folder, names: list[str]) -> Iterator[Path]:
    """A local folder that holds these files of `place`: itself if it is local, else a copy for the while."""
    if place.is_local:
        yield Path(place.root)
        return
    with tempfile.TemporaryDirectory(prefix="hiclip-checkpoint-") as here:
        for name in names:
            target = Path(here, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            place.download(name, str(target))
        yield Path(here)


def _checkpoints(run: Folder) -> list[str]:
    """Whole checkpoints of a run, relative to it, by pairs seen."""
    pattern = re.compile(rf"{_CHECKPOINTS}/seen-\d{{12}}/{COMPLETE}")
    return sorted(
        name.removesuffix(f"/{COMPLETE}") for name in run.names(f"{_CHECKPOINTS}/") if pattern.fullmatch(name)
    )
