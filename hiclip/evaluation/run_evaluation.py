"""One evaluation from start to end: numbers, columns, drawings, the page, MLflow's record, last of all result.json."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from hiclip.evaluation.agreement_figure import layers_figure, parse_figure
from hiclip.evaluation.asked import Asked
from hiclip.evaluation.averages import eleven_sets
from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.columns import WrittenColumns, write_columns
from hiclip.evaluation.embed import Embedder
from hiclip.evaluation.heads.measure_heads import HeadMeasurer, MeasuredHead
from hiclip.evaluation.hierarchies import Drawing, draw_hierarchies
from hiclip.evaluation.linear_probe import probe_name
from hiclip.evaluation.measure import MeasuredSet
from hiclip.evaluation.outcome import RESULT, Outcome
from hiclip.evaluation.parsing import Parsed
from hiclip.evaluation.result_tables import results_csv, results_markdown
from hiclip.evaluation.results_page import results_page
from hiclip.evaluation.run_sets import MeasuredHierarchies, measure_hierarchies, measure_probes, measure_sets
from hiclip.evaluation.segment_agreement import Grouped
from hiclip.training.checkpoint import local_files
from hiclip.training.cost import parameters, train_flops
from pipeline.mlflow_tracker import open_tracker
from pipeline.storage import Folder

REPORT = "report.html"
TABLE_CSV = "results.csv"
TABLE_MARKDOWN = "results.md"


def evaluate(asked: Asked, map_blocks: MapBlocks, out: Folder, shared: Folder | None = None) -> Outcome:
    """Carries the evaluation out, writes everything to `out`, result.json last, and returns what that says.

    Sets that an earlier evaluation finished in `out`, and parts of columns, are not computed again. `shared`: where
    what depends on no model is remembered, for the next one; in `out` unless it is given.
    """
    job, seconds = asked.job, dict[str, float]()
    towers = asked.model.towers()
    with _timed("sets", seconds):
        device: Literal["cuda", "cpu"] = "cuda" if job.workers.gpus else "cpu"
        embedder = Embedder(towers, job.precision, device, max(1, int(job.workers.cpus)), job.centre_crop)
        measured = measure_sets(asked, embedder, map_blocks, out, shared or out)
    with _timed("linear_probe", seconds):
        probes = measure_probes(asked, embedder, map_blocks, out)
    heads: list[MeasuredHead] = []
    if asked.heads:
        with _timed("heads", seconds):
            measurer = HeadMeasurer(embedder, asked.model.weights, map_blocks, out, job.seed, job.batch, job.draws)
            heads = [measurer.measure(head) for head in asked.heads]
    with _timed("hierarchies", seconds):
        hierarchies = measure_hierarchies(asked, embedder, map_blocks, out)
    written = None
    if asked.columns is not None:
        with _timed("columns", seconds):
            written = write_columns(asked.columns, embedder, map_blocks)
    with _timed("drawings", seconds):
        drawings = draw_hierarchies(asked, towers.cpu()) if job.hierarchy is not None else []
        drawings += _agreements(hierarchies)
        for drawing in drawings:
            out.write_bytes(f"{drawing.name}.png", drawing.png)
            out.write_text(f"{drawing.name}.json", drawing.json)
    outcome = _outcome(asked, [*measured, *probes], heads, hierarchies, drawings, written)
    out.write_text(TABLE_CSV, results_csv(outcome, [*measured, *probes]))
    out.write_text(TABLE_MARKDOWN, results_markdown(outcome, [*measured, *probes]))
    shown = [*zip(asked.contents, measured, strict=True)]
    shown += zip((test for _, test in asked.probed), probes, strict=True)
    out.write_text(REPORT, results_page(outcome, shown, drawings, heads))
    with _timed("mlflow", seconds):
        run_id = _record(asked, outcome, out)
    outcome = outcome.model_copy(update={"mlflow_run_id": run_id, "seconds": seconds})
    out.write_text(RESULT, outcome.model_dump_json(indent=1) + "\n")
    return outcome


def _agreements(hierarchies: MeasuredHierarchies) -> Iterator[Drawing]:
    """Pictures of the numbers about trees and groups."""
    parsed, grouped = hierarchies.parsed, hierarchies.grouped
    if parsed is not None:
        said = f"{parsed.sentences:,} sentences, {len(parsed.unaligned):,} more could not be aligned"
        yield Drawing("hierarchy/parsing", "agreement", said, parse_figure(parsed), _json(parsed))
    if grouped is not None:
        said = f"{grouped.pictures:,} pictures, {grouped.left_out:,} more left out"
        yield Drawing("hierarchy/segments", "agreement", said, layers_figure(grouped), _json(grouped))


def _json(agreement: Parsed | Grouped) -> str:
    return agreement.model_dump_json(exclude={"parts"}) + "\n"


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - began, 3)


def _outcome(
    asked: Asked,
    measured: Sequence[MeasuredSet],
    heads: Sequence[MeasuredHead],
    hierarchies: MeasuredHierarchies,
    drawings: Sequence[Drawing],
    columns: WrittenColumns | None,
) -> Outcome:
    model, state = asked.model, asked.model.state
    return Outcome(
        name=asked.job.name,
        key=asked.key,
        checkpoint=model.root,
        weights=model.weights,
        step=None if state is None else state.step,
        seen=None if state is None else state.seen,
        parameters=parameters(model.settings),
        train_flops=None if state is None else state.train_flops or train_flops(model.settings, state.seen),
        dataset=asked.dataset_fingerprint,
        sets={
            **{content.name: content.fingerprint for content in asked.contents},
            **{probe_name(test): test.fingerprint for _, test in asked.probed},
            **{head.label: head.fingerprint for head in asked.heads},
            **asked.hierarchy_questions,
        },
        missing=asked.missing,
        broken={one.set: one.seen.broken for one in measured if one.seen is not None and one.seen.broken},
        results=[result for one in measured for result in one.results]
        + [result for head in heads for result in head.results]
        + hierarchies.results,
        subgroups={one.set: one.subgroups for one in measured},
        pictures=[f"{drawing.name}.png" for drawing in drawings],
        tree=next((drawing.text for drawing in drawings if drawing.text), ""),
        columns=columns,
        report=REPORT,
    )


def _record(asked: Asked, outcome: Outcome, out: Folder) -> str | None:
    """Adds the results to the MLflow run that the checkpoint came from, or to a new one if that is not there."""
    state, job = asked.model.state, asked.job
    seen, run_id = (0, None) if state is None else (state.seen, state.mlflow_run_id)
    tracker = open_tracker(job.mlflow, job.out, job.name, run_id, adds=True)
    numbers = {f"{result.set}/{result.metric}": result.value for result in outcome.results}
    average = eleven_sets(outcome.results)
    if average.top1 is not None and average.by_convention is not None:
        numbers |= {"eleven_sets/top1": average.top1, "eleven_sets/by_convention": average.by_convention}
    tracker.metrics(numbers, seen)
    tracker.tag("evaluation", out.root)
    drawn = [*outcome.pictures, *(name.removesuffix("png") + "json" for name in outcome.pictures)]
    names = [REPORT, TABLE_CSV, TABLE_MARKDOWN, *drawn]
    with local_files(out, names) as here:
        for name in names:
            tracker.artifact(str(here / name), f"evaluation/seen-{seen:012d}")
    run_id = tracker.run_id
    tracker.close()
    return run_id
