"""A real MLflow server on loopback that can be killed and started again at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class LoopbackMlflow:
    """`mlflow server` over an SQLite file in a folder."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._place = place
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, or starts it again, and waits until it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self._place}/server.db"]
        words += ["--artifacts-destination", str(self._place / "artifacts")]
        with (self._place / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self._place,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it has children, which end with it
            )
        ends = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < ends, (self._place / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kills it in the middle of whatever it does."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
