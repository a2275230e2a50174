"""The files in `cluster/` hold: Ray's own validation, fields of EC2 and KubeRay, one Ray in all, files that exist."""

from __future__ import annotations

import copy
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import psutil
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
FILES = {path.name: yaml.safe_load(path.read_text()) for path in CLUSTER.glob("*.yaml")}
RAY_UP = FILES["ray_cluster.yaml"]
KUBERAY = {"RayCluster": FILES["kuberay_cluster.yaml"], "RayJob": FILES["kuberay_job.yaml"]}
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


def test_every_file_is_known_here() -> None:
    known = {"ray_cluster.yaml", "kuberay_cluster.yaml", "kuberay_job.yaml"}
    assert set(FILES) == known
    assert {path.name for path in CLUSTER.iterdir() if path.is_file()} == known | {
        "Dockerfile",
        "README.md",
        "drain_node.py",
    }


# ray up


def test_ray_itself_accepts_the_cluster_file() -> None:
    config = prepare_config(copy.deepcopy(RAY_UP))
    validate_config(config)
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        assert config[commands] == [], "Ray's defaults would install another Ray into the image"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_wokers": 8},
        {"head_node_type": "haed"},
        {"docker": {"image": "x", "container_name": "y", "run_option": []}},
        {"available_node_types": {**RAY_UP["available_node_types"], "head": {"resource": {}, "node_config": {}}}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_ray_itself_refuses_a_mistake_in_the_cluster_file(wrong: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(copy.deepcopy(RAY_UP | wrong)))


def ec2_mistakes(node_config: dict[str, Any]) -> str:
    """What EC2's own description of RunInstances has against it; empty if nothing."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return str(report.generate_report())


def test_ec2_knows_every_field_of_every_machine() -> None:
    for name, node in RAY_UP["available_node_types"].items():
        assert ec2_mistakes(node["node_config"]) == "", name
    assert "MarketTyp" in ec2_mistakes({"InstanceMarketOptions": {"MarketTyp": "spot"}})


def test_the_head_stays_and_workers_are_cpu_and_gpu_machines_on_spot() -> None:
    nodes = dict(RAY_UP["available_node_types"])
    head = nodes.pop(RAY_UP["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "GPU" not in head["resources"]
    assert {name: "GPU" in node["resources"] for name, node in nodes.items()} == {"cpus": False, "gpus": True}
    for node in nodes.values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert RAY_UP["max_workers"] >= sum(node["max_workers"] for node in nodes.values())


# KubeRay

FIELDS = json.loads((ROOT / "tests/golden/kuberay_fields.json").read_text())


def kuberay_mistake(resource: dict[str, Any]) -> str | None:
    """The first thing in which a resource differs from the fields of its kind."""
    schema = FIELDS["kinds"][resource["kind"]] | {"$defs": FIELDS["$defs"]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(resource))
    return None if error is None else str(error.message)


@pytest.mark.parametrize("kind", KUBERAY)
def test_kuberay_knows_every_field(kind: str) -> None:
    assert KUBERAY[kind]["kind"] == kind
    jsonschema.Draft202012Validator.check_schema(FIELDS["kinds"][kind])
    assert kuberay_mistake(KUBERAY[kind]) is None


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every mapping in a document."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(inner, (*path, key))


# Whose keys are the user's own: labels, parameters of `ray start`, amounts of a resource.
FREE = {"nodeSelector", "rayStartParams", "limits", "requests"}


@pytest.mark.parametrize("kind", KUBERAY)
def test_a_misspelt_field_is_seen_at_every_depth(kind: str) -> None:
    paths = [path for path in objects(KUBERAY[kind]) if not path or path[-1] not in FREE]
    assert max(map(len, paths)) >= 10
    for path in paths:
        wrong = copy.deepcopy(KUBERAY[kind])
        place: Any = wrong
        for key in path:
            place = place[key]
        place["mispelt"] = {}
        assert kuberay_mistake(wrong) is not None, path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("minReplicas",), "none"),
        (("rayStartParams",), {"num-cpus": 0}),  # Kubernetes wants a string
        (("template", "spec", "containers"), []),
        (("template", "spec", "terminationGracePeriodSeconds"), "180"),
        (("template", "spec", "containers", 0, "resources", "limits"), {"memory": "56Gib"}),
    ],
    ids=lambda part: str(part[-1]) if isinstance(part, tuple) else "",
)
def test_a_value_of_another_type_is_seen(path: tuple[str | int, ...], value: object) -> None:
    wrong = copy.deepcopy(KUBERAY["RayCluster"])
    place: Any = wrong["spec"]["workerGroupSpecs"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert kuberay_mistake(wrong) is not None


def test_a_job_has_the_cluster_that_a_cluster_has() -> None:
    assert KUBERAY["RayJob"]["spec"]["rayClusterSpec"] == KUBERAY["RayCluster"]["spec"]


def test_a_job_is_tried_again_and_cleans_up() -> None:
    job = KUBERAY["RayJob"]["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    assert job["ttlSecondsAfterFinished"] > 0


def test_pods_are_spot_or_not_as_the_machines_of_ray_up_are() -> None:
    spec = KUBERAY["RayCluster"]["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    assert "on-demand" in head["nodeSelector"].values()
    assert "tolerations" not in head
    groups = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    assert set(groups) == set(RAY_UP["available_node_types"]) - {"head"}
    for name, pod in groups.items():
        (container,) = pod["containers"]
        assert "spot" in pod["nodeSelector"].values()
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpus")
        _, script, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (ROOT / script.removeprefix("/home/ray/hiclip/")).exists()
        assert pod["terminationGracePeriodSeconds"] >= int(seconds) + 60, "Kubernetes would kill the hook"
        assert container["envFrom"] == [{"secretRef": {"name": "hiclip"}}]
    (shm,) = groups["gpus"]["volumes"]
    kept = int(spec["workerGroupSpecs"][1]["rayStartParams"]["object-store-memory"])
    assert kept < int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


# all of them


def test_every_head_gives_a_driver_time_for_a_checkpoint() -> None:
    (start,) = [command for command in RAY_UP["head_start_ray_commands"] if "ray start" in command]
    assert f"{STOP_WAIT}=600 ray start --head" in start
    for kind, spec in (("RayCluster", KUBERAY["RayCluster"]["spec"]), ("RayJob", KUBERAY["RayJob"]["spec"])):
        (head,) = spec.get("rayClusterSpec", spec)["headGroupSpec"]["template"]["spec"]["containers"]
        assert {"name": STOP_WAIT, "value": "600"} in head["env"], kind
    starts = re.findall(r"^.*ray start --head.*$", README, flags=re.MULTILINE)
    assert starts
    assert all(f"{STOP_WAIT}=600 ray start" in line for line in starts)


def test_ray_still_reads_the_stop_wait_where_the_files_set_it() -> None:
    from ray.dashboard.modules.job import job_supervisor

    assert f'"{STOP_WAIT}"' in Path(job_supervisor.__file__).read_text()
    assert job_supervisor.JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S == 3, "cluster/README.md says 3 s"


def test_one_ray_and_one_torch_everywhere() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    image = re.search(r"^FROM rayproject/ray:([\d.]+)-", dockerfile, flags=re.MULTILINE)
    assert image is not None
    assert f"ray=={image[1]}" in pinned
    assert KUBERAY["RayCluster"]["spec"]["rayVersion"] == image[1]
    (torch,) = re.findall(r"torch==[\d.]+", dockerfile)
    assert torch in pinned


def test_all_run_the_one_image() -> None:
    pods = [KUBERAY["RayCluster"]["spec"]["headGroupSpec"], *KUBERAY["RayCluster"]["spec"]["workerGroupSpecs"]]
    images = {container["image"] for pod in pods for container in pod["template"]["spec"]["containers"]}
    assert images == {RAY_UP["docker"]["image"]} == set(re.findall(r"docker build .* -t (\S+) ", README))


def test_the_image_has_the_commit_and_what_the_files_run() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert not {".git", ".git/", "jobs", "jobs/", "cluster", "cluster/", "constraints.txt"} & set(ignored)
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    (home,) = re.findall(r"^WORKDIR (\S+)$", dockerfile, flags=re.MULTILINE)
    assert f"COPY --chown=ray:users . {home}\n" in dockerfile
    left_out = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.dockerignore"],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert left_out.stdout == "", "the image's commit would be one `+changes`"
    for command in RAY_UP["head_start_ray_commands"] + RAY_UP["worker_start_ray_commands"]:
        assert "ray start" not in command or command.startswith(f"cd {home} && "), "jobs are named from there"


def test_the_documents_name_files_that_exist() -> None:
    texts = [README, *(path.read_text() for path in CLUSTER.glob("*.yaml"))]
    named = {name for text in texts for name in re.findall(r"\b(?:jobs|cluster|tests)/[\w/]+\.(?:yaml|py)\b", text)}
    assert {"jobs/pretrain_30m.yaml", "jobs/walk/pretrain.yaml", "cluster/kuberay_job.yaml"} <= named
    assert not [name for name in named if not (ROOT / name).exists()]
    assert len(README.splitlines()) <= 90


def test_the_job_that_kubernetes_runs_decodes() -> None:
    from hiclip.training.pretrain_job import PretrainJob
    from pipeline.jobfile import read_job

    path, *overrides = KUBERAY["RayJob"]["spec"]["entrypoint"].split()
    assert os.access(ROOT / path, os.X_OK)
    assert read_job(str(ROOT / path), overrides, PretrainJob).out.startswith("s3://")


# a machine that is taken away


class _Metadata(http.server.BaseHTTPRequestHandler):
    """What a machine of AWS can ask about itself; its end is announced at the second time of asking."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, b"a token")

    def do_GET(self) -> None:
        assert (self.path, self.headers["X-aws-ec2-metadata-token"]) == (
            "/latest/meta-data/spot/instance-action",
            "a token",
        )
        type(self).asked += 1
        self._answer(404 if self.asked == 1 else 200, b'{"action": "terminate"}')

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_machine_that_aws_takes_away_is_drained(tmp_path: Path) -> None:
    home = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home |= {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{home['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    log = (tmp_path / "ray.log").open("w")
    start = ["ray", "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", "--port=0"]
    node = subprocess.Popen(
        [*start, "--include-dashboard=false", "--disable-usage-stats"], env=home, stdout=log, stderr=subprocess.STDOUT
    )
    with http.server.HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = _address(tmp_path / "ray.log")
            (raylet,) = [child for child in psutil.Process(node.pid).children() if child.name() == "raylet"]
            drained = subprocess.run(
                [sys.executable, CLUSTER / "drain_node.py", "5", "--at-spot-notice",
                 f"--metadata=http://127.0.0.1:{server.server_port}/latest"],
                env=home | {"RAY_ADDRESS": address}, cwd=tmp_path, text=True, capture_output=True, timeout=120,
            )  # fmt: skip
            assert drained.returncode == 0, drained.stderr
            assert _Metadata.asked == 2
            raylet.wait(timeout=90)  # Ray ends a node that is drained as soon as nothing runs on it
        finally:
            server.shutdown()
            node.terminate()
            node.wait(timeout=90)
            log.close()


def _address(log: Path) -> str:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        found = re.search(r"--address='([\d.:]+)'", log.read_text())
        if found and "Local node IP" in log.read_text():
            return found[1]
        time.sleep(0.2)
    raise TimeoutError(log.read_text())
