"""A job file decodes into one frozen object, or says in one line which key is wrong, what came, and what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, model_validator

from pipeline.build_job import BuildJob
from pipeline.jobfile import Job, JobError, Number, Settings, job_fingerprint, make_job, read_job, resolved_yaml


class Oven(Settings):
    heat: Number = 180.0
    rack: int = Field(default=2, ge=1, le=4)


class Vanilla(Settings):
    name: Literal["vanilla"] = "vanilla"


class Lemon(Settings):
    name: Literal["lemon"] = "lemon"
    zest: int = Field(default=1, le=1)
    sugar: int = 0

    @model_validator(mode="after")
    def _check(self) -> Lemon:
        if self.sugar < 0:
            raise ValueError(f"sugar: expected 0 or more, came {self.sugar}")
        return self


class Cake(Job):
    oven: Oven = Oven()
    layers: tuple[Oven, ...] = ()
    eggs: int
    fuel: Literal["wood", "gas", "current"] = "gas"
    ice: Annotated[Vanilla | Lemon, Field(discriminator="name")] = Vanilla()
    size: Literal["small"] | int = "small"
    tins: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)


def job_file(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


GOOD = "name: cake\nout: runs/cake\neggs: 3\nlayers: [{heat: 1}, {heat: 2}]\n"


def test_defaults_are_filled_in_and_what_ran_can_be_read_again(tmp_path: Path) -> None:
    job = read_job(job_file(tmp_path, GOOD), [], Cake)
    assert (job.oven.heat, job.eggs, job.seed) == (180.0, 3, 0)
    assert read_job(job_file(tmp_path, resolved_yaml(job)), [], Cake) == job


@pytest.mark.parametrize("text", ["5e-4", "5E-4", "0.0005", "+5.e-4"])
def test_numbers_may_be_written_as_people_write_them(tmp_path: Path, text: str) -> None:
    assert isinstance(yaml.safe_load("5e-4"), str), "PyYAML has learned it; Number may go"
    assert read_job(job_file(tmp_path, GOOD + f"oven: {{heat: {text}}}\n"), [], Cake).oven.heat == pytest.approx(5e-4)


def test_overrides_reach_into_keys_and_lists_and_the_last_one_wins(tmp_path: Path) -> None:
    overrides = ["oven.heat=5e-4", "layers.1.rack=3", "eggs=4", "eggs=5", "ray.num_cpus=2"]
    job = read_job(job_file(tmp_path, GOOD), overrides, Cake)
    assert (job.oven.heat, job.layers[1].rack, job.eggs, job.ray.num_cpus) == (5e-4, 3, 5, 2)


@pytest.mark.parametrize(
    ("extra", "overrides", "message"),
    [
        ("ovn: {}\n", [], "ovn: no such key; did you mean 'oven'?"),
        ("oven: {haet: 3}\n", [], "oven.haet: no such key; did you mean 'heat'?"),
        ("", ["layers.0.rak=3"], "layers.0.rak: no such key; did you mean 'rack'?"),
        ("oven: {qqqqq: 3}\n", [], "oven.qqqqq: no such key; known: heat, rack"),
        ("oven: {rack: 9}\n", [], "oven.rack: expected at most 4, came 9"),
        ("oven: {heat: hot}\n", [], "oven.heat: expected a number, came 'hot'"),
        ("", ["eggs=three"], "eggs: expected a whole number, came 'three'"),
        ("", ["eggs=1.5"], "eggs: expected a whole number, came 1.5"),
        ("", ["eggs=null"], "eggs: expected a whole number, came null"),
        ("", ["oven=hot"], "oven: expected keys and values, came 'hot'"),
        ("", ["layers=3"], "layers: expected a list, came 3"),
        ("", ["eggs=[]"], "eggs: expected a whole number, came an empty list"),
        ("", ["fuel=gass"], "fuel: expected wood, gas or current, came 'gass'; did you mean 'gas'?"),
        ("", ["ice.name=vanila"], "ice.name: expected vanilla or lemon, came 'vanila'; did you mean 'vanilla'?"),
        ("", ["size=big"], "size: expected small or a whole number, came 'big'"),
        ("", ["size=[a]"], "size: expected small or a whole number, came a list"),
        ("", ["size=x", "eggs=y"], "(and 1 more mistake)"),
        ("", ["ice={}"], "ice.name: missing; expected a value"),
        ("", ["ice={name: lemon, zest: 9}"], "ice.zest: expected at most 1, came 9"),
        ("", ["ice={name: lemon, zets: 1}"], "ice.zets: no such key; did you mean 'zest'?"),
        ("", ["ice={name: lemon, sugar: -1}"], "ice.sugar: expected 0 or more, came -1"),
        ("", ["ice={name: lemon, zest: 9, sugar: x}"], "came 9 (and 1 more mistake)"),
        ("", ["tins=[]"], "tins: expected a list of at least 1, came an empty list"),
        ("", ["layers.7.rack=1"], "'layers.7': expected a number below 2 after the list, came '7'"),
        ("", ["eggs"], "'eggs': expected key.path=value"),
        ("eggs: 4\n", [], "key 'eggs' is given twice"),
        ("name: a/b\n", [], "key 'name' is given twice"),
        ("oven: [1\n", [], "is not YAML"),
    ],
)
def test_a_mistake_is_one_line_with_the_key(tmp_path: Path, extra: str, overrides: list[str], message: str) -> None:
    with pytest.raises(JobError) as caught:
        read_job(job_file(tmp_path, GOOD + extra), overrides, Cake)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "expected keys and values, found list"), ("", "found NoneType")]
)
def test_a_file_that_is_no_job(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        read_job(job_file(tmp_path, text), [], Cake)
    with pytest.raises(JobError, match="found no such file"):
        read_job(str(tmp_path / "none.yaml"), [], Cake)


def test_a_missing_key_is_named_but_a_misspelt_one_first() -> None:
    with pytest.raises(JobError, match="eggs: missing"):
        make_job({"name": "cake", "out": "x"}, Cake, "here")
    with pytest.raises(JobError, match="egs: no such key; did you mean 'eggs'"):
        make_job({"name": "cake", "out": "x", "egs": 3}, Cake, "here")


def test_the_fingerprint_knows_what_changes_a_result(tmp_path: Path) -> None:
    path = job_file(tmp_path, GOOD)
    one = job_fingerprint(read_job(path, [], Cake))
    assert one == job_fingerprint(read_job(path, ["out=elsewhere", "name=pie", "ray.num_cpus=1"], Cake))
    assert one != job_fingerprint(read_job(path, ["seed=1"], Cake))
    assert one != job_fingerprint(read_job(path, ["oven.heat=181"], Cake))


BUILD = {"name": "b", "out": "x", "lists": [{"path": "a.csv"}]}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"filters": ["captoin_length"]}, "filters.0: no such filter 'captoin_length'; did you mean 'caption_length'?"),
        (
            {"filters": [{"caption_length": {"min_wrds": 3}}]},
            "filters.0.caption_length.min_wrds: no such key; did you mean 'min_words'?",
        ),
        ({"filters": [{"caption_length": 3}]}, "expected keys and values after 'caption_length:'"),
        ({"filters": ["image_size", "image_size"]}, "image_size stands there twice"),
        ({"filters": ["language"]}, "reads the column language_score, which no annotation adds"),
        ({"annotations": ["langage"]}, "no such annotation 'langage'; did you mean 'language'?"),
        ({"shards": {"pairs_per_shard": 10, "rows_per_group": 3}}, "rows_per_group 3 must divide pairs_per_shard 10"),
        ({"download": {"connect_to": {"*": "sample_crawl"}}}, "sample_crawl: expected its folder"),
        ({"download": {"connect_to": {"*": "nowhere"}}}, "expected HOST:PORT or sample_crawl, came 'nowhere'"),
        ({"download": {"allow_private": ["127.0.0.1/8"]}}, "has host bits set"),
        ({"lists": [{"path": "list.txt"}]}, "expected a format, or a file that ends in .csv"),
        ({"lists": []}, "lists: "),
    ],
)
def test_mistakes_in_a_build_job(extra: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as caught:
        make_job(BUILD | extra, BuildJob, "job.yaml")
    assert message in str(caught.value)


def test_steps_may_be_written_three_ways() -> None:
    ways: list[object] = ["image_size", {"image_size": None}, {"name": "image_size"}, {"image_size": {"min_px": 32}}]
    jobs = [make_job(BUILD | {"filters": [way]}, BuildJob, "job.yaml") for way in ways]
    assert all(job == jobs[0] for job in jobs)
    assert jobs[0].steps == ["list", "download", "image_size", "duplicates"]


def test_the_command_says_a_mistake_in_one_line_and_ends_with_2(tmp_path: Path) -> None:
    path = job_file(tmp_path, "name: b\nout: x\nlists: [{path: a.csv}]\nfilter: []\n")
    done = subprocess.run([sys.executable, "-m", "pipeline.build", path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "filter: no such key; did you mean 'filters'?" in done.stderr
