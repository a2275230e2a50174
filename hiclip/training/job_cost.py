"""What a job costs: the cost of its model (`hiclip.training.cost`) times what its objective looks at, and the heads and
the memory of the objective itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hiclip.training.cost import DeviceMemory, device_memory, image_flops, parameters, region_flops, text_flops
from hiclip.training.pretrain_job import PretrainJob

_FP32 = 4


@dataclass(frozen=True)
class OwnNumbers:
    """Numbers that an objective holds beside the towers."""

    trained: int
    """Of its heads."""
    kept: int
    """Of what it remembers, as the queue of neighbours."""


def own_numbers(job: PretrainJob) -> OwnNumbers:
    """Counted on a module that takes no memory."""
    with torch.device("meta"):
        objective = job.objective.build(job.model)
    return OwnNumbers(
        sum(parameter.numel() for parameter in objective.parameters()),
        sum(buffer.numel() for buffer in objective.buffers()),
    )


def passes(job: PretrainJob) -> str:
    """What the towers are shown of a pair, in words."""
    views = job.objective.views
    shown = [f"{len(views.images)} × picture", f"{len(views.captions)} × text"]
    return ", ".join([*shown, f"{job.data.views.most_regions} regions"][: None if views.regions else 2])


def pair_flops(job: PretrainJob) -> float:
    """FLOPs of the forward of one pair, all its views through the towers; heads (DeCLIP's: 1 %) are not counted."""
    views, model = job.objective.views, job.model
    flops = len(views.images) * image_flops(model) + len(views.captions) * text_flops(model)
    if views.regions:
        flops += region_flops(model, job.data.views.most_regions)
    return flops


def training_flops(job: PretrainJob, seen: int) -> float:
    """FLOPs of training on `seen` pairs: the backward counts twice the forward."""
    return 3 * pair_flops(job) * seen


def done_passes(job: PretrainJob) -> float:
    """What is computed, in units of what training counts (three forwards): a fourth forward for gradient caching, and
    another for activation checkpointing."""
    return (3 + (job.data.micro_batch is not None) + job.activation_checkpointing) / 3


def worker_memory(job: PretrainJob, zero_stage: int | None) -> DeviceMemory:
    """Bytes on the device of one worker under a stage of ZeRO, None for the plain engine. Regions, a few tokens, are
    not counted."""
    views, workers = job.objective.views, job.workers.count
    own = own_numbers(job)
    return device_memory(
        job.model,
        job.data.batch // workers,
        job.precision,
        zero_stage,
        workers,
        job.data.micro_batch,
        offload=job.engine.name == "deepspeed" and job.engine.offload,
        checkpointing=job.activation_checkpointing,
        pictures=len(views.images),
        texts=len(views.captions),
        heads=own.trained,
        kept=own.kept,
        logits=job.objective.logit_bytes(job.model, job.data.batch // workers, job.data.batch),
    )


def checkpoint_bytes(job: PretrainJob) -> float:
    """Bytes of one checkpoint: weights, AdamW's two moments, and what the objective remembers."""
    own = own_numbers(job)
    return 3 * _FP32 * (parameters(job.model) + own.trained) + own.kept * _FP32
