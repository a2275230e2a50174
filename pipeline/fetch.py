"""One guarded GET: what img2dataset's downloader uses in place of urllib's opener.

`urllib.request.install_opener` takes any object with `open()`. This one resolves a name once, connects to the very
number it has checked, does the same at every redirect, and puts one deadline and one byte limit over the whole fetch:
a server that sends a byte a second, for ever, ends like one that never answers. It uses no proxy of the environment.
"""

from __future__ import annotations

import contextlib
import email.utils
import fnmatch
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request

from pipeline.addresses import Address, IPNetwork, check_reachable_by_all, parse_address
from pipeline.refusal import Refusal

_BLOCK_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_ASKS_FOR_PATIENCE = (429, 503)
_RULES_WITH_A_VALUE = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")


@dataclass(frozen=True)
class Route:
    """Hosts that are reached at a fixed place, like curl's --connect-to; who names a route trusts that place."""

    hosts: str
    """Host name with shell wildcards: `*.crawl.example`."""
    host: str
    port: int


@dataclass(frozen=True)
class Limits:
    """What a fetch may cost."""

    timeout_s: float
    """For all of it: names, redirects, head and body."""
    max_bytes: int
    max_redirects: int
    user_agent: str
    routes: tuple[Route, ...] = ()
    allow_private: tuple[str, ...] = ()
    """Networks such as 127.0.0.0/8 that may be fetched from although they are not public."""
    opt_out: tuple[str, ...] = ()
    """Words of X-Robots-Tag, in lower case, that refuse a picture."""
    user_agent_token: str = ""
    """The name, in lower case, that X-Robots-Tag would address us by."""


class _Deadline:
    """A socket of which no read outlives the fetch; `timeout` alone begins anew with every byte."""

    deadline: float = float("inf")

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_remaining_s(self.deadline))  # type: ignore[attr-defined]  # of the socket beside it
        return super().recv_into(*args, **kwargs)  # type: ignore[misc,no-any-return]


class _PlainSocket(_Deadline, socket.socket):
    pass


class _TLSSocket(_Deadline, ssl.SSLSocket):
    pass


def _remaining_s(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the whole fetch took too long")
    return remaining


class Body:
    """An answer of which the head was read; img2dataset looks at `headers` before it asks for the bytes."""

    def __init__(self, response: http.client.HTTPResponse, max_bytes: int) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self.headers: Message = response.headers

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def read(self) -> bytes:
        """The whole body; Refusal `too_large_bytes`, `truncated` or `timeout` as soon as that is known."""
        announced = self._response.length
        if announced is not None and announced > self._max_bytes:
            raise Refusal("too_large_bytes", f"{announced} bytes announced")
        blocks, size = [], 0
        with _classed():
            while block := self._response.read1(_BLOCK_BYTES):
                size += len(block)
                if size > self._max_bytes:
                    raise Refusal("too_large_bytes", f"more than {self._max_bytes} bytes")
                blocks.append(block)
        if announced is not None and size < announced:
            raise Refusal("truncated", f"{size} of {announced} bytes")
        if not size:
            raise Refusal("empty_body")
        return b"".join(blocks)


class GuardedOpener:
    """Fetches what every machine may fetch, within limits; every failure is a Refusal with its class as the reason."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._allowed: tuple[IPNetwork, ...] = tuple(ipaddress.ip_network(one) for one in limits.allow_private)
        self._tls = ssl.create_default_context()
        self._tls.sslsocket_class = _TLSSocket

    def open(self, fullurl: str | Request, data: None = None, timeout: object = None) -> Body:
        """The answer at an address, redirects followed. The limits stand in for the caller's headers and timeout."""
        url = fullurl.full_url if isinstance(fullurl, Request) else fullurl
        deadline = time.monotonic() + self._limits.timeout_s
        for _ in range(self._limits.max_redirects + 1):
            response = self._get(parse_address(url), deadline)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                break
            response.close()
            url = _joined(url, target.encode("latin-1", "replace").decode("utf-8", "replace"))
        else:
            raise Refusal("redirect_loop", f"more than {self._limits.max_redirects} redirects")
        if not 200 <= response.status < 300:
            response.close()
            patience_s = _retry_after_s(response.headers) if response.status in _ASKS_FOR_PATIENCE else 0.0
            raise Refusal(f"http_{response.status}", response.reason, patience_s)
        if word := _opted_out(response.headers, self._limits):
            response.close()
            raise Refusal("opt_out", f"X-Robots-Tag: {word}")
        return Body(response, self._limits.max_bytes)

    def _get(self, address: Address, deadline: float) -> http.client.HTTPResponse:
        headers = {
            "Host": address.host_header,
            "User-Agent": self._limits.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        with _classed(), self._connected(address, deadline) as connected:
            connection = http.client.HTTPConnection(address.host, address.port)
            connection.sock = connected
            connection.request("GET", address.target, headers=headers)
            # The response has a file of its own on the socket, so that the socket may be closed here.
            return connection.getresponse()

    def _connected(self, address: Address, deadline: float) -> _PlainSocket | ssl.SSLSocket:
        plain = _first_that_answers(self._places(address, deadline), deadline)
        if address.scheme == "http":
            return plain
        try:
            plain.settimeout(_remaining_s(deadline))
            tls = self._tls.wrap_socket(plain, server_hostname=address.host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(tls, _TLSSocket)
        tls.deadline = deadline
        return tls

    def _places(self, address: Address, deadline: float) -> Sequence[Place]:
        for route in self._limits.routes:
            if fnmatch.fnmatchcase(address.host, route.hosts):
                return _NAMES.places(route.host, route.port, deadline)
        places = _NAMES.places(address.host, address.port, deadline)
        for _, place in places:
            # One bad number is enough: a name that means a public and a private machine is broken, or a trap.
            check_reachable_by_all(str(place[0]), self._allowed)
        return places


Place = tuple[socket.AddressFamily, Any]
"""Where a socket connects to: a family and the number and port in its form."""


class Names:
    """Names of hosts become numbers, in threads of their own because `getaddrinfo` knows no time-out.

    What was found is kept for `found_s`, what was not for `lost_s`: shorter than the pause before another try. Rows
    that ask for one name at a time share one question. At most `most` names are kept.
    """

    def __init__(self, found_s: float = 60.0, lost_s: float = 1.5, most: int = 4096, threads: int = 64) -> None:
        self._found_s = found_s
        self._lost_s = lost_s
        self._most = most
        self._asked: dict[tuple[str, int], tuple[float, Future[Sequence[Place]]]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "names")

    def places(self, host: str, port: int, deadline: float) -> Sequence[Place]:
        """Where `host` is; Refusal `dns` where it has no number or none is known by `deadline` (monotonic)."""
        remaining_s = _remaining_s(deadline)
        try:
            return self._question(host, port).result(remaining_s)
        except TimeoutError:
            raise Refusal("dns", "the name did not resolve in the time of a fetch") from None
        except socket.gaierror as error:
            raise Refusal("dns", error.strerror or str(error)) from None

    def _question(self, host: str, port: int) -> Future[Sequence[Place]]:
        key, now = (host, port), time.monotonic()
        with self._lock:
            made_s, question = self._asked.get(key, (now, None))
            if question is not None and (not question.done() or now < made_s + self._kept_s(question)):
                return question
            question = self._pool.submit(_resolved, host, port)
            self._asked.pop(key, None)  # to the end: the oldest are at the front
            self._asked[key] = (now, question)
            if len(self._asked) > self._most:
                del self._asked[next(iter(self._asked))]
            return question

    def _kept_s(self, question: Future[Sequence[Place]]) -> float:
        return self._lost_s if question.exception() else self._found_s


_NAMES = Names()


def _resolved(host: str, port: int) -> Sequence[Place]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


def _joined(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError as error:
        raise Refusal("malformed_url", f"redirect to {target!r}: {error}"[:500]) from None


def _retry_after_s(headers: Message) -> float:
    """Seconds from now that Retry-After names, as a number or as a date; 0 where it says nothing to be understood."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    parsed = email.utils.parsedate_tz(text)
    try:
        return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _opted_out(headers: Message, limits: Limits) -> str | None:
    """The first word of `limits.opt_out` that an X-Robots-Tag says to all or to us.

    Several headers count, also when a proxy has joined them with commas: a name with a colon (`otherbot: noai`) is
    spoken to until the next one. Upper and lower case are one, and rules that have a value of their own are no names.
    """
    for header in headers.get_all("X-Robots-Tag", []):
        spoken_to = "*"
        for part in header.lower().split(","):
            name, colon, rest = (one.strip() for one in part.partition(":"))
            if colon and _is_rule_with_a_value(name):
                continue
            spoken_to, word = (name, rest) if colon else (spoken_to, name)
            if word in limits.opt_out and spoken_to in ("*", limits.user_agent_token):
                return word
    return None


def _is_rule_with_a_value(name: str) -> bool:
    # The date of unavailable_after has colons, and at times a comma before them.
    return name.startswith(_RULES_WITH_A_VALUE) or name[:1].isdigit()


def _first_that_answers(places: Sequence[Place], deadline: float) -> _PlainSocket:
    failure: OSError = OSError("the name has no address")
    for family, place in places:
        plain = _PlainSocket(family, socket.SOCK_STREAM)
        try:
            plain.deadline = deadline
            plain.settimeout(_remaining_s(deadline))
            plain.connect(place)
            return plain
        except OSError as error:
            plain.close()
            failure = error
    raise failure


@contextlib.contextmanager
def _classed() -> Iterator[None]:
    """Turns what sockets, TLS and http.client raise into the class of the failure."""
    try:
        yield
    except TimeoutError as error:
        raise Refusal("timeout", str(error)) from None
    except ssl.SSLError as error:
        raise Refusal("tls", error.reason or str(error)) from None
    except http.client.IncompleteRead as error:
        raise Refusal("truncated", f"the connection ended after {len(error.partial)} bytes of a chunk") from None
    except (http.client.HTTPException, OSError) as error:
        raise Refusal("connection_failed", f"{type(error).__name__}: {error}") from None
