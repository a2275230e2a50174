"""Records a run in MLflow, from a thread of its own (`pipeline.mlflow_calls` is the door).

MLflow takes seconds to import, seconds more to make a new SQLite file, and a server may be slow or away for minutes;
none of that may hold up a step. So calls only join a queue, and the thread sends what has gathered in batches. While
the server is away the queue grows and the thread tries again; what is left at the end stays in the run's folder, in the
file UNDELIVERED, and is sent when the run is started again. What the server refuses is said and passed over.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

from pipeline import mlflow_calls
from pipeline.jobfile import JobError, MlflowSettings
from pipeline.mlflow_address import ANSWERS_WITHIN_S, check_reachable, reason_of, tracking_uri, without_secrets
from pipeline.mlflow_calls import Begins, begin_record, is_away, send
from pipeline.record_items import Artifact, Dataset, End, Item, Model, Params, Point, Tag, batches, from_lines, to_lines
from pipeline.storage import StorageError, folder
from pipeline.tracker import Tracker

log = logging.getLogger(__name__)

RUN_ID = "mlflow_run_id"
"""File in a run's folder that holds MLflow's id of the run, so that a resumed run can append to its record."""
UNDELIVERED = "mlflow_undelivered.jsonl"
"""File in a run's folder with what MLflow did not take before the run ended."""
PATIENCE_S = 120.0
"""How long `run_id` and `close` wait for MLflow before they go on without it."""
_LONGEST_PAUSE_S = 30.0  # between two tries
_MOST_METRICS = 1000  # of one request: MLflow's limit
_MOST_REFUSALS = 20  # that are said
_T = TypeVar("_T")


def open_tracker(
    settings: MlflowSettings,
    out: str,
    run_name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    adds: bool = False,
    patience_s: float = PATIENCE_S,
) -> Tracker:
    """A tracker for a run that writes to `out`, where the record's id is noted in the file RUN_ID.

    `run_id` appends to an earlier record (see `recorded_run_id`), `parent_run_id` nests a new one below another. With
    `adds` the earlier run goes its own way: whether it counts as running or finished is left as it is. What an earlier
    tracker left in UNDELIVERED is sent first.
    """
    begins = Begins(settings.experiment, run_name, run_id, parent_run_id, adds)
    return MlflowTracker(tracking_uri(settings, out), out, begins, patience_s)


def deliver_rest(
    settings: MlflowSettings,
    out: str,
    run_name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    adds: bool = False,
    patience_s: float = PATIENCE_S,
) -> None:
    """Sends what a finished run in `out` left in UNDELIVERED, if it did; a server that is still away is only said."""
    if not folder(out).exists(UNDELIVERED):
        return
    try:
        check_reachable(settings, out)
    except JobError as error:
        log.warning("%s; what MLflow lacks of this run stays in %s", error, folder(out).join(UNDELIVERED))
        return
    open_tracker(settings, out, run_name, run_id, parent_run_id, adds, patience_s).close()


def recorded_run_id(out: str) -> str | None:
    """The id of the record that an earlier run in `out` made, if there is one."""
    place = folder(out)
    return place.read_text(RUN_ID).strip() if place.exists(RUN_ID) else None


def recorded_checkpoint(settings: MlflowSettings, out: str, name: str) -> str:
    """Where the checkpoint lies that `runs:/RUN_ID` or `models:/NAME/VERSION` (`latest`, `models:/NAME@ALIAS`) means.

    JobError if MLflow does not answer or knows none.
    """
    check_reachable(settings, out)
    uri = tracking_uri(settings, out)
    try:
        return mlflow_calls.recorded_checkpoint(uri, name)
    except KeyError as error:
        raise JobError(
            f"checkpoint: expected a run or model that MLflow at {without_secrets(uri)} knows, came {name}: "
            f"{error.args[0]}"
        ) from None


class _GaveUp(Exception):
    """The server stayed away for as long as `close` waits."""


class MlflowTracker:
    """See `Tracker`."""

    def __init__(self, uri: str, out: str, begins: Begins, patience_s: float) -> None:
        self._uri, self._out, self._begins, self._patience_s = uri, out, begins, patience_s
        self._shown = without_secrets(uri)
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()  # guards the items, the deadline and who may remove
        self._deadline: float | None = None  # set by close
        self._left = False  # what is still here is in the file or lost; the thread removes nothing any more
        self._opened: Future[str | None] = Future()
        self._away_since: float | None = None
        self._said: set[str] = set()
        self._copies = tempfile.mkdtemp(prefix="hiclip-artifacts-")
        # A daemon: a server that hangs must not keep a finished process alive.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits until MLflow has answered, at most the patience."""
        try:
            return self._opened.result(self._patience_s)
        except TimeoutError:
            return None

    def params(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put(Params(dict(_flatten(values))))

    def metrics(self, values: Mapping[str, float], seen: int) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        self._put(*(Point(key, float(value), seen, now) for key, value in values.items()))

    def tag(self, key: str, value: str) -> None:
        """See `Tracker`."""
        self._put(Tag(key, value))

    def artifact(self, path: str, folder: str = "") -> None:
        """See `Tracker`."""
        copy = None
        if self._thread.is_alive():
            # The copy is the file of this moment, whatever the caller does to it before the thread gets there.
            copy = str(Path(tempfile.mkdtemp(dir=self._copies)) / Path(path).name)
            shutil.copyfile(path, copy)
        self._put(Artifact(Path(path).name, folder, copy))

    def model(
        self, name: str, checkpoint: str, files: Mapping[str, str], tags: Mapping[str, object], description: str
    ) -> None:
        """See `Tracker`."""
        self._put(Model(name, checkpoint, dict(files), {key: str(value) for key, value in tags.items()}, description))

    def dataset(
        self, name: str, fingerprint: str, place: str, columns: Mapping[str, str], pairs: int, context: str
    ) -> None:
        """See `Tracker`."""
        self._put(Dataset(name, fingerprint, place, dict(columns), pairs, context))

    def close(self, status: str = "FINISHED") -> None:
        """See `Tracker`."""
        with self._changed:
            self._items.append(End(status))
            self._deadline = time.monotonic() + self._patience_s
            self._changed.notify_all()
        self._thread.join(self._patience_s)
        with self._changed:
            self._left = True
            left = list(self._items)
        if left:
            self._keep(left)
        shutil.rmtree(self._copies, ignore_errors=True)

    def _put(self, *items: Item) -> None:
        with self._changed:
            self._items.extend(items)
            self._changed.notify_all()

    def _keep(self, left: list[Item]) -> None:
        """Writes what was not delivered behind what is still there from before."""
        place = folder(self._out)
        run_id = self._opened.result() if self._opened.done() else None
        try:
            before = place.read_text(UNDELIVERED) if place.exists(UNDELIVERED) else ""
            place.write_text(UNDELIVERED, before + to_lines(left, run_id or self._begins.earlier_id))
        except StorageError as error:
            log.warning("MLflow at %s did not take everything, and the rest is lost: %s", self._shown, error)
            return
        log.warning(
            "MLflow at %s did not take everything; the rest is in %s and is sent when the run is started again",
            self._shown,
            place.join(UNDELIVERED),
        )

    def _work(self) -> None:
        try:
            client, run_id = self._until_taken(lambda: begin_record(self._uri, self._begins))
            folder(self._out).write_text(RUN_ID, run_id + "\n")
            self._opened.set_result(run_id)
            self._deliver_left(client, run_id)
            self._deliver(client, run_id)
        except _GaveUp:
            pass  # close says it
        # MLflow, SQLAlchemy and requests each have their own errors, and none of them may end a run.
        except Exception as error:
            log.warning(
                "MLflow at %s cannot be used, this run is not recorded there: %s", self._shown, reason_of(error)
            )
        finally:
            if not self._opened.done():
                self._opened.set_result(None)

    def _deliver_left(self, client: Any, run_id: str) -> None:
        """Sends what an earlier process could not."""
        place = folder(self._out)
        try:
            left = from_lines(place.read_text(UNDELIVERED)) if place.exists(UNDELIVERED) else []
        except (StorageError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, MLflow lacks what is in it: %s", place.join(UNDELIVERED), reason_of(error))
            return
        if not left:
            return
        for target, batch in batches(left, _MOST_METRICS):
            # Of this run, which goes on, `close` will say how it ended.
            if not (isinstance(batch[0], End) and target in (None, run_id)):
                self._send(client, target or run_id, batch)
        with self._changed, contextlib.suppress(StorageError):  # sent again it does no harm
            if not self._left:  # or close has added to the file
                place.remove(UNDELIVERED)

    def _deliver(self, client: Any, run_id: str) -> None:
        while True:
            batch = self._next()
            is_end = isinstance(batch[0], End)
            if not (is_end and self._begins.adds and run_id == self._begins.earlier_id):
                self._send(client, run_id, batch)
            with self._changed:
                if self._left:
                    return
                for _ in batch:
                    self._items.popleft()
            if is_end:
                return

    def _next(self) -> list[Item]:
        """What to send next, still in the queue: points together, all else alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            if not isinstance(self._items[0], Point):
                return [self._items[0]]
            # Lets a batch gather: ten requests a second serve nobody.
            self._changed.wait_for(lambda: self._deadline is not None or len(self._items) >= _MOST_METRICS, 0.2)
            return list(takewhile(lambda item: isinstance(item, Point), islice(self._items, _MOST_METRICS)))

    def _send(self, client: Any, run_id: str, batch: list[Item]) -> None:
        try:
            self._until_taken(lambda: send(client, run_id, batch, self._uri, folder(self._out)))
        except _GaveUp:
            raise
        except Exception as error:  # refused, in the words of MLflow, SQLAlchemy, requests or a store of artifacts
            parts = _parts(batch)
            if len(parts) > 1:  # one of them is at fault
                for part in parts:
                    self._send(client, run_id, part)
                return
            reason, what = reason_of(error), type(batch[0]).__name__.lower()
            if reason not in self._said and len(self._said) < _MOST_REFUSALS:
                self._said.add(reason)
                log.warning("MLflow at %s refuses a %s, which is passed over: %s", self._shown, what, reason)

    def _until_taken(self, call: Callable[[], _T]) -> _T:
        """The call's result, tried again for as long as the server is away. Raises what the server refuses it with."""
        pause, failures = 0.5, 0
        while True:
            began = time.monotonic()
            try:
                result = call()
            except Exception as error:  # each of the vendors below MLflow has its own
                if not is_away(error):
                    self._is_back()
                    raise
                failures += 1
                # One that fails at once may be a connection that was left open too long.
                if self._away_since is None and (failures == 2 or time.monotonic() - began > ANSWERS_WITHIN_S):
                    self._away_since = time.monotonic()
                    log.warning(
                        "MLflow at %s is away; its numbers are kept and sent later: %s", self._shown, reason_of(error)
                    )
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._is_back()
                return result

    def _is_back(self) -> None:
        if self._away_since is not None:
            log.warning("MLflow at %s is back after %.0f s", self._shown, time.monotonic() - self._away_since)
            self._away_since = None

    def _rest(self, pause_s: float) -> None:
        """Waits before the next try: less when `close` comes, and not at all (_GaveUp) when its patience is over."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, pause_s)
                return
            rest = self._deadline - time.monotonic()
            if rest <= 0:
                raise _GaveUp
            self._changed.wait_for(lambda: self._left, min(pause_s, rest))


def _parts(batch: list[Item]) -> list[list[Item]]:
    """What may be refused by itself: points by their key, settings one by one."""
    match batch[0]:
        case Point():
            keys = dict.fromkeys(item.key for item in batch if isinstance(item, Point))
            return [[item for item in batch if isinstance(item, Point) and item.key == key] for key in keys]
        case Params(values):
            return [[Params({key: value})] for key, value in values.items()]
    return [batch]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
