"""AdamW as the papers use it: weight decay on matrices only, never on biases, norms or the temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two, by torch's names: means of the gradient and of its square."""
STEP = "step"
"""AdamW's count of the steps of a parameter."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Keys under `optimizer:` in a job. Defaults are HiCLIP's and, where it is silent, DeCLIP's."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learning_rate: float = 1e-3
    """Rate at the top of the schedule."""
    weight_decay: float = 0.1
    """Pull towards 0 a step, times the rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Memory of the mean and of the square of the gradient."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float | None = None
    """Longest gradient that is applied unshortened; null: the papers mention no clipping."""

    def __post_init__(self) -> None:
        for name, value in {"learning_rate": self.learning_rate, "eps": self.eps}.items():
            if value <= 0:
                raise ValueError(f"{name}: expected a number above 0, came {value}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected 0 or more, came {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, came {self.betas}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm: expected a number above 0 or null, came {self.clip_norm}")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: what has two or more axes decays; vectors and scalars (biases, norms, logit
    scale, class token) do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the module's trained parameters; its fused kernel, which needs nothing compiled."""
    groups = parameter_groups(module, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every group of the optimizer the rate of the step to come."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimizer moves, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def optimizer_state(optimizer: torch.optim.AdamW, module: nn.Module) -> dict[str, Tensor]:
    """What AdamW remembers of each parameter that it has moved: `exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME`.

    By name and whole, so that it does not depend on who kept which part. Copies, on the CPU.
    """
    remembered = {name: optimizer.state.get(parameter) or {} for name, parameter in trained_parameters(module).items()}
    return {
        f"{key}.{name}": state[key].detach().cpu().clone()
        for name, state in remembered.items()
        for key in (*MOMENTS, STEP)
        if key in state
    }


def set_optimizer_state(optimizer: torch.optim.AdamW, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The reverse. A parameter of which nothing is told has never been moved."""
    for name, parameter in trained_parameters(module).items():
        if f"{STEP}.{name}" in state:
            fresh = optimizer.state[parameter] = blank_state(parameter)
            for key, tensor in fresh.items():
                tensor.copy_(state[f"{key}.{name}"].reshape(tensor.shape))


def blank_state(parameter: Tensor) -> dict[str, Tensor]:
    """What the fused AdamW remembers of a tensor before its first step."""
    moments = {key: torch.zeros_like(parameter.detach(), dtype=torch.float32) for key in MOMENTS}
    return moments | {STEP: torch.zeros((), dtype=torch.float32, device=parameter.device)}
