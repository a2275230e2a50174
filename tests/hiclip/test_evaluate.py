"""The command on a small checkpoint and a part of OpenMoji: numbers, files, resuming, MLflow, and people's mistakes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from loopback_s3 import bucket
from PIL import Image
from rich.console import Console
from small_checkpoint import SMALL_MODEL, small_checkpoint, small_openmoji
from small_dataset import small_dataset

from hiclip.batch import Views
from hiclip.data.mixture import MixedDataset
from hiclip.data.stream_plan import plan_stream
from hiclip.evaluate import main
from hiclip.evaluation.asked import ask, ask_each
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.compare import read_outcome
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_bill import bill
from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, Retrieval, drawn
from hiclip.evaluation.label_tree import LabelTree
from hiclip.evaluation.measure import METRICS, class_only_scores, measure
from hiclip.evaluation.outcome import finished_outcome
from hiclip.evaluation.retrieval import Fits
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.evaluation.set_pictures import StoredPictures
from hiclip.evaluation.sets.openmoji import OpenmojiSettings
from hiclip.evaluation.several_checkpoints import one_by_one
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import COMPLETE, CheckpointError, load_towers
from hiclip.training.published_weights import write_published
from pipeline.jobfile import InputError, JobError, make_job
from pipeline.manifest import DatasetError, read_manifest
from pipeline.storage import folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built dataset, a run with a checkpoint, and a set."""
    root = tmp_path_factory.mktemp("evaluate")
    manifest = small_dataset(root / "build", pairs=64)
    small_checkpoint(root / "run", str(root / "build"), manifest.fingerprint)
    small_openmoji(root / "crawl")
    return root


def _content(place: Path, out: str) -> dict[str, Any]:
    return {
        "name": "small-evaluate",
        "out": str(place / out),
        "ray": {"num_cpus": 2},
        "checkpoint": str(place / "run"),
        "sets": [{"name": "openmoji", "root": str(place / "crawl"), "retrieval_pairs": 20}],
        "hierarchy": {"captions": ["a red circle and a blue square"], "training_pairs": 1, "set_pictures": 1},
        "batch": 8,
        "draws": 100,
    }


def _job(place: Path, out: str, **changes: Any) -> EvaluateJob:
    return make_job({**_content(place, out), **changes}, EvaluateJob, "small job")


def _settings(place: Path) -> OpenmojiSettings:
    return OpenmojiSettings(name="openmoji", root=str(place / "crawl"), retrieval_pairs=20)


def _run(job: dict[str, Any], file: Path, *more: str) -> int:
    file.write_text(json.dumps(job))  # JSON is YAML
    with pytest.raises(SystemExit) as end:
        main([str(file), *more])
    return int(end.value.code or 0)


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
@pytest.mark.usefixtures("ray_session")
def test_the_command_from_job_to_result(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "evaluate.yaml"
    assert _run(_content(place, "out"), file) == 0
    out = place / "out"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"result: {out / 'result.json'}"
    assert any("mlflow ui --backend-store-uri" in line for line in lines)
    assert any(line.split()[:4] == ["text", "→", "image", "R@10"] for line in lines), "80 columns are enough"
    assert any(line.startswith("circle ") and "─" in line for line in lines), "the tree of the first caption"
    result = json.loads((out / "result.json").read_text())

    # The numbers are those of one process without Ray, to the last bit, chance and baselines beside them.
    alone = {one.metric: one for one in evaluate_checkpoint(str(place / "run"), [_settings(place)], batch=8, draws=100)}
    assert [one["metric"] for one in result["results"]] == list(METRICS)
    for one in result["results"]:
        expected = alone[one["metric"]]
        assert one["value"] == expected.value
        assert (one["low"], one["high"]) == (expected.low, expected.high)
        assert one["low"] <= one["value"] <= one["high"] or one["metric"] == "error_distance"
        assert {"set", "metric", "value", "chance", "count"} <= set(one)
        assert ("pixel_neighbours" in one["baselines"]) == (one["metric"] != "loss")
    by_name = {one["metric"]: one for one in result["results"]}
    pixels = by_name["top5"]["baselines"]["pixel_neighbours"]
    assert pixels > 2 * by_name["top5"]["chance"], "the circles that training shows are found by their pixels"
    assert by_name["loss"]["chance"] == pytest.approx(np.log(20))

    # Everything that the result names is there, and the page shows it.
    page = (out / result["report"]).read_text()
    assert "red circle" in page
    assert page.count("data:image/png;base64,") > len(result["pictures"]) == 4
    for name in result["pictures"]:
        assert Image.open(io.BytesIO((out / name).read_bytes())).width > 400
        said = json.loads((out / name).with_suffix(".json").read_text())
        assert {"trained", "untrained"} <= set(said), "no drawing without its control"
    assert result["seen"] == 640
    _check_record(out, result)

    # Without its result it is an interrupted evaluation, and its numbers are not computed again.
    (out / "result.json").unlink()
    assert _run(_content(place, "out"), file) == 0
    assert "openmoji was measured before" in capsys.readouterr().out
    again = json.loads((out / "result.json").read_text())
    assert again["results"] == result["results"]

    # The same command again computes nothing and says so.
    before = (out / "result.json").stat().st_mtime_ns
    assert _run(_content(place, "out"), file) == 0
    assert "is finished" in capsys.readouterr().out
    assert (out / "result.json").stat().st_mtime_ns == before


def _check_record(out: Path, result: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out.parent}/mlflow.db")
    run = client.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    measured = {f"{one['set']}/{one['metric']}": one["value"] for one in result["results"]}
    assert measured.items() <= run.data.metrics.items()
    kept = [Path(item.path).name for item in client.list_artifacts(run.info.run_id, "evaluation/seen-000000000640")]
    assert {"report.html", "caption-00.png", "caption-00.json", "picture-00.png"} <= set(kept)


class _Interrupted(Exception):
    """What the power cut of a test raises."""


def _counting(until: str | None, seen: list[str]) -> Callable[..., Any]:
    def mapped(function: Any, shared: Any, blocks: Any, what: str) -> Any:
        if what == until:
            raise _Interrupted
        seen.append(what)
        yield from map_here(function, shared, blocks, what)

    return mapped


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_a_killed_evaluation_goes_on_where_it_was(place: Path) -> None:
    job = _job(place, "killed", hierarchy=None)
    out, seen = folder(job.out).make(), list[str]()
    with pytest.raises(_Interrupted):
        evaluate(ask(job), _counting("training pictures as pixels", seen), out)
    assert not out.exists("result.json")
    assert "openmoji: pictures" in seen
    seen.clear()
    outcome = evaluate(ask(job), _counting(None, seen), out)
    assert seen == ["pictures as pixels", "training pictures as pixels"], "the model's part was finished"
    assert finished_outcome(out, ask(job).key) == outcome
    assert outcome.pictures == []

    # Another seed draws other intervals: the finished outcome is not taken for its answer.
    other = ask(_job(place, "killed", hierarchy=None, seed=1))
    assert finished_outcome(out, other.key) is None
    assert other.set_key(other.contents[0]) != ask(job).set_key(other.contents[0])


def test_only_what_the_metrics_need_is_embedded(place: Path) -> None:
    seen: list[tuple[str, int]] = []

    def counting(function: Any, shared: Any, blocks: Any, what: str) -> Any:
        seen.append((what, len(blocks)))
        yield from map_here(function, shared, blocks, what)

    results = evaluate_checkpoint(
        str(place / "run"), [_settings(place)], metrics={"loss", "rsum"}, map_blocks=counting, draws=100
    )
    assert [result.metric for result in results] == ["rsum", "loss"]
    assert seen[:2] == [("openmoji: pictures", 1), ("openmoji: captions", 1)], "20 of each, and no prompts"
    assert "prompts" not in str(seen)
    assert 0 < results[1].low < results[1].value < results[1].high
    with pytest.raises(JobError, match="lost"):
        evaluate_checkpoint(str(place / "run"), [_settings(place)], metrics={"lost"})


def test_one_who_knows_everything_is_measured_so(place: Path) -> None:
    content = _settings(place).load()
    classes = content.classification
    assert classes is not None
    oracle = np.eye(len(classes.tree.classes), dtype=np.float32)[classes.labels]
    found = {one.metric: one for one in measure(content, class_only_scores(content, oracle), 0, 100).results}
    shares = [name for name, one in found.items() if one.unit == "share"]
    assert len(shares) == 15
    assert all(found[name].value == found[name].low == 1.0 for name in shares)
    assert found["rsum"].value == pytest.approx(600)
    assert "error_distance" not in found, "no errors have no distance"


def test_what_knows_classes_alone_may_be_asked_in_any_order() -> None:
    names, rows = ("cat", "dog", "pear"), np.array([2, 0, 1])  # picture 2 shows a cat
    classes = Classification(rows, np.arange(3), LabelTree(names), ("{}",))
    captions = Retrieval(np.arange(3), ("dog", "pear", "cat"), np.arange(3), Fits.of_owners(np.arange(3), 3))
    pictures = StoredPictures(("0", "1", "2"), (b"",) * 3)
    content = EvaluationSet("turned", "0", pictures, classes, captions)
    found = {one.metric: one.value for one in measure(content, class_only_scores(content, np.eye(3)), 0, 100).results}
    assert (found["top1"], found["image_to_text_r1"], found["text_to_image_r1"]) == (1.0, 1.0, 1.0)


def test_the_draw_of_retrieval_depends_on_names_alone() -> None:
    names = [f"{number}.png" for number in range(50)]
    chosen = {names[place] for place in drawn(names, 10, "key")}
    turned = names[::-1]
    assert {turned[place] for place in drawn(turned, 10, "key")} == chosen
    assert {names[place] for place in drawn(names, 10, "other")} != chosen


def test_one_label_over_two_pictures_is_one_class(tmp_path: Path) -> None:
    small_openmoji(tmp_path)
    table = pq.read_table(tmp_path / "openmoji.parquet").slice(0, 2)
    rows = table.to_pylist()
    rows[1] |= {"concept": rows[0]["concept"].upper(), "caption": rows[0]["caption"].upper() + " ", "captions": []}
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "openmoji.parquet")
    content = OpenmojiSettings(name="openmoji", root=str(tmp_path)).load()
    assert content.classification is not None
    assert content.classification.labels.tolist() == [0, 0]
    assert content.classification.tree.classes == (rows[0]["concept"],)
    scores = class_only_scores(content, np.array([[0.5], [0.5]], dtype=np.float32))
    found = {one.metric: one.value for one in measure(content, scores, 0, 100).results}
    assert found["image_to_text_r1"] == 1.0, "both captions are right for both pictures"


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_plain_clip_has_no_hierarchy_to_draw(place: Path, tmp_path: Path) -> None:
    plain = replace(SMALL_MODEL, text_hierarchy=False, image_hierarchy=False)
    small_checkpoint(tmp_path / "run", "nowhere", "0", plain)
    job = _job(place, "plain", checkpoint=str(tmp_path / "run"), dataset=str(place / "build"))
    outcome = evaluate(ask(job), map_here, folder(job.out).make())
    assert outcome.pictures == []
    assert outcome.tree == ""


def test_a_checkpoint_of_another_architecture_is_said_in_one_line(place: Path, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / "run", "nowhere", "0")
    settings = json.loads((checkpoint / "model.json").read_text())
    (checkpoint / "model.json").write_text(json.dumps({**settings, "depth": 3, "embedding": 48}))
    with pytest.raises(
        CheckpointError, match=r"not those of the model in model.json; missing: .* more; misshapen: "
    ) as said:
        evaluate_checkpoint(str(tmp_path / "run"), [_settings(place)])
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 900


def test_a_model_of_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    plain = replace(SMALL_MODEL, text_hierarchy=False, image_hierarchy=False, vocabulary=32_000)
    checkpoint = small_checkpoint(tmp_path / "run", "nowhere", "0", plain)
    write_published(load_towers(str(checkpoint))[0], str(tmp_path / "published"), "open_clip")
    for path in ("run", "published"):
        with pytest.raises(CheckpointError, match="expected a table of CLIP's 49,408 tokens, came 32,000 rows"):
            ask(_job(place, "tokens", checkpoint=str(tmp_path / path)))


@pytest.mark.filterwarnings("ignore:The ``noload``")
@pytest.mark.parametrize("path", ["published", "published/open_clip_model.safetensors"])
def test_a_job_may_name_published_weights(path: str, place: Path, tmp_path: Path) -> None:
    """The numbers are those of a checkpoint with the same weights; what nobody knows of them is null and not shown."""
    plain = replace(SMALL_MODEL, text_hierarchy=False, image_hierarchy=False)
    checkpoint = small_checkpoint(tmp_path / "run", str(place / "build"), "0" * 64, plain)
    write_published(load_towers(str(checkpoint))[0], str(tmp_path / "published"), "open_clip")
    out, dataset = str(tmp_path / "out"), str(place / "build")
    job = _job(place, out, checkpoint=str(tmp_path / path), dataset=dataset)
    outcome = evaluate(ask(job), map_here, folder(out).make())
    own = _job(place, str(tmp_path / "own"), checkpoint=str(checkpoint), dataset=dataset)
    assert outcome.results == evaluate(ask(own), map_here, folder(own.out).make()).results
    assert (outcome.seen, outcome.step, outcome.train_flops) == (None, None, None)
    assert finished_outcome(folder(out), ask(job).key) == outcome
    page = folder(out).read_text(outcome.report)
    assert "parameters" in page
    assert "pairs seen" not in page


def test_published_weights_need_a_dataset_for_what_looks_at_one(place: Path, tmp_path: Path) -> None:
    write_published(
        TwoTowers(replace(SMALL_MODEL, text_hierarchy=False, image_hierarchy=False)), str(tmp_path), "open_clip"
    )
    with pytest.raises(JobError, match=r"dataset: expected a build, .* came null"):
        ask(_job(place, "", checkpoint=str(tmp_path)))
    alone = _job(place, "", checkpoint=str(tmp_path), baselines={"pixel_neighbours": None}, hierarchy=None)
    assert ask(alone).datasets == ()
    captions = [{"name": "dataset", "called": "captions", "root": str(place / "build")}]
    assert ask(_job(place, "", checkpoint=str(tmp_path), sets=captions, hierarchy=None)).datasets == ()


def test_a_run_on_a_mixture_is_asked_beside_all_that_it_saw(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = (str(place / "build"), str(tmp_path / "second"))
    small_dataset(paths[1], pairs=16, first=100)
    said = [{"path": paths[0], "weight": 3}, {"path": paths[1], "weight": 1.5}]
    stream = plan_stream([MixedDataset.model_validate(one) for one in said], 8, 1, 0, Views(("crop",), ()), 16, 8)
    small_checkpoint(tmp_path / "run", said, stream.fingerprint)
    job = _job(place, "", checkpoint=str(tmp_path / "run"))
    asked = ask(job)
    assert (asked.datasets, asked.dataset_fingerprint) == (paths, stream.fingerprint)
    assert not caplog.records
    lines = Console(width=300, file=io.StringIO())
    with lines.capture() as printed:
        lines.print(bill(asked, 1))
    assert f"among up to 80 training pictures of {paths[0]}, {paths[1]}" in printed.get()
    small_dataset(paths[1], pairs=17, first=100)
    assert ask(job).key != asked.key
    assert f"{paths[0]}, {paths[1]} is not the build that" in caplog.text
    assert ask(_job(place, "", checkpoint=str(tmp_path / "run"), dataset=paths[0])).datasets == paths[:1]


@pytest.fixture(scope="module")
def plain_run(place: Path) -> Path:
    """A run of the same dataset whose towers have no hierarchy."""
    plain = replace(SMALL_MODEL, text_hierarchy=False, image_hierarchy=False)
    trained_on = place / "build"
    small_checkpoint(place / "plain_run", str(trained_on), read_manifest(str(trained_on)).fingerprint, plain)
    return place / "plain_run"


@pytest.mark.filterwarnings("ignore:The ``noload``")
@pytest.mark.usefixtures("ray_session")
def test_several_checkpoints_are_asked_and_compared(
    place: Path, plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each as if it were alone, what knows no model once, and the page of their differences with them."""
    file, out = tmp_path / "evaluate.yaml", tmp_path / "out"
    (tmp_path / "trees.txt").write_text("( ( a cat ) sits )\n")
    hierarchy = {"training_pairs": 0, "set_pictures": 1, "trees": {"path": str(tmp_path / "trees.txt")}}
    sets = [*_content(place, "")["sets"], {"name": "dtd", "root": "nowhere"}]
    checkpoint = {"clip": str(plain_run), "hiclip": str(place / "run")}
    job = {**_content(place, str(out)), "checkpoint": checkpoint, "sets": sets, "hierarchy": hierarchy}
    assert _run(job, file) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"result: {out / 'result.json'}"
    assert any(line.startswith("missing   clip: parsing: hierarchy.trees: expected a model with") for line in said)
    assert sum("nowhere is not there" in line for line in said) == 2

    outcomes = json.loads((out / "result.json").read_text())["outcomes"]
    assert list(outcomes) == ["clip", "hiclip"], "in the job's order, for differences are to the first"
    alone = {"hierarchy": None, "baselines": {"pixel_neighbours": None}}
    for name, address in checkpoint.items():
        assert json.loads((out / name / "result.json").read_text()) == outcomes[name]
        one = _job(place, str(tmp_path / "alone" / name), checkpoint=address, **alone)
        asked = evaluate(ask(one), map_here, folder(one.out).make())
        measured = [result for result in outcomes[name]["results"] if result["set"] == "openmoji"]
        assert [result["value"] for result in measured] == [result.value for result in asked.results]
    assert "parsing" in outcomes["hiclip"]["sets"]
    assert "parsing" not in outcomes["clip"]["sets"]
    baselines = [path.relative_to(out).parts[0] for path in out.rglob("openmoji-pixel_neighbours-*.json")]
    assert baselines == ["sets"], "for both"

    compared = (out / "compare.csv").read_text()
    assert "clip" in compared.splitlines()[0] + compared.splitlines()[1]
    assert "text_to_image_r10" in compared
    page = (out / "compare.html").read_text()
    assert ">clip<" in page
    assert ">hiclip<" in page

    # One record for each, in the file that stands above them all.
    from mlflow import MlflowClient

    runs = {outcomes[name]["mlflow_run_id"] for name in outcomes}
    assert len(runs) == 2
    assert all(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run) for run in runs)

    # Again: nothing is computed. Without one's result that one alone is asked again, and the comparison stands anew.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert _run(job, file) == 0
    assert capsys.readouterr().out.count("nothing was computed") == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    (out / "result.json").unlink()
    (out / "hiclip" / "result.json").unlink()
    assert _run(job, file) == 0
    said = capsys.readouterr().out
    assert said.count("nothing was computed") == 1
    assert "openmoji was measured before" in said
    again = json.loads((out / "result.json").read_text())["outcomes"]
    assert [again[name]["results"] for name in again] == [outcomes[name]["results"] for name in outcomes]
    assert (out / "compare.csv").read_text() == compared

    # What stands side by side is no evaluation of one checkpoint.
    with pytest.raises(InputError, match="came one of several: name a folder in it, of clip, hiclip"):
        read_outcome(folder(str(out)))


def test_the_bills_of_several_checkpoints_stand_together(
    place: Path, plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = {"clip": str(plain_run), "hiclip": str(place / "run")}
    assert _run({**_content(place, "dry"), "checkpoint": checkpoint}, tmp_path / "job.yaml", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "small-evaluate-clip: the bill" in said
    assert "small-evaluate-hiclip: the bill" in said
    assert not (place / "dry").exists()


def test_given_trees_need_one_model_that_has_some(place: Path, plain_run: Path, tmp_path: Path) -> None:
    (tmp_path / "trees.txt").write_text("( ( a cat ) sits )\n")
    trees = {"training_pairs": 0, "trees": {"path": str(tmp_path / "trees.txt")}}
    both = {"clip": str(plain_run), "again": str(plain_run)}
    with pytest.raises(DatasetError, match=r"parsing: hierarchy.trees: expected a model with affinities"):
        ask_each(one_by_one(_job(place, "", checkpoint=both, sets=[], hierarchy=trees)))
    beside = _job(place, "", checkpoint={"clip": str(plain_run), "hiclip": str(place / "run")}, hierarchy=trees)
    each = ask_each(one_by_one(beside))
    assert [len(asked.trees) for asked in each.values()] == [0, 1]
    assert each["clip"].contents is each["hiclip"].contents, "sets are read once"


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_everything_may_lie_on_s3(place: Path) -> None:
    tracking = {"tracking_uri": f"sqlite:///{place}/mlflow.db"}
    with bucket("results") as address:
        out = folder(f"{address}/evaluate")
        job = make_job({**_content(place, ""), "out": out.root, "mlflow": tracking}, EvaluateJob, "small job")
        outcome = evaluate(ask(job), map_here, out)
        assert finished_outcome(out, ask(job).key) == outcome
        assert {"report.html", "result.json", *outcome.pictures} <= set(out.names())
    assert outcome.mlflow_run_id is not None


def test_the_dry_run_prints_the_bill_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_content(place, "dry"), tmp_path / "job.yaml", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "retrieval of 20" in said
    assert "640 pairs" in said
    assert not (place / "dry").exists()


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_pictures_that_cannot_be_read_are_wrong_to_the_end_of_the_page(place: Path, tmp_path: Path) -> None:
    small_openmoji(tmp_path)
    table = pq.read_table(tmp_path / "openmoji.parquet")
    rows = [{**row, "image": b"no picture"} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "openmoji.parquet")
    sets = [{"name": "openmoji", "root": str(tmp_path), "retrieval_pairs": 20}]
    hierarchy = {"training_pairs": 1, "set_pictures": 2}
    job = _job(place, str(tmp_path / "out"), sets=sets, hierarchy=hierarchy)
    outcome = evaluate(ask(job), map_here, folder(job.out).make())
    found = {one.metric: one.value for one in outcome.results}
    assert (found["top5"], found["rsum"], found["error_distance"]) == (0.0, 0.0, 3.0)
    assert outcome.broken == {"openmoji": len(rows)}
    assert len(outcome.pictures) == 2, "the training pair's caption and picture, and none of the set's"
    page = folder(job.out).read_text(outcome.report)
    assert f"{len(rows)} of {len(rows)} pictures cannot be read" in page
    matrix = page.split('<table class="matrix">')[1].split("</table>")[0]
    assert ">100</td>" not in matrix, "nobody took them for anything"
    assert "cannot be read</div><ol></ol>" in page, "nor gave answers to them"


def test_a_set_asked_twice_is_a_mistake_there_or_not(place: Path) -> None:
    roots = ("nowhere/matched", "nowhere/top-images")
    shifts = [{"name": "imagenet_v2", "root": root} for root in roots]
    with pytest.raises(JobError, match="sets: expected each set once, came imagenet_v2 again"):
        ask(_job(place, "", sets=[*_content(place, "")["sets"], *shifts]))


def test_a_missing_set_leaves_given_trees_to_be_compared_and_billed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "trees.txt").write_text("( ( a cat ) sits )\n")
    hierarchy = {"training_pairs": 0, "trees": {"path": str(tmp_path / "trees.txt")}}
    job = _job(place, "", sets=[{"name": "openmoji", "root": "nowhere"}], hierarchy=hierarchy)
    asked = ask(job)
    assert (list(asked.missing), len(asked.trees)) == (["openmoji"], 1)
    lines = Console(width=300, file=io.StringIO())
    with lines.capture() as printed:
        lines.print(bill(asked, 1))
    assert "0 pictures and 2 texts" in printed.get(), "one by the model, one by the control"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sets": [{"name": "no_such_set", "root": "x"}]}, "sets.0.name"),
        ({"checkpoint": "runs/no/such/run"}, "no checkpoint is here"),
        ({"dataset": "runs/no/such/dataset"}, "build it first"),
        ({"chekpoint": "x"}, "did you mean 'checkpoint'?"),
        ({"checkpoint": {"clip": "x"}}, "expected 2 to 8 checkpoints by name, or one without, came 1"),
        ({"checkpoint": {"../up": "x", "b": "y"}}, "checkpoint.../up"),
        ({"checkpoint": ["x", "y"]}, "expected an address, or addresses by name"),
        ({"checkpoint": {"a": "runs/no/such", "b": "y"}}, "runs/no/such"),
        ({"checkpoint": {"a": "x", "b": "y"}, "columns": {"dataset": "d", "to": "t"}}, "expected one checkpoint to"),
        ({"hierarchy": {"captions": ["cat"]}}, "hierarchy.captions.0"),
        ({"sets": [{"name": "openmoji", "root": "nowhere"}]}, "nowhere is not there"),
        ({"sets": [{"name": "openmoji", "root": "x", "templates": ["a picture"]}]}, "one {} for the label"),
    ],
)
def test_mistakes_end_in_one_line(
    change: dict[str, Any], expected: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run({**_content(place, "wrong"), **change}, tmp_path / "job.yaml") == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not (place / "wrong" / "result.json").exists()


def test_a_checkpoint_without_complete_is_refused(place: Path, tmp_path: Path) -> None:
    torn = small_checkpoint(tmp_path / "run", str(place / "build"), "0")
    (torn / COMPLETE).unlink()
    (tmp_path / "job.yaml").write_text(json.dumps({**_content(place, "torn"), "checkpoint": str(torn)}))
    done = subprocess.run(
        [sys.executable, "-m", "hiclip.evaluate", str(tmp_path / "job.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "COMPLETE" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_set_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    small_openmoji(tmp_path)
    table = pq.read_table(tmp_path / "openmoji.parquet")
    pq.write_table(table.drop_columns(["subgroup"]), tmp_path / "openmoji.parquet")
    with pytest.raises(DatasetError, match="subgroup"):
        OpenmojiSettings(name="openmoji", root=str(tmp_path)).load()
