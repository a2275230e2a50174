"""Gradient caching gives the gradient of the whole batch, in a chunk's memory, in any engine and on any ranks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import CONTEXT, REGION_WIDTH, random_batch, random_batches, small_job
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from two_ranks import run_on_ranks

from hiclip.batch import MASK_TOKEN, Batch
from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives import OBJECTIVES
from hiclip.objectives.clip import ClipSettings
from hiclip.training.checkpoint import load_towers
from hiclip.training.engine import Pretraining
from hiclip.training.gradient_cache import encode_in_chunks
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import build_module, run_rank
from hiclip.training.saving import RunPlace

PAIRS = 24


def batch_of(dtype: torch.dtype) -> Batch:
    """This rank's part of a batch of `PAIRS`."""
    batch = next(random_batches(small_job("nowhere", data={"batch": PAIRS}), 0, rank(), world()))
    return Batch({view: images.to(dtype) for view, images in batch.images.items()}, batch.tokens, batch.pair_ids)


def step(
    micro_batch: int | None, dtype: torch.dtype = torch.float64, bf16: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of HiCLIP with softened targets, averaged over ranks."""
    job = small_job("nowhere", model={"depth": 2})
    torch.manual_seed(job.seed)
    objective = ClipSettings(smoothing=0.1).build(job.model)
    module = Pretraining(TwoTowers(job.model).to(dtype), objective, bf16, micro_batch)
    losses = module(batch_of(dtype))
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: mean_over_ranks(p.grad) for name, p in module.named_parameters() if p.grad is not None}
    return {name: mean_over_ranks(loss) for name, loss in losses.items()}, gradients


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Greatest relative distance of two gradients with the same name, beside the norm of the whole gradient."""
    assert ours.keys() == theirs.keys()
    whole = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    return float(torch.stack([(ours[name] - theirs[name]).norm() for name in theirs]).norm() / whole)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("micro_batch", [1, 7, 8, PAIRS, 100])
def test_the_gradient_is_that_of_one_shot(dtype: torch.dtype, limit: float, micro_batch: int) -> None:
    losses, gradients = step(micro_batch, dtype)
    losses_at_once, at_once = step(None, dtype)
    torch.testing.assert_close(losses, losses_at_once, rtol=limit, atol=0)
    assert apart(gradients, at_once) < limit


def test_under_autocast_it_is_as_near_to_the_exact_gradient_as_one_shot() -> None:
    exact = {name: gradient.float() for name, gradient in step(None)[1].items()}
    at_once, cached = (step(size, torch.float32, bf16=True)[1] for size in (None, 6))
    assert 0 < apart(cached, exact) < 1.2 * apart(at_once, exact)


def test_a_step_is_the_same_every_time() -> None:
    first, again = (step(5, torch.float32)[1] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_ranks_that_cache_have_the_gradient_of_one_process() -> None:
    alone = step(None)[1]
    for _, gradients in run_on_ranks(4, step, 4):
        assert apart(gradients, alone) < 1e-10


class Counter:
    """Bytes that autograd keeps for the backward of a step: the most at once, from the forward to the end."""

    def __init__(self, module: nn.Module) -> None:
        self.now = self.most = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._weights:
            kept = tensor.detach().view_as(tensor)
            self.now += kept.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(kept, self._drop, kept.nbytes)
            return kept
        return tensor

    def _drop(self, size: int) -> None:
        self.now -= size

    def of(self, work: Callable[[], Any]) -> int:
        with saved_tensors_hooks(self._keep, lambda kept: kept):
            work()
        return self.most


def test_a_step_holds_what_a_chunk_needs() -> None:
    job = small_job("nowhere", data={"batch": 64}, model={"depth": 2})
    held = {}
    for batch, micro_batch in ((4, None), (64, 4), (64, None)):
        module = build_module(small_job("nowhere", data={"batch": 64, "micro_batch": micro_batch}, model={"depth": 2}))
        pairs = next(random_batches(job, 0)).part(0, batch)
        held[batch, micro_batch] = Counter(module).of(lambda m=module, p=pairs: sum(m(p).values()).backward())
    chunk, cached, at_once = held.values()
    assert chunk / 2 < cached < 1.2 * chunk, "that of four pairs, and the vectors of all"
    assert at_once > 7 * cached, "sixteen times the pairs; what does not grow with them is half of the chunk's"


class Noisy(nn.Module):
    """An encoder that draws random numbers, has a weight it does not use, and answers one thing nobody learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
        self.drawn: list[float] = []

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images["crop"]
        noise = torch.rand(len(images), 3, dtype=torch.float64)
        self.drawn += noise[:, 0].tolist()
        return {"vector": noise * self.weight, "labels": images[:, 0].long(), "fixed": images * 2}


def test_what_is_drawn_at_random_is_the_same_both_times() -> None:
    batch = Batch({"crop": torch.arange(21.0, dtype=torch.float64).reshape(7, 3)}, {}, [""] * 7)
    encoder = Noisy()
    torch.manual_seed(1)
    encoded = encode_in_chunks(encoder.encode, encoder, batch, 3)
    weights = torch.rand(7, 3, dtype=torch.float64)
    (encoded["vector"] * weights).sum().backward()
    afterwards = torch.rand(1)

    torch.manual_seed(1)
    noise = torch.cat([torch.rand(size, 3, dtype=torch.float64) for size in (3, 3, 1)])
    assert encoder.drawn == 2 * noise[:, 0].tolist()
    assert encoder.weight.grad is not None
    torch.testing.assert_close(encoder.weight.grad, (noise * torch.rand(7, 3, dtype=torch.float64)).sum(dim=0))
    assert encoder.unused.grad is None
    assert torch.equal(afterwards, torch.rand(1)), "the second pass leaves no trace in the generator"
    assert encoded["labels"].tolist() == list(range(0, 21, 3))
    assert torch.equal(encoded["fixed"], batch.images["crop"] * 2)


def test_weights_that_change_between_the_passes_are_noticed() -> None:
    encoder = Noisy()
    batch = Batch({"crop": torch.ones(4, 3, dtype=torch.float64)}, {}, [""] * 4)
    loss = encode_in_chunks(encoder.encode, encoder, batch, 2)["vector"].sum()
    with torch.no_grad():
        encoder.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_backward_pairs_are_encoded_once() -> None:
    encoder = Noisy()
    batch = Batch({"crop": torch.ones(4, 3, dtype=torch.float64)}, {}, [""] * 4)
    with torch.no_grad():
        assert not encode_in_chunks(encoder.encode, encoder, batch, 2)["vector"].requires_grad
    assert len(encoder.drawn) == 4


def run(job: PretrainJob, newest: str | None = None) -> list[float]:
    rows: list[StepRow] = []
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, newest, lambda step: random_batches(job, step), rows.append)
    return [row.loss for row in rows]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_bit_for_bit_and_learns_as_without_chunks(tmp_path: Path, precision: str) -> None:
    at_once, cached = (
        small_job(str(tmp_path / str(size)), data={"micro_batch": size}).model_copy(update={"precision": precision})
        for size in (None, 2)
    )
    losses = run(cached)
    assert losses == pytest.approx(run(at_once), abs=1e-5 if precision == "fp32" else 0.05)
    weights = load_towers(cached.out)[0].state_dict()
    assert run(cached, str(tmp_path / "2" / "checkpoints" / "seen-000000000024")) == losses[3:]
    again = load_towers(cached.out)[0].state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_the_same_from_chunks(name: str) -> None:
    sizes = {"width": 64, "depth": 2, "image_px": 16, "context": CONTEXT, "embedding": 64, "vocabulary": MASK_TOKEN + 1}
    model = ModelSettings(**sizes, text_pooling="max", front_layers=1, region_width=REGION_WIDTH)
    settings = OBJECTIVES[name]()
    batch = random_batch(settings.views, 12, torch.Generator().manual_seed(1), "pair")
    images, regions = (
        {view: tensor.double() for view, tensor in views.items()} for views in (batch.images, batch.regions)
    )
    answers = []
    for micro_batch in (None, 5):
        torch.manual_seed(0)
        module = Pretraining(TwoTowers(model), settings.build(model), micro_batch=micro_batch).double()
        losses = module(replace(batch, images=images, regions=regions))
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
        answers.append((losses, gradients))
    (at_once, whole), (cached, summed) = answers
    torch.testing.assert_close(cached, at_once, rtol=1e-10, atol=0)
    assert apart(summed, whole) < 1e-10
