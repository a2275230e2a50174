"""The queue of texts: nearest by cosine, first in first out, one for all ranks, and in checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.neighbour_queue import NeighbourQueue, neighbour_loss

SIZE, WIDTH, PAIRS = 7, 4, 4


def queue(size: int = SIZE) -> NeighbourQueue:
    torch.manual_seed(0)
    return NeighbourQueue(size, WIDTH).double()


def vectors(seed: int, count: int = PAIRS) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_begins_with_random_directions() -> None:
    made = NeighbourQueue(2000, 8)
    torch.testing.assert_close(made.vectors.norm(dim=1), torch.ones(2000))
    assert made.vectors.mean(dim=0).abs().max() < 0.05


def test_the_nearest_is_that_of_the_greatest_cosine() -> None:
    held, asked = queue(), vectors(1)
    expected = F.normalize(asked, dim=1) @ held.vectors.T
    for scale in (1.0, 1000.0):
        found = held.nearest((asked * scale).requires_grad_())
        assert (found == held.vectors[expected.argmax(dim=1)]).all()
        assert not found.requires_grad


def test_many_texts_ask_in_parts() -> None:
    held, asked = queue(), vectors(1, 1024 + 3)
    expected = (F.normalize(asked, dim=1) @ held.vectors.T).argmax(dim=1)
    assert (held.nearest(asked) == held.vectors[expected]).all()


def test_the_oldest_make_room_and_nothing_is_lost_at_the_end() -> None:
    held = queue()
    pushed = [F.normalize(vectors(seed), dim=1) for seed in range(5)]
    for count, new in enumerate(pushed, 1):
        held.push(new * 3)
        newest = torch.cat(pushed[:count])[-SIZE:]
        places = [(4 * count - len(newest) + number) % SIZE for number in range(len(newest))]
        torch.testing.assert_close(held.vectors[places], newest)
        assert held.oldest.tolist() == [4 * count % SIZE]


def test_a_batch_larger_than_the_queue_leaves_its_last_texts() -> None:
    held, new = queue(3), vectors(1, 10)
    held.push(new)
    expected = F.normalize(new[-3:], dim=1)
    held_rows = {tuple(row.tolist()) for row in held.vectors.round(decimals=9)}
    assert held_rows == {tuple(row.tolist()) for row in expected.round(decimals=9)}
    assert held.oldest.tolist() == [10 % 3]


def test_it_goes_on_from_a_saved_state() -> None:
    first = queue()
    first.push(vectors(1))
    torch.manual_seed(99)
    second = NeighbourQueue(SIZE, WIDTH).double()
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"vectors", "oldest"}
    for held in (first, second):
        held.push(vectors(2))
    assert (first.vectors == second.vectors).all()
    assert (first.nearest(vectors(3)) == second.nearest(vectors(3))).all()


def test_pictures_find_the_neighbours_and_not_the_other_way() -> None:
    images, near = vectors(1), F.normalize(vectors(2), dim=1)
    logits = 5.0 * F.normalize(images, dim=1) @ near.T
    scale = torch.tensor(5.0, dtype=torch.float64)
    loss = neighbour_loss(images, near, scale)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.arange(PAIRS)))
    assert loss.item() != pytest.approx(F.cross_entropy(logits.T, torch.arange(PAIRS)).item())
    torch.testing.assert_close(neighbour_loss(images, near, scale, block=3), loss)


def share(tensor: Tensor) -> Tensor:
    return tensor.chunk(world())[rank()]


def two_steps() -> tuple[float, list[Tensor]]:
    """Ask and push twice, as training does: the last loss, its gradient, and the queue."""
    held, weight = queue(), torch.eye(WIDTH, dtype=torch.float64, requires_grad=True)
    for step in range(2):
        texts, images = share(vectors(step)), share(vectors(10 + step)) @ weight
        loss = neighbour_loss(images, held.nearest(texts), torch.tensor(5.0, dtype=torch.float64))
        held.push(texts)
    loss.backward()
    assert weight.grad is not None
    return float(mean_over_ranks(loss)), [mean_over_ranks(weight.grad), held.vectors, held.oldest]


def test_ranks_hold_one_queue() -> None:
    loss_alone, alone = two_steps()
    for loss, found in run_on_ranks(2, two_steps):
        assert loss == pytest.approx(loss_alone, rel=1e-12)
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-14)
