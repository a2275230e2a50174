"""Real ranks for tests: processes of their own that talk through gloo, and bring back what a function returned.

    losses = run_on_ranks(2, loss_of_rank, vectors)

The function is one of a test module's top level; every rank calls it with the same arguments inside a process group.
Ranks meet in a file, so no port can be taken.
"""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def run_on_ranks(world: int, function: Callable[..., Result], *arguments: Any, timeout_s: float = 120) -> list[Result]:
    """What `function(*arguments)` returns on each of `world` ranks, in their order. A failed rank fails the test."""
    source = str(Path(inspect.getfile(function)).resolve())
    with tempfile.TemporaryDirectory() as place:
        # Forked from a server that has imported torch and done nothing else: no threads or locks of this process are
        # inherited, and torch's three seconds of import are paid once a session and not by every rank.
        server = get_context("forkserver")
        server.set_forkserver_preload(["torch", "torch.distributed"])
        ranks = [
            server.Process(target=_rank, args=(place, rank, world, source, function.__name__, pickle.dumps(arguments)))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout_s)
        stuck = [process for process in ranks if process.is_alive()]
        for process in stuck:
            process.kill()
            process.join()
        failures = [path.read_text() for path in sorted(Path(place).glob("*.failure"))]
        assert not failures, "\n".join(failures)
        assert not stuck, f"{len(stuck)} of {world} ranks still ran after {timeout_s} s"
        return [pickle.loads(Path(place, f"{rank}.result").read_bytes()) for rank in range(world)]


def _rank(place: str, rank: int, world: int, source: str, function: str, arguments: bytes) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(f"{place}/meeting", world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=180))
        result = getattr(_module(source), function)(*pickle.loads(arguments))
        Path(place, f"{rank}.result").write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except BaseException:
        Path(place, f"{rank}.failure").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise


def _module(source: str) -> Any:
    """The test module at this path, under a name of its own: pytest's names for test modules cannot be imported."""
    spec = importlib.util.spec_from_file_location("module_of_ranks", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
