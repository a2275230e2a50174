"""Evaluations side by side: differences against the plain computation, reasons for none, files, page and mistakes."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from loopback_s3 import bucket
from small_checkpoint import small_checkpoint, small_openmoji
from small_evaluation import small_evaluation, small_scores, small_set

from hiclip.evaluate import main
from hiclip.evaluation import retrieval, zero_shot
from hiclip.evaluation.asked import ask
from hiclip.evaluation.averages import BY_CLASS, ELEVEN, eleven_sets
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.bootstrap import estimate
from hiclip.evaluation.compare import (
    NOT_SAME_PICTURES,
    NOT_SAME_QUESTIONS,
    NOT_STORED,
    Comparison,
    Difference,
    Line,
    compare,
    read_runs,
)
from hiclip.evaluation.compare_page import compare_page
from hiclip.evaluation.compare_tables import comparison_markdown, difference_text
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.outcome import Outcome
from hiclip.evaluation.published_rows import chosen_rows
from hiclip.evaluation.ratio_parts import RatioParts, ratio_parts
from hiclip.evaluation.result import Result
from hiclip.evaluation.result_tables import results_csv, results_markdown
from hiclip.evaluation.run_evaluation import evaluate
from pipeline.jobfile import make_job
from pipeline.storage import folder


def _compared(*places: Path) -> tuple[Comparison, dict[tuple[str, str], Line]]:
    comparison = compare(read_runs([str(place) for place in places]), draws=200)
    return comparison, {(line.set, line.metric): line for line in comparison.lines}


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(argv)
    return int(end.value.code or 0)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A weak and a strong run on two sets."""
    contents = [small_set("cifar10"), small_set("imagenet", pictures=40)]
    small_evaluation(tmp_path / "weak", contents, 0.6, seed=1)
    small_evaluation(tmp_path / "strong", contents, 2.5, seed=5)
    return tmp_path / "weak", tmp_path / "strong"


def test_differences_are_those_of_the_scores_themselves(two: tuple[Path, Path]) -> None:
    """What is stored gives, for every metric but the loss, what the whole scores give under the same weights."""
    comparison, lines = _compared(*two)
    content = small_set("cifar10")
    classes, found = content.classification, content.retrieval
    assert classes is not None
    assert found is not None
    scores = [small_scores(content, signal, seed) for signal, seed in ((0.6, 1), (2.5, 5))]
    statistics = []
    for one in scores:
        assert one.classes is not None
        assert one.captions is not None
        judged = zero_shot.zero_shot_statistic(zero_shot.predict(one.classes, classes.labels), classes.tree)
        answered = retrieval.retrieval_statistic(*retrieval.answers(one.captions, found.right), found.owners)
        statistics.append((judged, answered))
    for kind, metrics in enumerate((zero_shot.METRICS[: zero_shot.FLAT], retrieval.METRICS)):
        weak, strong = (one[kind] for one in statistics)
        expected = estimate(lambda weights, a=weak, b=strong: b(weights) - a(weights), 60, 0, 200)
        for place, metric in enumerate(metrics):
            difference = lines["cifar10", metric].differences[1]
            if metric == "loss":
                assert difference == NOT_STORED
                continue
            assert isinstance(difference, Difference)
            assert (difference.value, difference.low, difference.high) == pytest.approx(
                (expected.value[place], expected.low[place], expected.high[place]), abs=1e-12
            )
            results = lines["cifar10", metric].results
            assert difference.value == pytest.approx(results[1].value - results[0].value, abs=1e-12)
    assert comparison.runs[0].label == "weak"


def test_the_best_run_is_the_one_beyond_every_paired_interval(two: tuple[Path, Path]) -> None:
    _, lines = _compared(*two)
    assert lines["cifar10", "top1"].best == 1
    assert lines["cifar10", "typical_rank"].best == 1, "lower is better"
    assert lines["cifar10", "loss"].best is None
    small_evaluation(two[0].parent / "twin", [small_set("cifar10")], 2.5, seed=5)
    _, lines = _compared(*two, two[0].parent / "twin")
    assert lines["cifar10", "top1"].best is None, "two are equal"
    assert lines["cifar10", "top1"].differences[1] == lines["cifar10", "top1"].differences[2]
    assert lines["imagenet", "top1"].best == 1, "the third was not asked"
    assert lines["imagenet", "top1"].differences[2] == "not measured in twin"


def test_mcnemar_counts_the_pictures(two: tuple[Path, Path]) -> None:
    comparison, lines = _compared(*two)
    test = lines["cifar10", "top1"].tests[1]
    assert test is not None
    first, second = (np.array(run.stored["cifar10"].judged.ranks) == 1 for run in comparison.runs)
    assert (test.only_first, test.only_second) == ((first & ~second).sum(), (second & ~first).sum())
    assert test.mid < test.exact < 0.01
    assert lines["cifar10", "top5"].tests[1] is None


def test_other_pictures_or_questions_have_no_difference(tmp_path: Path) -> None:
    small_evaluation(tmp_path / "a", [small_set("dtd")], 1.0)
    small_evaluation(tmp_path / "b", [small_set("dtd")], 1.0, seed=3, pictures="others")
    small_evaluation(tmp_path / "c", [small_set("dtd", template="the {}")], 1.0, seed=4)
    comparison, lines = _compared(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert lines["dtd", "top1"].differences == ("", NOT_SAME_PICTURES, NOT_SAME_QUESTIONS)
    assert lines["dtd", "top1"].best is None
    assert lines["dtd", "top1"].tests == (None, None, None)
    for shown in (compare_page(comparison), comparison_markdown(comparison)):
        assert "no difference, not the same pictures" in shown
        assert "no difference, not the same questions" in shown


def test_what_is_not_stored_is_said_and_not_invented(two: tuple[Path, Path]) -> None:
    next((two[1] / "sets").glob("cifar10-*.json")).unlink()
    stored = next((two[0] / "sets").glob("imagenet-[0-9a-f]*.json"))
    content = json.loads(stored.read_text())
    content["judged"].pop("labels")  # as an earlier version stored it
    content["texts_found"].pop("owners")
    stored.write_text(json.dumps(content))
    _, lines = _compared(*two)
    assert lines["cifar10", "top1"].differences[1] == "sets/cifar10-….json of strong is missing"
    assert lines["cifar10", "top1"].results[1] is not None
    assert isinstance(lines["imagenet", "top1"].differences[1], Difference)
    assert lines["imagenet", "mean_per_class"].differences[1] == NOT_STORED
    assert lines["imagenet", "rsum"].differences[1] == NOT_STORED


def _with_parts(place: Path, name: str, file: str, parts: RatioParts) -> list[Result]:
    """Adds what a head, trees or segments leave to a finished evaluation."""
    ones = np.ones((1, len(parts.sums)))
    values = dict(zip(parts.metrics, parts.statistic(ones)[0].tolist(), strict=True))
    results = [
        Result(set=name, metric=metric, value=value, chance=0, count=len(parts.sums), low=0, high=1, unit="share")
        for metric, value in values.items()
    ]
    (place / file).parent.mkdir(parents=True, exist_ok=True)
    stored = {"results": [one.model_dump() for one in results], "parts": parts.model_dump(), "seconds": 1.0}
    (place / file).write_text(json.dumps(stored))
    content = json.loads((place / "result.json").read_text())
    content["results"] += stored["results"]
    content["sets"][name] = "the same questions"
    (place / "result.json").write_text(json.dumps(content))
    return results


@pytest.mark.parametrize(
    ("name", "file"),
    [("vqa_v2-frozen", "heads/vqa_v2-frozen-{}/head.json"), ("segments", "sets/segments-{}.json")],
)
def test_what_is_stored_in_parts_is_compared_over_the_same_units(two: tuple[Path, Path], name: str, file: str) -> None:
    """Heads, trees and segments: the difference's interval is that of the ratios over the same resamples."""
    random = np.random.default_rng(0)
    counts = np.stack([random.integers(1, 4, 80), random.integers(0, 2, 80)], axis=1).astype(float)
    sums = [counts * random.uniform(0, most, (80, 2)) for most in (0.5, 1.0)]
    units = [f"picture {number}" for number in range(80)]
    parts = [ratio_parts(units, ["accuracy", "accuracy_other"], one, counts) for one in sums]
    for place, one, letter in zip(two, parts, "ab", strict=True):
        _with_parts(place, name, file.format(letter * 16), one)
    _, lines = _compared(*two)
    expected = estimate(lambda w: (w @ sums[1] - w @ sums[0]) / (w @ counts), 80, 0, 200)
    for place, metric in enumerate(parts[0].metrics):
        difference = lines[name, metric].differences[1]
        assert isinstance(difference, Difference)
        assert (difference.value, difference.low, difference.high) == pytest.approx(
            (expected.value[place], expected.low[place], expected.high[place]), abs=1e-12
        )
        assert lines[name, metric].best == 1
    # Other units, as of other files or another grid of patches, are not compared; nor what an earlier version stored.
    changed = two[1] / file.format("b" * 16)
    stored = json.loads(changed.read_text())
    changed.write_text(json.dumps({**stored, "parts": {**stored["parts"], "units": "others"}}))
    assert _compared(*two)[1][name, "accuracy"].differences[1] == NOT_SAME_PICTURES
    changed.write_text(json.dumps({**stored, "parts": None}))
    assert _compared(*two)[1][name, "accuracy"].differences[1] == NOT_STORED


def test_a_file_of_other_weights_in_the_same_folder_is_not_taken(two: tuple[Path, Path], tmp_path: Path) -> None:
    small_evaluation(tmp_path / "other", [small_set("cifar10")], 0.1, seed=99)
    other = next((tmp_path / "other/sets").glob("cifar10-[0-9a-f]*.json"))
    (two[0] / f"sets/cifar10-{'f' * 16}.json").write_text(other.read_text())
    _, lines = _compared(*two)
    line = lines["cifar10", "top1"]
    assert line.differences[1].value == pytest.approx(line.results[1].value - line.results[0].value)


def test_the_command_writes_page_markdown_and_csv(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = two[0].parent / "out"
    assert _run("--compare", str(two[0]), str(two[1]), "--out", str(out), "--draws", "200") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"result: {out / 'compare.csv'}"
    assert "strong over weak:" in said
    rows = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    top1 = next(row for row in rows if row["set"] == "cifar10" and row["metric"] == "top1" and row["run"] == "strong")
    assert float(top1["difference_low"]) > 0
    assert (top1["best"], top1["over"]) == ("1", "weak")
    assert float(top1["mcnemar_mid"]) < float(top1["mcnemar_exact"])
    markdown = (out / "compare.md").read_text()
    assert re.search(r"\| top-1 \|.*\*\*\d+\.\d+\*\* .*; \+\d+\.\d \(\d+\.\d \.\. \d+\.\d\) \|", markdown)
    assert "| HiCLIP | YFCC15M-V2 | ViT-B/32 |" in markdown, "published rows of the default encoder and data"
    page = (out / "compare.html").read_text()
    assert page.count("<h3>") == 2
    assert "As published" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "nan" not in page.lower().replace("nance", "")

    assert _run("--compare", str(two[0]), str(two[1]), "--published", "vit-b/16", "yfcc15m-v2", "--draws", "100") == 0
    page = (two[0] / "compare/compare.html").read_text()
    assert "PyramidCLIP" in page
    assert "ViT-B/16" in page
    assert "ViT-B/32" not in page


@pytest.mark.parametrize("name", ["<b>", "a|b", "[bold]x"])
def test_names_are_no_mark_up(name: str, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    small_evaluation(two[0].parent / "hostile", [small_set("cifar10")], 1.0, name=name)
    assert _run("--compare", str(two[0]), str(two[0].parent / "hostile"), "--draws", "100") == 0
    assert name in capsys.readouterr().out
    page = (two[0] / "compare/compare.html").read_text()
    assert f"<h1>weak · {html.escape(name)}</h1>" in page
    assert f"</span>{html.escape(name)}<" in page
    rows = [line for line in (two[0] / "compare/compare.md").read_text().splitlines() if line.startswith("| metric")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_mistakes_end_in_one_line(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two[1] / "result.json").rename(two[1] / "kept.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/result.json").write_text('{"loss": 1}')
    for argv, expected in [
        ([str(two[0]), str(two[1])], "was not finished: it has no result.json"),
        ([str(two[0]), str(tmp_path / "empty")], "expected the folder of a finished evaluation"),
        ([str(two[0]), str(tmp_path / "nowhere")], "expected the folder of a finished evaluation"),
        ([str(two[0]), str(tmp_path / "pretrain")], "is no evaluation's result"),
        ([str(two[0])], "expected 2 to 8 folders"),
        ([str(two[0]), str(two[0]), "--draws", "5"], "--draws: expected 100 or more, came 5"),
        ([str(two[0]), str(two[0])], "expected different folders"),
        ([str(two[0]), str(two[0].parent / "x"), "--published", "ViT-Z", "CC3M"], "--published: expected one of"),
    ]:
        assert _run("--compare", *argv, "--out", str(tmp_path / "none")) == 2
        said = capsys.readouterr().err.strip()
        assert expected in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("numbers", "unit", "expected"),
    [
        ((0.031, 0.022, 0.04), "share", "+3.1 (2.2 .. 4.0)"),
        ((-0.004, -0.0065, 0.001), "share", "−0.40 (−0.65 .. 0.10)"),
        ((12.34, -1.0, 20.0), "points", "+12.3 (−1.0 .. 20.0)"),
        ((0.0, 0.0, 0.0), "share", "0.00 (0.00 .. 0.00)"),
    ],
)
def test_differences_in_words(numbers: tuple[float, float, float], unit: str, expected: str) -> None:
    assert difference_text(Difference(*numbers), unit) == expected


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_two_real_evaluations_on_s3_are_compared(tmp_path: Path) -> None:
    """What an evaluation writes is what a comparison reads; two checkpoints of one model, untrained alike."""
    small_openmoji(tmp_path / "crawl")
    (tmp_path / "trees.txt").write_text("( ( a cat ) ( on ( a mat ) ) )\n( ( two dogs ) run )\n")
    with bucket("compared") as address:
        for seed in (3, 4):
            checkpoint = small_checkpoint(tmp_path / f"run{seed}", "gone", "0" * 64, seed=seed)
            content = {
                "name": f"seed-{seed}",
                "out": f"{address}/{seed}",
                "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
                "checkpoint": str(checkpoint),
                "sets": [{"name": "openmoji", "root": str(tmp_path / "crawl"), "retrieval_pairs": 20}],
                "baselines": {"pixel_neighbours": None},
                "hierarchy": {
                    "training_pairs": 0,
                    "set_pictures": 0,
                    "trees": {"path": str(tmp_path / "trees.txt")},
                },
                "draws": 100,
            }
            job = make_job(content, EvaluateJob, "small job")
            evaluate(ask(job), map_here, folder(job.out))
        comparison = compare(read_runs([f"{address}/3", f"{address}/4"]), draws=100)
    parsed = {line.metric: line.differences[1] for line in comparison.lines if line.set == "parsing"}
    assert set(parsed) >= {"parse_f1"}
    assert all(isinstance(one, Difference) for one in parsed.values()), "the same trees, whatever the weights"
    known = {line.metric: line.differences[1] for line in comparison.lines if line.set == "openmoji"}
    paired = {metric for metric, one in known.items() if isinstance(one, Difference)}
    assert paired == {*known} - {"loss"}
    assert paired > {*zero_shot.METRICS[: zero_shot.FLAT], *retrieval.METRICS, "group_right", "error_distance"} - {
        "loss"
    }
    assert {one for metric, one in known.items() if metric not in paired} == {NOT_STORED}
    for line in comparison.lines:
        difference, (first, second) = line.differences[1], line.results
        if isinstance(difference, Difference):
            assert difference.value == pytest.approx(second.value - first.value, abs=1e-9)
    assert "openmoji" in compare_page(comparison)


def _top1(name: str, value: float, metric: str = "top1") -> Result:
    return Result(set=name, metric=metric, value=value, chance=0, count=1, low=value, high=value, unit="share")


def test_the_average_of_eleven_needs_eleven() -> None:
    results = [_top1(name, 0.01 * place) for place, name in enumerate(ELEVEN)]
    without_classes = eleven_sets(results)
    assert without_classes.top1 == pytest.approx(0.05)
    assert without_classes.by_convention is None
    results += [_top1(name, 0.5, "mean_per_class") for name in ELEVEN]
    places = [place for place, name in enumerate(ELEVEN) if name in BY_CLASS]
    expected = (0.55 - 0.01 * sum(places) + 0.5 * len(BY_CLASS)) / 11
    assert eleven_sets(results).by_convention == pytest.approx(expected)
    fewer = eleven_sets([one for one in results if one.set not in ("dtd", "sun397")])
    assert (fewer.there, fewer.top1, fewer.by_convention, str(fewer)) == (9, None, None, "9 of 11 sets")


def test_the_published_average_of_eleven_stands_beside_measured_ones(tmp_path: Path) -> None:
    for name, signal in (("weak", 0.6), ("strong", 3.0)):
        small_evaluation(tmp_path / name, [small_set(one) for one in ELEVEN], signal)
    comparison, _ = _compared(tmp_path / "weak", tmp_path / "strong")
    weak, strong = (100 * (eleven_sets(run.outcome.results).top1 or 0) for run in comparison.runs)
    rows = chosen_rows("ViT-B/32", "YFCC15M-V2")
    (row,) = re.findall("<tr><td>eleven_sets, top-1</td>.*?</tr>", compare_page(comparison, rows))
    cells = re.findall(">([^<>]+)</td>", row)
    assert cells[1:3] == [f"{weak:.1f}", f"{strong:.1f}"]
    assert {"31.8", "41.8", "44.6"} <= set(cells[3:]), "of CLIP, HiCLIP and HiDeCLIP"
    assert "| eleven_sets, top-1 |" in comparison_markdown(comparison, rows)
    for name in ("a", "b"):
        small_evaluation(tmp_path / name, [small_set(one) for one in ELEVEN[:3]], 1.0)
    some, _ = _compared(tmp_path / "a", tmp_path / "b")
    assert "eleven_sets, top-1" not in compare_page(some, rows), "no run has the average"


def test_tables_of_one_evaluation(tmp_path: Path) -> None:
    measured = small_evaluation(tmp_path / "run", [small_set("cifar10"), small_set("dtd")], 1.0)
    outcome = Outcome.model_validate_json((tmp_path / "run/result.json").read_text())
    missing = {"sun397": "no file at x|y\nz"}
    outcome = outcome.model_copy(update={"missing": missing})
    rows = list(csv.DictReader(io.StringIO(results_csv(outcome, measured))))
    assert len(rows) == len(outcome.results) + 1
    for row, result in zip(rows, outcome.results, strict=False):
        assert (row["set"], row["metric"], float(row["value"]), float(row["low"])) == (
            result.set, result.metric, result.value, result.low
        )  # fmt: skip
        assert (row["pictures"], row["broken"], row["fingerprint"]) == ("60", "0", outcome.sets[result.set])
    assert (rows[-1]["set"], rows[-1]["missing"], rows[-1]["value"]) == ("sun397", missing["sun397"], "")
    markdown = results_markdown(outcome, measured)
    assert "- sun397: no file at x\\|y z" in markdown
    assert "2 of 11 sets" in markdown
    assert markdown.count("| top-1 |") == 2
    assert "60 pictures, 0 of them broken" in markdown
