"""Measures a checkpoint, draws its hierarchies, writes columns about a dataset:
`python -m hiclip.evaluate JOB.yaml [key.path=value ...] [--dry-run]`; or sets finished evaluations side by side:
`python -m hiclip.evaluate --compare RUN RUN [RUN ...] [--out FOLDER]`.

The same command again takes what was computed before; a finished evaluation says so and computes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from rich.console import RenderableType

from hiclip.evaluation.evaluate_job import EvaluateJob
from pipeline.command import console, run_command
from pipeline.storage import folder

if TYPE_CHECKING:
    from hiclip.evaluation.outcome import Outcome


_JOINED_AS = {"clip_score": "float", "embedding": "floats"}
"""Type of each column in the words of `joined_columns`."""


_EPILOG = "Finished evaluations side by side: --compare RUN RUN [RUN ...], see --compare --help."


def _plan(job: EvaluateJob) -> RenderableType:
    from hiclip.evaluation.asked import ask
    from hiclip.evaluation.evaluation_bill import bill

    return bill(ask(job), job.ray.num_cpus or os.cpu_count() or 1)


def _run(job: EvaluateJob) -> str:
    # Here, so that a mistake in the job is told before torch has loaded.
    from hiclip.evaluation.asked import ask
    from hiclip.evaluation.outcome import RESULT, finished_outcome
    from hiclip.evaluation.ray_blocks import RayBlocks
    from hiclip.evaluation.run_evaluation import evaluate
    from hiclip.evaluation.run_sets import measured_before
    from hiclip.evaluation.watched_blocks import WatchedBlocks
    from pipeline.mlflow_address import check_reachable
    from pipeline.mlflow_tracker import deliver_rest
    from pipeline.ray_session import ray_session

    asked, out = ask(job), folder(job.out)
    outcome = finished_outcome(out, asked.key)
    columns = asked.columns
    if outcome is not None and (columns is None or columns.written is not None):
        console.print(f"evaluate: {out.root} is finished: {asked.model.training}; nothing was computed")
        run_id = None if asked.model.state is None else asked.model.state.mlflow_run_id
        deliver_rest(job.mlflow, job.out, job.name, run_id, adds=True)
    else:
        check_reachable(job.mlflow, job.out)
        out.make()
        console.print(f"evaluate: {asked.model.root}, {asked.model.training}")
        for content in asked.contents:
            if measured_before(asked, content, out):
                console.print(f"evaluate: {content.name} was measured before an interruption and is taken as it is")
        if columns is not None and columns.written is None:
            found = len(columns.to.names("part-", ".parquet"))
            made = f", {found:,} of them made before an interruption" if found else ""
            console.print(f"evaluate: columns of {columns.manifest.pairs:,} pairs in {columns.parts:,} parts{made}")
        with ray_session(job.ray):
            blocks = WatchedBlocks(RayBlocks(job.workers.cpus, job.workers.gpus), console)
            outcome = evaluate(asked, blocks, out)
    _show(job, outcome)
    return out.join(RESULT)


def _show(job: EvaluateJob, outcome: Outcome) -> None:
    """The table, one tree, and where to look."""
    from hiclip.evaluation.averages import eleven_sets
    from hiclip.evaluation.table import results_table
    from pipeline.mlflow_address import tracking_uri, without_secrets

    out = folder(job.out)
    console.print()
    for name in outcome.sets:
        console.print(results_table(name, [result for result in outcome.results if result.set == name]))
    average = eleven_sets(outcome.results)
    if average.there:
        console.print(f"average of the eleven sets: {average}", markup=False)
    for name, why in outcome.missing.items():
        console.print(f"missing   {name}: {why}", markup=False)
    for name, count in outcome.broken.items():
        again = "to ask again once they can be read, choose another out"
        console.print(f"broken    {name}: {count:,} pictures could not be read, scored as wrong; {again}", markup=False)
    if outcome.tree:
        console.print(f"the tree that the model finds in a caption\n\n{outcome.tree}\n", markup=False)
    columns = outcome.columns
    if columns is not None:
        broken = f", {columns.broken:,} of them null for broken pictures" if columns.broken else ""
        console.print(f"columns   {columns.rows:,} rows{broken}, in {columns.to}; a build takes them by", markup=False)
        adds = ", ".join(f"{name}: {_JOINED_AS[name]}" for name in columns.adds)
        console.print(f"          - {{name: joined_columns, table: {columns.to}, adds: {{{adds}}}}}", markup=False)
    console.print(f"page      {out.join(outcome.report)}, results.md and results.csv beside it", markup=False)
    if outcome.pictures:
        console.print(
            f"drawings  {len(outcome.pictures)} beside it, e.g. {out.join(outcome.pictures[0])}", markup=False
        )
    uri = without_secrets(tracking_uri(job.mlflow, job.out))
    console.print(f"MLflow    mlflow ui --backend-store-uri {uri}", markup=False)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command, with the arguments of the process unless others are given."""
    given = sys.argv[1:] if argv is None else argv
    if "--compare" in given:
        from hiclip.evaluation.compare_command import compare_command

        compare_command(given)
    run_command(EvaluateJob, _plan, _run, given, epilog=_EPILOG)


if __name__ == "__main__":
    main()
