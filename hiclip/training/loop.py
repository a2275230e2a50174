"""The training loop on one page: take a batch, sum the losses, update, tell. It knows no method, no vendor."""

from __future__ import annotations

import math
import resource
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hiclip.batch import Batch
from hiclip.distributed import gather_seconds, rank, sum_over_ranks, world
from hiclip.training.engine import Engine
from hiclip.training.history import StepRow


class Wish(NamedTuple):
    """What is asked of a run from outside, from one step to the next."""

    save: bool = False
    """Write a checkpoint."""
    stop: bool = False
    """Write a checkpoint and end."""


@dataclass(frozen=True)
class Plan:
    """What the loop must know of a job."""

    first_step: int
    """Steps done before; the first batch belongs to this step."""
    batch: int
    """Pairs of the global batch."""
    seed: int
    learning_rate: Callable[[int], float]
    """Step -> rate."""
    wish: Callable[[], Wish] = Wish
    """What this rank wants done after the step at hand; one rank's wish is all ranks'."""
    left_out: frozenset[int] = frozenset()
    """Steps whose batches are taken and not learnt from."""
    most_skipped: int = 0
    """Steps in a row that may be skipped because a number is not finite."""
    last_step: int | None = None
    """Steps of the whole run; the last one may not be skipped."""


class NotFiniteError(ArithmeticError):
    """Losses or gradients have not been finite for more steps in a row than may be skipped: the same on all ranks."""

    def __init__(self, skipped: dict[int, list[str]], row: StepRow) -> None:
        super().__init__(f"{row.parts}, gradient norm {row.gradient_norm:g}")
        self.skipped = skipped
        """Steps -> pair_ids of this rank's part of their batches."""
        self.row = row
        """Of the last one."""


def train(engine: Engine, batches: Iterable[Batch], plan: Plan, on_step: Callable[[StepRow, Wish], None]) -> bool:
    """One step for each batch (this rank's part of the global one); -> whether the batches came to their end, and not
    a wish to stop.

    `on_step` hears of every step when it is done, and of what some rank wished for: the same on all ranks. All ranks
    must be given equally many batches. A step whose loss or gradient is not finite moves no weight, and NotFiniteError
    comes when too many do so in a row, when it is the run's last, or when it has spoilt what the module remembers.
    """
    step, skipped, checkpoint_s = plan.first_step, dict[int, list[str]](), 0.0
    began = time.perf_counter()
    for batch in batches:
        wait_s = time.perf_counter() - began
        rate = plan.learning_rate(step)
        torch.manual_seed(_seed(plan.seed, step))
        losses = {} if step in plan.left_out else engine.losses(batch)
        shared = _share(losses, batch, plan.wish())
        norm = math.nan
        if losses and shared.finite:
            norm = engine.update(torch.stack(list(losses.values())).sum(), rate)
        with torch.no_grad():
            logit_scale = float(engine.module.towers.logit_scale())
        row = StepRow(
            seen=(step + 1) * plan.batch,
            loss=sum(shared.losses.values()) if losses else math.nan,
            learning_rate=rate,
            logit_scale=logit_scale,
            seconds=time.perf_counter() - began,
            wait_s=wait_s,
            parts=shared.losses,
            gradient_norm=norm,
            applied=math.isfinite(norm),
            gather_s=gather_seconds(),
            checkpoint_s=checkpoint_s,
            broken=shared.broken,
            pairs_digest=shared.pairs_digest,
            workers=world(),
            memory_bytes=_peak_memory(next(iter(batch.images.values())).device),
        )
        skipped = {} if row.applied or not losses else {**skipped, step: batch.pair_ids}
        step += 1
        if skipped and (len(skipped) > plan.most_skipped or step == plan.last_step or not _finite_buffers(engine)):
            raise NotFiniteError(skipped, row)
        done = time.perf_counter()
        on_step(row, shared.wish)
        began = time.perf_counter()
        checkpoint_s = began - done  # what `on_step` took is no part of a step
        if shared.wish.stop:
            return False
    return True


class _Shared(NamedTuple):
    """Numbers of the global batch."""

    losses: dict[str, float]
    wish: Wish
    broken: int
    pairs_digest: int

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.losses.values()))


def _share(losses: dict[str, Tensor], batch: Batch, wish: Wish) -> _Shared:
    """This rank's numbers -> all ranks', the same on every rank, by one message."""
    device = next(iter(batch.images.values())).device
    pairs = sum(zlib.crc32(name.encode()) for name in batch.pair_ids)
    # Whole numbers up to 2^53 are exact in a double: digests of two million pairs.
    others = torch.tensor([wish.save, wish.stop, batch.broken, pairs], dtype=torch.float64, device=device)
    own = [loss.detach().double() for loss in losses.values()]
    *totals, save, stop, broken, pairs_digest = sum_over_ranks(torch.cat([torch.stack(own), others]) if own else others)
    means = {name: total / world() for name, total in zip(losses, totals, strict=True)}
    return _Shared(means, Wish(save > 0, stop > 0), int(broken), int(pairs_digest))


def _finite_buffers(engine: Engine) -> bool:
    """Whether what the module remembers beside its weights, which a forward alone changes, can still be used."""
    return all(bool(buffer.isfinite().all()) for buffer in engine.module.buffers() if buffer.is_floating_point())


def _peak_memory(device: torch.device) -> int:
    """Most bytes that this rank has held so far: on its GPU, else in its process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seed(seed: int, step: int) -> int:
    """Random numbers of a step are a function of (seed, step, rank): to resume, no generator's state is needed."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank()
    return mixed % 2**63
