"""`python -m hiclip.evaluate --compare RUN RUN [RUN ...] [--out FOLDER] [--published ENCODER DATA]`: reads finished
evaluations, prints the comparison, and leaves it as a page, Markdown and CSV.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hiclip.evaluation.compare import ComparedRun, compare, read_runs
from hiclip.evaluation.compare_page import compare_page
from hiclip.evaluation.compare_tables import (
    by_set,
    comparison_csv,
    comparison_markdown,
    comparison_table,
    explained,
    remarks,
)
from hiclip.evaluation.published_rows import DEFAULT_DATA, DEFAULT_ENCODER, PublishedRow, chosen_rows
from pipeline.command import console, program, run_to_end
from pipeline.jobfile import InputError
from pipeline.storage import Folder, folder

FILES = PAGE, MARKDOWN, CSV = "compare.html", "compare.md", "compare.csv"


def compare_command(argv: Sequence[str]) -> NoReturn:
    """The command, with its arguments; ends the process."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Sets finished evaluations side by side, with intervals of their differences."
    )
    parser.add_argument("--compare", nargs="+", required=True, metavar="RUN", help="folders of finished evaluations; "
                        "differences are to the first")  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help=f"where {PAGE}, {MARKDOWN} and {CSV} go; without it the folder "
                        "compare in the first RUN")  # fmt: skip
    parser.add_argument("--published", nargs=2, metavar=("ENCODER", "DATA"), default=(DEFAULT_ENCODER, DEFAULT_DATA),
                        help="which published rows stand beside; without it %(default)s")  # fmt: skip
    parser.add_argument("--draws", type=int, default=1000, help="resamples behind each interval")
    given = parser.parse_args(argv)
    run_to_end(parser.prog, lambda: _compare(given.compare, given.out, given.published, given.draws))


def _compare(paths: Sequence[str], out: str | None, published: Sequence[str], draws: int) -> str:
    if draws < 100:
        raise InputError(f"--draws: expected 100 or more, came {draws}")
    rows = chosen_rows(*published)
    runs = read_runs(paths)
    target = runs[0].place.child("compare") if out is None else folder(out)
    write_comparison(runs, target.make(), rows, draws)
    return target.join(CSV)


def write_comparison(runs: Sequence[ComparedRun], target: Folder, rows: Sequence[PublishedRow], draws: int) -> None:
    """Compares the runs, beside the published rows: page, Markdown and CSV in `target`, and the tables printed."""
    comparison = compare(runs, draws=draws)
    target.write_text(CSV, comparison_csv(comparison))
    target.write_text(MARKDOWN, comparison_markdown(comparison, rows))
    target.write_text(PAGE, compare_page(comparison, rows))
    for name, lines in by_set(comparison):
        console.print(comparison_table(comparison, name, lines))
        for said in remarks(comparison, lines):
            console.print(said, markup=False)
        console.print()
    console.print(explained(comparison), markup=False)
    console.print(f"page      {target.join(PAGE)}", markup=False)
