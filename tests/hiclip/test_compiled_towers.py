"""Both towers under every structural switch are one graph: the compiler meets nothing that depends on the data; and
training them compiled learns the same, however long captions are, in any engine that may have them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_run import random_batches, small_job
from torch._dynamo.utils import counters
from two_ranks import run_on_ranks

from hiclip.batch import Batch
from hiclip.distributed import rank, world
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.training.engine import compile_towers
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import build_module, make_engine

VIT = ModelSettings(
    width=64, depth=2, image_px=16, patch_px=8, context=8, embedding=16, vocabulary=100, front_layers=1, region_width=7
)
RESNET = ModelSettings(
    size="resnet_tiny", image_hierarchy=False, text_width=64, text_depth=1, context=8, embedding=16, vocabulary=100,
    region_width=7,
)  # fmt: skip
SWITCHED = [dataclasses.replace(VIT, leff=True, text_pooling="max"), RESNET]
LENGTHS = [16, 8, 32, 16]
"""Of the longest caption of each step, rounded up; 32 is the whole context."""
tracer_warns = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@tracer_warns
@pytest.mark.parametrize("settings", SWITCHED, ids=["leff_and_max", "resnet"])
def test_the_towers_are_one_graph(settings: ModelSettings) -> None:
    torch.manual_seed(0)
    model = TwoTowers(settings)
    px = 64 if settings is RESNET else 16
    images, regions = torch.randn(3, 3, px, px), torch.randn(3, 4, 7)
    captions = torch.tensor([[98, 5, 99, 0, 0, 0, 0, 0]] * 3)

    def vectors() -> tuple[torch.Tensor, ...]:
        pictures, objects = model.image_tower(images), model.image_tower.embed_regions(regions)
        return pictures.vector, objects.vector, model.text_tower(captions).vector

    compiled = torch.compile(vectors, backend="eager", fullgraph=True)()
    torch.testing.assert_close(compiled, vectors(), rtol=1e-4, atol=1e-5)


def job_of(workers: int, engine: dict[str, Any], micro_batch: int | None) -> PretrainJob:
    data = {"micro_batch": micro_batch}
    return small_job("nowhere", model={"context": 32}, data=data, engine=engine, workers={"count": workers})


def steps(job: PretrainJob, backend: str | None) -> list[float]:
    """Losses of steps whose captions are as long as `LENGTHS` say; None: not compiled."""
    module = build_module(job)
    names = list(module.state_dict())
    if backend is not None:
        compile_towers(module.towers, backend)
    engine, losses = make_engine(job, module), []
    for batch, length in zip(random_batches(job, 0, rank(), world()), LENGTHS, strict=False):
        caption = batch.tokens["caption"]
        longer = torch.nn.functional.pad(caption, (0, length - caption.shape[1]))
        loss = sum(engine.losses(Batch(batch.images, {"caption": longer}, batch.pair_ids)).values())
        assert isinstance(loss, torch.Tensor)
        engine.update(loss, 1e-3)
        losses.append(float(loss.detach()))
    assert list(engine.weights()) == names
    return losses


@pytest.mark.slow
@tracer_warns
def test_captions_of_any_length_take_one_compilation() -> None:
    job = job_of(1, {"name": "plain"}, None)
    expected = steps(job, None)
    assert steps(job, "aot_eager") == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(LENGTHS)
    assert counters["stats"]["unique_graphs"] == 2, "one of each tower"
    assert not counters["graph_break"]


def compiled_and_not(cases: list[tuple[int, int | None]]) -> list[tuple[list[float], list[float]]]:
    os.environ.update(WORLD_SIZE=str(world()), RANK=str(rank()), LOCAL_RANK=str(rank()))
    jobs = [job_of(world(), {"name": "deepspeed", "zero_stage": stage}, micro) for stage, micro in cases]
    return [(steps(job, "aot_eager"), steps(job, None)) for job in jobs]


@pytest.mark.slow
def test_compiled_towers_train_under_deepspeed() -> None:
    for answers in run_on_ranks(2, compiled_and_not, [(1, None), (2, 2)], timeout_s=300):
        for compiled, eager in answers:
            assert compiled == pytest.approx(eager, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's compiler, when it is imported
def test_a_job_names_compiled_towers() -> None:
    towers = build_module(small_job("nowhere", compiled=True)).towers
    assert all(tower._compiled_call_impl is not None for tower in (towers.image_tower, towers.text_tower))
    towers = build_module(small_job("nowhere")).towers
    assert all(tower._compiled_call_impl is None for tower in (towers.image_tower, towers.text_tower))
