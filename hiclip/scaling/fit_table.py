"""`python -m hiclip.scale --fit-only TABLE.csv`: the laws of a table that somebody else measured; trains nothing."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from hiclip.scaling.analysis import Analysis, analyse, compare
from hiclip.scaling.chosen_rungs import Selection
from hiclip.scaling.findings import Findings
from hiclip.scaling.measured_table import read_table
from hiclip.scaling.robust_fit import Form
from hiclip.scaling.study_folder import REPORT, RESULT, TABLE, write_result
from hiclip.scaling.study_view import answers, findings_table
from pipeline.jobfile import InputError
from pipeline.storage import Folder, absolute

FIT_ONLY = "--fit-only"


def fit_table(words: Sequence[str], prog: str | None, console: Console) -> str:
    """Fits, writes the same files as a study, and returns the path of result.json. `words`: the command line."""
    given = _parser(prog).parse_args(words)
    began = time.monotonic()
    if given.draws < 100 or given.bins < 2:
        raise InputError(f"expected at least 100 draws and 2 bins, came {given.draws} and {given.bins}")
    if given.seed < 0:
        raise InputError(f"--seed: expected 0 or more, came {given.seed}")
    wrong = next((one for one in given.budgets if not (math.isfinite(one) and one > 0)), None)
    if wrong is not None:
        raise InputError(f"--budgets: expected finite numbers above 0, came {wrong:g}")
    place = Folder(absolute(given.out or str(Path(given.fit_only).with_suffix("")) + "-law"))
    _check_free(place)
    points = read_table(given.fit_only)
    how = Analysis(given.form, given.selection, given.bins, given.draws, given.seed, tuple(given.budgets))
    laws = analyse(points, how)
    name = Path(given.fit_only).stem
    findings = Findings(
        name, given.error, given.unit, laws.found, None, ratios=compare(laws.found), refused=laws.refused
    )
    result = write_result(
        place, findings, {"name": name, "table": place.join(TABLE), "seconds": time.monotonic() - began}
    )
    if Path(absolute(given.fit_only)) != Path(place.join(TABLE)):
        place.upload(given.fit_only, TABLE)
    console.print(findings_table(findings))
    console.print(findings.sentence(), markup=False)
    for line in answers(findings):
        console.print(f"scale: {line}.", markup=False)
    return result


def _check_free(place: Folder) -> None:
    """InputError if the folder holds what is no earlier fit's."""
    if place.exists("job.yaml"):
        raise InputError(f"--out: {place.root} holds a study, whose result would be lost; choose another folder")
    if place.exists(RESULT):
        try:
            earlier = json.loads(place.read_text(RESULT))
        except ValueError:
            earlier = None
        if not (isinstance(earlier, dict) and {"table", "methods"} <= set(earlier)):
            raise InputError(f"--out: {place.join(RESULT)} is no fit's; choose another folder")
    elif place.exists(REPORT):
        raise InputError(f"--out: {place.join(REPORT)} would be lost; choose another folder")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Fit scaling laws to a table of measured runs.")
    option = parser.add_argument
    known = "model, seen, parameters, unique, method, error_low, error_high"
    option(FIT_ONLY, required=True, metavar="TABLE.csv", help=f"columns compute, error; and what is known of {known}")
    forms = "power: error = a·C^b; power_with_floor: E + a·C^b; shifted_power: E + a·(C + C0)^b"
    option("--form", choices=get_args(Form), default="power", help=forms)
    stands = "the runs that the law of compute stands on: all, the frontier, or the best of each bin of log compute"
    option("--selection", choices=get_args(Selection), default="all", help=stands)
    option("--bins", type=int, default=5, help="parts of log compute, for --selection bins")
    option("--draws", type=int, default=2000, help="tables drawn for the bands")
    option("--seed", type=int, default=0, help="seed of the draws")
    budgets = "compute of single runs for which the best size and pairs are told"
    option("--budgets", type=float, nargs="*", default=[], help=budgets)
    parser.add_argument("--unit", default="FLOPs", help="unit of the column compute, for the reader")
    parser.add_argument("--error", default="error", help="what the column error is, for the reader")
    parser.add_argument("--out", help="folder or s3:// address that is written to; default: beside the table")
    return parser
