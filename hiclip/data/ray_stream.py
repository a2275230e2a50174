"""The stream of a rank under Ray: Ray Data has its steps made in other processes and hands them over in order.

Ray Data schedules, retries and moves; it decides nothing. A row of its table is a step, computed from the plan alone by
`StepReader`, and rows come back in the order in which they were listed. So a rank sees what `local_stream` gives, byte
for byte, whatever the cluster looks like and whichever of its processes die. An execution takes seconds to start: one
lasts for thousands of steps.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionResources, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.exceptions import ExecutionTimeoutError

from hiclip.data.step_reader import RankStep, StepReader
from hiclip.data.stream_plan import LoaderSettings, StreamPlan

log = logging.getLogger(__name__)

TASK_BYTES = 256 << 20
"""What a task makes at most, where the settings leave it open."""

BLOCK_BYTES = 2 << 20
"""A block is closed when it holds more; each costs the worker's process a millisecond or so, whatever its size."""

TASKS_OF_AN_EXECUTION = 2000
"""Ray Data lists all tasks of an execution before the first one starts, at half a millisecond each."""


class LoaderError(RuntimeError):
    """The loader's processes make nothing; the message says what they may be waiting for."""


def rank_stream(
    plan: StreamPlan, loader: LoaderSettings, first_step: int, last_step: int, rank: int = 0, world: int = 1
) -> Iterator[RankStep]:
    """Steps `first_step` to `last_step` (not included) of one rank, through the Ray that this process is connected to.

    To close the iterator ends its execution and tasks. Raises LoaderError after `loader.stall_timeout_s` of standstill.
    """
    _quieten()
    tasks = _task_steps(plan, loader, first_step, last_step, world)
    for first in range(0, len(tasks), TASKS_OF_AN_EXECUTION):
        yield from _execute(_StepSource(plan, rank, world, tasks[first : first + TASKS_OF_AN_EXECUTION]), loader)


def _execute(source: _StepSource, loader: LoaderSettings) -> Iterator[RankStep]:
    """The steps of all tasks of the source, in order, by one execution of Ray Data."""
    dataset = ray.data.read_datasource(
        source,
        num_cpus=loader.cpus_per_task,
        compute=TaskPoolStrategy(size=min(loader.tasks, len(source.tasks))),
        override_num_blocks=len(source.tasks),
    )
    _configure(dataset.context, source, loader)
    rows = iter(dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=loader.prefetched_steps))
    waiting: contextlib.AbstractContextManager[None] = _warning_if_late(loader)
    try:
        for step in itertools.chain.from_iterable(source.tasks):
            with waiting:
                arrived = _from_table(next(rows), source.plan)
            assert arrived.step == step, f"expected step {step} from Ray Data, came {arrived.step}"
            waiting = contextlib.nullcontext()
            yield arrived
    except ExecutionTimeoutError as error:
        raise LoaderError(f"nothing was read for {loader.stall_timeout_s:g} s; {_needs(loader)}") from error
    finally:
        rows.close()


class _StepSource(Datasource):  # type: ignore[misc]  # Ray ships no types
    """Steps as a source of Ray Data: a task for each range of steps, a row for each step."""

    def __init__(self, plan: StreamPlan, rank: int, world: int, tasks: list[range]) -> None:
        super().__init__()
        self.plan, self.rank, self.world, self.tasks = plan, rank, world, tasks

    def get_name(self) -> str:
        return "Steps"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(_read_steps, self.plan, self.rank, self.world, steps),
                BlockMetadata(
                    num_rows=len(steps),
                    size_bytes=len(steps) * self.plan.step_bytes(self.world),
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for steps in self.tasks
        ]


def _task_steps(plan: StreamPlan, loader: LoaderSettings, first_step: int, last_step: int, world: int) -> list[range]:
    """The steps cut into tasks, at multiples of their length, so that a resumed run reads as an undisturbed one."""
    if first_step >= last_step:
        return []
    length = loader.steps_per_task or max(1, min(max(plan.window_steps), TASK_BYTES // plan.step_bytes(world)))
    cuts = [first_step, *range(first_step // length * length + length, last_step, length), last_step]
    return [range(first, last) for first, last in itertools.pairwise(cuts)]


def _configure(context: Any, source: _StepSource, loader: LoaderSettings) -> None:
    """Settings of this dataset alone, in its own copy of Ray Data's context."""
    # Room for every task to be finished while an earlier one is waited for, twice. No more: each rank's execution would
    # take the whole cluster's memory for its own.
    step_bytes = source.plan.step_bytes(source.world)
    block_bytes = max(step_bytes, BLOCK_BYTES)
    room_bytes = loader.tasks * (max(map(len, source.tasks)) * step_bytes + block_bytes)
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=2 * (room_bytes + loader.prefetched_steps * block_bytes)
    )
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = loader.stall_timeout_s
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False


def _read_steps(plan: StreamPlan, rank: int, world: int, steps: range) -> Iterator[pa.Table]:
    """What a task does."""
    reader = _reader(plan)
    for step in steps:
        yield _to_table(reader.read(step, rank, world))


@functools.lru_cache(maxsize=1)
def _reader(plan: StreamPlan) -> StepReader:
    """One for as long as the process lives, so that the next task finds the groups of a window that two tasks share."""
    return StepReader(plan)


def _to_table(step: RankStep) -> pa.Table:
    """A row; arrays as their bytes, which Ray moves without copying or looking at them."""
    columns: dict[str, pa.Array] = {
        "step": pa.array([step.step]),
        "broken": pa.array([step.broken]),
        "pair_ids": pa.array([step.pair_ids], type=pa.list_(pa.string())),
    }
    columns |= {f"image:{view}": _bytes_of(pixels) for view, pixels in step.images.items()}
    columns |= {f"text:{view}": _bytes_of(tokens) for view, tokens in step.tokens.items()}
    columns |= {f"regions:{view}": _bytes_of(vectors) for view, vectors in step.regions.items()}
    return pa.table(columns)


def _bytes_of(array: np.ndarray[Any, Any]) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(array))])


def _from_table(table: pa.Table, plan: StreamPlan) -> RankStep:
    """The step of a row; its arrays are views of Ray's memory and must not be written."""
    pair_ids = table.column("pair_ids")[0].as_py()
    images = {
        view: _array_of(table, f"image:{view}", np.uint8, (len(pair_ids), plan.image_px, plan.image_px, 3))
        for view in plan.image_views
    }
    tokens = {
        view: _array_of(table, f"text:{view}", np.int64, (len(pair_ids), plan.context)) for view in plan.text_views
    }
    regions = {
        view: _array_of(table, f"regions:{view}", np.float16, (len(pair_ids), *plan.region_shape))
        for view in plan.region_views
    }
    step, broken = (table.column(name)[0].as_py() for name in ("step", "broken"))
    return RankStep(step, images, tokens, pair_ids, broken, regions)


def _array_of(table: pa.Table, column: str, kind: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.frombuffer(table.column(column)[0].as_buffer(), dtype=kind).reshape(shape)


@contextlib.contextmanager
def _warning_if_late(loader: LoaderSettings) -> Iterator[None]:
    """Says once in the log what is waited for, if the block takes longer than `loader.late_after_s`."""
    timer = threading.Timer(
        loader.late_after_s, lambda: log.warning("no batch after %g s; %s", loader.late_after_s, _needs(loader))
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _needs(loader: LoaderSettings) -> str:
    """What the loader asks of the cluster, beside what the cluster has."""
    free = ray.available_resources().get("CPU", 0.0)
    return (
        f"loader.tasks ({loader.tasks}) of loader.cpus_per_task ({loader.cpus_per_task:g}) CPUs are wanted for every "
        f"worker, of the cluster's {ray.cluster_resources().get('CPU', 0.0):g} CPUs {free:g} are free"
    )


def _quieten() -> None:
    """Keeps Ray Data's report of every execution from the terminal; errors still go there, the rest to its log file."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.ERROR)
