"""The contrastive loss: its value, its softening, and that any number of ranks computes the gradient of one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_ranks import run_on_ranks

from hiclip.distributed import gather_with_gradient, mean_over_ranks, rank, world
from hiclip.losses.contrastive import contrastive_loss, softened_cross_entropy

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

    def loss(self, images: Tensor, texts: Tensor, smoothing: float) -> Tensor:
        return contrastive_loss(images @ self.image, texts @ self.text, self.scale, smoothing)


def loss_and_gradients(smoothing: float) -> tuple[float, list[Tensor]]:
    """This rank's share of the pairs; loss and gradients averaged over ranks, as DDP and DeepSpeed average them."""
    towers = Towers()
    images, texts = (side.chunk(world())[rank()] for side in vectors())
    loss = towers.loss(images, texts, smoothing)
    loss.backward()
    return float(mean_over_ranks(loss)), [mean_over_ranks(p.grad) for p in towers.parameters() if p.grad is not None]


def both_smoothings() -> list[tuple[float, list[Tensor]]]:
    return [loss_and_gradients(smoothing) for smoothing in (0.0, 0.2)]


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
    alone = both_smoothings()
    for answer in run_on_ranks(ranks, both_smoothings):
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


def test_logits_are_float32_under_autocast() -> None:
    images, texts = (side.requires_grad_() for side in vectors(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.tensor(100.0))
    exact = contrastive_loss(images.double(), texts.double(), torch.tensor(100.0, dtype=torch.float64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_its_gradient_is_exact() -> None:
    images, texts = (side[:4].clone().requires_grad_() for side in vectors())
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: contrastive_loss(*inputs, smoothing=0.1), (images, texts, scale))
