"""A whole study under Ray Tune, and what its folder remembers: rows, predictions, results."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_checkpoint import small_openmoji
from small_dataset import small_dataset
from small_run import small_job

from hiclip.pretrain import stream_plan
from hiclip.scale import _analysed, _placed, main, measure_rung, scale
from hiclip.scaling.analysis import Analysis, MethodFindings, analyse
from hiclip.scaling.findings import Findings, HeldOut
from hiclip.scaling.ladder import Rung, candidates, read_ladder
from hiclip.scaling.law import Interval, LawError, fit_law
from hiclip.scaling.points import Point
from hiclip.scaling.ray_sweep import measure_rungs
from hiclip.scaling.rung_table import Failure, Row, store
from hiclip.scaling.scale_job import ScaleJob
from hiclip.scaling.spending import BudgetSpentError, Purse
from hiclip.scaling.study_bill import Budget
from hiclip.scaling.study_folder import (
    Study,
    begin_anew,
    concluded,
    dataset_key,
    finished,
    open_study,
    predict,
    write_findings,
)
from hiclip.training.history import from_csv
from hiclip.training.pretrain_job import EvaluationSettings
from pipeline.jobfile import JobError, make_job, resolved_yaml
from pipeline.manifest import DatasetError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, an evaluation set and a base job."""
    root = tmp_path_factory.mktemp("scale")
    small_dataset(root / "build", pairs=64)
    small_openmoji(root / "crawl")
    (root / "pretrain.yaml").write_text(resolved_yaml(small_job("nowhere", str(root / "build"))))
    return root


def content(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    rungs = [{"model.width": width, "schedule.pairs": pairs} for width, pairs in ((64, 16), (64, 64), (128, 32))]
    return {
        "name": "small-scale",
        "out": str(out),
        "ray": {"num_cpus": 2},
        "base": {"job": str(place / "pretrain.yaml")},
        "ladder": {"rungs": rungs},
        "held_out": {"model.width": 128, "schedule.pairs": 64},
        "error": {
            "set": {"name": "openmoji", "root": str(place / "crawl"), "retrieval_pairs": 20},
            "metric": "typical_rank",
        },
        "bootstrap": {"draws": 200},
        "concurrent": 2,
        **changes,
    }


def command(job: dict[str, Any], file: Path, *words: str) -> int:
    file.write_text(json.dumps(job))  # JSON is YAML
    with pytest.raises(SystemExit) as ended:
        main([str(file), *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_study_from_job_to_result(
    ray_session: None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "study", tmp_path / "scale.yaml"
    job = content(place, out)
    job["ladder"]["rungs"].append({"model.width": 64, "schedule.pairs": 32, "optimizer.learning_rate": 1e30})
    assert command(job, file) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"result: {out}/result.json"

    # A rung that diverges is tried again, then told of; the law is fitted to the others.
    result = json.loads((out / "result.json").read_text())
    assert [missing["name"] for missing in result["missing"]] == ["width 64, pairs 32, learning rate 1e+30"]
    assert "DivergedError" in result["missing"][0]["reason"]
    assert "in measure_rung" in (out / "rungs" / f"{result['missing'][0]['rung']}.failure.txt").read_text()
    assert "learning rate 1e+30, which failed" in result["sentence"]
    assert result["sentence"] in said
    assert [row["name"] for row in result["rungs"]] == [
        "width 64, pairs 16",
        "width 64, pairs 64",
        "width 128, pairs 32",
    ]

    # The law is that of the rows, and the rows those of the runs.
    computes, errors = ([row[key] for row in result["rungs"]] for key in ("compute", "error"))
    stored = [json.loads((out / "rungs" / f"{row['rung']}.json").read_text()) for row in result["rungs"]]
    resamples = np.array([row["error_draws"] for row in stored]).T
    law = fit_law(computes, errors, draws=200, picture_draws=resamples)
    assert (result["law"]["a"], result["law"]["b"], result["law"]["E"]) == (law.a.value, law.b.value, 0)
    assert (result["law"]["low"], result["law"]["high"]) == (law.b.low, law.b.high)
    for row in result["rungs"]:
        run = json.loads((out / "rungs" / row["rung"] / "result.json").read_text())
        assert (row["seen"], row["compute"], row["loss"]) == (run["seen"], run["train_flops"], run["loss"])
        assert row["checkpoint"] == run["checkpoint"]
        assert 1 <= row["error_low"] <= row["error"] <= row["error_high"] <= 20
    table = list(csv.DictReader(io.StringIO((out / "rungs.csv").read_text())))
    assert [float(row["error"]) for row in table[:3]] == [row["error"] for row in result["rungs"]]
    assert pq.read_table(out / "rungs.parquet").column("compute").to_pylist() == [
        float(row["compute"]) for row in table
    ]

    # The held-out rung was predicted, and only then run.
    held_out, predicted = result["held_out"], json.loads((out / "prediction.json").read_text())
    assert held_out["low"] < held_out["predicted"] < held_out["high"]
    assert held_out["covered"] == (held_out["low"] <= held_out["measured"] <= held_out["high"])
    assert held_out["predicted"] == predicted["predicted"] == law.prediction(held_out["compute"]).value
    assert predicted["before"]
    begun = out / "rungs" / predicted["rung"] / "job.yaml"
    assert (out / "prediction.json").stat().st_mtime_ns < begun.stat().st_mtime_ns
    with Image.open(out / "law.png") as plot:
        assert plot.width > 1000
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "which failed" in page
    _check_mlflow(out, result)

    # Once more: what is measured is not run again, only the rung that failed is.
    rows = {name: name.read_bytes() for name in out.glob("rungs/*.json")}
    assert len(rows) == 4
    stamps = {name: name.stat().st_mtime_ns for name in out.glob("rungs/*/checkpoints/*/COMPLETE")}
    del job["ladder"]["rungs"][-1]
    assert command(job, file) == 0
    assert capsys.readouterr().out.count("measured before") == 4
    assert rows == {name: name.read_bytes() for name in out.glob("rungs/*.json")}
    assert stamps == {name: name.stat().st_mtime_ns for name in out.glob("rungs/*/checkpoints/*/COMPLETE")}
    again = json.loads((out / "result.json").read_text())
    assert again["law"] == result["law"]
    assert again["missing"] == []
    assert not again["held_out"]["before"], "another study, which knew the held-out rung when it predicted it"

    # And once more: finished.
    assert command(job, file) == 0
    assert f"{out} is finished" in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text()) == again


def _check_mlflow(out: Path, result: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/mlflow.db")
    parent = client.get_run((out / "mlflow_run_id").read_text().strip())
    assert parent.data.metrics["law_b"] == pytest.approx(result["law"]["b"])
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept >= {
        "law.png",
        "report.html",
        "rungs.csv",
        "rungs.parquet",
        "prediction.json",
        "result.json",
        "job.yaml",
    }
    assert not kept & {"rungs", "spent"}, "the report, not the runs"
    for row in result["rungs"]:
        child = client.get_run((out / "rungs" / row["rung"] / "mlflow_run_id").read_text().strip())
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics["error"] == pytest.approx(row["error"])


def test_mistakes_end_in_one_line_and_exit_code_2(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, file = content(place, tmp_path / "out"), tmp_path / "scale.yaml"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/job.yaml").write_text((place / "pretrain.yaml").read_text())
    for words, expected in (
        (["base.overrides={data.dataset: /nowhere}"], "pipeline.build"),
        (["error.set.root=/nowhere"], "/nowhere/openmoji.parquet: the evaluation set openmoji is not there"),
        (["budget_flops=1000"], "its smallest rung needs"),
        (["error.metric=accuracy"], "no such metric"),
        (["budgets=[.inf]"], "budgets.0: expected a finite number, came Infinity"),
        (["ray.num_cpus=1.5"], "ray.num_cpus: expected a whole number"),
        ([f"out={place / 'build'}", "name=other"], "holds something else than a study (manifest.json)"),
        ([f"out={tmp_path / 'run'}"], "holds something else than a study (job.yaml)"),
        (["base.job=/nowhere.yaml"], "/nowhere.yaml: expected a job file"),
    ):
        assert command(job, file, *words) == 2
        error = capsys.readouterr().err.strip()
        assert expected in error
        assert "\n" not in error
    assert not (tmp_path / "out" / "rungs").exists()
    assert (tmp_path / "run/job.yaml").read_text() == (place / "pretrain.yaml").read_text()


def test_the_dry_run_prints_the_bill_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(content(place, tmp_path / "out"), tmp_path / "scale.yaml", "--dry-run") == 0
    assert "the study" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def measured(study: Study, rung: Rung, error: float) -> Row:
    return Row(
        rung=rung.id,
        name=rung.name,
        group=rung.group,
        width=64,
        text_width=64,
        depth=1,
        seen=rung.job.pairs,
        unique=64,
        parameters=1,
        learning_rate=1e-3,
        weight_decay=0.1,
        compute=rung.compute,
        loss=1.0,
        error=error,
        error_low=error * 0.9,
        error_high=error * 1.1,
        seconds=1.0,
        pairs_per_s=1.0,
        trial_s=2.0,
        checkpoint="nowhere",
        question=study.question(rung),
    )


def _found(study: Study) -> MethodFindings:
    return _analysed(study, []).found[0]


@pytest.fixture
def study(place: Path, tmp_path: Path) -> Study:
    """A study whose rungs are measured: error = 5·(C / 10^6)^-0.1."""
    job = make_job(content(place, tmp_path / "study"), ScaleJob, "study")
    ladder = read_ladder(job)
    datasets = {dataset_key(rung): "f" * 64 for rung in ladder.all}
    opened = open_study(job, ladder, datasets, "e" * 64, Purse(Budget(), {}, 1))
    for rung in opened.ladder.rungs:
        store(opened.place, measured(opened, rung, 5 * (rung.compute / 1e6) ** -0.1))
    return opened


def test_a_prediction_stands_once_it_is_made(study: Study) -> None:
    held_out = study.ladder.held_out
    assert held_out is not None
    found = _found(study)
    predicted = predict(study, found)
    assert predicted is not None
    assert predicted.before
    assert predicted.predicted.value == pytest.approx(5 * (held_out.compute / 1e6) ** -0.1)
    store(study.place, measured(study, held_out, 1.0))
    assert predict(study, found) == predicted, "the same rungs: as it was written before"
    store(study.place, measured(study, study.ladder.rungs[0], 9.0))
    late = predict(study, _found(study))
    assert late is not None
    assert not late.before


def test_a_row_answers_no_other_question(study: Study) -> None:
    rung = study.ladder.rungs[0]
    assert study.row(rung) is not None
    assert replace(study, datasets={dataset_key(rung): "0" * 64}).row(rung) is None
    assert replace(study, set_fingerprint="0" * 64).row(rung) is None
    other = study.job.error.model_copy(update={"metric": "loss"})
    assert replace(study, job=study.job.model_copy(update={"error": other})).row(rung) is None
    study.place.write_text(f"rungs/{rung.id}.json", '{"rung": "torn')
    assert study.missing(study.ladder.rungs) == [rung]


def test_a_row_is_called_as_the_study_that_reads_it_calls_it(study: Study) -> None:
    """Methods that are named, or renamed, after their rungs were measured find them."""
    job = study.job.model_copy(update={"methods": {"hiclip": {}}})
    renamed = replace(study, job=job, ladder=read_ladder(job))
    found = _found(renamed)
    assert (found.method, len(found.points)) == ("hiclip", 3)
    turned = study.job.ladder.model_copy(update={"rungs": [dict(reversed(one.items())) for one in job.ladder.rungs]})
    job = study.job.model_copy(update={"ladder": turned})
    other = replace(study, job=job, ladder=read_ladder(job))
    groups = {point.group for point in _found(other).points}
    assert candidates(other.ladder, groups), "a rung to run next is one of the models that are known"
    assert candidates(other.ladder, {"width of another study"}) == []


def test_another_seed_draws_other_pictures(study: Study) -> None:
    other = replace(study, job=study.job.model_copy(update={"seed": 1}))
    assert other.row(study.ladder.rungs[0]) is None, "its resamples are not those of rows with seed 1"


def test_where_a_set_may_not_lie_twice(study: Study, place: Path) -> None:
    """The same set under another path is the same question: its fingerprint says what it asks."""
    moved = study.job.error.model_copy(update={"set": study.job.error.set.model_copy(update={"root": "elsewhere"})})
    assert replace(study, job=study.job.model_copy(update={"error": moved})).row(study.ladder.rungs[0]) is not None


def test_resamples_without_an_error_are_left_out_of_all_bands(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    ripple = np.exp(0.05 * random.standard_normal(100))
    for number, rung in enumerate(study.ladder.rungs):
        row = measured(study, rung, 5 * (rung.compute / 1e6) ** -0.1 * (1.1, 0.9, 1.05)[number])
        draws: list[float | None] = (row.error * ripple).tolist()
        draws[number] = 0.0
        draws[50] = None
        store(study.place, row.model_copy(update={"error_draws": tuple(draws)}))
    found = _found(study)
    assert {len(point.draws) for point in found.points} == {96}
    assert np.isfinite([found.law.b.low, found.law.b.high]).all()
    assert "4 of 100 resamples of the pictures have a rung without errors and are left out" in caplog.text
    store(study.place, measured(study, study.ladder.rungs[0], 5.0).model_copy(update={"error_draws": (0.0,) * 100}))
    assert not any(point.draws for point in _found(study).points)
    assert "not over other pictures" in caplog.text


def test_what_was_concluded_goes_before_something_else_is(study: Study) -> None:
    for name in ("result.json", "report.html", "law.png", "compute_ratio.png"):
        study.place.write_text(name, "of an earlier job")
    study.place.write_text("rungs/x/picture.png", "of a rung")
    study.place.write_text("rungs/x.failure.txt", "it failed")
    study.place.write_text("search.png", "of a search, which is not repeated")
    for name in ("holiday.png", ".env", "sub/key.pem", "iso_flops_clip.png"):
        study.place.write_text(name, "of somebody")
    begin_anew(study.place)
    left = {name for name in study.place.names() if not name.startswith("rungs/")}
    assert left == {"job.yaml", "search.png", "holiday.png", ".env", "sub/key.pem"}
    study.place.write_text("methods/clip/search.json", "{}")
    study.place.write_text("methods/clip/search/x.json", "{}")
    kept = concluded(study.place)
    assert kept == ["job.yaml", "methods/clip/search.json", "search.png"], "what is somebody else's is sent nowhere"
    assert study.place.exists("rungs/x/picture.png")
    rung = study.ladder.rungs[0]
    study.place.write_text(f"rungs/{rung.id}.failure.txt", "it failed at first")
    store(study.place, measured(study, rung, 5.0))
    assert not study.place.exists(f"rungs/{rung.id}.failure.txt"), "measured now"


@pytest.mark.parametrize(
    ("name", "content"),
    [("report.html", "mine"), ("result.json", '{"a": '), ("result.json", "[1"), ("job.yaml", "a: [")],
)
def test_a_folder_that_holds_something_else_is_left_as_it_is(
    study: Study, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(content)
    job = study.job.model_copy(update={"out": str(tmp_path / "mine")})
    with pytest.raises(JobError, match=rf"holds something else than a study \({name}\)"):
        open_study(job, study.ladder, study.datasets, study.set_fingerprint, study.purse)
    assert (tmp_path / "mine" / name).read_text() == content
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_metric_that_the_set_cannot_have_is_told_before_anything_is_trained(place: Path, tmp_path: Path) -> None:
    captions = {"name": "dataset", "called": "captions", "root": str(place / "build")}
    job = content(place, tmp_path / "out", error={"set": captions, "metric": "top1"})
    with pytest.raises(JobError, match=r"error.metric: captions has no top1; it has image_to_text_r1, "):
        scale(make_job(job, ScaleJob, "study"))
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_changes_while_a_study_runs_measures_nothing(place: Path, tmp_path: Path, study: Study) -> None:
    rung = study.ladder.rungs[0]
    study.place.remove(f"rungs/{rung.id}.json")
    with pytest.raises(DatasetError, match="the dataset changed while the study ran"):
        measure_rung(study, {rung.id: _placed(study, rung)}, None, rung)
    assert study.row(rung) is None, "the study thinks that its dataset is 'ffff…'"


def test_all_paths_of_a_rung_are_absolute(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A trial runs in a directory of its own."""
    monkeypatch.setenv("HICLIP_HOME", str(tmp_path))
    rung = study.ladder.rungs[0]
    job = rung.job
    views = replace(job.data.views, eda_synonyms="words.txt")
    sets = {"sets": [{"name": "openmoji", "root": "crawl"}], "every_pairs": 64}
    job = job.model_copy(
        update={
            "data": job.data.model_copy(update={"dataset": "build", "views": views}),
            "evaluation": EvaluationSettings.model_validate(sets),
        }
    )
    placed = _placed(study, replace(rung, job=job))
    assert placed.evaluation is not None
    paths = [placed.data.dataset, placed.data.views.eda_synonyms, placed.evaluation.sets[0].root]
    assert all(str(path).startswith("/") for path in paths), paths


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"workers.cpus": 64},
            r"ray.num_cpus: 'width 64, pairs 64' takes 64 CPU of one machine, and no machine of Ray",
        ),
        ({"workers.gpus": 8}, r"takes 0.5 CPU and 8 GPU of one machine"),
        (
            {"workers.cpus": 64, "engine.name": "deepspeed"},
            r"ray.num_cpus: workers and loaders take 64.* CPUs together",
        ),
    ],
)
def test_a_rung_that_fits_nowhere_is_told_of_before_it_waits_for_ever(
    ray_session: None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = content(place, tmp_path / "out")
    job["base"]["overrides"] = changes
    ladder = read_ladder(make_job(job, ScaleJob, "study"))
    with pytest.raises(JobError, match=words):
        measure_rungs(ladder.rungs[1:2], lambda rung: None, 1, 0, lambda rung, failure: None)


def test_too_few_measured_rungs_are_a_table_and_no_law(study: Study) -> None:
    lost = study.ladder.rungs[1]
    study.place.remove(f"rungs/{lost.id}.json")
    failure = Failure(rung=lost.id, name=lost.name, compute=lost.compute, reason="DivergedError: loss is nan", trace="")
    with pytest.raises(LawError, match=r"at least 3 rungs, came 2 \(1 failed: width 64, pairs 64: DivergedError"):
        _analysed(study, [failure])
    assert len(study.place.read_text("rungs.csv").splitlines()) == 3


def test_findings_are_finished_only_when_nothing_is_missing(study: Study) -> None:
    found = _analysed(study, []).found
    findings = Findings("small", "error", "FLOPs", found, predict(study, found[0]))
    write_findings(study, findings, 1.0)
    assert finished(study) is None, "the held-out rung was not measured"
    assert study.ladder.held_out is not None
    store(study.place, measured(study, study.ladder.held_out, 4.0))
    write_findings(study, findings, 1.0)
    assert finished(study) is not None
    changed = study.job.model_copy(update={"form": "power_with_floor"})
    assert finished(replace(study, job=changed)) is None


def test_the_sentence_says_no_more_than_the_band_does() -> None:
    computes = (1e12 * np.geomspace(1, 100, 6)).tolist()

    def sentence(errors: list[float], measured: float | None) -> str:
        point = None if measured is None else Point("x", "x", 1e15, measured, measured, measured)
        held_out = HeldOut("the large one", 1e15, Interval(1.0, 0.9, 1.1), True, point)
        named = tuple(Point(str(c), "x", c, e, e, e) for c, e in zip(computes, errors, strict=True))
        found = analyse(named, Analysis(draws=400)).found
        return Findings("s", "loss (nats)", "FLOPs", found, held_out).sentence()

    falling = [5.0, 4.5, 4.1, 3.7, 3.3, 3.0]
    assert "loss (nats) falls as" in sentence(falling, 1.05)
    assert "measured 1.05, inside the band" in sentence(falling, 1.05)
    assert "measured 1.2, outside the band" in sentence(falling, 1.2)
    assert "and failed" in sentence(falling, None)
    assert "not yet told apart from standing still" in sentence([5.0, 4.0, 5.2, 4.1, 5.1, 4.2], 1.0)
    assert "does not fall with compute" in sentence(falling[::-1], 1.0)


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_methods_are_searched_each_and_compared(
    ray_session: None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "study", tmp_path / "scale.yaml"
    job = content(
        place,
        out,
        methods={"hiclip": {}, "clip": {"model.image_hierarchy": False, "model.text_hierarchy": False}},
        ladder={"axes": {"model.width": [64], "schedule.pairs": [32, 64, 128]}, "cooldown_share": 0.25},
        held_out=None,
        search={"learning_rate": [1e-4, 1e-2], "trials": 2, "scheduler": "none", "seed": 1},
        budget_flops=1e12,
    )
    assert command(job, file) == 0
    said = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert list(result["methods"]) == list(result["search"]) == ["hiclip", "clip"]

    # Every rung of a method was trained with what was best for that method's smallest rung.
    for method in ("hiclip", "clip"):
        search = json.loads((out / "methods" / method / "search.json").read_text())
        assert len(search["trials"]) == 2
        best = min(search["trials"], key=lambda trial: trial["error"])
        rates = {row["learning_rate"] for row in result["rungs"] if row["method"] == method}
        assert rates == {best["learning_rate"]} == {result["search"][method]["learning_rate"]}
    assert (out / "methods" / "clip" / "search.png").exists()
    assert {row["method"] for row in result["rungs"]} == {"hiclip", "clip"}
    assert [row["taken_over"] for row in result["rungs"]] == [24, 48, 0] * 2

    # The first method is compared with the other where both fall, which such small runs need not; all is paid for once.
    fall = all(one["law"]["b"] < 0 for one in result["methods"].values())
    compared = {(ratio["method"], ratio["other"]) for ratio in result["ratios"]}
    assert compared == ({("hiclip", "clip")} if fall else set())
    assert (out / "compute_ratio.png").exists() == fall
    assert ("hiclip and clip are not compared: the error of" in result["sentence"]) != fall
    spent = {name.stem: json.loads(name.read_text())["flops"] for name in (out / "spent").glob("*.json")}
    assert len(spent) == 6 + 4
    assert sum(spent.values()) <= 1e12
    page = (out / "report.html").read_text()
    assert "<h2>Law of clip</h2>" in page
    assert "<h2>Search</h2>" in page
    assert "search: best of 2" in said

    stamps = {name: name.stat().st_mtime_ns for name in out.glob("**/*.json")}
    assert command(job, file) == 0
    assert f"{out} is finished" in capsys.readouterr().out
    assert {name: name.stat().st_mtime_ns for name in out.glob("**/*.json")} == stamps


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_rung_may_be_two_workers_with_deepspeed(ray_session: None, place: Path, tmp_path: Path) -> None:
    large = {"schedule.pairs": 128, "engine.name": "deepspeed", "workers.count": 2}
    ladder = {"rungs": [{"schedule.pairs": 32}, {"schedule.pairs": 64}, large]}
    job = content(place, tmp_path / "study", ladder=ladder, held_out=None)
    assert command(job, tmp_path / "scale.yaml") == 0
    result = json.loads((tmp_path / "study/result.json").read_text())
    assert result["law"]["rungs"] == 3
    workers = [
        {step.workers for step in from_csv((tmp_path / "study/rungs" / row["rung"] / "losses.csv").read_text())}
        for row in result["rungs"]
    ]
    assert workers == [{1}, {1}, {2}]


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
@pytest.mark.parametrize("lawless", ["hiclip", "clip"])
def test_a_method_without_a_law_takes_none_from_the_others(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lawless: str
) -> None:
    out = tmp_path / "study"
    asked = content(place, out, methods={"hiclip": {}, "clip": {"model.image_hierarchy": False}})
    job = make_job(asked, ScaleJob, "study")
    ladder = read_ladder(job)
    datasets = {dataset_key(rung): stream_plan(rung.job).fingerprint for rung in ladder.all}
    study = open_study(job, ladder, datasets, job.error.set.load().fingerprint, Purse(Budget(), {}, 1))
    for rung in ladder.all:  # all are measured: nothing is left to be trained
        error = 0.0 if rung.method == lawless else 5 * (rung.compute / 1e6) ** -0.1
        row = measured(study, rung, error)
        store(study.place, row.model_copy(update={"method": rung.method, "error_low": error, "error_high": error}))

    assert command(asked, tmp_path / "scale.yaml") == 0
    said = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert list(result["refused"]) == [lawless]
    assert "above 0" in result["refused"][lawless]
    assert list(result["methods"]) == [{"hiclip": "clip", "clip": "hiclip"}[lawless]]
    assert result["ratios"] == []
    assert f"There is no law of {lawless}: " in result["sentence"]
    assert result["sentence"] in said
    page = (out / "report.html").read_text()
    assert f"<h2>No law of {lawless}</h2>" in page
    assert page.count(f"<td>{lawless}: width") == 3, "its rungs are told of all the same"
    assert (out / "law.png").exists()

    # Another method's law predicts nothing of the held-out rung, which is one of the first method.
    assert (result["held_out"] is None) == (result["next"] is None) == (lawless == "hiclip")
    assert ("was not run: no law predicts it" in result["sentence"]) == (lawless == "hiclip")


def test_a_rung_for_which_no_budget_is_left_is_told_of_before_it_trains(study: Study) -> None:
    rung = study.ladder.rungs[0]
    spent = replace(study, purse=Purse(Budget(device_hours=1.0), {}, 1))
    study.place.write_text("spent/of-yesterday.json", '{"flops": 0, "device_s": 3599.9}')
    with pytest.raises(BudgetSpentError, match="the budget is spent, 1 of 1 device-hours; it was not trained further"):
        measure_rung(spent, {rung.id: rung.job}, None, rung)
    assert not (study.place.exists(f"rungs/{rung.id}/job.yaml")), "nothing was begun"
