"""The training loop on one page: take a batch, sum the losses, update, tell. It knows no method, no vendor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hiclip.batch import Batch
from hiclip.distributed import mean_over_ranks, rank
from hiclip.training.engine import Engine
from hiclip.training.history import StepRow


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
    wish: Callable[[], bool] = lambda: False
    """Whether this rank wants the run to be saved after the step that is being done."""


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


def train(engine: Engine, batches: Iterable[Batch], plan: Plan, on_step: Callable[[StepRow, bool], None]) -> None:
    """One step for each batch (this rank's part of the global one); `on_step` hears of every step when it is done, and
    whether some rank wished for a checkpoint: the same on all ranks.

    All ranks must be given equally many batches. DivergedError, before it reaches the weights, if a loss is not finite.
    """
    step = plan.first_step
    began = time.perf_counter()
    for batch in batches:
        wait_s = time.perf_counter() - began
        rate = plan.learning_rate(step)
        torch.manual_seed(_seed(plan.seed, step))
        losses = engine.losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        means, wished = _means(losses, plan.wish())
        step += 1
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(f"after {step * plan.batch} pairs the loss is {means}; first pair {batch.pair_ids[0]}")
        engine.update(loss, rate)
        with torch.no_grad():
            logit_scale = float(engine.module.towers.logit_scale())
        seconds = time.perf_counter() - began
        on_step(StepRow(step * plan.batch, sum(means.values()), rate, logit_scale, seconds, wait_s, means), wished)
        began = time.perf_counter()  # what `on_step` took, a checkpoint perhaps, is no part of a step


def _means(losses: dict[str, Tensor], wish: bool) -> tuple[dict[str, float], bool]:
    """Losses of this rank's pairs -> losses of the global batch, and whether any rank has a wish: both the same on
    every rank, by one message."""
    own = [loss.detach().float() for loss in losses.values()]
    *means, wishes = mean_over_ranks(torch.stack([*own, own[0].new_tensor(float(wish))])).tolist()
    return dict(zip(losses, means, strict=True)), wishes > 0


def _seed(seed: int, step: int) -> int:
    """Random numbers of a step are a function of (seed, step, rank): to resume, no generator's state is needed."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank()
    return mixed % 2**63
