"""CLIP's objective with real towers: what it asks for, what it answers, and the same answer on two ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.batch import Batch, Views
from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.contrastive import contrastive_loss
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives import OBJECTIVES
from hiclip.objectives.clip import ClipSettings

MODEL = ModelSettings(width=64, depth=2, image_px=16, patch_px=8, context=8, embedding=16, vocabulary=50)
PAIRS = 8


def batch_of(share: int, shares: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(PAIRS, 3, 16, 16, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 48, (PAIRS, 8), generator=generator)
    tokens[:, 0], tokens[range(PAIRS), torch.arange(PAIRS) % 5 + 3] = 48, 49
    names = [f"{pair:016x}" for pair in range(PAIRS)]
    part = slice(share * PAIRS // shares, (share + 1) * PAIRS // shares)
    return Batch({"crop": images[part]}, {"caption": tokens[part]}, names[part])


def fresh_towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(MODEL).double()


def loss_and_gradients() -> tuple[float, dict[str, Tensor]]:
    """This rank's share of the batch; the loss and all gradients averaged over ranks."""
    towers = fresh_towers()
    losses = ClipSettings().build(MODEL)(towers, batch_of(rank(), world()))
    losses["contrastive"].backward()
    gradients = {name: mean_over_ranks(p.grad) for name, p in towers.named_parameters() if p.grad is not None}
    return float(mean_over_ranks(losses["contrastive"])), gradients


def test_it_asks_for_a_crop_and_the_caption() -> None:
    objective = ClipSettings().build(MODEL)
    assert objective.views == Views(images=("crop",), texts=("caption",))
    assert list(objective.parameters()) == []


def test_its_loss_is_that_of_the_towers_vectors() -> None:
    towers, batch = fresh_towers(), batch_of(0, 1)
    vectors = towers.image_tower(batch.images["crop"]).vector, towers.text_tower(batch.tokens["caption"]).vector
    for smoothing, block in ((0.0, None), (0.2, None), (0.2, 3)):
        losses = ClipSettings(smoothing=smoothing, block_pairs=block).build(MODEL)(towers, batch)
        assert list(losses) == ["contrastive"]
        expected = contrastive_loss(*vectors, towers.logit_scale(), smoothing)
        assert losses["contrastive"].shape == ()
        torch.testing.assert_close(losses["contrastive"], expected)


def test_two_ranks_train_as_one_process_does() -> None:
    loss_alone, gradients_alone = loss_and_gradients()
    for loss, gradients in run_on_ranks(2, loss_and_gradients):
        assert loss == pytest.approx(loss_alone, rel=1e-12)
        torch.testing.assert_close(gradients, gradients_alone, rtol=1e-9, atol=1e-13)


def test_it_learns_to_tell_eight_pairs_apart() -> None:
    towers, batch = fresh_towers(), batch_of(0, 1)
    objective = ClipSettings().build(MODEL)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3)
    first = last = objective(towers, batch)["contrastive"]
    for _ in range(30):
        optimizer.zero_grad()
        last = objective(towers, batch)["contrastive"]
        last.backward()
        optimizer.step()
    assert first.item() > 1.5
    assert last.item() < 0.1


def test_the_list_of_objectives() -> None:
    assert OBJECTIVES["clip"] is ClipSettings
    for name, settings in OBJECTIVES.items():
        assert {field.name: field.default for field in dataclasses.fields(settings)}["name"] == name


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing: expected 0 to below 1"):
        ClipSettings(smoothing=smoothing)


def test_a_block_of_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="block_pairs: expected at least 1, came 0"):
        ClipSettings(block_pairs=0)
