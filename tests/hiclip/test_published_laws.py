"""The laws that a published scaling study prints come back from its published measurements (tests/golden/README.md)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hiclip.scale import main
from hiclip.scaling.chosen_rungs import chosen_rungs
from hiclip.scaling.law import Law, fit_law
from hiclip.scaling.measured_table import read_table

GOLDEN = Path(__file__).parent.parent / "golden"
LAWS = {"imagenet": (5.86, -0.111), "coco_image_retrieval": (2.75, -0.079)}
"""a and b of Cherti et al. 2022, C in GMAC, errors as parts of 1; their figures print two decimals of b."""
QUESTIONS = {"imagenet": 50_000, "coco_image_retrieval": 25_010}
"""Pictures to classify; captions that look for their picture."""


def measured(name: str) -> tuple[list[float], list[float]]:
    """(29,) computes in GMAC and (29,) errors of the LAION models."""
    points = read_table(str(GOLDEN / f"laion_{name}.csv"))
    return [point.compute for point in points], [point.error for point in points]


def column(file: str, name: str) -> list[float]:
    """A column of a golden table."""
    with (GOLDEN / file).open(newline="") as lines:
        return [float(line[name]) for line in csv.DictReader(lines)]


def least_of_bins(computes: list[float], errors: list[float]) -> tuple[list[float], list[float]]:
    """The study's own selection: the middle of each of five bins of log compute with the least error in it.

    Bins are equally wide and go from the least log10 compute to the largest and 0.1 more; each owns its lower edge.
    """
    logs = np.log10(computes)
    edges = np.linspace(logs.min(), logs.max() + 0.1, 6)
    bins = np.digitize(logs, edges) - 1
    least = [min(error for error, place in zip(errors, bins, strict=True) if place == bin) for bin in range(5)]
    return (10 ** ((edges[:-1] + edges[1:]) / 2)).tolist(), least


def right(law: Law, computes: list[float]) -> np.ndarray:
    """Percent of the questions that the law expects to be answered rightly at each compute."""
    return 100 - 100 * np.array([law.error(compute) for compute in computes])


@pytest.mark.parametrize("name", LAWS)
def test_the_published_law_comes_back_from_the_published_measurements(name: str) -> None:
    law = fit_law(*least_of_bins(*measured(name)), draws=200)
    assert (round(law.a.value, 2), round(law.b.value, 3)) == LAWS[name]


@pytest.mark.parametrize("name", LAWS)
def test_it_predicts_what_the_study_printed(name: str) -> None:
    """30 accuracies from B/32 on 1B pairs to G/14 on 68B, in percent with two decimals: they pin a and b closely."""
    law = fit_law(*least_of_bins(*measured(name)), draws=200)
    file = f"laion_{name}_predicted.csv"
    printed = np.array(column(file, "percent_right"))
    assert len(printed) == 30
    np.testing.assert_allclose(right(law, column(file, "compute")), printed, rtol=0, atol=0.00501)


@pytest.mark.parametrize("name", LAWS)
def test_our_selection_of_the_best_run_of_each_bin_says_nearly_the_same(name: str) -> None:
    """Ours keeps the compute of the run that it chose, where the study takes the middle of the run's bin: at most 0.45
    points off what the study printed for ImageNet, 0.52 for COCO."""
    computes, errors = measured(name)
    chosen = chosen_rungs(computes, errors, "bins", 5)
    law = fit_law([one.compute for one in chosen], [errors[one.place] for one in chosen])
    a, b = LAWS[name]
    assert law.a.covers(a)
    assert law.b.covers(b)
    file = f"laion_{name}_predicted.csv"
    np.testing.assert_allclose(right(law, column(file, "compute")), column(file, "percent_right"), rtol=0, atol=0.6)


@pytest.mark.parametrize("name", LAWS)
def test_fit_only_gives_the_published_exponents(name: str, tmp_path: Path) -> None:
    """As typed: `--fit-only TABLE.csv --selection bin_middles`."""
    words = ["--fit-only", str(GOLDEN / f"laion_{name}.csv"), "--selection", "bin_middles", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--unit", "GMAC", "--draws", "200"])
    assert ended.value.code == 0
    law = json.loads((tmp_path / "result.json").read_text())["law"]
    assert (round(law["a"], 2), round(law["b"], 3)) == LAWS[name]
    assert law["low"] < law["b"] < law["high"]


@pytest.mark.parametrize("name", LAWS)
def test_the_tables_are_as_published(name: str) -> None:
    """Errors are 1 - metric of the LAION models in order of compute, and every metric counts right answers."""
    with (GOLDEN / "laion_zero_shot.csv").open(newline="") as lines:
        models = [line for line in csv.DictReader(lines) if line["dataset"] != "CLIP-WIT"]
    computes, errors = measured(name)
    assert len(models) == 29
    assert computes == [float(model["compute"]) for model in models] == sorted(computes)
    metrics = np.array([float(model[name]) for model in models])
    np.testing.assert_allclose(errors, 1 - metrics, rtol=0, atol=1e-15)
    count = np.round(metrics * QUESTIONS[name])
    exact = count / QUESTIONS[name] if name == "imagenet" else np.float32(count) / np.float32(QUESTIONS[name])
    np.testing.assert_allclose(metrics, exact, rtol=0, atol=1e-15)
