"""AdamW as the papers use it: weight decay on matrices only, never on biases, norms or the temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn


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
