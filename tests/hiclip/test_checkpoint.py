"""A checkpoint is whole or it is refused, and what it holds comes back bit for bit."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import torch

from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import (
    CheckpointError,
    TrainState,
    adopt_checkpoint,
    begin_checkpoint,
    checkpoint_name,
    checkpoints,
    complete_checkpoint,
    load_towers,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_contents,
)
from hiclip.training.history import StepRow
from pipeline.storage import Folder, StorageError

MODEL = ModelSettings(width=64, depth=1, image_px=16, context=8, embedding=64, hierarchy_layers=(0,))
MOMENTS = {"step.x": torch.tensor(7.0)}
HISTORY = [StepRow(8, 1 / 3, 1e-3, 14.3, 0.5, 0.25, {"contrastive": 1 / 3}, gradient_norm=0.7)]


def state(seen: int) -> TrainState:
    return TrainState(
        step=1, seen=seen, world=1, seconds=0.5, wait_s=0.25, job_fingerprint="j", manifest_fingerprint="m"
    )


def write(run: Path, seen: int, towers: TwoTowers, whole: bool = True) -> Folder:
    place = Folder(str(run)).child(checkpoint_name(seen))
    begin_checkpoint(place)
    weights = {f"towers.{name}": tensor for name, tensor in towers.state_dict().items()}
    write_contents(place, weights, MOMENTS, MODEL, "name: x\n", state(seen), HISTORY)
    if whole:
        complete_checkpoint(place)
    return place


@pytest.fixture(scope="module")
def towers() -> TwoTowers:
    torch.manual_seed(3)
    return TwoTowers(MODEL)


def test_everything_comes_back(tmp_path: Path, towers: TwoTowers) -> None:
    place = write(tmp_path, 8, towers)
    loaded, where = load_towers(place.root)
    assert where == state(8)
    assert loaded.settings == MODEL
    assert not loaded.training
    own = towers.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.state_dict().items())
    checkpoint = read_checkpoint(place.root)
    assert checkpoint.history() == HISTORY
    assert torch.equal(checkpoint.optimizer_state()["step.x"], MOMENTS["step.x"])


def test_the_newest_whole_one_counts(tmp_path: Path, towers: TwoTowers) -> None:
    assert newest_checkpoint(str(tmp_path)) is None
    write(tmp_path, 8, towers)
    whole = write(tmp_path, 1_000, towers)
    write(tmp_path, 2_000, towers, whole=False)
    assert newest_checkpoint(str(tmp_path)) == whole.root
    assert load_towers(str(tmp_path))[1].seen == 1_000, "a run's folder means its newest checkpoint"


def test_a_torn_one_is_refused_by_name(tmp_path: Path, towers: TwoTowers) -> None:
    torn = write(tmp_path, 8, towers, whole=False)
    with pytest.raises(CheckpointError, match=re.escape(f"{torn.root}: was not finished: it has no COMPLETE")):
        load_towers(torn.root)
    with pytest.raises(CheckpointError, match="the run has no whole checkpoint yet"):
        load_towers(str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        read_checkpoint(str(tmp_path / "nowhere"))


def test_one_that_lost_a_file_or_its_bytes_is_refused(tmp_path: Path, towers: TwoTowers) -> None:
    place = write(tmp_path, 8, towers)
    weights = Path(place.join("weights.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        load_towers(place.root)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing though"):
        load_towers(place.root)


def test_an_interrupted_attempt_leaves_nothing_behind(tmp_path: Path, towers: TwoTowers) -> None:
    torn = write(tmp_path, 8, towers, whole=False)
    torn.write_text("notes/left.txt", "of an earlier version")
    whole = write(tmp_path, 8, towers)
    assert whole.names("notes/") == []
    assert "optimizer.safetensors" in whole.names()


def test_pruning_keeps_the_newest(tmp_path: Path, towers: TwoTowers) -> None:
    write(tmp_path, 8, towers, whole=False)
    for seen in (16, 24, 32):
        write(tmp_path, seen, towers)
    write(tmp_path, 40, towers, whole=False)
    prune_checkpoints(str(tmp_path), keep=2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [f"seen-{seen:012d}" for seen in (24, 32, 40)], "a torn newer one may still be being written"


def test_pruning_leaves_what_others_may_start_from(tmp_path: Path, towers: TwoTowers) -> None:
    for seen in (8, 16, 24, 32):
        write(tmp_path, seen, towers)
    prune_checkpoints(str(tmp_path), keep=1, stays=lambda seen: seen == 16)
    assert list(checkpoints(str(tmp_path))) == [16, 32]


def test_an_adopted_checkpoint_is_that_of_the_run_which_adopts_it(tmp_path: Path, towers: TwoTowers) -> None:
    found = write(tmp_path / "one", 16, towers).root
    adopted = adopt_checkpoint(found, str(tmp_path / "other"), "f" * 64, "name: other\n")
    assert newest_checkpoint(str(tmp_path / "other")) == adopted
    before, after = read_checkpoint(found), read_checkpoint(adopted)
    assert after.state == before.state.model_copy(update={"job_fingerprint": "f" * 64, "mlflow_run_id": None})
    assert after.place.read_text("job.yaml") == "name: other\n"
    assert all(after.weights()[name].equal(tensor) for name, tensor in before.weights().items())
    Path(found, "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="was not finished"):
        adopt_checkpoint(found, str(tmp_path / "third"), "f" * 64, "")
    assert newest_checkpoint(str(tmp_path / "third")) is None


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path, towers: TwoTowers) -> None:
    (tmp_path / "checkpoints").write_text("a file stands where the folder should be")
    with pytest.raises(StorageError, match="checkpoints/seen-"):
        write(tmp_path, 8, towers)
    assert newest_checkpoint(str(tmp_path)) is None
    assert stat.S_ISREG((tmp_path / "checkpoints").stat().st_mode)
