"""One way for every command to have a Ray: the cluster that `RAY_ADDRESS` names, or a small one inside this process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

import ray

from pipeline.jobfile import JobError, RaySettings


@contextlib.contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """Connects to the cluster of `RAY_ADDRESS`, else starts Ray here with `settings.num_cpus`; ends what it began.

    Inside a session that already runs in this process (a Tune trial, a test) it only yields.
    """
    if ray.is_initialized():
        yield
        return
    # Ray says at every start that it protects its ports with a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise JobError(f"RAY_ADDRESS: no Ray could be reached at {address}: {error.__cause__ or error}") from error
    else:
        # A token for this process and its children alone. Without it Ray would write one to ~/.ray, and every later
        # `ray start` on this machine would ask `ray job submit` for it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(
            address="local",  # not the cluster that someone may have started on this machine
            num_cpus=settings.num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",  # nothing listens outside the machine
        )
    try:
        yield
    finally:
        ray.shutdown()
