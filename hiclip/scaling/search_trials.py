"""The trials of a search: which values are tried, what is stored of each, and which was best.

search/ID.json         a trial that ended, was stopped or diverged; search/ID/ is its pretraining run
search/ID.failure.txt  why a trial could not be carried out; it is tried again at the next start
search.json            the finished search, written last; search.png is its picture

Where methods are compared, each has a search of its own in a folder methods/NAME.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import FiniteFloat, ValidationError

from hiclip.scaling.ladder import Rung
from hiclip.scaling.loss_curve import Curve
from hiclip.scaling.search_settings import DECAY, RATE, SearchSettings
from hiclip.scaling.transfer import Best
from pipeline.jobfile import EndedEarlyError, Settings
from pipeline.storage import Folder

SEARCH, PICTURE = "search.json", "search.png"
SEARCHED = "search-"
"""Before the id of a trial, where a study tells what it spends on."""

log = logging.getLogger(__name__)


class SearchFailedError(EndedEarlyError):
    """Not one trial of a search reached the end of its run."""


class Tried(Settings):
    """One trial of a search."""

    trial: str
    """Its id: that of the rung with its values."""
    name: str
    """Its values, for people."""
    learning_rate: FiniteFloat
    weight_decay: FiniteFloat
    end: Literal["measured", "stopped", "diverged", "failed"]
    """How it ended: measured at the end of its run; or on the way: stopped for falling behind, diverged, failed."""
    seen: int
    """Pairs consumed, as far as is known."""
    compute: FiniteFloat
    """Training FLOPs of that."""
    curve: Curve
    """(pairs seen, smoothed training loss in nats) at each comparison that it reached."""
    loss: FiniteFloat | None
    """The newest smoothed training loss, in nats; null: none was heard of."""
    error: FiniteFloat | None = None
    """The study's error, if it was measured and is what the search judges by."""
    error_low: FiniteFloat | None = None
    """Lower end of the error's 95 % interval over the evaluation set's pictures."""
    error_high: FiniteFloat | None = None
    reason: str | None = None
    """Why it diverged or failed, in one line."""
    question: str
    """Hex sha256 of the dataset, of what was asked, and of how trials are stopped: it answers no other question."""


class Search(Settings):
    """A finished search: the content of search.json."""

    search: str
    """Hex sha256 of everything that the choice depends on."""
    rung: str
    """The searched rung, for people."""
    width: int
    """Channels of its image tower."""
    unit: str
    """What the error is, with its unit."""
    judged_by: Literal["error", "loss"]
    comparisons: tuple[float, ...]
    """Pairs seen at which trials were compared; empty: none was stopped."""
    chosen: str
    """Id of the best trial."""
    learning_rate: float
    """Of the best trial."""
    weight_decay: float | None
    """Of the best trial; null: it was not searched."""
    compute: float
    """Training FLOPs of all trials."""
    trials: tuple[Tried, ...]
    """In the order in which they were drawn."""

    @property
    def best(self) -> Best:
        """What other rungs take over."""
        return Best(self.learning_rate, self.weight_decay, self.width)


def drawn(settings: SearchSettings) -> tuple[tuple[float, float | None], ...]:
    """(learning rate, weight decay) of each trial, to three digits; decay is None where it is not searched.

    The same seed gives the same values: the rates do not depend on whether decay is searched, nor any on how many
    trials come after.
    """
    shares = np.random.default_rng(settings.seed).random((settings.trials, 2))
    return tuple(
        (
            _between(settings.learning_rate, rate),
            None if settings.weight_decay is None else _between(settings.weight_decay, decay),
        )
        for rate, decay in shares.tolist()
    )


def variants(rung: Rung, settings: SearchSettings) -> tuple[Rung, ...]:
    """The trials: the rung with each of the drawn values, those that are one run left out."""
    found: dict[str, Rung] = {}
    for rate, decay in drawn(settings):
        optimizer = replace(rung.job.optimizer, learning_rate=rate)
        changes, name = {RATE: rate}, f"learning rate {rate:g}"
        if decay is not None:
            optimizer = replace(optimizer, weight_decay=decay)
            changes, name = changes | {DECAY: decay}, f"{name}, weight decay {decay:g}"
        job = rung.job.model_copy(update={"optimizer": optimizer})
        trial = Rung(name, rung.changes | changes, job, rung.method)
        found.setdefault(trial.id, trial)
    return tuple(found.values())


def trial_name(trial: Rung) -> str:
    """Of a trial among all that a study spends on."""
    return f"{SEARCHED}{trial.id}"


def most_compute(rung: Rung, settings: SearchSettings) -> float:
    """Training FLOPs of the search if no trial were stopped."""
    return sum(trial.compute for trial in variants(rung, settings))


def best_of(trials: Sequence[Tried], judged_by: Literal["error", "loss"]) -> Tried:
    """The trial with the lowest error (equal ones: loss), or loss. SearchFailedError if none reached the end."""
    measured = [trial for trial in trials if trial.end == "measured"]
    if not measured:
        ends = "; ".join(f"{trial.name}: {trial.reason or trial.end}" for trial in trials)
        raise SearchFailedError(f"search: not one of {len(trials)} trials reached the end of its run ({ends})")

    def order(trial: Tried) -> tuple[float, float]:
        assert trial.loss is not None, "a run without a single loss has diverged"
        return (trial.loss if judged_by == "loss" or trial.error is None else trial.error), trial.loss

    return min(measured, key=order)


def store(place: Folder, tried: Tried) -> None:
    """Keeps a trial in the study's folder."""
    place.write_text(_file(tried.trial), tried.model_dump_json(indent=1) + "\n")


def stored(place: Folder, trial: Rung, question: str) -> Tried | None:
    """What became of a trial, if it was tried before and asked the same question."""
    name = _file(trial.id)
    if not place.exists(name):
        return None
    try:
        tried = Tried.model_validate_json(place.read_text(name))
    except ValidationError:
        log.warning("%s is not what it should be; it is tried again", place.join(name))
        return None
    return tried if tried.question == question else None


def finished(place: Folder, search: str) -> Search | None:
    """The finished search that is stored, if it is this one: its choice stands, for rungs were trained by it."""
    if not place.exists(SEARCH):
        return None
    found = Search.model_validate_json(place.read_text(SEARCH))
    return found if found.search == search else None


def _between(ends: tuple[float, float], share: float) -> float:
    low, high = ends
    value = float(f"{low * (high / low) ** share:.3g}")
    return min(max(value, low), high)


def _file(trial: str) -> str:
    return f"search/{trial}.json"
