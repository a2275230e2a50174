"""Ray tasks in a bounded window: as many are submitted as the cluster can run and a few more, never all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipeline.jobfile import InputError

RETRIES = 8
"""How often a task is started again whose worker or machine was lost."""


def in_window(calls: Iterable[Callable[[], Any]], width: int | None = None) -> Iterator[Any]:
    """The results of remote calls as they come; at most `width` are submitted and not yet yielded.

    Null means as many as the cluster has CPUs and two more. One task a shard all at once is what makes a scheduler
    stall. An error of a task ends the iteration with that error; what is in flight then is cancelled.
    """
    to_do = iter(calls)
    running = [call() for call in islice(to_do, width or int(ray.cluster_resources().get("CPU", 1)) + 2)]
    try:
        while running:
            finished, running = ray.wait(running, num_returns=1)
            running.extend(call() for call in islice(to_do, 1))
            yield _result(finished[0])
    finally:
        for task in running:
            ray.cancel(task, force=True)


def in_turn(task: Callable[..., tuple[int, Any]], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The results of a function that gives (number, result), a task for each of `arguments`, by number from 0 on."""
    remote = ray.remote(max_retries=RETRIES)(task)
    early: dict[int, Any] = {}
    due = 0
    for number, result in in_window(partial(remote.remote, *one) for one in arguments):
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None  # a full disk in a worker is said as plainly as one here
        raise
