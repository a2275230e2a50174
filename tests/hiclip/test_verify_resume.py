"""--verify-resume: a run that resumes exactly is told so, and what makes one differ is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_dataset import small_dataset
from small_run import random_batches, small_job

from hiclip.pretrain import plan, run, verify
from hiclip.training.checkpoint import OPTIMIZER, newest_checkpoint
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace
from hiclip.training.verify_resume import verify_resume
from pipeline.command import run_command
from pipeline.jobfile import JobError, resolved_yaml


def train(job: PretrainJob, place: RunPlace) -> None:
    newest = newest_checkpoint(place.run_folder)
    end = place.steps or job.steps
    run_rank(job, place, newest, lambda step: list(random_batches(job, step))[: end - step], lambda row: None)


def test_a_run_that_resumes_exactly_leaves_nothing(tmp_path: Path) -> None:
    job = small_job(str(tmp_path))
    assert verify_resume(job, RunPlace(job.out, "data", None), train) == (4, [])
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_named(tmp_path: Path) -> None:
    """The resumed run finds a memory of the optimizer in which one moment has been doubled."""
    job, name = small_job(str(tmp_path)), "exp_avg.towers.image_tower.positions"

    def train_tampered(job: PretrainJob, place: RunPlace) -> None:
        newest = newest_checkpoint(place.run_folder)
        if newest is not None:
            state = load_file(Path(newest, OPTIMIZER))
            save_file({**state, name: 2 * state[name]}, Path(newest, OPTIMIZER))
        train(job, place)

    steps, differences = verify_resume(job, RunPlace(job.out, "data", None), train_tampered)
    assert steps == 4
    assert any(line.startswith(f"optimizer: {name} by up to ") for line in differences)
    assert any(line.startswith("weights: towers.image_tower.positions by up to ") for line in differences)
    assert any(line.startswith("loss after 48 pairs: ") for line in differences)
    assert not any(line.startswith("loss after 40 pairs: ") for line in differences), "weights were still the same"
    assert (tmp_path / "verify-resume/again").is_dir()


def test_a_run_that_starts_over_has_not_resumed(tmp_path: Path) -> None:
    """Its losses are the same, for it is the same run; but nothing was taken up."""
    job = small_job(str(tmp_path), checkpoints={"every_pairs": 64, "every_minutes": 1e-9})

    def train_anew(job: PretrainJob, place: RunPlace) -> None:
        run_rank(job, place, None, lambda step: list(random_batches(job, step))[: place.steps], lambda row: None)

    _, differences = verify_resume(job, RunPlace(job.out, "data", None), train_anew)
    assert differences == ["the second run did not go on from the checkpoint of 32 pairs: its first steps are its own"]


def test_a_job_of_one_step_has_no_middle() -> None:
    job = small_job("out", schedule={"pairs": 8, "warmup_pairs": 0})
    with pytest.raises(JobError, match=r"schedule\.pairs: expected two steps or more"):
        verify_resume(job, RunPlace("out", "data", None), train)


@pytest.mark.usefixtures("ray_session")
def test_the_command_on_ray_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_dataset(tmp_path / "dataset", pairs=64, px=32)
    job = small_job(str(tmp_path / "run"), str(tmp_path / "dataset"), schedule={"pairs": 32})
    file = tmp_path / "pretrain.yaml"
    file.write_text(resolved_yaml(job))
    with pytest.raises(SystemExit) as ended:
        run_command(PretrainJob, plan, run, [str(file), "--verify-resume"], {"verify-resume": verify})
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "verify-resume: 2 steps after a checkpoint are those of the run without a stop, bit for bit" in said
    assert json.loads((tmp_path / "run/verify-resume.json").read_text()) == {"steps": 2, "differences": []}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["verify-resume.json"]
