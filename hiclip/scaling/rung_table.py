"""What was measured of the rungs: one stored file a rung, so that a study goes on where it was killed, and one table.

The columns `compute` and `error` are all that a law needs: a table that somebody else measured can stand in for ours.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import FiniteFloat, ValidationError

from hiclip.scaling.ladder import Rung
from pipeline.jobfile import Settings
from pipeline.storage import Folder

log = logging.getLogger(__name__)


class Row(Settings):
    """One rung, measured."""

    rung: str
    """The rung's id."""
    name: str
    """What makes it this rung, for people."""
    group: str
    """What it has in common with rungs that only see more or fewer pairs."""
    method: str = ""
    """Name of the method in the study; empty where there is one alone."""
    width: int
    """Channels of the image tower."""
    text_width: int
    """Channels of the text tower."""
    depth: int
    """Layers of the image tower."""
    seen: int
    """Pairs consumed."""
    unique: int
    """Pairs of the dataset that were shown: `seen` over it is the number of passes."""
    parameters: int
    learning_rate: FiniteFloat
    """The highest of the schedule."""
    weight_decay: FiniteFloat
    compute: FiniteFloat
    """Training FLOPs of the whole run."""
    taken_over: int = 0
    """Of `seen`, pairs that another rung of the same trunk was trained on for both."""
    loss: FiniteFloat
    """Training loss of the last step, in nats; of a batch, so no measure of the model."""
    error: FiniteFloat
    """What the law is about; its unit is the study's."""
    error_low: FiniteFloat
    """Lower end of the error's 95 % interval over the evaluation set's pictures."""
    error_high: FiniteFloat
    seconds: FiniteFloat
    """Time spent in training steps."""
    pairs_per_s: FiniteFloat
    trial_s: FiniteFloat
    """Wall time of the trial that measured the rung: training, saving, evaluation."""
    checkpoint: str
    """What was measured."""
    error_draws: tuple[FiniteFloat | None, ...] = ()
    """The error on resamples of the evaluation set's pictures, the same resamples for every rung; null where one says
    nothing of it. In no table."""
    question: str
    """Hex sha256 of the dataset and of what was asked of the checkpoint: a row answers no other question."""


class Failure(Settings):
    """A rung that could not be measured."""

    rung: str
    name: str
    compute: float
    reason: str
    """One line."""
    trace: str
    """Where it happened, for who looks into it."""


def question(manifest_fingerprint: str, set_fingerprint: str, metric: str, seed: int) -> str:
    """Hex sha256 of what a row's error depends on besides its rung: what it was trained on, what it was asked, and the
    seed by which pictures are drawn anew."""
    return digest(manifest_fingerprint, set_fingerprint, metric, seed)


def digest(*parts: Any) -> str:
    """Hex sha256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def store(place: Folder, row: Row) -> None:
    """Keeps a finished row in the study's folder, and no longer why it had failed before."""
    place.remove(f"rungs/{row.rung}.failure.txt")
    place.write_text(_file(row.rung), row.model_dump_json(indent=1) + "\n")


def store_failure(place: Folder, failure: Failure) -> None:
    """Keeps what is known of a failed rung beside the rows; nothing reads it but people."""
    place.write_text(f"rungs/{failure.rung}.failure.txt", f"{failure.name}: {failure.reason}\n\n{failure.trace}\n")


def stored(place: Folder, rung: Rung, asked: str) -> Row | None:
    """The row of a rung if it was measured before and was asked the same question."""
    name = _file(rung.id)
    if not place.exists(name):
        return None
    try:
        row = Row.model_validate_json(place.read_text(name))
    except ValidationError:
        log.warning("%s is not what it should be; the rung is measured again", place.join(name))
        return None
    return row if row.question == asked else None


def plain(row: Row) -> dict[str, Any]:
    """A row for tables: without the draws."""
    return row.model_dump(exclude={"error_draws"})


def to_csv(rows: Sequence[Row], held_out: str | None = None) -> str:
    """The rows as text, a line a rung; `held_out`: the id of the rung that no law stands on."""
    text = io.StringIO()
    names = [*(name for name in Row.model_fields if name != "error_draws"), "held_out"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(plain(row) | {"held_out": str(row.rung == held_out).lower()})
    return text.getvalue()


def to_parquet(rows: Sequence[Row], held_out: str | None = None) -> bytes:
    """The rows as one parquet file, likewise."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([plain(row) | {"held_out": row.rung == held_out} for row in rows]), sink)
    return sink.getvalue()


def _file(rung: str) -> str:
    return f"rungs/{rung}.json"
