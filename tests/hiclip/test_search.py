"""The search over a rung's hyperparameters: draws, judgement, transfer, and a whole one under Ray Tune."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from pydantic import ValidationError
from small_checkpoint import small_openmoji
from small_dataset import small_dataset
from small_run import small_job

from hiclip.pretrain import pretrain
from hiclip.scaling.ladder import Rung, read_ladder, searched_rungs
from hiclip.scaling.loss_curve import LossCurve, comparisons
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.search import search
from hiclip.scaling.search_plot import search_png
from hiclip.scaling.search_settings import SearchSettings
from hiclip.scaling.search_trials import Search, SearchFailedError, Tried, best_of, drawn, variants
from hiclip.scaling.spending import Purse
from hiclip.scaling.study_bill import Budget
from hiclip.scaling.study_folder import Study, dataset_key, open_study
from hiclip.scaling.transfer import Best, transferred
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.ray_workers import _Mailbox, _read
from pipeline.job_keys import job_keys
from pipeline.job_mistakes import mistake
from pipeline.jobfile import EndedEarlyError, make_job, resolved_yaml
from pipeline.storage import StorageError


def settings(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({"learning_rate": [1e-4, 1e-2], "trials": 8, **changes})


def test_draws_are_seeded_and_even_on_a_log_scale() -> None:
    assert drawn(settings(seed=3)) == drawn(settings(seed=3))
    assert drawn(settings(seed=3)) != drawn(settings(seed=4))
    many = drawn(settings(trials=400, weight_decay=[0.01, 1.0]))
    assert many[:8] == drawn(settings(weight_decay=[0.01, 1.0])), "more trials go on from the fewer"
    assert [rate for rate, _ in many[:8]] == [rate for rate, _ in drawn(settings())]
    assert all(decay is None for _, decay in drawn(settings()))
    logs = np.log10(np.array(many))
    for column, low in ((0, -4), (1, -2)):
        counts = np.histogram(logs[:, column], bins=4, range=(low, low + 2))[0]
        assert counts.sum() == 400
        assert counts.min() > 70, f"100 expected in each quarter, came {counts}"
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.15


def test_a_trial_is_its_rung_with_other_values() -> None:
    rung = Rung("width 64", {"model.width": 64}, small_job("nowhere"))
    trials = variants(rung, settings(weight_decay=[0.01, 1.0]))
    for trial, (rate, decay) in zip(trials, drawn(settings(weight_decay=[0.01, 1.0])), strict=True):
        assert (trial.job.optimizer.learning_rate, trial.job.optimizer.weight_decay) == (rate, decay)
        assert trial.changes == {
            "model.width": 64,
            "optimizer.learning_rate": rate,
            "optimizer.weight_decay": decay,
        }
        assert trial.job.model == rung.job.model
    assert len({trial.id for trial in trials}) == 8
    kept = rung.job.optimizer.weight_decay
    assert {trial.job.optimizer.weight_decay for trial in variants(rung, settings())} == {kept}
    assert len(variants(rung, settings(learning_rate=[1e-3, 1.001e-3]))) == 1, "one run is not tried eight times"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"learning_rate": [1e-2, 1e-4]},
            "learning_rate: expected two numbers above 0, the lower one first, came [0.01, 0.0001]",
        ),
        (
            {"weight_decay": [0, 0.1]},
            "weight_decay: expected two numbers above 0, the lower one first, came [0.0, 0.1]",
        ),
        ({"learning_rate": [1e-4]}, "learning_rate"),
        ({"trials": 1}, "trials: expected at least 2, came 1"),
        ({"scheduler": "hyperband"}, "scheduler: expected asha or none, came 'hyperband'"),
        ({"reduction_factor": 1}, "reduction_factor: expected more than 1, came 1"),
        ({"grace_share": 1.0}, "grace_share: expected less than 1, came 1.0"),
        ({"judged_by": {"loss_shares": 1}}, "judged_by.loss_shares: no such key; did you mean"),
        (
            {"rung": {"optimizer.learning_rate": 1e-3}},
            "rung: expected changes without optimizer.learning_rate, which is searched",
        ),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], expected: str) -> None:
    content = {"learning_rate": [1e-4, 1e-2], "trials": 8, **changes}
    with pytest.raises(ValidationError) as error:
        SearchSettings.model_validate(content)
    line = mistake(error.value, SearchSettings, content)
    assert line.startswith(expected), line
    assert "\n" not in line


def test_numbers_may_be_written_as_yaml_reads_them_and_every_key_says_what_it_means() -> None:
    assert settings(learning_rate=["1e-4", "1e-2"]) == settings()
    assert settings(rung={"optimizer.weight_decay": 0.2}).rung == {"optimizer.weight_decay": 0.2}
    assert all(key.meaning for key in job_keys(SearchSettings))


@pytest.mark.parametrize(
    ("transfer", "width", "rate"),
    [
        ("inverse_width", 64, 0.00123),
        ("inverse_width", 256, 0.0003075),
        ("inverse_width", 192, 0.00041),
        ("same", 256, 0.00123),
    ],
)
def test_the_best_rate_moves_with_the_width(transfer: Any, width: int, rate: float) -> None:
    other = small_job("nowhere", model={"image_width": width})
    best = Best(learning_rate=0.00123, weight_decay=None, width=64)
    assert transferred(best, other, transfer) == {"optimizer.learning_rate": rate}
    decays = transferred(replace(best, weight_decay=0.2), other, transfer)
    assert decays == {"optimizer.learning_rate": rate, "optimizer.weight_decay": 0.2}


def row(seen: int, loss: float) -> StepRow:
    return StepRow(seen=seen, loss=loss, learning_rate=1.0, logit_scale=1.0, seconds=1.0, wait_s=0.0)


def test_comparisons_lie_between_grace_and_end() -> None:
    assert comparisons(1600, 8, 0.25, 2) == (400, 800)
    assert comparisons(1600, 8, 0.1, 3) == (160, 480, 1440)
    assert comparisons(64, 32, 0.25, 2) == (32,), "not before the first batch"
    assert comparisons(32, 32, 0.25, 2) == ()


def test_the_loss_is_smoothed_and_told_at_comparisons() -> None:
    curve = LossCurve((20, 40), window=3)
    told = [curve.take(row(8 * step, loss)) for step, loss in enumerate([9.0, 6.0, 3.0, math.nan, 0.0], 1)]
    assert told == [False, False, True, False, True]
    assert curve.points == ((24, 6.0), (40, 3.0)), "the mean of the three newest that are numbers"
    assert curve.take(row(24, 3.0)), "steps that come again after a restart replace what they were"
    assert curve.points == ((24, 6.0),)
    assert not curve.take(row(32, 0.0))
    assert curve.loss == 3.0


def test_without_a_loss_nothing_is_told_yet() -> None:
    curve = LossCurve((8,), window=3)
    assert not curve.take(row(8, math.nan))
    assert math.isnan(curve.loss)
    assert curve.take(row(16, 1.0)), "as soon as there is one"
    assert not curve.take(row(24, 1.0))
    assert curve.points == ((16, 1.0),)


def tried(name: str, end: str, loss: float | None, error: float | None = None, **more: Any) -> Tried:
    content = {"trial": name, "name": name, "learning_rate": 1e-3, "weight_decay": 0.1, "end": end, "seen": 8}
    content |= {"compute": 1.0, "curve": [], "loss": loss, "error": error, "question": "q", **more}
    return Tried.model_validate(content)


def test_the_best_reached_the_end_with_the_lowest_error_then_loss() -> None:
    trials = [
        tried("a", "measured", 1.0, 0.5),
        tried("b", "measured", 2.0, 0.4),
        tried("c", "measured", 1.5, 0.4),
        tried("d", "stopped", 0.1),
        tried("e", "diverged", None),
    ]
    assert best_of(trials, "error").trial == "c"
    assert best_of(trials, "loss").trial == "a"
    with pytest.raises(SearchFailedError, match=r"not one of 2 trials reached the end of its run \(d: stopped; e: it"):
        best_of([trials[3], tried("e", "diverged", None, reason="it blew up")], "error")


@pytest.mark.parametrize("decay", [None, 0.1])
@pytest.mark.parametrize("judged_by", ["error", "loss"])
def test_the_picture_is_drawn_of_every_kind_of_end(decay: float | None, judged_by: str) -> None:
    content = {
        "search": "s", "rung": "width 64", "width": 64, "unit": "loss", "judged_by": judged_by, "comparisons": [16],
        "chosen": "a", "learning_rate": 1e-3, "weight_decay": decay, "compute": 1.0,
        "trials": [
            tried("a", "measured", 2.0, 0.5, learning_rate=2e-3, weight_decay=0.2, error_low=0.4, error_high=0.6),
            tried("b", "stopped", 200.0, learning_rate=1e-2),
            tried("c", "stopped", 3.0, learning_rate=1e-2, seen=16),
            tried("d", "diverged", None, learning_rate=1e-1),
        ],
    }  # fmt: skip
    with Image.open(io.BytesIO(search_png(Search.model_validate(content)))) as picture:
        assert picture.width > 1000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, an evaluation set and a base job that learns something in forty steps."""
    root = tmp_path_factory.mktemp("search")
    small_dataset(root / "build", pairs=64)
    small_openmoji(root / "crawl")
    job = small_job(
        "nowhere",
        str(root / "build"),
        data={"batch": 16},
        model={"image_hierarchy": False, "text_hierarchy": False},
        schedule={"pairs": 640, "warmup_pairs": 128},
        checkpoints={"every_pairs": 160},
    )
    (root / "pretrain.yaml").write_text(resolved_yaml(job))
    return root


@pytest.fixture
def study(place: Path, tmp_path: Path) -> Study:
    content = {
        "name": "small-scale",
        "out": str(tmp_path / "study"),
        "ray": {"num_cpus": 2},
        "base": {"job": str(place / "pretrain.yaml")},
        "ladder": {"rungs": [{"model.width": width} for width in (64, 128, 192)]},
        "error": {
            "set": {"name": "openmoji", "root": str(place / "crawl"), "retrieval_pairs": 20},
            "metric": "typical_rank",
        },
    }
    job = make_job(content, ScaleJob, "study")
    ladder = read_ladder(job)
    datasets = {dataset_key(rung): "f" * 64 for rung in (*ladder.all, *searched_rungs(job, ladder))}
    return open_study(job, ladder, datasets, "e" * 64, Purse(Budget(), {}, 1))


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_search_from_draws_to_choice(ray_session: None, study: Study) -> None:
    said: list[str] = []
    # One trial at a time, so that ASHA's order is that of the draws: 0.000374, 0.42 (absurd), 0.00119, 0.000259.
    asked = settings(learning_rate=[2e-4, 1.0], weight_decay=[0.01, 0.5], trials=4, seed=1709, grace_share=0.4)
    rung, out = study.ladder.rungs[0], Path(study.place.root)
    found = search(study, asked, rung, None, said.append)
    assert len(said) == 5
    assert found == Search.model_validate_json((out / "search.json").read_text())
    assert found.comparisons == (256, 512)
    assert [(trial.learning_rate, trial.weight_decay) for trial in found.trials] == list(drawn(asked))
    first, absurd, better, _ = found.trials

    # The absurd rate is stopped at the first comparison, where its loss is that of chance.
    assert (absurd.end, absurd.seen, absurd.error) == ("stopped", 256, None)
    assert absurd.curve == ((256, absurd.loss),)
    assert absurd.loss == pytest.approx(math.log(16), abs=0.05)
    assert not (out / "search" / absurd.trial / "result.json").exists()
    assert absurd.compute == pytest.approx(0.4 * first.compute)

    # Those that reached the end are judged by their error, and what is stored is what their runs say.
    measured = [trial for trial in found.trials if trial.end == "measured"]
    assert first in measured
    assert better in measured
    assert better.loss is not None
    assert first.loss is not None
    assert better.loss < first.loss
    for trial in measured:
        run = json.loads((out / "search" / trial.trial / "result.json").read_text())
        losses = [loss for _, loss in run["losses"]]
        assert trial.curve == tuple((16 * step, np.mean(losses[step - 4 : step])) for step in (16, 32))
        assert (trial.loss, trial.compute) == (np.mean(losses[-4:]), run["train_flops"])
        assert trial.error is not None
    assert found.chosen == min(measured, key=lambda trial: trial.error or 0).trial
    assert best_of(found.trials, "loss") == better
    best = next(trial for trial in found.trials if trial.trial == found.chosen)
    assert found.best == Best(best.learning_rate, best.weight_decay, 64)
    wide = transferred(found.best, study.ladder.rungs[1].job, asked.transfer)
    assert wide["optimizer.learning_rate"] == pytest.approx(best.learning_rate / 2, rel=1e-3)
    with Image.open(out / "search.png") as picture:
        assert picture.width > 1000
    _check_mlflow(out, found)

    # Once more: the choice stands, and nothing runs.
    stamps = _stamps(out)
    assert search(study, asked, rung, None, said.append) == found
    assert _stamps(out) == stamps
    assert "is finished" in said[-1]

    # As if it had been killed: trials that came to an end are not run again, the other goes on from its checkpoint.
    (out / "search.json").unlink()
    (out / "search" / f"{absurd.trial}.json").unlink()
    assert [path.parent.name for path in out.glob(f"search/{absurd.trial}/**/COMPLETE")] == ["seen-000000000160"]
    said.clear()
    again = search(study, asked, rung, None, said.append)
    assert again == found
    assert sum("tried before" in line for line in said) == 3
    assert _stamps(out) == stamps


def _stamps(out: Path) -> dict[Path, int]:
    """When each trial's result and checkpoints were written."""
    files = [*out.glob("search/*/result.json"), *out.glob("search/*/checkpoints/*/COMPLETE")]
    return {file: file.stat().st_mtime_ns for file in files}


def _check_mlflow(out: Path, found: Search) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/mlflow.db")
    for trial in found.trials:
        run = client.get_run((out / "search" / trial.trial / "mlflow_run_id").read_text().strip())
        assert run.info.status == {"measured": "FINISHED", "stopped": "KILLED"}[trial.end]
        assert run.data.metrics.get("error") == pytest.approx(trial.error)


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_trials_that_diverge_or_fail_are_told_of_and_not_chosen(ray_session: None, study: Study) -> None:
    said: list[str] = []
    rung, out = study.ladder.rungs[0], Path(study.place.root)
    asked = settings(learning_rate=[1e29, 1e30], trials=2, scheduler="none")
    diverges, fails = variants(rung, asked)
    (out / "search").mkdir()
    (out / "search" / fails.id).write_text("not a folder")
    with pytest.raises(SearchFailedError, match="not one of 2 trials reached the end"):
        search(study, asked, rung, None, said.append)
    assert "diverged" in said[0]
    assert "DivergedError" not in said[0]
    assert "loss or gradient are not finite" in said[0]
    assert "failed (StorageError: " in said[1]
    assert "in _attempt" in (out / "search" / f"{fails.id}.failure.txt").read_text()
    assert sorted(path.name for path in out.glob("search/*.json")) == [f"{diverges.id}.json"], "the other has a chance"
    assert not (out / "search.json").exists()


def test_a_fault_of_who_hears_ends_the_workers_and_is_not_lost(ray_session: None) -> None:
    """On the thread that reads the mailbox nobody would see it, and the run would go on unmetered."""
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    done, stop = threading.Event(), threading.Event()
    heard: list[int] = []
    enough: list[Exception] = []

    def broken(rows: list[StepRow]) -> None:
        heard.extend(row.seen for row in rows)
        raise StorageError("s3://study/spent/a.json: cannot be written: SlowDown")

    reader = threading.Thread(target=_read, args=(mailbox, broken, None, done, stop, enough), daemon=True)
    reader.start()
    step = StepRow(seen=8, loss=1.0, learning_rate=1.0, logit_scale=1.0, seconds=0.01, wait_s=0)
    ray.get(mailbox.post.remote(step))
    assert stop.wait(10)
    ray.get(mailbox.post.remote(replace(step, seen=16)))
    deadline = time.monotonic() + 10
    while not ray.get(mailbox.stop_is_wished.remote()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ray.get(mailbox.stop_is_wished.remote()), "the thread still tells the workers"
    done.set()
    reader.join(10)
    assert not reader.is_alive()
    ray.kill(mailbox)
    assert isinstance(enough[0], StorageError)
    assert heard == [8], "nothing more is handed to who is broken"


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_who_hears_of_steps_may_end_a_run_of_workers(ray_session: None, place: Path, tmp_path: Path) -> None:
    heard: list[int] = []

    def enough(row: StepRow) -> None:
        heard.append(row.seen)
        if row.seen == 32:
            raise EndedEarlyError("that is enough")

    job = small_job(
        str(tmp_path / "run"), str(place / "build"), schedule={"pairs": 80_000}, checkpoints={"every_pairs": 8000}
    )
    starts: list[int] = []
    with pytest.raises(EndedEarlyError, match="that is enough"):
        pretrain(job, on_row=enough, on_start=lambda: starts.append(len(heard) + 1))
    newest = newest_checkpoint(job.out)
    assert newest is not None
    seen = read_checkpoint(newest).state.seen
    assert 32 <= seen < job.pairs, "stopped after a checkpoint, long before its end"
    assert heard == list(range(8, seen + 1, 8)), "and of all that was done until then"
    assert starts == [1], "and before that of the workers' start"
