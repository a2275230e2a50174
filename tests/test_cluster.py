"""The cluster file passes the schema of the Ray that is installed, and the image bakes in what the constraints pin."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

ROOT = Path(__file__).parent.parent


def test_the_cluster_file_passes_rays_schema() -> None:
    config = yaml.safe_load((ROOT / "cluster/ray_cluster.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_wokers": 8}, schema)


def test_image_and_constraints_name_the_same_ray() -> None:
    image = re.search(r"FROM rayproject/ray:([\d.]+)-", (ROOT / "cluster/Dockerfile").read_text())
    assert image is not None
    assert f"ray=={image[1]}" in (ROOT / "constraints.txt").read_text().splitlines()
