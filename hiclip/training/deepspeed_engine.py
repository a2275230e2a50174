"""DeepSpeed trains the module on many ranks and shares out the optimizer's state among them (door: deepspeed).

On CPU its ranks talk through gloo. Nothing is compiled: the optimizer is torch's own AdamW, and the shared-memory
all-reduce that DeepSpeed would build at its first start (a minute and a half, and only where there is a C++ compiler)
serves inference alone and is switched off.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from hiclip.batch import Batch
from hiclip.distributed import rank, world
from hiclip.training.cost import BUCKETS
from hiclip.training.engine import Pretraining, gradient_norm
from hiclip.training.optimizer import (
    MOMENTS,
    STEP,
    OptimizerSettings,
    blank_state,
    make_optimizer,
    optimizer_state,
    set_optimizer_state,
    set_rate,
    trained_parameters,
)

log = logging.getLogger(__name__)

WHOLE_BELOW = 100_000
"""Numbers of a parameter below which every rank keeps it whole in ZeRO-3: vectors and position tables."""


class DeepSpeedEngine:
    """See `hiclip.training.engine.Engine`. Needs torch's process group; every rank makes one at the same time."""

    def __init__(
        self,
        module: Pretraining,
        settings: OptimizerSettings,
        zero_stage: int,
        pairs_per_rank: int,
        offload: bool = False,
    ) -> None:
        _give_scalars_an_axis(module)
        numbers = sum(parameter.numel() for parameter in module.parameters())
        self._stage, self._clip_norm = zero_stage, settings.clip_norm
        self._optimizer = make_optimizer(module, settings)
        with _quiet():
            deepspeed = _import_deepspeed(next(module.parameters()).device.type)
            deepspeed.init_distributed(dist_init_required=False)
            config = _config(settings, zero_stage, pairs_per_rank, numbers, offload)
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=config)

    @property
    def module(self) -> Pretraining:
        """See `Engine`."""
        return cast(Pretraining, self._engine.module)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Engine`."""
        return cast(dict[str, Tensor], self._engine(batch))

    def update(self, loss: Tensor, learning_rate: float) -> float:
        """See `Engine`."""
        # ZeRO put its own partitions into the very groups of this optimizer, so the rate is set where it is read.
        set_rate(self._optimizer, learning_rate)
        self._engine.backward(loss)
        if self._stage > 0:
            self._engine.step()  # ZeRO looks at the length itself, and then moves nothing
            return float(self._engine.get_global_grad_norm())
        norm = gradient_norm(self.module, self._clip_norm)
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        weights: dict[str, Tensor] = self.module.state_dict()
        if self._stage < 3:
            return weights
        from deepspeed import zero

        for name, parameter in self.module.named_parameters():
            with zero.GatheredParameters([parameter]):
                if rank() == 0:
                    weights[name] = parameter.detach().cpu().clone()
        return weights

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Engine`."""
        if self._stage == 0:
            return optimizer_state(self._optimizer, self.module) if rank() == 0 else {}
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        steps = torch.stack([state[STEP] for state in self._optimizer.state.values()])
        assert (steps == steps[0]).all(), "every part of the optimizer has taken every step"
        state: dict[str, Tensor] = {}
        for name, parameter in trained_parameters(self.module).items():
            moments = {f"{key}.{name}": safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if rank() == 0:
                state |= {key: moment.cpu() for key, moment in moments.items()}
                state[f"{STEP}.{name}"] = steps[0].cpu().clone()
        return state

    def set_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        if self._stage == 0:
            set_optimizer_state(self._optimizer, self.module, state)
            return
        step = max((tensor for name, tensor in state.items() if name.startswith(f"{STEP}.")), default=None)
        if step is None:
            return
        for part in self._parts():
            self._optimizer.state[part] = blank_state(part)
            self._optimizer.state[part][STEP].copy_(step)
        self._link()
        for name, parameter in trained_parameters(self.module).items():
            for key in MOMENTS:
                if (whole := state.get(f"{key}.{name}")) is not None:
                    self._set_moment(parameter, whole.to(parameter.device), key)

    def _parts(self) -> list[Tensor]:
        """The flat parts of all parameters that this rank's optimizer moves."""
        zero = self._engine.optimizer
        parts: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return parts

    def _link(self) -> None:
        """Lets parameters find their moments.

        DeepSpeed 0.19 links them after the step of the first group alone, when the second has none yet.
        """
        if self._stage == 3:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, part in zip(self._engine.optimizer.bit16_groups, self._parts(), strict=True):
            lazy_init_hp_params_optimizer_state(parameters, part, self._optimizer.state)

    def _set_moment(self, parameter: nn.Parameter, whole: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage < 3:
            safe_set_full_optimizer_state(parameter, whole.reshape(parameter.shape), key)
            return
        # By this rank's part: setting a whole one fails where ranks do not divide its numbers.
        share = cast(Any, parameter).ds_tensor.numel()
        padded = functional.pad(whole.flatten(), (0, share * world() - whole.numel()))
        safe_set_local_optimizer_state(parameter, padded[rank() * share : (rank() + 1) * share], key)


def _give_scalars_an_axis(module: Pretraining) -> None:
    """() -> (1,): DeepSpeed 0.19 sends parameters as bytes, which torch only allows along an axis.

    Torch loads either shape into the other.
    """
    for parameter in module.parameters():
        if parameter.ndim == 0:
            parameter.data = parameter.data.reshape(1)


def _config(
    settings: OptimizerSettings, zero_stage: int, pairs_per_rank: int, numbers: int, offload: bool
) -> dict[str, Any]:
    # DeepSpeed's defaults are for models a hundred times as large: they set aside 2 GB for gradients on their way, and
    # would keep all weights of ours whole after the forward.
    zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": -(-numbers // BUCKETS)}
    if zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": WHOLE_BELOW,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": zero["reduce_bucket_size"],
        }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": pairs_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": (settings.clip_norm or 0.0) if zero_stage > 0 else 0.0,  # stage 0: by `gradient_norm`
        # fp32 weights, moments and gradients; bf16 is the module's own autocast.
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # which would have to be compiled
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
