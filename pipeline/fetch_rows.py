"""The addresses of one task become pictures or reasons: img2dataset's downloader and resizer, in threads, with retries.

Each address ends in exactly one place. Failed ones, and only those that may do better later, are asked for again with
a growing pause.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from pipeline.download_settings import DownloadSettings
from pipeline.fetch import GuardedOpener, Limits, Route
from pipeline.pictures import checked_picture, format_of
from pipeline.refusal import Refusal, from_text

UNREACHED = frozenset({"dns", "timeout", "connection_failed"})
"""Reasons of an address that gave no answer of any kind."""
_WORTH_ANOTHER_TRY = UNREACHED | {f"http_{status}" for status in (408, 425, 429, 500, 502, 503, 504)} | {"truncated"}
_OPT_OUT = ["noai", "noimageai", "noindex", "noimageindex"]
"""What X-Robots-Tag may say against use in training; img2dataset's own default list."""


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


def fetch_rows(urls: Sequence[str], settings: DownloadSettings, routes: Sequence[Route]) -> list[Fate]:
    """The fate of every address, in order: a first round over all, further rounds over those worth another try.

    Installs the guarded opener in this process: meant for a worker, not for the driver. Holds at most `connections`
    bodies of `max_bytes` at a time.
    """
    limits = Limits(
        settings.timeout_s,
        settings.max_bytes,
        settings.max_redirects,
        settings.user_agent,
        tuple(routes),
        settings.allow_private,
    )
    urllib.request.install_opener(GuardedOpener(limits))  # type: ignore[arg-type]  # documented: any object with open()
    fates: dict[int, Fate] = {}
    waiting: Sequence[int] = range(len(urls))
    with ThreadPoolExecutor(settings.connections) as pool:
        for attempt in range(settings.retries + 1):
            if attempt:
                time.sleep(settings.first_pause_s * 2 ** (attempt - 1))
            failed = []
            for number, stream, error in _fetched(pool, [(number, urls[number]) for number in waiting], settings):
                fates[number] = _fate(stream, error, settings)
                if stream is None and fates[number].reason in _WORTH_ANOTHER_TRY:
                    failed.append(number)
            waiting = failed
            if not waiting:
                break
    return [fates[number] for number in range(len(urls))]


Fetched = tuple[int, io.BytesIO | None, str | None]
"""What img2dataset's `download_image` returns: the row's number, the body, or the text of an error."""


def _fetched(
    pool: ThreadPoolExecutor, rows: Sequence[tuple[int, str]], settings: DownloadSettings
) -> Iterator[Fetched]:
    """The rows as they arrive; no more are asked for than there are connections, so that bodies do not pile up."""
    download_image, _ = _img2dataset()
    fetch = partial(
        download_image,
        timeout=settings.timeout_s,
        user_agent_token=settings.user_agent_token,
        disallowed_header_directives=_OPT_OUT if settings.honour_opt_out else None,
    )
    to_do = iter(rows)
    running: set[Future[Fetched]] = {pool.submit(fetch, row) for row in islice(to_do, settings.connections)}
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()
            running.update(pool.submit(fetch, row) for row in islice(to_do, 1))


def _fate(stream: io.BytesIO | None, error: str | None, settings: DownloadSettings) -> Fate:
    try:
        if stream is None:
            raise _refusal_of(error or "no answer")
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


def _refusal_of(error: str) -> Refusal:
    return Refusal("opt_out", error) if "X-Robots-Tag" in error else from_text(error)


def _stored(content: bytes, settings: DownloadSettings) -> Fate:
    _, resizer_type = _img2dataset()
    resizer = _resizer(resizer_type, settings.image_px, settings.resize, settings.enlarge, settings.encode_format,
                       settings.encode_quality)  # fmt: skip
    image, width, height, original_width, original_height, error = resizer(io.BytesIO(content))
    if error is not None:
        raise Refusal("undecodable", error)
    return Fate(image, width, height, original_width, original_height)


@lru_cache(maxsize=4)
def _resizer(kind: Any, image_px: int, mode: str, enlarge: bool, encode_format: str, quality: int) -> Any:
    return kind(image_px, mode, not enlarge, encode_format=encode_format, encode_quality=quality)


@lru_cache(maxsize=1)
def _img2dataset() -> tuple[Any, Any]:
    """img2dataset's `download_image` and `Resizer`; the import takes some 4 s of a CPU, so only workers do it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # a worker of a cluster has not the command's environment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imghdr is deprecated, and img2dataset imports it
        from img2dataset.downloader import download_image
        from img2dataset.resizer import Resizer
    return download_image, Resizer
