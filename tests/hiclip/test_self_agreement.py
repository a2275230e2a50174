"""SimSiam's loss: its range, its stopped gradient, its heads, and where the number of ranks shows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.self_agreement import SelfAgreement

PAIRS, EMBEDDING = 8, 6


def heads() -> SelfAgreement:
    torch.manual_seed(0)
    return SelfAgreement(EMBEDDING).double()


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, PAIRS, EMBEDDING, generator=generator, dtype=torch.float64).unbind()


def test_the_heads_are_declips() -> None:
    shapes = [tuple(p.shape) for p in SelfAgreement(512).projector.parameters() if p.ndim == 2]
    assert shapes == [(1024, 512), (1024, 1024), (1024, 1024)]
    assert [tuple(p.shape) for p in SelfAgreement(512).predictor.parameters() if p.ndim == 2] == [
        (512, 1024),
        (1024, 512),
    ]


def test_it_is_the_formula_of_the_paper() -> None:
    module, (first, second) = heads(), views()
    z1, z2 = module.projector(first), module.projector(second)
    p1, p2 = module.predictor(z1), module.predictor(z2)

    def cosine(left: Tensor, right: Tensor) -> Tensor:
        return (F.normalize(left, dim=1) * F.normalize(right, dim=1)).sum(dim=1).mean()

    loss = module(first, second)
    torch.testing.assert_close(loss, -0.5 * (cosine(p1, z2) + cosine(p2, z1)))
    torch.testing.assert_close(loss, module(second, first))
    assert -1 <= loss.item() <= 1


def test_a_goal_gets_no_gradient() -> None:
    """Where the predictor gives nothing back, nothing reaches the views: all gradient runs through it."""
    module, (first, second) = heads(), views()
    first.requires_grad_()
    torch.nn.init.zeros_(module.predictor[0].weight)
    module(first, second).backward()
    assert first.grad is not None
    assert (first.grad == 0).all()
    free = heads()
    free(first, second).backward()
    assert (first.grad != 0).any()


def test_views_that_agree_are_learnt() -> None:
    module, (first, _) = heads().float(), views()
    first = first.float()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        loss = module(first, first)
        loss.backward()
        optimizer.step()
    assert loss.item() < -0.8


def test_batch_norm_takes_away_what_all_pairs_share() -> None:
    """Heads read the batch: the same constant added to each vector changes nothing."""
    module, (first, second) = heads(), views()
    torch.testing.assert_close(module(first + 3, second), module(first, second))


def test_arithmetic_is_fp32_under_autocast() -> None:
    module, (first, second) = heads().float(), views()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(first.float(), second.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, module(first.float(), second.float()))
    assert module(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def test_nothing_is_kept_between_steps() -> None:
    assert list(SelfAgreement(EMBEDDING).buffers()) == []


def loss_of_rank() -> float:
    first, second = (view.chunk(world())[rank()] for view in views())
    return float(mean_over_ranks(heads()(first, second)))


def test_batch_norm_is_of_the_rank() -> None:
    """Not the loss of one process, which normalises over all pairs, but the mean of what each half gives alone."""
    halves = [heads()(*(view.chunk(2)[half] for view in views())).item() for half in range(2)]
    assert run_on_ranks(2, loss_of_rank) == pytest.approx([sum(halves) / 2] * 2)
    assert loss_of_rank() != pytest.approx(sum(halves) / 2, rel=1e-3)
