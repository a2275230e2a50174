"""The command, on real Ray workers: what it writes, what it refuses, and that it resumes exactly after any kill."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from small_dataset import small_dataset
from small_run import small_job

from hiclip.pretrain import plan, pretrain, run, stream_plan
from hiclip.training.checkpoint import newest_checkpoint
from hiclip.training.history import StepRow, from_csv
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.saving import RunPlace
from hiclip.training.source_commit import source_commit
from hiclip.training.this_process import run_here
from pipeline.command import run_command
from pipeline.jobfile import JobError, resolved_yaml
from pipeline.storage import absolute


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    small_dataset(folder, pairs=64, px=32)
    return folder


def command(job: PretrainJob, folder: Path, *words: str) -> int:
    """The command in this process; returns its exit code."""
    file = folder / "pretrain.yaml"
    file.write_text(resolved_yaml(job))
    with pytest.raises(SystemExit) as ended:
        run_command(PretrainJob, plan, run, [str(file), *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def losses_of(out: str) -> list[tuple[int, float]]:
    return [(row.seen, row.loss) for row in from_csv(Path(out, "losses.csv").read_text())]


def undisturbed(job: PretrainJob, out: Path) -> list[tuple[int, float]]:
    """The losses of the job in one process, without Ray and without any stop."""
    rows: list[StepRow] = []
    stream = stream_plan(job)
    run_here(job, RunPlace(str(out), stream.fingerprint, None), stream, rows.append)
    return [(row.seen, row.loss) for row in rows]


def wait_for(what: Callable[[], bool], timeout_s: float = 240) -> None:
    ends = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def test_a_driver_stopped_killed_and_run_again_gives_the_undisturbed_run(
    ray_session: None, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    job = small_job(str(out), str(dataset), schedule={"pairs": 8 * 240}, checkpoints={"every_pairs": 8 * 20})
    file, errors = tmp_path / "job.yaml", tmp_path / "errors.txt"
    file.write_text(resolved_yaml(job))
    words = [sys.executable, "-m", "hiclip.pretrain", str(file)]

    with errors.open("w") as said:
        driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
    wait_for(lambda: any(out.glob("checkpoints/*/COMPLETE")))
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(180) == 143
    assert errors.read_text().splitlines()[-1] == (
        f"hiclip.pretrain: stopped after a checkpoint in {out}; the same command goes on from it"
    )
    stopped = newest_checkpoint(str(out))

    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: newest_checkpoint(str(out)) != stopped)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "result.json").exists(), "killed while it ran"
    _, left = psutil.wait_procs(children, timeout=10)
    for process in left:  # two agents of Ray's that notice later that they are alone; nothing that could still write
        assert "Agent" in process.name()
        process.kill()

    assert command(job, tmp_path) == 0
    said = capsys.readouterr().out
    assert f"resuming {out} from" in said
    assert said.splitlines()[-1] == f"result: {out}/result.json"
    assert losses_of(str(out)) == undisturbed(job, tmp_path / "reference")

    result = json.loads((out / "result.json").read_text())
    assert (result["seen"], result["steps"]) == (1920, 240)
    assert result["losses"] == [list(pair) for pair in losses_of(str(out))]
    assert result["loss"] == result["losses"][-1][1]
    assert result["checkpoint"].endswith("checkpoints/seen-000000001920")
    assert result["pairs_per_s"] > 0
    assert 0 < result["loader_wait_share"] < 1
    assert result["mlflow_run_id"] == (out / "mlflow_run_id").read_text().strip()

    assert command(job, tmp_path) == 0
    assert "is finished: 1,920 pairs seen" in capsys.readouterr().out


def test_a_lost_worker_sends_all_back_to_the_newest_checkpoint(
    ray_session: None, dataset: Path, tmp_path: Path
) -> None:
    from hiclip.training.ray_workers import WorkerTask, run_workers

    job = small_job(
        str(tmp_path / "run"),
        str(dataset),
        schedule={"pairs": 8 * 150},
        engine={"name": "deepspeed"},
        workers={"count": 2, "restarts": 1},
        checkpoints={"every_pairs": 8 * 50},
    )
    stream = stream_plan(job)
    heard: list[StepRow] = []
    killed: list[int] = []

    def on_steps(rows: list[StepRow]) -> None:
        heard.extend(rows)
        steps = heard[-1].seen // 8
        if not killed and steps > 50 and 3 < steps % 50 < 45:
            killed.append(worker_pids()[-1])
            os.kill(killed[0], signal.SIGKILL)

    run_workers(WorkerTask(job, RunPlace(absolute(job.out), stream.fingerprint, None), stream), on_steps)
    assert killed
    back = next(number for number, (a, b) in enumerate(itertools.pairwise(heard), 1) if b.seen <= a.seen)
    before, after = heard[:back], heard[back:]
    assert (after[0].seen - 8) % (8 * 50) == 0, "it went on from a checkpoint"
    assert after[-1].seen == job.pairs
    twice = {row.seen: row.loss for row in before}
    repeated = [row for row in after if row.seen in twice]
    assert repeated
    assert [row.loss for row in repeated] == [twice[row.seen] for row in repeated], "bit for bit"
    assert {row.seen for row in heard} == set(range(8, job.pairs + 1, 8))


def worker_pids() -> list[int]:
    """Processes of Ray Train's workers below this test's own Ray."""
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]


def test_ray_that_is_too_small_is_said_at_once(ray_session: None, dataset: Path, tmp_path: Path) -> None:
    job = small_job(str(tmp_path / "run"), str(dataset), workers={"cpus": 64})
    assert command(job, tmp_path) == 2


def test_plain_mistakes_end_with_code_2_and_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_job(str(tmp_path / "run"), str(dataset))

    def refused(*words: str) -> str:
        assert command(job, tmp_path, *words) == 2
        said = capsys.readouterr()
        assert "result:" not in said.out
        (line,) = said.err.splitlines()
        return line

    assert "optimizer.lerning_rate: no such key; did you mean 'learning_rate'?" in refused("optimizer.lerning_rate=1")
    assert "data.batch: expected a multiple of workers.count (3)" in refused("workers.count=3", "engine.name=deepspeed")
    assert "no dataset here; build it first" in refused(f"data.dataset={tmp_path}/nowhere")
    assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"
    nobody = "http://127.0.0.1:1"
    line = refused(f"mlflow.tracking_uri={nobody}")
    assert line.endswith(f"mlflow.tracking_uri: {nobody} cannot be reached: [Errno 111] Connection refused")
    assert not (tmp_path / "run").exists(), "told before anything is written"
    (tmp_path / "blocked").write_text("a file where the folder should be")
    assert f"{tmp_path}/blocked" in refused(f"out={tmp_path}/blocked/run")


def test_the_dry_run_prints_the_bill_and_starts_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_job(str(tmp_path / "run"), str(dataset))
    assert command(job, tmp_path, "--dry-run") == 0
    assert "64 in 8 steps of 8" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_job_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    job = small_job(str(out), str(dataset))
    (out / "job.yaml").write_text(resolved_yaml(job))
    other = small_job(str(out), str(dataset), optimizer={"learning_rate": 2e-3, "weight_decay": 0.2})
    assert command(other, tmp_path) == 2
    line = capsys.readouterr().err
    assert "holds a run of another job: there optimizer.learning_rate is 0.001, here 0.002" in line
    assert "; optimizer.weight_decay is 0.1, here 0.2; choose another out" in line, "all that differs"


def test_a_damaged_shard_is_named_with_its_hash_and_may_be_done_without(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    shards = sorted(damaged.glob("**/*.parquet"))
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)
    job = small_job(str(tmp_path / "run"), str(damaged))
    assert command(job, tmp_path) == 2
    line = capsys.readouterr().err
    assert f"{shards[0]}: expected sha256 " in line
    assert f"came {hashlib.sha256(shards[0].read_bytes()).hexdigest()[:16]}" in line
    skipping = small_job(str(tmp_path / "other"), str(damaged), loader={"unsound_shards": "skip"})
    assert command(skipping, tmp_path) == 2
    said = capsys.readouterr()
    assert said.out.count("32 pairs are not read") == 2
    assert "none of its 2 shards is sound" in said.err


def test_a_run_may_go_on_with_other_workers_under_another_engine(dataset: Path, tmp_path: Path) -> None:
    from hiclip.training.run_folder import claim

    out = str(tmp_path / "run")
    one = small_job(out, str(dataset))
    two = small_job(out, str(dataset), workers={"count": 2}, engine={"name": "deepspeed", "zero_stage": 3})
    claim(one)
    claim(two)
    assert one.fingerprint == two.fingerprint


def test_a_run_from_before_a_key_existed_is_the_same_run(dataset: Path, tmp_path: Path) -> None:
    from hiclip.training.run_folder import claim

    job = small_job(str(tmp_path / "run"), str(dataset))
    claim(job)
    stored = tmp_path / "run" / "job.yaml"
    without = yaml.safe_load(stored.read_text())
    del without["data"]["views"]["crop_ratio"]
    stored.write_text(yaml.safe_dump(without))
    claim(job)
    flat = small_job(str(tmp_path / "run"), str(dataset), data={"views": {"crop_ratio": [1, 1]}})
    with pytest.raises(JobError, match=r"there data\.views\.crop_ratio is \[0\.75, "):
        claim(flat)


def test_an_altered_shard_is_refused_before_a_worker_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = small_dataset(tmp_path / "data", pairs=16, px=32)
    shard = tmp_path / "data" / manifest.shards[0].path
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert command(small_job(str(tmp_path / "run"), str(tmp_path / "data")), tmp_path) == 2
    assert f"{shard}: expected sha256" in capsys.readouterr().err


def test_a_finished_run_on_another_dataset_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hiclip.training.run_folder import claim, finish

    job = small_job(str(tmp_path / "run"), str(dataset))
    claim(job)
    undisturbed(job, tmp_path / "run")
    finish(job, None)
    assert pretrain(job).seen == 64, "finished: nothing is started"
    small_dataset(tmp_path / "data", pairs=24, px=32)
    moved = job.model_copy(update={"data": job.data.model_copy(update={"dataset": str(tmp_path / "data")})})
    (tmp_path / "run" / "job.yaml").write_text(resolved_yaml(moved))
    assert command(moved, tmp_path) == 2
    assert "the finished run in" in capsys.readouterr().err


def test_the_final_model_is_registered_with_its_parents(dataset: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from hiclip.pretrain import _record_end
    from hiclip.training.run_folder import claim, finish
    from pipeline.mlflow_tracker import open_tracker, recorded_checkpoint

    job = small_job(str(tmp_path / "run"), str(dataset))
    claim(job)
    undisturbed(job, tmp_path / "run")
    result = finish(job, None)
    tracker = open_tracker(job.mlflow, job.out, job.name)
    _record_end(job, tracker, result)
    (version,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_model_versions(f"name='{job.name}'")
    assert (version.source, version.run_id) == (result.checkpoint, tracker.run_id)
    keys = ("checkpoint", "job_fingerprint", "manifest_fingerprint", "seen", "loss")
    expected = {key: str(getattr(result, key)) for key in keys}
    assert version.tags == expected | {"commit": result.commit or "not a git checkout"}
    assert version.description == f"Load it with hiclip.training.checkpoint.load_towers('{result.checkpoint}')."

    # An evaluation may name it so.
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").set_registered_model_alias(job.name, "best", version.version)
    for name in (
        f"runs:/{tracker.run_id}",
        f"models:/{job.name}/1",
        f"models:/{job.name}/latest",
        f"models:/{job.name}@best",
    ):
        assert recorded_checkpoint(job.mlflow, job.out, name) == result.checkpoint
    for name in ("runs:/0123", f"models:/{job.name}/7", "models:/nobody/latest", f"models:/{job.name}@worst"):
        with pytest.raises(
            JobError, match=f"checkpoint: expected a run or model that MLflow .* knows, came {name}: .+"
        ):
            recorded_checkpoint(job.mlflow, job.out, name)


def test_the_commit_is_the_checkouts() -> None:
    head = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    expected = head.stdout.strip() if head.returncode == 0 else None
    assert (source_commit() or "").removesuffix("+changes") == (expected or "")
