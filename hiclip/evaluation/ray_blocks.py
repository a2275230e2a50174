"""Carries a function out on blocks of pictures or texts as Ray tasks, anywhere on the cluster, answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar, cast

import ray
from ray.exceptions import RayTaskError

from hiclip.evaluation.embed import Embedder
from pipeline.jobfile import InputError

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RayBlocks:
    """A `MapBlocks` whose blocks are Ray tasks.

    What the blocks share is put into the object store once and unpacked once a worker process; a model that several
    calls share, once for all of them. Twice as many tasks as fit the cluster are under way at a time, so memory does
    not grow with the number of blocks. A task that is lost with its machine is carried out again. An InputError of a
    task is raised as it is.
    """

    cpus: float = 1.0
    """Ray CPUs of one task."""
    gpus: float = 0.0
    """Ray GPUs of one task."""
    _models: list[tuple[Embedder, ray.ObjectRef]] = field(default_factory=list, init=False, compare=False, repr=False)
    """The last model that was put there; large enough for its shipping to be seen."""

    def __call__(
        self, function: Callable[[Shared, Block], Answer], shared: Shared, blocks: Iterable[Block], what: str
    ) -> Iterator[Answer]:
        """Yields function(shared, block) for every block, in order."""
        task = ray.remote(_carry_out).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=3)
        references = self._put(shared)
        under_way: deque[ray.ObjectRef] = deque()
        for block in blocks:
            if len(under_way) >= self._window():
                yield cast(Answer, _answer(under_way.popleft()))
            # In a list, so that Ray hands over the reference and not, once more for every block, what it refers to.
            under_way.append(task.remote(function, references, block))
        while under_way:
            yield cast(Answer, _answer(under_way.popleft()))

    def _put(self, shared: object) -> list[ray.ObjectRef]:
        """What is shared, without the model if it is a tuple that holds one, and the model."""
        parts = shared if isinstance(shared, tuple) else (shared,)
        model = next((part for part in parts if isinstance(part, Embedder)), None)
        if model is None:
            return [ray.put(shared)]
        if not (self._models and self._models[0][0] is model):
            self._models[:] = [(model, ray.put(model))]
        without = tuple(_MODEL if part is model else part for part in parts)
        return [ray.put(without if isinstance(shared, tuple) else _MODEL), self._models[0][1]]

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


_MODEL = "the model stands here"


def _carry_out(function: Callable[[object, Block], Answer], references: list[ray.ObjectRef], block: Block) -> Answer:
    shared = _unpacked(references[0])
    if len(references) > 1:
        model = _unpacked_model(references[1])
        shared = tuple(_or(model, part) for part in shared) if isinstance(shared, tuple) else model
    return function(shared, block)


def _or(model: object, part: object) -> object:
    return model if isinstance(part, str) and part == _MODEL else part


@lru_cache(maxsize=1)
def _unpacked_model(reference: ray.ObjectRef) -> object:
    return ray.get(reference)


@lru_cache(maxsize=1)
def _unpacked(reference: ray.ObjectRef) -> object:
    return ray.get(reference)
