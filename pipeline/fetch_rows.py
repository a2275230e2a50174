"""The addresses of one task become pictures or reasons: img2dataset's downloader and resizer, in threads, with retries.

Each address ends in exactly one place. Failed ones, and only those that may do better later, are asked for again after
a pause of their own, while others go on. No host gets more connections than it was promised.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import os
import time
import urllib.request
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from pipeline.addresses import parse_address
from pipeline.download_settings import DownloadSettings
from pipeline.fetch import GuardedOpener, Limits, Route
from pipeline.host_slots import HostSlots, Leases, SharedSlots
from pipeline.pictures import checked_picture, format_of
from pipeline.refusal import Refusal, from_text

UNREACHED = frozenset({"dns", "timeout", "connection_failed"})
"""Reasons of an address that gave no answer of any kind."""
_WORTH_ANOTHER_TRY = UNREACHED | {f"http_{status}" for status in (408, 425, 429, 500, 502, 503, 504)} | {"truncated"}


@dataclass(frozen=True)
class Fate:
    """What became of one address: a stored picture, or a reason."""

    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    original_bytes: int | None = None
    original_format: str | None = None
    image_sha256: str | None = None
    reason: str | None = None
    detail: str | None = None


def fetch_rows(
    urls: Sequence[str],
    settings: DownloadSettings,
    routes: Sequence[Route],
    slots: HostSlots | SharedSlots | None = None,
) -> list[Fate]:
    """The fate of every address, in order; `slots` says how many connections a host may get, null: those of this call.

    Installs the guarded opener in this process: meant for a worker, not for the driver. Holds at most `connections`
    bodies of `max_bytes` at a time. A slot is one of the host in the address: where a redirect leads to another host,
    none of that host is taken.
    """
    limits = Limits(
        settings.timeout_s,
        settings.max_bytes,
        settings.max_redirects,
        settings.user_agent,
        tuple(routes),
        settings.allow_private,
        tuple(word.lower() for word in settings.opt_out_directives) if settings.honour_opt_out else (),
        settings.user_agent_token,
    )
    urllib.request.install_opener(GuardedOpener(limits))  # type: ignore[arg-type]  # documented: any object with open()
    fates: dict[int, Fate] = {}
    queue = _Queue()
    for number, url in enumerate(urls):
        try:
            queue.add(number, parse_address(url).host)
        except Refusal as refusal:
            fates[number] = Fate(reason=refusal.reason, detail=refusal.detail)
    leases = Leases(slots or HostSlots(settings.connections_per_host))
    try:
        fates |= _fetched(queue, urls, settings, leases)
    finally:
        leases.leave()
    return [fates[number] for number in range(len(urls))]


Fetched = tuple[int, io.BytesIO | None, str | None]
"""What img2dataset's `download_image` returns: the row's number, the body, or the text of an error."""


class _Queue:
    """Rows that wait: for their time, and then for a connection to their host."""

    def __init__(self) -> None:
        self.due: dict[str, deque[int]] = {}
        """Numbers of rows by host, the hosts in the order in which their rows became due."""
        self._later: list[tuple[float, int, str]] = []
        self._quiets: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.due or self._later)

    def add(self, number: int, host: str) -> None:
        self.due.setdefault(host, deque()).append(number)

    def add_later(self, number: int, host: str, due_s: float) -> None:
        heapq.heappush(self._later, (due_s, number, host))

    def quiet(self, host: str, until_s: float, most: int) -> None:
        """The host has asked to be left alone: its other rows wait too, at most so often, lest a task never ends."""
        if host in self.due and self._quiets[host] < most:
            self._quiets[host] += 1
            for number in self.due.pop(host):
                self.add_later(number, host, until_s)

    def advance(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, number, host = heapq.heappop(self._later)
            self.add(number, host)

    @property
    def next_s(self) -> float:
        return self._later[0][0] if self._later else float("inf")

    def take(self, host: str) -> int:
        number = self.due[host].popleft()
        if not self.due[host]:
            del self.due[host]
        return number

    def wants(self, opened: Counter[str], leases: Leases, connections: int) -> dict[str, int]:
        """Connections by host for the rows in flight, as many again to go on with, and the hosts that gave none."""
        wants: dict[str, int] = {}
        room = 2 * connections
        for host in [*opened, *(host for host in self.due if host not in opened)]:
            wants[host] = min(opened[host] + len(self.due.get(host, ())), connections, max(room, 1))
            room -= min(wants[host], leases.granted.get(host, leases.slots.limit))
            if room <= 0:
                break
        return wants


def _fetched(queue: _Queue, urls: Sequence[str], settings: DownloadSettings, leases: Leases) -> dict[int, Fate]:
    """The fates of all rows of the queue. One body at a time is decoded, here: no more are held than are fetched."""
    download_image, _ = _img2dataset()
    # The opener knows the time and what opts out, and knows both better.
    fetch = partial(download_image, timeout=None, user_agent_token=None, disallowed_header_directives=None)
    fates: dict[int, Fate] = {}
    tries: Counter[int] = Counter()
    opened: Counter[str] = Counter()
    running: dict[Future[Fetched], str] = {}
    with ThreadPoolExecutor(settings.connections) as pool:
        while queue or running:
            now = time.monotonic()
            queue.advance(now)
            leases.collect(now)
            if leases.may_ask(now):
                leases.ask(now, queue.wants(opened, leases, settings.connections), opened)
            for host, granted in leases.granted.items():
                while host in queue.due and opened[host] < granted and len(running) < settings.connections:
                    number = queue.take(host)
                    running[pool.submit(fetch, (number, urls[number]))] = host
                    opened[host] += 1
            future = _next_finished(running, leases, min(queue.next_s, leases.next_s(bool(queue.due))))
            if future is None:
                continue
            host = running.pop(future)
            opened -= Counter([host])  # and forgets a host of which none is open
            number, stream, error = future.result()
            del future  # and with it the body, before the next is waited for
            refusal = from_text(error or "no answer") if stream is None else None
            if refusal and refusal.reason in _WORTH_ANOTHER_TRY and tries[number] < settings.retries:
                pause_s = min(
                    max(settings.first_pause_s * 2 ** tries[number], refusal.retry_after_s), settings.max_pause_s
                )
                tries[number] += 1
                now = time.monotonic()
                queue.add_later(number, host, now + pause_s)
                if refusal.retry_after_s:
                    queue.quiet(host, now + min(refusal.retry_after_s, settings.max_pause_s), settings.retries)
            else:
                fates[number] = _fate(stream, refusal, settings)
            del stream
    return fates


def _next_finished(running: Iterable[Future[Fetched]], leases: Leases, until_s: float) -> Future[Fetched] | None:
    """A fetch that has ended; null where slots were granted or `until_s` (monotonic) came first."""
    awaited: set[Future[Any]] = {*running, leases.pending} if leases.pending else {*running}
    timeout_s = max(0.0, until_s - time.monotonic())
    if not awaited:
        time.sleep(timeout_s)
        return None
    finished, _ = wait(awaited, timeout_s, FIRST_COMPLETED)
    return next((future for future in finished if future is not leases.pending), None)


def _fate(stream: io.BytesIO | None, refused: Refusal | None, settings: DownloadSettings) -> Fate:
    if stream is None or refused is not None:
        return Fate(reason=refused.reason, detail=refused.detail) if refused else Fate(reason="failed")
    try:
        content = stream.getvalue()
        stored = _stored(checked_picture(content, settings.max_pixels), settings)
        return replace(
            stored,
            original_bytes=len(content),
            original_format=format_of(content),
            image_sha256=hashlib.sha256(content).hexdigest(),
        )
    except Refusal as refusal:
        return Fate(reason=refusal.reason, detail=refusal.detail)
    except Exception as unforeseen:
        # The edge of the web: one picture in a billion breaks a decoder in a new way, and costs one row, not the build.
        return Fate(reason="failed", detail=f"{type(unforeseen).__name__}: {unforeseen}"[:500])


def _stored(content: bytes, settings: DownloadSettings) -> Fate:
    _, resizer_type = _img2dataset()
    resizer = _resizer(
        resizer_type,
        settings.image_px,
        settings.resize,
        not settings.enlarge,
        settings.upscale_interpolation,
        settings.downscale_interpolation,
        settings.encode_quality,
        settings.encode_format,
    )
    image, width, height, original_width, original_height, error = resizer(io.BytesIO(content))
    if error is not None:
        raise Refusal("undecodable", error)
    return Fate(image, width, height, original_width, original_height)


@lru_cache(maxsize=4)
def _resizer(kind: Any, *options: Any) -> Any:
    return kind(*options)


@lru_cache(maxsize=1)
def _img2dataset() -> tuple[Any, Any]:
    """img2dataset's `download_image` and `Resizer`; the import takes some 4 s of a CPU, so only workers do it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # a worker of a cluster has not the command's environment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imghdr is deprecated, and img2dataset imports it
        from img2dataset.downloader import download_image
        from img2dataset.resizer import Resizer
    return download_image, Resizer
