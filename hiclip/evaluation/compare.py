"""Finished evaluations side by side: what is read of them, and what can be said of their differences.

A difference is said only where both runs were asked the same questions about the same pictures, and where what they
answered picture by picture is stored; elsewhere the reason stands in its place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pydantic import ConfigDict, ValidationError

from hiclip.evaluation import retrieval, zero_shot
from hiclip.evaluation.bootstrap import Estimates, Statistic
from hiclip.evaluation.evaluate_job import MOST_COMPARED
from hiclip.evaluation.measure import METRICS, Judged, MeasuredSet
from hiclip.evaluation.outcome import RESULT, Outcome
from hiclip.evaluation.paired import McNemar, mcnemar, paired_differences
from hiclip.evaluation.ratio_parts import RatioParts
from hiclip.evaluation.result import LOWER_IS_BETTER, Result
from hiclip.evaluation.retrieval import Answers
from hiclip.evaluation.several_checkpoints import outcomes_in
from hiclip.evaluation.zero_shot import Nearness, Predictions
from pipeline.jobfile import InputError, Settings
from pipeline.storage import Folder, folder

NOT_SAME_PICTURES = "not the same pictures"
NOT_SAME_QUESTIONS = "not the same questions"
NOT_STORED = "not stored picture by picture"


@dataclass(frozen=True)
class ComparedRun:
    """A finished evaluation."""

    label: str
    """What it is called in the comparison; no two are called the same."""
    place: Folder
    outcome: Outcome
    stored: Mapping[str, MeasuredSet]
    """By set: what it answered to every picture; only those whose file is there."""
    parts: Mapping[str, RatioParts]
    """By head, "parsing" and "segments": what its metrics are made of; only those whose file has it."""


@dataclass(frozen=True)
class Difference:
    """A run's metric less another's, with its paired 95 % interval; in the metric's own unit."""

    value: float
    low: float
    high: float

    def verdict(self, metric: str) -> int:
        """1 better, -1 worse, 0 undecided: the interval holds zero."""
        sign = (self.low > 0) - (self.high < 0)
        return -sign if metric in LOWER_IS_BETTER else sign


@dataclass(frozen=True)
class Line:
    """One metric of one set, run by run."""

    set: str
    metric: str
    unit: str
    results: tuple[Result | None, ...]
    """None where the run was not asked."""
    differences: tuple[Difference | str, ...]
    """From the first run; a text says why there is none. The first run's own is an empty text."""
    tests: tuple[McNemar | None, ...]
    """Of top-1, the first run against this one."""
    best: int | None
    """The run that is better than each other one by its paired interval; None if there is none."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the page and the tables show."""

    runs: tuple[ComparedRun, ...]
    lines: tuple[Line, ...]
    draws: int

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(set, metric) of every line."""
        return [(line.set, line.metric) for line in self.lines]


def read_runs(paths: Sequence[str], labels: Sequence[str] | None = None) -> tuple[ComparedRun, ...]:
    """The finished evaluations in these folders, called as `labels` says or by their jobs and folders.

    InputError names a folder that holds none.
    """
    if not 2 <= len(paths) <= MOST_COMPARED:
        raise InputError(f"--compare: expected 2 to {MOST_COMPARED} folders of finished evaluations, came {len(paths)}")
    places = [folder(path) for path in paths]
    twice = [place.root for place, count in Counter(places).items() if count > 1]
    if twice:
        raise InputError(f"--compare: expected different folders, came {twice[0]} twice")
    outcomes = [read_outcome(place) for place in places]
    labels = labels or _labels(places, outcomes)
    return tuple(
        ComparedRun(label, place, outcome, _stored_sets(place, outcome), _stored_parts(place, outcome))
        for label, place, outcome in zip(labels, places, outcomes, strict=True)
    )


def read_outcome(place: Folder) -> Outcome:
    """The result of the finished evaluation in `place`; InputError if there is none."""
    if not place.exists(RESULT):
        if any(place.names("sets/")):
            raise InputError(f"{place.root}: the evaluation was not finished: it has no {RESULT}")
        raise InputError(f"{place.root}: expected the folder of a finished evaluation, found no {RESULT}")
    text = place.read_text(RESULT)
    try:
        return Outcome.model_validate_json(text)
    except ValidationError as error:
        several = outcomes_in(text)
        if several is not None:
            names = ", ".join(several.outcomes)
            expected = "expected the evaluation of one checkpoint, came one of several"
            raise InputError(f"{place.root}: {expected}: name a folder in it, of {names}") from None
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InputError(f"{place.join(RESULT)}: is no evaluation's result: {where}: {first['msg']}") from None


def _labels(places: Sequence[Folder], outcomes: Sequence[Outcome]) -> list[str]:
    """The jobs' names; where two are the same the folders' names, and where these are too, with a number."""
    names = [outcome.name for outcome in outcomes]
    if len(set(names)) < len(names):
        names = [place.root.rstrip("/").rpartition("/")[2] for place in places]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _stored_sets(place: Folder, outcome: Outcome) -> dict[str, MeasuredSet]:
    names = place.names("sets/", ".json")
    found: dict[str, MeasuredSet] = {}
    for name in outcome.sets:
        values = {(one.metric, one.value) for one in outcome.results if one.set == name}
        for stored in names:
            if re.fullmatch(rf"sets/{re.escape(name)}-[0-9a-f]{{16}}\.json", stored):
                one = _measured(place, stored)
                # A folder may hold what another checkpoint answered too.
                if one is not None and values.issuperset((result.metric, result.value) for result in one.results):
                    found[name] = one
    return found


class _WithParts(Settings):
    """What is stored of a head, of trees or of segments, as far as it is looked at here."""

    model_config = ConfigDict(extra="ignore")

    results: list[Result]
    parts: RatioParts | None = None


def _stored_parts(place: Folder, outcome: Outcome) -> dict[str, RatioParts]:
    names = [*place.names("sets/", ".json"), *place.names("heads/", "/head.json")]
    found: dict[str, RatioParts] = {}
    for name in outcome.sets:
        values = {(one.metric, one.value) for one in outcome.results if one.set == name}
        pattern = rf"sets/{re.escape(name)}-[0-9a-f]{{16}}\.json|heads/{re.escape(name)}-[0-9a-f]{{16}}/head\.json"
        for stored in names:
            if re.fullmatch(pattern, stored):
                one = _with_parts(place.read_text(stored))
                if one.parts is not None and values.issuperset((result.metric, result.value) for result in one.results):
                    found[name] = one.parts
    return found


def _with_parts(text: str) -> _WithParts:
    try:
        return _WithParts.model_validate_json(text)
    except ValidationError:
        return _WithParts(results=[])


def _measured(place: Folder, name: str) -> MeasuredSet | None:
    try:
        return MeasuredSet.model_validate_json(place.read_text(name))
    except ValidationError:
        return None


def compare(runs: Sequence[ComparedRun], seed: int = 0, draws: int = 1000) -> Comparison:
    """Every metric that any of the runs has, in the order of the sets of the first that has it."""
    lines: list[Line] = []
    for name in dict.fromkeys(name for run in runs for name in run.outcome.sets):
        lines += _lines(name, runs, seed, draws)
    return Comparison(tuple(runs), tuple(lines), draws)


def _lines(name: str, runs: Sequence[ComparedRun], seed: int, draws: int) -> list[Line]:
    there = [{one.metric: one for one in run.outcome.results if one.set == name} for run in runs]
    metrics = list(dict.fromkeys(metric for results in there for metric in results))
    known = {metric: place for place, metric in enumerate(METRICS)}
    metrics.sort(key=lambda metric: known.get(metric, len(known)))
    why = {
        (first, second): reason
        for first, second in combinations(range(len(runs)), 2)
        if (reason := _why_not(name, runs[first], runs[second]))
    }
    paired = _paired(name, runs, why, seed, draws)
    lines = []
    for metric in metrics:
        results = tuple(results.get(metric) for results in there)
        lines.append(
            Line(
                set=name,
                metric=metric,
                unit=next(one.unit for one in results if one is not None),
                results=results,
                differences=tuple(
                    "" if place == 0 else _difference(results[0], result, metric, (0, place), why, paired)
                    for place, result in enumerate(results)
                ),
                tests=tuple(_test(name, runs, metric, place, why) for place in range(len(runs))),
                best=_best(metric, results, paired),
            )
        )
    return lines


def _why_not(name: str, first: ComparedRun, second: ComparedRun) -> str:
    """Why two runs cannot be compared picture by picture on a set; empty if they can."""
    for run in (first, second):
        if name not in run.outcome.sets:
            return f"not measured in {run.label}"
    if first.outcome.sets[name] != second.outcome.sets[name]:
        return NOT_SAME_QUESTIONS
    parts = [run.parts.get(name) for run in (first, second)]
    if parts[0] is not None and parts[1] is not None:
        return "" if parts[0].units == parts[1].units else NOT_SAME_PICTURES
    for run in (first, second):
        if name not in run.stored:
            # Heads, trees and segments of earlier versions left no answers picture by picture.
            stores = any(one.set == name and one.metric in METRICS for one in run.outcome.results)
            return f"sets/{name}-….json of {run.label} is missing" if stores else NOT_STORED
    seen = [run.stored[name].seen for run in (first, second)]
    if seen[0] is None or seen[1] is None or seen[0].sha256 != seen[1].sha256:
        return NOT_SAME_PICTURES
    return ""


_Paired = dict[tuple[int, int], dict[str, Difference]]


def _paired(
    name: str, runs: Sequence[ComparedRun], why: Mapping[tuple[int, int], str], seed: int, draws: int
) -> _Paired:
    """(first, second) -> metric -> the second's less the first's."""
    found: _Paired = {}
    for group in _groups(len(runs), why):
        for asked in zip(*(_asked(name, runs[place]) for place in group), strict=True):
            if any(one is None for one in asked):
                continue
            known = [one for one in asked if one is not None]
            metrics = min((one.metrics for one in known), key=len)
            statistics = [_first_columns(one.statistic, len(metrics)) for one in known]
            by_pair = paired_differences(statistics, known[0].pictures, seed, draws)
            for (first, second), estimates in by_pair.items():
                found.setdefault((group[second], group[first]), {}).update(_by_name(metrics, estimates))
    return found


def _groups(count: int, why: Mapping[tuple[int, int], str]) -> list[list[int]]:
    """Runs that can all be compared with each other, two or more together."""
    groups: list[list[int]] = []
    for place in range(count):
        for group in groups:
            if (group[0], place) not in why:
                group.append(place)
                break
        else:
            groups.append([place])
    return [group for group in groups if len(group) > 1]


def _by_name(metrics: Sequence[str], estimates: Estimates) -> dict[str, Difference]:
    ends = zip(estimates.value.tolist(), estimates.low.tolist(), estimates.high.tolist(), strict=True)
    return {
        metric: Difference(*numbers)
        for metric, numbers in zip(metrics, ends, strict=True)
        if np.isfinite(numbers).all()
    }


@dataclass(frozen=True)
class _Asked:
    """What a run answered, as a function of the weights of the pictures."""

    metrics: tuple[str, ...]
    """Names of the statistic's first columns; further ones mean nothing."""
    pictures: int
    statistic: Statistic


def _asked(name: str, run: ComparedRun) -> tuple[_Asked | None, _Asked | None, _Asked | None]:
    """Classification, retrieval, and what is stored in parts; each None where it was not asked or not stored."""
    parts, measured = run.parts.get(name), run.stored.get(name)
    if parts is not None:
        return None, None, _Asked(tuple(parts.metrics), len(parts.sums), parts.statistic)
    assert measured is not None
    judged, images, texts = measured.judged, measured.images_found, measured.texts_found
    classified, retrieved = None, None
    if judged is not None:
        # Without labels a mean over classes is unknown; what asks for a hierarchy that the classes have not is NaN.
        metrics = zero_shot.METRICS if judged.steps else zero_shot.METRICS[: zero_shot.FLAT if judged.labels else 2]
        classified = _Asked(metrics, len(judged.ranks), _statistic_of(judged))
    if images is not None and texts is not None and texts.owners:
        statistic = retrieval.retrieval_statistic(_answers(images.ranks), _answers(texts.ranks), np.array(texts.owners))
        retrieved = _Asked(retrieval.METRICS, len(images.ranks), statistic)
    return classified, retrieved, None


def _statistic_of(judged: Judged) -> Statistic:
    predictions = Predictions(
        _ints(judged.labels or [0] * len(judged.ranks)), np.array(judged.ranks), np.array(judged.best)
    )
    near = Nearness(_ints(judged.steps), _ints(judged.subgroups), _ints(judged.left_out)) if judged.steps else None
    return zero_shot.nearness_statistic(predictions, near)


def _ints(numbers: Sequence[int]) -> retrieval.IntArray:
    return np.array(numbers, dtype=np.int64)


def _first_columns(statistic: Statistic, count: int) -> Statistic:
    return lambda weights: statistic(weights)[:, :count]


def _answers(ranks: Sequence[int]) -> Answers:
    """What is known of one direction; surprise is not stored, so that the loss is no number."""
    nothing = np.empty(0, dtype=np.int64)
    return Answers(np.array(ranks), np.full(len(ranks), np.nan), nothing, nothing.reshape(0, 5))


def _difference(
    first: Result | None,
    second: Result | None,
    metric: str,
    pair: tuple[int, int],
    why: Mapping[tuple[int, int], str],
    paired: _Paired,
) -> Difference | str:
    if first is None or second is None:
        return why.get(pair, "not measured")
    return why.get(pair) or paired.get(pair, {}).get(metric) or NOT_STORED


def _test(
    name: str, runs: Sequence[ComparedRun], metric: str, place: int, why: Mapping[tuple[int, int], str]
) -> McNemar | None:
    if metric != "top1" or place == 0 or (0, place) in why:
        return None
    first, second = (runs[one].stored.get(name) for one in (0, place))
    if first is None or first.judged is None or second is None or second.judged is None:
        return None
    return mcnemar(np.array(first.judged.ranks) == 1, np.array(second.judged.ranks) == 1)


def _best(metric: str, results: Sequence[Result | None], paired: _Paired) -> int | None:
    there = [place for place, result in enumerate(results) if result is not None]
    if len(there) < 2:
        return None
    for place in there:
        over = [paired.get((other, place), {}).get(metric) for other in there if other != place]
        if all(one is not None and one.verdict(metric) > 0 for one in over):
            return place
    return None
