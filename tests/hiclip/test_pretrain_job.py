"""Pretraining jobs decode, name their mistakes by key, and print their bill."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_dataset import small_dataset
from small_run import random_batches, small_job

from hiclip.model.sizes import resolve
from hiclip.pretrain import stream_plan
from hiclip.training.cost import (
    device_memory,
    forward_flops_per_pair,
    image_flops,
    region_flops,
    text_flops,
    train_flops,
)
from hiclip.training.job_cost import checkpoint_bytes, own_numbers, pair_flops, training_flops, worker_memory
from hiclip.training.pretrain_bill import bill, done_flops, hours
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace
from pipeline.jobfile import JobError, make_job, resolved
from pipeline.manifest import DatasetError, Manifest

PRICE = {"device": "X", "peak_tflops": 100, "utilization": 0.5, "per_hour": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"batch": 10}, "workers": {"count": 4}}, "data.batch: expected a multiple of workers.count (4)"),
        ({"data": {"micro_batch": 3}}, "data.micro_batch: expected a divisor of a worker's 8 pairs"),
        ({"data": {"micro_batch": 16}}, "data.micro_batch: expected a divisor of a worker's 8 pairs"),
        ({"data": {"micro_batch": 0}}, "data.micro_batch"),
        (
            {"data": {"micro_batch": 4}, "model": {"depth": 2, "leff": True, "front_layers": 1}},
            "data.micro_batch: expected null with model.leff true, whose batch norms would see 4 pairs",
        ),
        ({"objective": {"name": "clip", "block_pairs": 0}}, "block_pairs: expected at least 1, came 0"),
        ({"workers": {"count": 2}}, "engine.name: plain trains with workers.count 1, came 2"),
        ({"model": {"width": 100}}, "model.width: expected a multiple of 64"),
        ({"model": {"patch_px": 5}}, "model.patch_px: expected a divisor of image_px (16), came 5"),
        ({"model": {"widht": 64}}, "model.widht: no such key; did you mean 'width'?"),
        ({"schedule": {"pairs": 4, "warmup_pairs": 0}}, "schedule.pairs: expected at least one batch (8), came 4"),
        ({"schedule": {"warmup_pairs": 65}}, "warmup_pairs: expected warm-up and cool-down within the 64 pairs"),
        ({"engine": {"name": "deepspeed", "zero_stage": 4}}, "engine.zero_stage: expected at most 3, came 4"),
        (
            {"engine": {"name": "deepspeed", "zero_stage": 3}, "data": {"micro_batch": 2}},
            "engine.zero_stage: expected at most 2 with data.micro_batch 2",
        ),
        (
            {"engine": {"name": "deepspeed", "zero_stage": 0, "offload": True}},
            "engine.offload: expected false with engine.zero_stage 0",
        ),
        (
            {"activation_checkpointing": True, "model": {"depth": 2, "leff": True, "front_layers": 1}},
            "activation_checkpointing: expected false with model.leff true, whose batch norms",
        ),
        (
            {"compiled": True, "engine": {"name": "deepspeed", "zero_stage": 3}},
            "compiled: expected false with engine.zero_stage 3",
        ),
        (
            {"compiled": True, "activation_checkpointing": True},
            "compiled: expected false with activation_checkpointing true",
        ),
        ({"checkpoints": {"every_pairs": 0}}, "checkpoints.every_pairs"),
        ({"checkpoints": {"at": [0]}}, "checkpoints.at.0: expected at least 1, came 0"),
        (
            {"data": {"dataset": [{"path": "a"}, {"path": "b"}], "unique_pairs": 8}},
            "data.unique_pairs: expected null with 2 datasets, came 8",
        ),
        ({"optimizer": {"lr": 1}}, "optimizer.lr: no such key"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        small_job("out", **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_written_as_people_write_them() -> None:
    assert small_job("out", optimizer={"learning_rate": "5e-4"}).optimizer.learning_rate == 5e-4


def test_a_fingerprint_is_of_what_changes_the_weights() -> None:
    job = small_job("out")
    content = resolved(job)
    same = {**content, "out": "elsewhere", "name": "other", "price": PRICE, "ray": {"num_cpus": 8}}
    same |= {"compiled": True, "engine": {"name": "deepspeed", "offload": True}}
    assert make_job(same, PretrainJob, "").fingerprint == job.fingerprint
    for section, keys in (("model", {"width": 128}), ("schedule", {"pairs": 72}), ("data", {"batch": 16})):
        assert small_job("out", **{section: keys}).fingerprint != job.fingerprint
    assert small_job("out").model_copy(update={"seed": 6}).fingerprint != job.fingerprint


def test_pairs_are_whole_batches() -> None:
    job = small_job("out", schedule={"pairs": 70})
    assert (job.steps, job.pairs) == (8, 64)


def printed(job: PretrainJob, manifest: Manifest | None) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(bill(job, manifest))
    return capture.get()


def test_the_bill_without_and_with_a_dataset(tmp_path: Path) -> None:
    job = small_job("out", dataset="runs/nowhere")
    assert "runs/nowhere: not built yet" in printed(job, None)
    assert "the job has no price" in printed(job, None)
    text = printed(make_job({**resolved(job), "price": PRICE}, PretrainJob, ""), small_dataset(tmp_path, pairs=32))
    for part in ("64 in 8 steps of 8", "32 pairs", "2.00", "plain engine", "on 1 × X at 50% of 100 TFLOP/s", "USD"):
        assert part in text


def test_the_bill_adds_up() -> None:
    job = make_job({**resolved(small_job("out")), "price": PRICE}, PretrainJob, "")
    needed = hours(job)
    assert needed is not None
    assert needed * 3600 * 100e12 * 0.5 == pytest.approx(train_flops(job.model, 64))


def test_the_bill_of_a_micro_batch_tells_the_second_pass_and_the_memory_of_a_chunk() -> None:
    at_once = make_job({**resolved(small_job("out")), "price": PRICE}, PretrainJob, "")
    cached = at_once.model_copy(update={"data": at_once.data.model_copy(update={"micro_batch": 2})})
    assert (hours(cached) or 0) / (hours(at_once) or 1) == pytest.approx(4 / 3)
    assert "2 pairs a worker, each twice" in printed(cached, None)
    assert "encoded at once" not in printed(at_once, None)


def test_the_bill_tells_what_checkpointing_costs_and_offloading_moves() -> None:
    engine = {"name": "deepspeed", "zero_stage": 2, "offload": True}
    job = small_job("out", engine=engine, activation_checkpointing=True)
    assert (done_flops(job) / training_flops(job, job.pairs)) == pytest.approx(4 / 3)
    text = printed(job, None)
    assert "DeepSpeed ZeRO 2, optimizer on the CPU" in text
    assert "each layer once more in the backward" in text
    lines = [line for line in text.splitlines() if "memory, ZeRO" in line]
    assert [line.split("memory, ZeRO ")[1][0] for line in lines] == ["0", "1", "2", "3"]
    assert ["optimizer 0 B" in line for line in lines] == [False, True, True, True]
    assert text.count("of CPU memory") == 3


def test_the_bill_counts_what_an_objective_looks_at() -> None:
    """DeCLIP: two pictures and two texts. PyramidCLIP: two pictures, three texts, regions in the rear layers."""
    clip, declip = small_job("out"), small_declip("out")
    assert pair_flops(clip) == forward_flops_per_pair(clip.model)
    assert pair_flops(declip) == 2 * forward_flops_per_pair(declip.model)
    model = {"region_width": 5, "front_layers": 1, "depth": 3, "image_hierarchy": False}
    pyramid = small_job("out", objective={"name": "pyramidclip"}, model=model)
    expected = 2 * image_flops(pyramid.model) + 3 * text_flops(pyramid.model) + region_flops(pyramid.model, 10)
    assert pair_flops(pyramid) == expected
    assert "2 × picture, 2 × text (declip)" in printed(declip, None)
    assert "2 × picture, 3 × text, 10 regions (pyramidclip)" in printed(pyramid, None)
    memory = [worker_memory(job, None) for job in (clip, declip)]
    # Two losses of a direction; and of DeCLIP eight, four with neighbours, and three copies of all words' logits.
    pairs, batch = clip.data.batch // clip.workers.count, clip.data.batch
    queue = resolved(declip)["objective"]["queue"]
    words = min(1024, pairs * resolve(declip.model).context) * resolve(declip.model).vocabulary
    assert memory[0].logits == 4 * (2 + 2) * pairs * batch
    assert memory[1].logits == 4 * (8 + 4 + 2) * pairs * batch + 4 * 3 * words + 4 * pairs * queue
    assert f"logits {memory[1].logits / 1e6:.3g} MB" in printed(declip, None)
    twice = device_memory(declip.model, pairs, "fp32", None, 1, pictures=2, texts=2)
    assert memory[1].activations == twice.activations > 1.3 * memory[0].activations
    assert memory[1].gradients - memory[0].gradients == 4 * (own_numbers(declip).trained + 64)  # and the mask's row


def test_a_dataset_without_an_objectives_columns_is_refused(tmp_path: Path) -> None:
    small_dataset(tmp_path, pairs=32)
    job = small_job("out", dataset=str(tmp_path), objective={"name": "pyramidclip", "regions": False})
    with pytest.raises(DatasetError) as caught:
        stream_plan(job)
    assert "objective pyramidclip asks for the views global_crop, local_crop, summary, caption, tags" in str(
        caught.value
    )
    assert "which need the columns caption_summary, object_tags; the dataset has pair_id" in str(caught.value)
    assert "annotation" in str(caught.value)


def small_declip(out: str) -> PretrainJob:
    return small_job(out, objective={"name": "declip", "queue": 1000}, model={"vocabulary": 49_409})


@pytest.mark.parametrize("make", [small_job, small_declip])
def test_a_checkpoint_is_as_large_as_the_bill_says(tmp_path: Path, make: Callable[[str], PretrainJob]) -> None:
    job = make(str(tmp_path))
    place = RunPlace(job.out, "fingerprint of the data", None)
    run_rank(job, place, None, lambda step: random_batches(job, step), lambda row: None)
    last = tmp_path / "checkpoints" / "seen-000000000064"
    measured = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    assert measured == pytest.approx(checkpoint_bytes(job), rel=0.03)
