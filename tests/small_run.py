"""A pretraining job and batches small enough for a test: random pictures and captions, a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hiclip.batch import MASK_TOKEN, NOT_PREDICTED, TARGETS, Batch, Views
from hiclip.training.pretrain_job import PretrainJob
from pipeline.jobfile import make_job

IMAGE_PX, CONTEXT, END = 16, 8, 49_407
REGIONS, REGION_WIDTH = 3, 5


def small_job(out: str, dataset: str = "nowhere", **changes: Any) -> PretrainJob:
    """A job of 8 steps of 8 pairs on the plain engine in fp32; `changes` replace keys, a section's one by one."""
    content: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "out": out,
        "data": {"dataset": dataset, "batch": 8},
        "model": {"width": 64, "depth": 1, "image_px": IMAGE_PX, "context": CONTEXT, "embedding": 64},
        "objective": {"name": "clip"},
        "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0},
        "schedule": {"pairs": 64, "warmup_pairs": 16},
        "engine": {"name": "plain"},
        "precision": "fp32",
        "workers": {"count": 1, "cpus": 0.5, "restarts": 0},
        "checkpoints": {"every_pairs": 24, "keep": 3},
        "ray": {"num_cpus": 2},
    }
    for section, keys in changes.items():
        content[section] = {**content.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return make_job(content, PretrainJob, "small job")


def random_batches(job: PretrainJob, first_step: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The rank's part of every step's batch from `first_step` to the end of the job, in the views of its objective."""
    for step in range(first_step, job.steps):
        chance = torch.Generator().manual_seed(step)
        batch = random_batch(job.objective.views, job.data.batch, chance, f"pair-{step}")
        yield batch.part(rank * job.data.batch // world, (rank + 1) * job.data.batch // world)


def random_batch(views: Views, pairs: int, chance: torch.Generator, name: str = "pair") -> Batch:
    """Noise in all views: captions of five tokens and an end; targets at the second and fourth place."""
    images = {view: torch.randn(pairs, 3, IMAGE_PX, IMAGE_PX, generator=chance) for view in views.images}
    tokens = {}
    for view in views.texts:
        tokens[view] = torch.randint(1, END, (pairs, CONTEXT), generator=chance)
        tokens[view][:, 5], tokens[view][:, 6:] = END, 0
        if view.endswith(TARGETS):
            tokens[view][:, [0, 2, 4, 5, 6, 7]] = NOT_PREDICTED
            tokens[view.removesuffix(TARGETS)][:, 3] = MASK_TOKEN
    regions = {view: torch.randn(pairs, REGIONS, REGION_WIDTH, generator=chance) for view in views.regions}
    return Batch(images, tokens, [f"{name}-{number}" for number in range(pairs)], regions)
