"""DeepSpeed trains the module on many ranks and shares out the optimizer's state among them (door: deepspeed).

On CPU its ranks talk through gloo. Nothing is compiled: the optimizer is torch's own AdamW, and the shared-memory
all-reduce that DeepSpeed would build at its first start (a minute and a half, and only where there is a C++ compiler)
serves inference alone and is switched off.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from hiclip.batch import Batch
from hiclip.training.engine import Pretraining
from hiclip.training.optimizer import OptimizerSettings, make_optimizer, set_rate

log = logging.getLogger(__name__)

_TAG = "ranks"  # DeepSpeed's name for a checkpoint inside a folder; ours is a folder already


class DeepSpeedEngine:
    """See `hiclip.training.engine.Engine`. Needs torch's process group; every rank makes one at the same time."""

    def __init__(self, module: Pretraining, settings: OptimizerSettings, zero_stage: int, pairs_per_rank: int) -> None:
        _give_scalars_an_axis(module)
        self._optimizer = make_optimizer(module, settings)
        with _quiet():
            deepspeed = _import_deepspeed(next(module.parameters()).device.type)
            deepspeed.init_distributed(dist_init_required=False)
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=self._optimizer, config=_config(settings, zero_stage, pairs_per_rank)
            )

    @property
    def module(self) -> Pretraining:
        """See `Engine`."""
        return cast(Pretraining, self._engine.module)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Engine`."""
        return cast(dict[str, Tensor], self._engine(batch))

    def update(self, loss: Tensor, learning_rate: float) -> None:
        """See `Engine`."""
        # ZeRO put its own partitions into the very groups of this optimizer, so the rate is set where it is read.
        set_rate(self._optimizer, learning_rate)
        self._engine.backward(loss)
        self._engine.step()

    def save(self, place: Path) -> None:
        """See `Engine`."""
        with _quiet():
            self._engine.save_checkpoint(str(place), tag=_TAG, save_latest=False)

    def load(self, place: Path, weights: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        # DeepSpeed's files carry the weights too; `weights` are the same numbers.
        with _quiet():
            loaded, _ = self._engine.load_checkpoint(str(place), tag=_TAG)
        assert loaded is not None, f"no state of DeepSpeed in {place}"


def _give_scalars_an_axis(module: Pretraining) -> None:
    """() -> (1,): DeepSpeed 0.19 sends parameters as bytes, which torch only allows along an axis.

    Torch loads either shape into the other.
    """
    for parameter in module.parameters():
        if parameter.ndim == 0:
            parameter.data = parameter.data.reshape(1)


def _config(settings: OptimizerSettings, zero_stage: int, pairs_per_rank: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": pairs_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_norm or 0.0,
        # fp32 weights, moments and gradients; bf16 is the module's own autocast.
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": 2**31,
    }


def _import_deepspeed(device: str) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed
    import deepspeed.ops

    # DeepSpeed's table of compiled ops that this machine can use, which it leaves open to edits. Empty: none is built.
    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints to standard output at start and at checkpoints; here that is for the log."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        log.debug("deepspeed: %s", line)
