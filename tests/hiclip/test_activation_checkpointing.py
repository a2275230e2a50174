"""Activation checkpointing computes layers twice and changes no bit of a loss or a gradient.

What it saves is measured in `test_step_memory.py`; that it resumes, and its ranks, in `test_deepspeed_engine.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_run import random_batches, small_job
from torch import Tensor

from hiclip.model.transformer import Layer
from hiclip.training.rank_run import build_module

PYRAMID: dict[str, Any] = {
    "objective": {"name": "pyramidclip"},
    "model": {"front_layers": 1, "region_width": 5, "text_pooling": "max"},
}
DECLIP: dict[str, Any] = {"objective": {"name": "declip", "queue": 16}, "model": {"vocabulary": 49_409}}


def step(again: bool, changes: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor | None], int]:
    """Losses, gradients, and how often a layer was computed."""
    changes = {**changes, "model": {"depth": 3, **changes.get("model", {})}}
    job = small_job("nowhere", activation_checkpointing=again, **changes)
    module, runs = build_module(job), []
    for layer in module.modules():
        if isinstance(layer, Layer):
            layer.register_forward_pre_hook(lambda *_: runs.append(1))
    losses = module(next(random_batches(job, 0)))
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: weight.grad for name, weight in module.named_parameters()}, len(runs)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({}, 2),
        ({"model": {"image_hierarchy": False, "text_hierarchy": False}}, 2),
        ({"model": {"hierarchy_layers": [0, 2]}}, 2),
        ({"precision": "bf16"}, 2),
        ({"data": {"micro_batch": 2}}, 3 / 2),
        ({"data": {"micro_batch": 2}, "precision": "bf16"}, 3 / 2),
        (PYRAMID, 2),
        (DECLIP, 2),
    ],
    ids=["both", "plain", "some_layers", "bf16", "chunks", "chunks_bf16", "pyramidclip", "declip"],
)
def test_losses_and_gradients_are_the_same_to_the_bit(changes: dict[str, Any], times: float) -> None:
    (losses, gradients, once), (losses_again, gradients_again, twice) = (
        step(again, changes) for again in (False, True)
    )
    assert twice == times * once
    assert losses == losses_again
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())
    for name, gradient in gradients.items():
        other = gradients_again[name]
        assert gradient is other or (gradient is not None and other is not None and torch.equal(gradient, other)), name
