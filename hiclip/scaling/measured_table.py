"""Reads a table of rungs that somebody else has measured: CSV with the columns `compute, error` and what else is known.

compute, error    of each run; the unit of compute is the table's own
model             its name; runs of one model are drawn alike
parameters        N                       seen     D, pairs consumed
unique            U, pairs of its dataset
method            a law for each          error_low, error_high   the error's 95 % interval
held_out          true: the run was predicted by a study; no law stands on it
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from hiclip.scaling.points import Point
from hiclip.scaling.scale_job import METHOD_NAME
from pipeline.jobfile import InputError

_NEAR = 0.75  # likeness of a column to a known one, from which it is taken for misspelt
_NUMBERS = ("compute", "error", "parameters", "seen", "unique", "error_low", "error_high")
_WORDS = ("model", "method", "name")


class TableError(InputError):
    """A table that cannot be read as measured rungs."""


def read_table(path: str) -> tuple[Point, ...]:
    """The runs of the table, in its order. TableError names the file, the line and what was expected there."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError:
        raise TableError(f"{path}: expected a table (CSV), found no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as a table: {error}") from None
    twice = next((name for place, name in enumerate(columns) if name in columns[:place]), None)
    if twice is not None:
        raise TableError(f"{path}: expected each column once, came {twice!r} again")
    known = ("compute", *_NUMBERS, *_WORDS)
    for name in columns:
        near = get_close_matches(name.lower(), known, n=1, cutoff=_NEAR)
        if name not in known and near and near[0] not in columns:
            raise TableError(f"{path}: no such column {name!r}; did you mean {near[0]!r}?")
    missing = [name for name in ("compute", "error") if name not in columns]
    if missing:
        raise TableError(f"{path}: expected the columns compute and error, came {', '.join(columns) or 'nothing'}")
    if not lines:
        raise TableError(f"{path}: expected a line for each run, came none")
    for number, line in lines:
        if None in line:
            cells = len(columns) + len(line[None] or ())
            raise TableError(
                f"{path}, line {number}: expected {len(columns)} cells, came {cells}; numbers have a point, no comma"
            )
    kept = [(number, line) for number, line in lines if (line.get("held_out") or "").strip().lower() != "true"]
    if not kept:
        raise TableError(f"{path}: expected runs that are not held out, came none")
    lines = kept
    points = [_point(f"{path}, line {number}", line) for number, line in lines]
    nameless = next((number for (number, _), point in zip(lines, points, strict=True) if not point.method), None)
    if nameless is not None and any(point.method for point in points):
        raise TableError(f"{path}, line {nameless}: method: expected one on every line or on none, came none here")
    return tuple(points)


def _point(where: str, line: Mapping[str | None, str | None]) -> Point:
    numbers = {name: _number(where, name, line.get(name)) for name in _NUMBERS}
    words = {name: (line.get(name) or "").strip() for name in _WORDS}
    compute, error = numbers["compute"], numbers["error"]
    if compute is None or error is None:
        raise TableError(
            f"{where}: expected a compute and an error, came {line.get('compute')!r}, {line.get('error')!r}"
        )
    if words["method"] and not re.match(METHOD_NAME, words["method"]):
        raise TableError(
            f"{where}: method: expected letters, digits, _ . + - (it names files), came {words['method']!r}"
        )
    low, high = numbers["error_low"], numbers["error_high"]
    if (low is not None and low > error) or (high is not None and high < error):
        raise TableError(f"{where}: expected error_low <= error <= error_high, came {low}, {error}, {high}")
    model = words["model"]
    return Point(
        name=words["name"] or ", ".join(part for part in (model, _seen(numbers["seen"])) if part) or f"{compute:.4g}",
        group=model or words["method"] or "runs",
        compute=compute,
        error=error,
        low=error if low is None else low,
        high=error if high is None else high,
        method=words["method"],
        parameters=numbers["parameters"],
        seen=numbers["seen"],
        unique=numbers["unique"],
    )


def _number(where: str, column: str, said: str | None) -> float | None:
    if said is None or not said.strip():
        return None
    try:
        value = float(said)
    except ValueError:
        raise TableError(f"{where}: {column}: expected a number, came {said.strip()!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise TableError(f"{where}: {column}: expected a finite number above 0, came {said.strip()}")
    return value


def _seen(seen: float | None) -> str:
    if seen is None:
        return ""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if seen >= size:
            return f"{seen / size:.3g}{unit} pairs"
    return f"{seen:g} pairs"
