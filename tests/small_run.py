"""A pretraining job and batches small enough for a test: random pictures and captions, a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hiclip.batch import Batch
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import make_job

IMAGE_PX, CONTEXT, END = 16, 8, 49_407


def small_job(out: str, dataset: str = "nowhere", **changes: dict[str, Any]) -> PretrainJob:
    """A job of 8 steps of 8 pairs on the plain engine in fp32; `changes` replace keys inside its sections."""
    content: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "out": out,
        "data": {"dataset": dataset, "batch": 8},
        "model": {"width": 64, "depth": 1, "image_px": IMAGE_PX, "context": CONTEXT, "embedding": 64},
        "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0},
        "schedule": {"pairs": 64, "warmup_pairs": 16},
        "engine": {"name": "plain"},
        "precision": "fp32",
        "workers": {"count": 1, "cpus": 0.5, "restarts": 0},
        "checkpoints": {"every_pairs": 24, "keep": 3},
        "ray": {"num_cpus": 2},
    }
    for section, keys in changes.items():
        content[section] = {**content[section], **keys}
    return make_job(content, PretrainJob, "small job")


def random_batches(job: PretrainJob, first_step: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The rank's part of every step's batch from `first_step` to the end of the job."""
    for step in range(first_step, job.steps):
        chance = torch.Generator().manual_seed(step)
        images = torch.randn(job.data.batch, 3, IMAGE_PX, IMAGE_PX, generator=chance)
        tokens = torch.randint(1, END, (job.data.batch, CONTEXT), generator=chance)
        tokens[:, 5], tokens[:, 6:] = END, 0
        own = slice(rank * job.data.batch // world, (rank + 1) * job.data.batch // world)
        ids = [f"pair-{step}-{number}" for number in range(job.data.batch)][own]
        yield Batch({"crop": images[own]}, {"caption": tokens[own]}, ids)
