"""The bill of a pretraining job, before anything is started: what it will read, compute, hold and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from hiclip.data.mixture import mixture_of
from hiclip.training.cost import parameters
from hiclip.training.job_cost import (
    checkpoint_bytes,
    done_passes,
    own_numbers,
    passes,
    training_flops,
    worker_memory,
)
from hiclip.training.pretrain_job import PretrainJob
from pipeline.manifest import Manifest


def bill(job: PretrainJob, *manifests: Manifest | None) -> Table:
    """The bill as a table; `manifests`: of the job's datasets, in its order; None for one that is not built yet."""
    table = Table(title=f"{job.name}: the bill", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(job, manifests):
        table.add_row(name, value)
    return table


def hours(job: PretrainJob) -> float | None:
    """Hours of the whole run at the assumed share of the devices' peak; None without a price."""
    if job.price is None:
        return None
    rate = job.workers.count * job.price.peak_tflops * 1e12 * job.price.utilization
    return done_flops(job) / rate / 3600


def done_flops(job: PretrainJob) -> float:
    """FLOPs of the whole run as it is done, with the forwards that are done again to hold less."""
    return training_flops(job, job.pairs) * done_passes(job)


def _lines(job: PretrainJob, manifests: Sequence[Manifest | None]) -> Iterator[tuple[str, str]]:
    yield from _data_lines(job, manifests)
    own = own_numbers(job)
    heads = f", and {own.trained:,} of the objective's heads" if own.trained else ""
    memory = f"; it remembers {own.kept:,} numbers" if own.kept else ""
    yield "parameters", f"{parameters(job.model):,}{heads}{memory}"
    yield "a pair is shown as", f"{passes(job)} ({job.objective.name})"
    flops = training_flops(job, job.pairs)
    yield "arithmetic", f"{flops:.3g} FLOPs, {flops / job.pairs / 1e9:.3g} GFLOPs a pair, {job.precision}"
    if job.data.micro_batch is not None:
        yield (
            "encoded at once",
            f"{job.data.micro_batch:,} pairs a worker, each twice: {done_flops(job):.3g} FLOPs are done",
        )
    if job.activation_checkpointing:
        yield "activation checkpointing", f"each layer once more in the backward: {done_flops(job):.3g} FLOPs are done"
    yield "workers", f"{job.workers.count} × ({job.workers.cpus:g} CPU, {job.workers.gpus:g} GPU), {_engine(job)}"
    for stage in (0, 1, 2, 3):
        yield f"memory, ZeRO {stage}", _memory(job, stage)
    saved = -(-job.pairs // job.checkpoints.every_pairs)
    size, keep = checkpoint_bytes(job), job.checkpoints.keep
    at_least = "" if job.checkpoints.every_minutes is None else "at least "
    yield (
        "checkpoints",
        f"{at_least}{saved} of {_size(size)}; {keep} stay, one is being written: {_size(size * (keep + 1))}",
    )
    if job.evaluation is not None:
        names = ", ".join(settings.name for settings in job.evaluation.sets)
        yield "evaluation", f"{names} every {job.evaluation.every_pairs:,} pairs, beside training"
    yield from _price_lines(job)


def _data_lines(job: PretrainJob, manifests: Sequence[Manifest | None]) -> Iterator[tuple[str, str]]:
    yield "pairs seen", f"{job.pairs:,} in {job.steps:,} steps of {job.data.batch:,}"
    datasets, built = job.data.datasets, [manifest for manifest in manifests if manifest is not None]
    mixture = mixture_of(datasets, built) if len(built) == len(datasets) else None
    for place, (dataset, manifest) in enumerate(zip(datasets, manifests, strict=True)):
        if manifest is None:
            yield "dataset", f"{dataset.path}: not built yet, see pipeline.build"
            continue
        name = f"{dataset.path}: " if len(datasets) > 1 else ""
        unique = job.data.unique_pairs or manifest.pairs
        size = sum(shard.bytes for shard in manifest.shards)
        yield "dataset", f"{name}{manifest.pairs:,} pairs, {_size(size)}, fingerprint {manifest.fingerprint[:12]}"
        if unique != manifest.pairs:
            yield "shown of it", f"{unique:,} pairs"
        if mixture is None:
            continue
        epochs = f"{mixture.counts(job.pairs)[place] / unique:.2f}"
        if len(datasets) > 1:
            share = float(mixture.share(place))
            yield "of a batch", f"{share:.2%}, {share * job.data.batch:,.1f} pairs, {epochs} epochs"
        else:
            yield "epochs", epochs


def _price_lines(job: PretrainJob) -> Iterator[tuple[str, str]]:
    needed, price = hours(job), job.price
    if needed is None or price is None:
        yield "time and money", "unknown: the job has no price"
        return
    devices = job.workers.count
    yield (
        "time",
        f"{needed:,.1f} h on {devices} × {price.device} at {price.utilization:.0%} of {price.peak_tflops:g} TFLOP/s",
    )
    yield "money", f"{needed * devices * price.per_hour:,.2f} {price.currency} at {price.per_hour:g} a device and hour"


def _memory(job: PretrainJob, stage: int) -> str:
    held = worker_memory(job, stage)
    return (
        f"{_size(held.total)} a worker: weights {_size(held.weights)}, gradients {_size(held.gradients)}, "
        f"optimizer {_size(held.optimizer)}, activations about {_size(held.activations)}, "
        f"logits {_size(held.logits)}" + (f"; {_size(held.host)} of CPU memory" if held.host else "")
    )


def _engine(job: PretrainJob) -> str:
    if job.engine.name == "plain":
        return "plain engine"
    return f"DeepSpeed ZeRO {job.engine.zero_stage}{', optimizer on the CPU' if job.engine.offload else ''}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
