"""A real S3 server on this machine's loopback, for tests of what is written to s3://."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator


@contextlib.contextmanager
def bucket(name: str) -> Iterator[str]:
    """An empty bucket; yields its address. The environment points at the server meanwhile."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        _wait_for(port)
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    ends = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < ends, "the S3 server did not start"
            time.sleep(0.1)
