"""Carries a function out on blocks of pictures or texts as Ray tasks, anywhere on the cluster, answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import ray
from ray.exceptions import RayTaskError

from pipeline.jobfile import InputError

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RayBlocks:
    """A `MapBlocks` whose blocks are Ray tasks.

    What the blocks share (a model) is put into the object store once and unpacked once a worker process. Twice as many
    tasks as fit the cluster are under way at a time, so memory does not grow with the number of blocks. A task that is
    lost with its machine is carried out again. An InputError of a task is raised as it is.
    """

    cpus: float = 1.0
    """Ray CPUs of one task."""
    gpus: float = 0.0
    """Ray GPUs of one task."""

    def __call__(
        self, function: Callable[[Shared, Block], Answer], shared: Shared, blocks: Iterable[Block], what: str
    ) -> Iterator[Answer]:
        """Yields function(shared, block) for every block, in order."""
        task = ray.remote(_carry_out).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=3)
        reference = ray.put(shared)
        under_way: deque[ray.ObjectRef] = deque()
        for block in blocks:
            if len(under_way) >= self._window():
                yield cast(Answer, _answer(under_way.popleft()))
            # In a list, so that Ray hands over the reference and not, once more for every block, what it refers to.
            under_way.append(task.remote(function, [reference], block))
        while under_way:
            yield cast(Answer, _answer(under_way.popleft()))

    def _window(self) -> int:
        """Tasks under way at a time; a cluster may grow while it works."""
        resources = ray.cluster_resources()
        fitting = resources.get("CPU", 1.0) / self.cpus
        if self.gpus:
            fitting = min(fitting, resources.get("GPU", 1.0) / self.gpus)
        return max(2, 2 * int(fitting))


def _answer(task: ray.ObjectRef) -> object:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None  # a full disk in a worker is said as plainly as one here
        raise


def _carry_out(function: Callable[[object, Block], Answer], reference: list[ray.ObjectRef], block: Block) -> Answer:
    return function(_unpacked(reference[0]), block)


@lru_cache(maxsize=1)
def _unpacked(reference: ray.ObjectRef) -> object:
    return ray.get(reference)
