"""The contrastive loss: its value, its softening, its form in blocks, and that any number of ranks computes the
gradient of one.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peak_memory import peak_bytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from two_ranks import run_on_ranks

from hiclip.distributed import gather_with_gradient, mean_over_ranks, rank, world
from hiclip.losses.contrastive import (
    contrastive_loss,
    directed_loss,
    logit_bytes,
    softened_cross_entropy,
    unit_vectors,
)

PAIRS, WIDTH = 8, 6


def vectors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, PAIRS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).unbind()


class Towers(nn.Module):
    """The least that has what real towers have: parameters on both sides and a shared scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
        self.text = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def loss(self, images: Tensor, texts: Tensor, smoothing: float, block: int | None) -> Tensor:
        return contrastive_loss(images @ self.image, texts @ self.text, self.scale, smoothing, block)


def loss_and_gradients(smoothing: float, block: int | None) -> tuple[float, list[Tensor]]:
    """This rank's share of the pairs; loss and gradients averaged over ranks, as DDP and DeepSpeed average them."""
    towers = Towers()
    images, texts = (side.chunk(world())[rank()] for side in vectors())
    loss = towers.loss(images, texts, smoothing, block)
    loss.backward()
    return float(mean_over_ranks(loss)), [mean_over_ranks(p.grad) for p in towers.parameters() if p.grad is not None]


def both_smoothings(block: int | None) -> list[tuple[float, list[Tensor]]]:
    return [loss_and_gradients(smoothing, block) for smoothing in (0.0, 0.2)]


def all_forms() -> list[list[tuple[float, list[Tensor]]]]:
    """Whole, and in blocks of 1, of 3 (which does not divide a rank's pairs) and of more pairs than there are."""
    return [both_smoothings(block) for block in (None, 1, 3, 100)]


class LargestTensor(TorchDispatchMode):
    """Watches every operation of torch, those of a backward included."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def gathered_parts() -> tuple[Tensor, Tensor, int, int]:
    own = torch.full((2, 3), float(rank() + 1), requires_grad=True)
    together = gather_with_gradient(own)
    # Every rank weighs row i of the whole by i and by its own number, so each gradient says whom it came from.
    weights = torch.arange(1.0, len(together) + 1) * (rank() + 1)
    (together * weights[:, None]).sum().backward()
    assert own.grad is not None
    return together.detach(), own.grad[:, 0], rank(), world()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_the_loss_and_the_gradient_of_one_process(ranks: int) -> None:
    alone = both_smoothings(None)
    for answers in run_on_ranks(ranks, all_forms):
        for answer in answers:
            for (loss, gradients), (loss_alone, gradients_alone) in zip(answer, alone, strict=True):
                assert loss == pytest.approx(loss_alone, rel=1e-12)
                torch.testing.assert_close(gradients, gradients_alone, rtol=1e-10, atol=1e-13)


def test_gather_keeps_the_order_of_ranks_and_sums_their_gradients() -> None:
    for place, (together, gradient, own_rank, size) in enumerate(run_on_ranks(2, gathered_parts)):
        assert (own_rank, size) == (place, 2)
        assert together[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
        rows = torch.arange(1.0, 5.0)[2 * place : 2 * place + 2]
        assert gradient.tolist() == (rows * (1 + 2)).tolist()


def test_one_process_is_a_world_of_its_own() -> None:
    values = torch.arange(3.0, requires_grad=True)
    assert (rank(), world()) == (0, 1)
    assert gather_with_gradient(values) is values
    mean = mean_over_ranks(values)
    assert mean.tolist() == values.tolist()
    assert not mean.requires_grad


def test_it_is_the_mean_of_both_directions() -> None:
    images, texts = vectors()
    logits = 5.0 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = torch.arange(PAIRS)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, torch.tensor(5.0)), expected)


def test_vectors_that_say_nothing_cost_the_logarithm_of_the_batch() -> None:
    same = torch.ones(PAIRS, WIDTH)
    assert contrastive_loss(same, same, torch.tensor(100.0)).item() == pytest.approx(math.log(PAIRS))


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.9])
def test_softening_equals_its_target_matrix(smoothing: float) -> None:
    logits = torch.randn(PAIRS, PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.full_like(logits, smoothing / (PAIRS - 1))
    target.fill_diagonal_(1 - smoothing)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(softened_cross_entropy(logits, torch.arange(PAIRS), smoothing), expected)


def test_a_perfect_model_ends_at_the_floor_of_the_softened_loss() -> None:
    """PyramidCLIP: the floor is the entropy of the target, at a gap of ln((1-a)(N-1)/a) between the two logits."""
    a, others = 0.2, PAIRS - 1
    gap = math.log((1 - a) * others / a)
    loss = softened_cross_entropy(torch.eye(PAIRS) * gap, torch.arange(PAIRS), a)
    assert loss.item() == pytest.approx(-(1 - a) * math.log(1 - a) - a * math.log(a / others), rel=1e-6)


def test_softening_needs_another_pair() -> None:
    with pytest.raises(ValueError, match="smoothing"):
        softened_cross_entropy(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 0.1)


@pytest.mark.parametrize("block", [None, 3])
def test_logits_are_float32_under_autocast(block: int | None) -> None:
    images, texts = (side.requires_grad_() for side in vectors(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.tensor(100.0), block=block)
    exact = contrastive_loss(images.double(), texts.double(), torch.tensor(100.0, dtype=torch.float64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("block", [None, 3])
def test_its_gradient_is_exact(block: int | None) -> None:
    images, texts = (side[:4].clone().requires_grad_() for side in vectors())
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = images, texts, scale
    assert torch.autograd.gradcheck(lambda *inputs: contrastive_loss(*inputs, smoothing=0.1, block=block), inputs)


def one_direction(
    sides: tuple[Tensor, Tensor], scale: float, smoothing: float, block: int | None
) -> tuple[Tensor, ...]:
    """Loss, and gradients to queries, keys and logit scale, of a loss that is weighted by 0.3."""
    queries, keys = (unit_vectors(side).requires_grad_() for side in sides)
    logit_scale = torch.tensor(scale, dtype=queries.dtype, requires_grad=True)
    loss = 0.3 * directed_loss(queries, keys, logit_scale, smoothing, block)
    return loss.detach(), *torch.autograd.grad(loss, (queries, keys, logit_scale))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("block", [1, 7, 32, 50, 64])
def test_blocks_equal_the_full_matrix(block: int, scale: float, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(block)
    sides = torch.randn(2, 50, 16, generator=generator, dtype=torch.float64).unbind()
    full, blocked = (one_direction(sides, scale, smoothing, size) for size in (None, block))
    for ours, theirs in zip(blocked, full, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


def test_blocks_in_float32_are_as_exact_as_the_full_matrix() -> None:
    generator = torch.Generator().manual_seed(5)
    sides = torch.randn(2, 96, 64, generator=generator).unbind()
    exact = one_direction((sides[0].double(), sides[1].double()), 100.0, 0.2, None)
    full, blocked = (one_direction((sides[0], sides[1]), 100.0, 0.2, size) for size in (None, 10))
    for ours, theirs, right in zip(blocked, full, exact, strict=True):
        assert (ours - right).norm() < 2 * (theirs - right).norm() + 1e-6 * right.norm()


def test_given_candidates_need_no_gradient() -> None:
    """DeCLIP's nearest neighbours: one direction, keys that nobody learns from, and the same loss without a graph."""
    queries, keys = (unit_vectors(side) for side in vectors())
    queries.requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64)
    blocked = directed_loss(queries, keys, scale, block=3)
    (gradient,) = torch.autograd.grad(blocked, queries)
    full = F.cross_entropy(5.0 * queries @ keys.T, torch.arange(PAIRS))
    torch.testing.assert_close(blocked, full)
    torch.testing.assert_close(gradient, torch.autograd.grad(full, queries)[0])
    with torch.no_grad():
        assert directed_loss(queries, keys, scale, block=3).item() == blocked.item()


def test_blocks_hold_no_matrix_of_all_pairs() -> None:
    """Every tensor that the loss makes or keeps for the backward is counted: none has more than block x B numbers."""
    largest: dict[int | None, int] = {}
    for block in (None, 16):
        queries, keys = (torch.randn(256, 8).requires_grad_() for _ in range(2))
        with LargestTensor() as seen:
            directed_loss(queries, keys, torch.tensor(5.0, requires_grad=True), 0.2, block).backward()
        largest[block] = seen.numbers
    assert largest == {None: 256 * 256, 16: 16 * 256}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("losses", [1, 3])
def test_the_memory_of_logits_is_as_told(losses: int, smoothing: float) -> None:
    """Vectors of two numbers: nearly all the memory is logits."""
    sides = [(torch.randn(512, 2).requires_grad_(), torch.randn(512, 2).requires_grad_()) for _ in range(losses)]
    scale = torch.tensor(5.0, requires_grad=True)

    def most(block: int | None) -> int:
        def step() -> None:
            torch.stack([contrastive_loss(*side, scale, smoothing, block) for side in sides]).sum().backward()

        return peak_bytes(step)

    assert most(None) == pytest.approx(logit_bytes(2 * losses, 512, 512, smoothing, None), rel=0.05)
    assert most(64) == pytest.approx(logit_bytes(2 * losses, 512, 512, smoothing, 64), rel=0.5)


@pytest.mark.parametrize("block", [None, 1])
def test_softening_needs_another_pair_in_blocks_too(block: int | None) -> None:
    with pytest.raises(ValueError, match="smoothing: expected 0 with a batch of one pair"):
        contrastive_loss(torch.ones(1, 2), torch.ones(1, 2), torch.tensor(5.0), 0.1, block)
