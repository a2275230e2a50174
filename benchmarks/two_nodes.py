"""A Ray cluster of several nodes on this machine, whose nodes can be lost: what a resumed run is tried on.

Everything listens on loopback; a node is its own `ray start`, and to lose it is to kill all of its processes at once.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

_PATIENCE_S = 90.0


class Node:
    """One `ray start --block` and everything below it."""

    def __init__(self, words: list[str], environment: Mapping[str, str], log: Path) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", *words]
        with log.open("a") as file:
            self._process = subprocess.Popen(command, env=dict(environment), stdout=file, stderr=subprocess.STDOUT)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those below the node whose command line holds `name`."""
        if self._process.poll() is not None:
            return []
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def lose(self) -> None:
        """Kills all processes of the node, as if its machine had lost its power."""
        if self._process.poll() is not None:
            return
        victims = [*self.processes(), psutil.Process(self._process.pid)]
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(victims, timeout=30)
        self._process.wait()


class TwoNodes:
    """A head and one more node, a context. `environment` is what a driver's shell must know."""

    def __init__(self, folder: Path, head_cpus: float, node_cpus: float) -> None:
        self._folder, self._head_cpus, self._node_cpus = folder, head_cpus, node_cpus
        self._port = free_port()
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.environment = known | {
            "HOME": str(home),
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that is gone is noticed after seconds, not half a minute.
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> TwoNodes:
        ports = [f"--port={self._port}", f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=false"]
        self.head = self._start(["--head", f"--num-cpus={self._head_cpus:g}", *ports])
        wait_for_port(self._port)
        self.start_node()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.node.lose()  # a node that is ended politely takes half a minute to drain
        self.head.lose()

    def start_node(self) -> None:
        """Starts the second node, at first or after it was lost."""
        ports = [f"--address=127.0.0.1:{self._port}", f"--dashboard-agent-listen-port={free_port()}"]
        self.node = self._start([*ports, f"--num-cpus={self._node_cpus:g}"])

    def _start(self, words: list[str]) -> Node:
        known = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        return Node(words, known, self._folder / "nodes.log")


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Until something listens there; TimeoutError after a while."""
    ends = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port} after {_PATIENCE_S:g} s")
