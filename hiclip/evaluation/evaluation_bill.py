"""The bill of an evaluation, before anything is started: what will be computed, and about how long it takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from hiclip.evaluation.asked import Asked
from hiclip.evaluation.columns import AskedColumns
from hiclip.evaluation.embed import Embedder, picture_vectors, text_vectors
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.heads.measure_heads import AskedHead
from hiclip.evaluation.run_sets import measured_before
from hiclip.training.cost import forward_flops_per_pair, parameters
from pipeline.manifest import read_manifest
from pipeline.shards import DatasetReader
from pipeline.storage import folder

_PROBE = 32
"""Pictures and texts that are embedded to see how fast this machine is."""


def bill(asked: Asked, cpus: float) -> Table:
    """The bill as a table. `cpus`: how many the Ray that the command would start has."""
    table = Table(title=f"{asked.job.name}: the bill", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(asked, cpus):
        table.add_row(name, value)
    return table


def _lines(asked: Asked, cpus: float) -> Iterator[tuple[str, str]]:
    job, model = asked.job, asked.model
    yield "checkpoint", f"{model.root}, {model.training}"
    yield "model", f"{parameters(model.settings):,} parameters, {job.precision}"
    for content in asked.contents:
        yield content.name, _set_line(asked, content)
    for head in asked.heads:
        yield head.label, _head_line(head)
    for train, test in asked.probed:
        yield (
            f"linear_probe/{test.name}",
            f"{len(train.pictures):,} pictures to learn from, {len(test.pictures):,} to test",
        )
    if asked.trees:
        yield "parsing", f"{len(asked.trees):,} given trees"
    if asked.outlines:
        yield "segments", f"{len(asked.outlines):,} pictures with masks"
    for name, why in asked.missing.items():
        yield name, f"missing: {why}"
    columns = asked.columns
    pairs = 0 if columns is None or columns.written is not None else columns.manifest.pairs
    if columns is not None:
        yield "columns", _columns_line(columns)
    pictures = sum(len(content.pictures) for content in (*asked.contents, *itertools.chain(*asked.probed))) + pairs
    texts = sum(len(set(_texts(content))) for content in asked.contents)
    tasks = {head.fingerprint: head.task for head in asked.heads}.values()
    pictures += sum(len(task.pictures) for task in tasks)
    texts += sum(len(task.texts) for task in tasks)
    texts += pairs if columns is not None and "clip_score" in columns.settings.adds else 0
    pictures, texts = pictures + 2 * len(asked.outlines), texts + 2 * len(asked.trees)  # by the control too
    flops = forward_flops_per_pair(model.settings, all_tokens=False) * max(pictures, texts)
    yield "arithmetic", f"at most {flops:.3g} FLOPs for {pictures:,} pictures and {texts:,} texts"
    yield "time", _time_line(asked, pictures, texts, cpus)
    if asked.contents and asked.datasets and job.baselines.pixel_neighbours:
        pairs = sum(read_manifest(dataset).pairs for dataset in asked.datasets)
        yield "baseline", f"pixel neighbours among up to {pairs:,} training pictures of {', '.join(asked.datasets)}"
    if job.hierarchy:
        drawn = job.hierarchy.training_pairs if asked.datasets else 0
        captions, shown = (
            len(job.hierarchy.captions) + drawn,
            (job.hierarchy.set_pictures if asked.contents else 0) + drawn,
        )
        yield "drawings", f"{captions} captions as trees, {shown} pictures as groups"


def _set_line(asked: Asked, content: EvaluationSet) -> str:
    classes, found = content.classification, content.retrieval
    parts = [f"{len(content.pictures):,} pictures"]
    if classes is not None:
        parts.append(f"{len(classes.tree.classes):,} classes × {len(classes.templates)} prompts")
    if found is not None:
        parts.append(f"retrieval of {len(found.rows):,} pictures and {len(found.captions):,} captions")
    return ", ".join(parts) + (", measured before" if measured_before(asked, content, folder(asked.job.out)) else "")


def _head_line(head: AskedHead) -> str:
    task, epochs = head.task, head.training.epochs
    line = f"{len(task.train):,} questions × {epochs} epochs, {len(task.measured):,} measured, "
    line += f"{len(task.pictures):,} pictures, {len(task.answers):,} answers"
    return line + (", towers trained too: not in the time below" if head.training.mode == "finetune" else "")


def _texts(content: EvaluationSet) -> list[str]:
    prompts = content.classification.prompts() if content.classification is not None else []
    return [*prompts, *(content.retrieval.captions if content.retrieval is not None else ())]


def _columns_line(columns: AskedColumns) -> str:
    line = f"{', '.join(columns.settings.adds)} of {columns.manifest.pairs:,} rows, about "
    line += f"{columns.about_bytes / 1e6:,.3g} MB in {columns.parts:,} parts, to {columns.to.root}"
    return line + (", written before" if columns.written is not None else "")


def _probes(asked: Asked) -> tuple[Sequence[bytes], Sequence[str]]:
    """Some pictures and texts that the evaluation will embed; no pictures, or no texts, if it embeds none."""
    if asked.contents or asked.probed:
        content = (*asked.contents, *(test for _, test in asked.probed))[0]
        return content.pictures.read(range(min(_PROBE, len(content.pictures)))), _texts(content)[:_PROBE]
    if asked.heads:
        task = asked.heads[0].task
        return task.pictures.read(range(min(_PROBE, len(task.pictures)))), task.texts[:_PROBE]
    if asked.columns is None:
        masks = asked.job.hierarchy and asked.job.hierarchy.masks
        shown = [folder(masks.pictures).read_bytes(one.picture) for one in asked.outlines[:_PROBE]] if masks else []
        return shown, [" ".join(tree.words) for tree in asked.trees[:_PROBE]]
    reader = DatasetReader(asked.columns.settings.dataset, asked.columns.manifest)
    rows = reader.read_group(0, ["image", "caption"]).slice(0, _PROBE)
    return rows["image"].to_pylist(), rows["caption"].to_pylist()


def _time_line(asked: Asked, pictures: int, texts: int, cpus: float) -> str:
    job = asked.job
    if job.workers.gpus:
        return "unknown: the towers would run on GPUs"
    embedder = Embedder(asked.model.towers(), job.precision, "cpu", max(1, int(job.workers.cpus)))
    shown, labels = _probes(asked)
    seconds = 0.0
    for _ in range(2):  # the first time also wakes everything up
        seconds = _seconds(lambda: picture_vectors(embedder, shown)) / len(shown) * pictures if shown else 0.0
        seconds += _seconds(lambda: text_vectors(embedder, labels)) / len(labels) * texts if labels else 0.0
    tasks = max(1, int(cpus / job.workers.cpus))
    return f"about {seconds / tasks:,.0f} s of towers on {tasks} tasks, as {_PROBE} pictures take here, and a start"


def _seconds(compute: Callable[[], object]) -> float:
    began = time.perf_counter()
    compute()
    return time.perf_counter() - began
