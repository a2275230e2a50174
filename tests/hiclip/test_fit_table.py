"""Tables that somebody else has measured: read strictly, fitted by the same laws, told in the same result.json."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hiclip.scale import main
from hiclip.scaling.measured_table import TableError, read_table


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def law_rows(share: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"compute": compute, "error": 5 * (compute / share / 1e10) ** -0.12, **more}
        for compute in (1e10, 5e10, 2e11, 1e12, 8e12)
    ]


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_compute_and_error_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", law_rows())
    assert command("--fit-only", str(table), "--unit", "GMAC", "--error", "error on ImageNet") == 0
    said = capsys.readouterr().out
    out = tmp_path / "runs-law"
    assert said.splitlines()[-1] == f"result: {out}/result.json"
    result = json.loads((out / "result.json").read_text())
    assert result["law"]["b"] == pytest.approx(-0.12, rel=1e-6)
    assert result["law"]["a"] == pytest.approx(5 * 1e10**0.12, rel=1e-6)
    assert result["compute_unit"] == "GMAC"
    assert result["methods"]["law"]["size_law"] == {
        "refused": "the table does not say how many pairs each run has seen"
    }
    assert "The error on ImageNet falls as" in result["sentence"]
    assert result["sentence"] in said
    for name in ("law.png", "residuals.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 1000
    assert "GMAC" in (out / "report.html").read_text()
    assert (out / "rungs.csv").read_text() == table.read_text()


def test_a_method_of_too_few_runs_is_refused_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = law_rows(0.6, method="hiclip")[:2]
    table = write(tmp_path / "runs.csv", few + law_rows(method="clip"))
    assert command("--fit-only", str(table), "--draws", "200") == 0
    result = json.loads((tmp_path / "runs-law" / "result.json").read_text())
    assert list(result["methods"]) == ["clip"]
    assert result["methods"]["clip"]["law"]["b"] == pytest.approx(-0.12, rel=1e-6)
    assert list(result["refused"]) == ["hiclip"]
    assert "There is no law of hiclip: " in result["sentence"]
    assert "at least 3 rungs, came 2" in result["sentence"]
    capsys.readouterr()

    table = write(tmp_path / "few.csv", few + law_rows(method="clip")[:1])
    assert command("--fit-only", str(table), "--draws", "200") == 2
    said = capsys.readouterr().err
    assert "hiclip: " in said
    assert "; clip: " in said
    assert not (tmp_path / "few-law").exists()


def test_methods_without_a_compute_in_common_are_not_compared(tmp_path: Path) -> None:
    table = write(
        tmp_path / "runs.csv",
        law_rows(method="hiclip") + [{**row, "compute": row["compute"] * 1e6} for row in law_rows(method="clip")],
    )
    assert command("--fit-only", str(table), "--draws", "200") == 0
    out = tmp_path / "runs-law"
    result = json.loads((out / "result.json").read_text())
    assert result["ratios"] == []
    assert "hiclip and clip are not compared: their rungs have no compute in common" in result["sentence"]
    assert not (out / "compute_ratio.png").exists()


def test_methods_are_compared_and_sizes_answered(tmp_path: Path) -> None:
    rows = []
    for method, share in (("hiclip", 0.6), ("clip", 1.0)):
        for size in (1e6, 4e6, 1.6e7):
            for seen in (1e6, 8e6, 6.4e7):
                error = 0.4 + 0.5 * (share * 1e6 / size) ** 0.35 + 0.8 * (share * 1e6 / seen) ** 0.28
                own = {"parameters": size, "seen": seen, "compute": 6 * size * seen, "model": f"N {size:.0f}"}
                rows.append({"method": method, **own, "error": error})
    out = tmp_path / "answers"
    table = write(tmp_path / "runs.csv", rows)
    assert (
        command(
            "--fit-only", str(table), "--form", "power_with_floor", "--selection", "frontier",
            "--budgets", "1e15", "1e16", "--out", str(out), "--draws", "200",
        )
        == 0
    )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert list(result["methods"]) == ["hiclip", "clip"]
    assert result["methods"]["clip"]["size_law"]["alpha"]["value"] == pytest.approx(0.35, rel=1e-3)
    assert [best["budget"] for best in result["methods"]["hiclip"]["allocations"]] == [1e15, 1e16]
    assert len(result["methods"]["clip"]["stands_on"]) < 9, "the frontier is not all"
    middle, end = result["ratios"]
    assert middle["compute"] < end["compute"]
    assert 0.1 < middle["ratio"] < 0.9
    assert {path.name for path in out.glob("*.png")} == {
        "law.png", "residuals.png", "compute_ratio.png", "iso_flops_hiclip.png", "iso_flops_clip.png",
    }  # fmt: skip


def test_somebody_else_s_table_needs_no_ray_and_no_training(tmp_path: Path) -> None:
    """In a process of its own: what a user types."""
    table = write(tmp_path / "runs.csv", law_rows())
    words = [sys.executable, "-m", "hiclip.scale", "--fit-only", str(table), "--draws", "100"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


MISTAKES: list[tuple[str, str]] = [
    ("", "expected the columns compute and error, came nothing"),
    ("compute,loss\n1,2\n", "expected the columns compute and error, came compute, loss"),
    ("compute,error\n", "expected a line for each run, came none"),
    ("compute,error\n1,2\n2,nan\n", "line 3: error: expected a finite number above 0, came nan"),
    ("compute,error\n1,2\n2,fast\n", "line 3: error: expected a number, came 'fast'"),
    ("compute,error\n1,2\n2,\n", "line 3: expected a compute and an error, came '2', ''"),
    ("compute,error\n1,2\n2,-1\n", "line 3: error: expected a finite number above 0, came -1"),
    (
        "compute,error,method\n1,2,../x\n",
        "line 2: method: expected letters, digits, _ . + - (it names files), came '../x'",
    ),
    ("compute,error\n1,2\n2,1\n", "the form power needs at least 3 rungs, came 2"),
    ("compute,error\n1,2\n1,3\n1,4\n", "have equal compute 1"),
    ("compute,error\n1,2,5\n", "line 2: expected 2 cells, came 3; numbers have a point, no comma"),
    ("compute,error,params\n1,2,3\n", "no such column 'params'; did you mean 'parameters'?"),
    ("compute,error,Seen\n1,2,3\n", "no such column 'Seen'; did you mean 'seen'?"),
    ("compute,error,held_out\n1,2,true\n", "expected runs that are not held out, came none"),
    (
        "compute,error\n1,2\n1.0001,3\n9,1\n",
        "needs rungs of at least 3 different computes, came 2: rungs 1 and 2 have equal compute 1",
    ),
    ("compute,error,error\n1,2,3\n", "expected each column once, came 'error' again"),
    ("compute,error,method\n1,2,a\n9,1,\n", "line 3: method: expected one on every line or on none, came none here"),
    ("compute,error,error_low\n1,2,3\n", "line 2: expected error_low <= error <= error_high, came 3.0, 2.0, None"),
    ("compute,error,method\n1,2,a\n9,1,a\n1,2,b\n", "b: the form power needs at least 3 rungs, came 1"),
]


@pytest.mark.parametrize(("content", "words"), MISTAKES)
def test_a_table_that_carries_nothing_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    table = tmp_path / "runs.csv"
    table.write_text(content)
    assert command("--fit-only", str(table)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not (tmp_path / "runs-law").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--budgets", "-5"), "--budgets: expected finite numbers above 0, came -5"),
        (("--budgets", "nan"), "--budgets: expected finite numbers above 0, came nan"),
        (("--seed", "-1"), "--seed: expected 0 or more, came -1"),
        (("--draws", "10"), "expected at least 100 draws"),
    ],
)
def test_options_that_mean_nothing_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    table = write(tmp_path / "runs.csv", law_rows())
    assert command("--fit-only", str(table), *words) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs-law").exists()


def test_the_law_of_sizes_has_a_floor_whatever_the_form_of_the_other(tmp_path: Path) -> None:
    """Without one it would name a model 16 times too small at a thousand times the compute (Hoffmann's own law)."""
    rows: list[dict[str, Any]] = []
    for size in (5e7, 2e8, 8e8, 3.2e9):
        for seen in (1e9, 4e9, 1.6e10, 6.4e10):
            error = 1.69 + 406.4 / size**0.34 + 410.7 / seen**0.28
            rows.append({"compute": 6 * size * seen, "error": error, "parameters": size, "seen": seen, "unique": 5e8})
    table = write(tmp_path / "runs.csv", rows)
    words = ["--selection", "frontier", "--draws", "100", "--budgets", "5.76e23"]
    assert command("--fit-only", str(table), *words) == 0
    (found,) = json.loads((tmp_path / "runs-law" / "result.json").read_text())["methods"].values()
    assert found["law"]["form"] == "power"
    assert found["size_law"]["E"]["value"] == pytest.approx(1.69, rel=1e-3)
    assert found["allocations"][0]["size"]["value"] == pytest.approx(3.22e10, rel=0.02)
    # What the table says of passes is not lost in silence, nor is what the law of compute says of the budget.
    assert ["up to 128 times, count as new" in caveat for caveat in found["caveats"]] == [True]
    (predicted,) = found["predictions"]
    assert predicted["compute"] == 5.76e23
    assert predicted["law"]["low"] < predicted["law"]["value"] == predicted["value"] < predicted["law"]["high"]
    assert predicted["low"] < predicted["law"]["low"]


def test_budgets_without_pairs_seen_are_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", law_rows())
    assert command("--fit-only", str(table), "--draws", "200", "--budgets", "8e12", "1e15") == 0
    assert "With 1e+15 FLOPs a run would reach 1.256 (" in capsys.readouterr().out


def test_runs_of_one_compute_show_the_noise(tmp_path: Path) -> None:
    """Seeds: three computes four times each are a law, and a narrower one than their best four runs."""
    random = np.random.default_rng(0)
    rows = [
        {"compute": compute, "error": 5 * (compute / 1e10) ** -0.12 * np.exp(0.02 * random.standard_normal())}
        for compute in (1e10, 1e11, 1e12)
        for _ in range(4)
    ]
    table = write(tmp_path / "runs.csv", rows)
    assert command("--fit-only", str(table), "--draws", "500") == 0
    law = json.loads((tmp_path / "runs-law" / "result.json").read_text())["law"]
    assert law["low"] < -0.12 < law["high"]
    assert law["noise"] == pytest.approx(0.02, rel=0.5)
    assert law["high"] - law["low"] < 0.02


def test_what_a_study_held_out_is_no_run_of_the_law(tmp_path: Path) -> None:
    rows = [{**row, "held_out": "false"} for row in law_rows()]
    rows.append({"compute": 1e14, "error": 4.0, "held_out": "true"})
    assert len(read_table(str(write(tmp_path / "runs.csv", rows)))) == 5


def test_dollars_are_no_formulae_and_an_earlier_fit_leaves_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for size in (1e6, 4e6, 1.6e7):
        for seen in (1e6, 8e6, 6.4e7):
            error = 0.4 + 0.5 * (1e6 / size) ** 0.35 + 0.8 * (1e6 / seen) ** 0.28
            rows.append({"compute": 6 * size * seen, "error": error, "parameters": size, "seen": seen})
    out = tmp_path / "out"
    words = ["--draws", "100", "--out", str(out), "--unit", r"$\x$", "--error", "cost$x_{$"]
    assert command("--fit-only", str(write(tmp_path / "pay$ 5_{.csv", rows)), *words, "--selection", "frontier") == 0
    assert (out / "iso_flops.png").exists()
    assert command("--fit-only", str(write(tmp_path / "other.csv", law_rows())), *words) == 0
    assert not (out / "iso_flops.png").exists(), "of the other table"
    assert command("--fit-only", str(out / "rungs.csv"), *words) == 0, "a fit's own table again"
    (out / "result.json").write_text('{"mine": 1}')
    assert command("--fit-only", str(tmp_path / "other.csv"), *words) == 2
    assert (out / "result.json").read_text() == '{"mine": 1}'


def test_a_study_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "runs.csv", law_rows())
    (tmp_path / "study").mkdir()
    (tmp_path / "study/job.yaml").write_text("ladder: {}\n")
    assert command("--fit-only", str(table), "--out", str(tmp_path / "study")) == 2
    assert "holds a study, whose result would be lost" in capsys.readouterr().err


def test_names_are_no_mark_up_in_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "name": f"run [v{place}] a[/b]x"} for place, row in enumerate(law_rows())]
    table = write(tmp_path / "runs.csv", rows)
    assert command("--fit-only", str(table), "--draws", "100", "--error", "error [/of]") == 0
    said = capsys.readouterr().out
    assert "run [v3] a[/b]x" in said
    assert "error [/of]" in said


def test_what_is_said_of_some_runs_only_stands_for_nothing(tmp_path: Path) -> None:
    """Parameters in one line and the compute of a pair in another would be two kinds of size."""
    rows: list[dict[str, Any]] = []
    for size in (1e6, 4e6, 1.6e7):
        for seen in (1e6, 8e6, 6.4e7):
            error = 0.4 + 0.5 * (1e6 / size) ** 0.35 + 0.8 * (1e6 / seen) ** 0.28
            rows.append({"compute": 6 * size * seen, "error": error, "parameters": size, "seen": seen, "unique": 1e6})
    for column in ("parameters", "unique"):
        lacking = [{**row, column: ""} if place == 4 else row for place, row in enumerate(rows)]
        out = tmp_path / column
        table = write(tmp_path / f"{column}.csv", lacking)
        words = ["--selection", "frontier", "--draws", "100", "--out", str(out)]
        assert command("--fit-only", str(table), *words) == 0
        (found,) = json.loads((out / "result.json").read_text())["methods"].values()
        assert found["size_law"]["refused"].startswith(f"{column}: expected for every run or for none")


@pytest.mark.parametrize("first", ["hiclip", "clip"])
def test_a_method_that_does_not_fall_is_no_measure(tmp_path: Path, first: str) -> None:
    rises = [{**row, "error": 1 / row["error"], "method": "clip"} for row in law_rows()]
    both = [*law_rows(method="hiclip"), *rises]
    table = write(tmp_path / "runs.csv", both if first == "hiclip" else both[::-1])
    assert command("--fit-only", str(table), "--draws", "100") == 0
    result = json.loads((tmp_path / "runs-law" / "result.json").read_text())
    assert result["ratios"] == []
    assert "are not compared: the error of clip does not fall with compute" in result["sentence"]


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected a table"):
        read_table(str(tmp_path / "none.csv"))


def test_a_table_is_read_with_its_names(tmp_path: Path) -> None:
    rows = [{"compute": 1.0, "error": 0.5, "model": "B/32", "seen": 3e9, "error_low": 0.4, "error_high": 0.6}]
    (point,) = read_table(str(write(tmp_path / "runs.csv", rows)))
    assert (point.name, point.group) == ("B/32, 3B pairs", "B/32")
    assert (point.low, point.high) == (0.4, 0.6)
    assert np.isclose(point.flops_per_pair or 0, 1 / 3e9)
