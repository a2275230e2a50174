"""Measures a checkpoint, or several side by side, draws their hierarchies, writes columns about a dataset:
`python -m hiclip.evaluate JOB.yaml [key.path=value ...] [--dry-run]`; or sets finished evaluations side by side:
`python -m hiclip.evaluate --compare RUN RUN [RUN ...] [--out FOLDER]`.

The same command again takes what was computed before; a finished evaluation says so and computes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

from rich.console import Group, RenderableType

from hiclip.evaluation.evaluate_job import EvaluateJob
from pipeline.command import console, run_command
from pipeline.storage import Folder, folder

if TYPE_CHECKING:
    from hiclip.evaluation.asked import Asked
    from hiclip.evaluation.outcome import Outcome


_JOINED_AS = {"clip_score": "float", "embedding": "floats"}
"""Type of each column in the words of `joined_columns`."""


_EPILOG = "Finished evaluations side by side: --compare RUN RUN [RUN ...], see --compare --help."


def _plan(job: EvaluateJob) -> RenderableType:
    # Here and below, so that a mistake in the job is told before torch has loaded.
    from hiclip.evaluation.asked import ask, ask_each
    from hiclip.evaluation.evaluation_bill import bill
    from hiclip.evaluation.several_checkpoints import one_by_one

    each = [ask(job)] if isinstance(job.checkpoint, str) else ask_each(one_by_one(job)).values()
    return Group(*(bill(asked, job.ray.num_cpus or os.cpu_count() or 1) for asked in each))


def _run(job: EvaluateJob) -> str:
    return _run_one(job) if isinstance(job.checkpoint, str) else _run_each(job)


def _run_one(job: EvaluateJob) -> str:
    from hiclip.evaluation.asked import ask
    from hiclip.evaluation.outcome import RESULT

    outcome = _evaluated(ask(job))
    _show(job, outcome)
    return folder(job.out).join(RESULT)


def _run_each(job: EvaluateJob) -> str:
    """All checkpoints, one after the other, and how they differ."""
    from hiclip.evaluation.asked import ask_each
    from hiclip.evaluation.compare import read_runs
    from hiclip.evaluation.compare_command import FILES, write_comparison
    from hiclip.evaluation.outcome import RESULT
    from hiclip.evaluation.published_rows import DEFAULT_DATA, DEFAULT_ENCODER, chosen_rows
    from hiclip.evaluation.several_checkpoints import Outcomes, finished_outcomes, key_of, one_by_one
    from pipeline.ray_session import ray_session

    jobs, out = one_by_one(job), folder(job.out).make()
    each = ask_each(jobs)
    key = key_of({name: asked.key for name, asked in each.items()})
    outcomes = {}
    # Ray starts once for all of them, and not at all if all are finished.
    with nullcontext() if all(_finished(asked) for asked in each.values()) else ray_session(job.ray):
        for number, (name, asked) in enumerate(each.items(), 1):
            console.print(f"evaluate: {name}, checkpoint {number} of {len(each)}")
            outcomes[name] = _evaluated(asked, shared=out)
    if finished_outcomes(out, key) is None:
        runs = read_runs([one.out for one in jobs.values()], list(jobs))
        console.print()
        write_comparison(runs, out, chosen_rows(DEFAULT_ENCODER, DEFAULT_DATA), job.draws)
        everything = Outcomes(name=job.name, key=key, outcomes=outcomes, files=list(FILES))
        out.write_text(RESULT, everything.model_dump_json(indent=1) + "\n")
    else:
        console.print(f"page      {out.join(FILES[0])}", markup=False)
    for name, outcome in outcomes.items():
        _show_left_out(outcome, f"{name}: ")
        console.print(f"{name}: {folder(jobs[name].out).join(outcome.report)}", markup=False)
    _show_mlflow(next(iter(jobs.values())))
    return out.join(RESULT)


def _finished(asked: Asked) -> Outcome | None:
    from hiclip.evaluation.outcome import finished_outcome

    whole = asked.columns is None or asked.columns.written is not None
    return finished_outcome(folder(asked.job.out), asked.key) if whole else None


def _evaluated(asked: Asked, shared: Folder | None = None) -> Outcome:
    """The outcome of one checkpoint, as it was left or computed now."""
    from hiclip.evaluation.ray_blocks import RayBlocks
    from hiclip.evaluation.run_evaluation import evaluate
    from hiclip.evaluation.run_sets import measured_before
    from hiclip.evaluation.watched_blocks import WatchedBlocks
    from pipeline.mlflow_address import check_reachable
    from pipeline.mlflow_tracker import deliver_rest
    from pipeline.ray_session import ray_session

    job, out, columns = asked.job, folder(asked.job.out), asked.columns
    outcome = _finished(asked)
    if outcome is not None:
        console.print(f"evaluate: {out.root} is finished: {asked.model.training}; nothing was computed")
        run_id = None if asked.model.state is None else asked.model.state.mlflow_run_id
        deliver_rest(job.mlflow, job.out, job.name, run_id, adds=True)
        return outcome
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
        return evaluate(asked, blocks, out, shared)


def _show(job: EvaluateJob, outcome: Outcome) -> None:
    """The table, one tree, and where to look."""
    from hiclip.evaluation.averages import eleven_sets
    from hiclip.evaluation.table import results_table

    out = folder(job.out)
    console.print()
    for name in outcome.sets:
        console.print(results_table(name, [result for result in outcome.results if result.set == name]))
    average = eleven_sets(outcome.results)
    if average.there:
        console.print(f"average of the eleven sets: {average}", markup=False)
    _show_left_out(outcome)
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
    _show_mlflow(job)


def _show_left_out(outcome: Outcome, whose: str = "") -> None:
    """What was not there or could not be read."""
    for name, why in outcome.missing.items():
        console.print(f"missing   {whose}{name}: {why}", markup=False)
    for name, count in outcome.broken.items():
        said = f"{whose}{name}: {count:,} pictures could not be read, scored as wrong"
        console.print(f"broken    {said}; to ask again once they can be read, choose another out", markup=False)


def _show_mlflow(job: EvaluateJob) -> None:
    from pipeline.mlflow_address import tracking_uri, without_secrets

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
