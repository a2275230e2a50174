"""Checkpoints are evaluated beside training: every one that is due, with the numbers of hiclip.evaluate, and training
neither waits nor changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_checkpoint import small_openmoji
from small_dataset import small_dataset
from small_run import small_job

from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.pretrain import pretrain
from hiclip.training.checkpoint import newest_checkpoint
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.ray_evaluations import FOLDER, Evaluations
from pipeline.jobfile import JobError
from pipeline.manifest import DatasetError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluations")
    small_dataset(root / "build", pairs=64, px=32)
    small_openmoji(root / "crawl")
    return root


def job_of(place: Path, out: Path, **evaluation: object) -> PretrainJob:
    sets = [{"name": "openmoji", "root": str(place / "crawl"), "retrieval_pairs": 20}]
    keys = {"sets": sets, "every_pairs": 24, "draws": 100, "metrics": ["top1", "rsum", "loss"], **evaluation}
    return small_job(str(out), str(place / "build"), evaluation=keys)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_a_run_is_evaluated_beside_and_stays_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiclip.training.ray_evaluations._LOOKS_EVERY_S", 0.1)
    job = job_of(place, tmp_path / "watched")
    result = pretrain(job, here=True)
    alone = pretrain(small_job(str(tmp_path / "alone"), str(place / "build")), here=True)
    assert result.losses == alone.losses
    assert result.job_fingerprint == alone.job_fingerprint, "a run may be evaluated or not"
    stored = sorted((tmp_path / "watched" / FOLDER).iterdir())
    assert stored[-1].name == "seen-000000000064.json", "the last checkpoint always"
    said = json.loads(stored[-1].read_text())
    newest = newest_checkpoint(job.out)
    assert newest is not None
    assert job.evaluation is not None
    expected = evaluate_checkpoint(newest, job.evaluation.sets, metrics={"top1", "rsum", "loss"}, seed=5, draws=100)
    assert said == [one.model_dump() for one in expected]
    assert "after 64 pairs openmoji top1" in " ".join(capsys.readouterr().out.split())

    from mlflow import MlflowClient

    history = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        str(result.mlflow_run_id), "openmoji/rsum"
    )
    assert history[-1].step == 64
    assert history[-1].value == pytest.approx(next(one.value for one in expected if one.metric == "rsum"))
    assert len(history) == len(stored)


@pytest.mark.usefixtures("ray_session")
def test_what_was_evaluated_is_not_evaluated_again_and_every_due_one_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiclip.training.ray_evaluations._LOOKS_EVERY_S", 0.05)
    pretrain(small_job(str(tmp_path / "run"), str(place / "build")), here=True)
    checkpoints = sorted((tmp_path / "run/checkpoints").iterdir())
    assert len(checkpoints) >= 3
    hidden = [path.rename(tmp_path / path.name) for path in checkpoints]
    recorded: list[int] = []

    def record(numbers: Mapping[str, float], seen: int) -> None:
        assert set(numbers) == {"openmoji/top1", "openmoji/rsum", "openmoji/loss"}
        recorded.append(seen)

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 180
        while len(recorded) < count:
            assert time.monotonic() < deadline, recorded
            time.sleep(0.05)

    job, said = job_of(place, tmp_path / "run", every_pairs=40), list[str]()
    with Evaluations(job, record, said.append):
        hidden[0].rename(tmp_path / "run/checkpoints" / hidden[0].name)  # 24 pairs: not due
        time.sleep(0.5)
        hidden[1].rename(tmp_path / "run/checkpoints" / hidden[1].name)  # 48 pairs
        wait_for(1)
        hidden[2].rename(tmp_path / "run/checkpoints" / hidden[2].name)  # 64 pairs: not due, but the end asks the last
        time.sleep(0.5)
        assert recorded == [48]
    assert recorded == [48, 64]
    assert len(said) == 2
    with Evaluations(job, record, said.append):
        time.sleep(0.3)
    assert recorded == [48, 64]


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_takes_nothing_ends_neither_training_nor_its_evaluations(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hiclip.training.ray_evaluations._LOOKS_EVERY_S", 0.05)
    pretrain(small_job(str(tmp_path / "run"), str(place / "build")), here=True)
    *_, before, last = sorted((tmp_path / "run/checkpoints").iterdir())
    last.rename(tmp_path / last.name)
    (tmp_path / "run" / FOLDER).write_text("a file stands where the folder should be")
    recorded: list[int] = []
    with Evaluations(job_of(place, tmp_path / "run"), lambda _, seen: recorded.append(seen), lambda _: None):
        deadline = time.monotonic() + 180
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tmp_path / "run" / FOLDER).unlink()
        (tmp_path / last.name).rename(last)
    assert recorded == [int(before.name.rpartition("-")[2]), 64]
    assert "checkpoints are not evaluated for now" in caplog.text
    assert [path.name for path in (tmp_path / "run" / FOLDER).iterdir()] == ["seen-000000000064.json"]


@pytest.mark.usefixtures("ray_session")
def test_a_training_that_fails_does_not_wait(place: Path, tmp_path: Path) -> None:
    pretrain(small_job(str(tmp_path / "run"), str(place / "build")), here=True)
    slow = job_of(place, tmp_path / "run", draws=50_000_000)
    began = time.monotonic()

    def fail() -> None:
        time.sleep(1)
        raise RuntimeError("training failed")

    with pytest.raises(RuntimeError), Evaluations(slow, lambda *_: None, lambda _: None):
        fail()
    assert time.monotonic() - began < 10
    assert not (tmp_path / "run" / FOLDER / "seen-000000000064.json").exists()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_mistakes_are_told_before_a_worker_starts(place: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"evaluation\.cpus: expected room for 9 beside training, which takes .* of 4"):
        pretrain(job_of(place, tmp_path / "large", cpus=9), here=True)
    with pytest.raises(DatasetError, match="openmoji is not there"):
        pretrain(job_of(place, tmp_path / "gone", sets=[{"name": "openmoji", "root": str(tmp_path)}]), here=True)
    assert not (tmp_path / "gone/mlflow_run_id").exists()
    with pytest.raises(JobError, match=r"evaluation\.metrics: .*came topp1"):
        job_of(place, tmp_path / "typo", metrics=["topp1"])
