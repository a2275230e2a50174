"""What the bill says that a device holds is what training a small model is measured to hold, within 15 %."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from peak_memory import peak_bytes
from small_run import small_job
from two_ranks import run_on_ranks

from hiclip.batch import Batch
from hiclip.distributed import rank, world
from hiclip.model.sizes import resolve
from hiclip.training.engine import Engine
from hiclip.training.job_cost import worker_memory
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import build_module, make_engine

MODEL = {"width": 256, "depth": 3, "image_px": 64, "patch_px": 8, "embedding": 256, "vocabulary": 2000, "context": 32}

SHARDED: list[dict[str, Any]] = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 1, "offload": True},
    {"zero_stage": 2, "offload": True, "activation_checkpointing": True, "pairs": 24},
    {"zero_stage": 1, "micro_batch": 2, "precision": "bf16"},
    {"zero_stage": 0, "pairs": 1},
    {"zero_stage": 1, "pairs": 1},
    {"zero_stage": 2, "pairs": 1},
]
"""With eight pairs a rank as much of its memory is activations as weights, with one gradients are the most."""
PLAIN: list[dict[str, Any]] = [{"pairs": 24}, {"pairs": 24, "activation_checkpointing": True}, {"micro_batch": 2}]


def job_of(workers: int, switches: dict[str, Any]) -> PretrainJob:
    switches = dict(switches)
    engine = {"name": "plain"}
    if "zero_stage" in switches:
        engine = {"name": "deepspeed", "zero_stage": switches.pop("zero_stage"), "offload": switches.pop("offload", 0)}
    batch = switches.pop("pairs", 8) * workers
    data, schedule = {"batch": batch, "micro_batch": switches.pop("micro_batch", None)}, {"warmup_pairs": 0}
    sections = {"data": data, "model": MODEL, "engine": engine, "schedule": schedule, "workers": {"count": workers}}
    return small_job("nowhere", **sections, **switches)


def batch_of(job: PretrainJob) -> Batch:
    sizes, pairs = resolve(job.model), job.data.batch // job.workers.count
    images = torch.randn(pairs, 3, sizes.image_px, sizes.image_px)
    tokens = torch.full((pairs, sizes.context), sizes.vocabulary - 1)
    return Batch({"crop": images}, {"caption": tokens}, [""] * pairs)


def train(job: PretrainJob) -> Engine:
    batch, engine = batch_of(job), make_engine(job, build_module(job))
    for _ in range(2):
        engine.update(torch.stack(list(engine.losses(batch).values())).sum(), 1e-3)
    return engine


def measured_over_billed(cases: Iterable[dict[str, Any]]) -> list[float]:
    """On a CPU what is offloaded stays beside the rest."""
    os.environ.update(WORLD_SIZE=str(world()), RANK=str(rank()), LOCAL_RANK=str(rank()))
    ratios = []
    for case in cases:
        job = job_of(world(), case)
        gc.collect()  # or what the last engine held would go while this one is measured
        billed = worker_memory(job, case.get("zero_stage"))
        ratios.append(peak_bytes(partial(train, job)) / (billed.total + billed.host))
    return ratios


def test_the_plain_engine_holds_what_the_bill_says() -> None:
    assert measured_over_billed(PLAIN) == pytest.approx([1.0] * len(PLAIN), abs=0.15)


def test_activation_checkpointing_takes_a_quarter_off_what_a_step_of_three_layers_holds() -> None:
    whole, again = (peak_bytes(partial(train, job_of(1, case))) for case in PLAIN[:2])
    assert again < 0.75 * whole


def held_after_a_step(cases: Iterable[dict[str, Any]]) -> list[float]:
    """Of the tensors that are left: torch's profiler does not hear of what gloo's own threads free under ZeRO-3."""
    os.environ.update(WORLD_SIZE=str(world()), RANK=str(rank()), LOCAL_RANK=str(rank()))
    ratios = []
    for case in cases:
        job, before = job_of(world(), case), tensor_bytes()
        engine = train(job)
        held = tensor_bytes() - before
        memory = worker_memory(job, 3)
        kept = memory.weights + memory.optimizer + memory.gradients + memory.host
        ratios.append(held / kept)
        del engine
    return ratios


def tensor_bytes() -> int:
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return sum({(held := tensor.untyped_storage()).data_ptr(): held.nbytes() for tensor in tensors}.values())


def test_zero_3_keeps_a_part_of_everything() -> None:
    for ratios in run_on_ranks(2, held_after_a_step, [{"zero_stage": 3}, {"zero_stage": 3, "offload": True}]):
        assert ratios == pytest.approx([1.0, 1.0], abs=0.15)


def test_ranks_hold_what_the_bill_says() -> None:
    for ratios in run_on_ranks(2, measured_over_billed, SHARDED, timeout_s=300):
        assert ratios == pytest.approx([1.0] * len(SHARDED), abs=0.15)
