"""Every key that a job may have is printed with what it means, and its default is what a job without it gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.scaling.scale_job import ScaleJob
from hiclip.training.pretrain_job import PretrainJob
from pipeline.build_job import BuildJob
from pipeline.job_keys import job_keys
from pipeline.jobfile import Job, read_job, resolved

JOBS = [BuildJob, PretrainJob, EvaluateJob, ScaleJob]


@pytest.mark.parametrize("kind", JOBS)
def test_every_key_says_what_it_means(kind: type[Job]) -> None:
    assert [key.path for key in job_keys(kind) if not key.meaning] == []


def test_the_keys_are_those_of_a_resolved_job_and_so_are_the_defaults() -> None:
    content = resolved(read_job("jobs/walk/pretrain.yaml", [], PretrainJob))
    keys = {key.path: key for key in job_keys(PretrainJob)}

    def written(content: object, path: str) -> list[str]:
        if not isinstance(content, dict):
            return [path]
        return [path, *(one for name, inner in content.items() for one in written(inner, f"{path}.{name}".strip(".")))]

    assert {path for path in written(content, "") if path} <= set(keys)
    assert "objective.cross_global" in keys, "a kind of objective that this job does not have"
    assert keys["data.views.crop_ratio"].default == f"[0.75, {4 / 3}]"
    assert keys["schedule.pairs"].default == "", "must be given"
    assert keys["data.views.colours"].default == "", "a section"
    assert keys["price"].default == "null"
    assert keys["precision"].meaning.endswith("One of fp32, bf16.")


def test_a_place_in_a_list_is_a_star() -> None:
    paths = [key.path for key in job_keys(EvaluateJob)]
    assert paths.index("sets") + 1 == paths.index("sets.*.name")
    paths = [key.path for key in job_keys(PretrainJob)]
    assert paths.index("data.dataset") + 1 == paths.index("data.dataset.*.path"), "a list, where it is not one text"


def test_the_command_prints_them_as_yaml_and_asks_for_no_job() -> None:
    command = [sys.executable, "-m", "hiclip.pretrain", "--keys"]
    done = subprocess.run([*command, "schedule"], capture_output=True, text=True)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("schedule:")
    assert {"schedule.kind": "cosine"}.items() <= yaml.safe_load("\n".join(lines)).items()
    assert len(lines) == 5
    wrong = subprocess.run([*command, "schedul"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no such key: schedul" in wrong.stderr
