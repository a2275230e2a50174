"""Weight decay pulls matrices and nothing else."""

from __future__ import annotations

import pytest
import torch

from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.training.optimizer import OptimizerSettings, make_optimizer, parameter_groups, set_rate


@pytest.fixture(scope="module")
def towers() -> TwoTowers:
    return TwoTowers(ModelSettings(width=64, depth=1, image_px=16, context=8, embedding=64))


def test_biases_norms_and_the_logit_scale_do_not_decay(towers: TwoTowers) -> None:
    decayed, free = parameter_groups(towers, 0.1)
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    free_names = {names[id(parameter)] for parameter in free["params"]}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert free_names | decayed_names == set(names.values())
    assert not free_names & decayed_names
    assert "logit_scale.logarithm" in free_names
    assert {name for name in names.values() if name.endswith("bias")} <= free_names
    norms = {f"{name}.weight" for name, module in towers.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms
    assert norms <= free_names


def test_frozen_parameters_are_left_out() -> None:
    module = torch.nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    (group,) = parameter_groups(module, 0.1)
    assert [tuple(parameter.shape) for parameter in group["params"]] == [(2,)]


def test_a_step_is_adamw_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 2.0)
    optimizer = make_optimizer(module, OptimizerSettings(weight_decay=0.1))
    set_rate(optimizer, 0.5)
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    # Adam's first step is the rate itself, against the gradient's sign; decay pulls by rate * decay * weight.
    assert module.weight.item() == pytest.approx(2.0 - 0.5 * 0.1 * 2.0 - 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0, came 0"),
        ({"betas": (0.9, 1.0)}, "betas: expected two numbers"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0 or null"),
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**keys)  # type: ignore[arg-type]
