"""One real Ray for all tests of a session, and the environment that keeps vendors quiet and on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_ENABLE_STATE_TRACKING="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    NO_ALBUMENTATIONS_UPDATE="1",
    HF_HUB_OFFLINE="1",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    DS_ACCELERATOR="cpu",
    OMP_NUM_THREADS="1",
    # Tests decide about clusters and trackers themselves.
    GIT_PAGER="cat",
)
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # without one Ray writes one to the home folder
for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "HICLIP_HOME"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of four logical CPUs, started once."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
