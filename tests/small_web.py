"""A small web on this machine: each path answers as a test says, byte for byte, over a real socket."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket, int], None]
"""Called with the connection, after the request was read, and how often this path was asked for before."""


class SmallWeb(socketserver.ThreadingTCPServer):
    """Serves `answers` by path and remembers every request."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.tls = tls
        self.requests: list[str] = []
        self.asked: Counter[str] = Counter()
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is what some tests are about."""


class _Handler(socketserver.BaseRequestHandler):
    server: SmallWeb

    def handle(self) -> None:
        connection = self.request
        connection.settimeout(20)
        if self.server.tls is not None:
            connection = self.server.tls.wrap_socket(connection, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            block = connection.recv(65536)
            if not block:
                return
            head += block
        text = head.decode("latin-1")
        path = text.split(" ", 2)[1]
        before = self.server.asked[path]
        self.server.asked[path] += 1
        self.server.requests.append(text)
        self.server.answers.get(path, reply(b"", status="404 Not Found"))(connection, before)
        if self.server.tls is not None:
            connection.close()


@contextlib.contextmanager
def small_web(answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[SmallWeb]:
    with SmallWeb(answers, tls) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.closing.set()
            web.shutdown()
            thread.join()


def reply(body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> Answer:
    """A whole answer; `length` announces another length than the body has."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def raw(content: bytes) -> Answer:
    """Exactly these bytes, then the end of the connection."""
    return lambda connection, before: connection.sendall(content)


def drip(content: bytes, pause_s: float, closing: threading.Event | None = None) -> Answer:
    """These bytes one by one with a pause before each."""

    def answer(connection: socket.socket, before: int) -> None:
        wait = closing or threading.Event()
        for byte in content:
            if wait.wait(pause_s):
                return
            connection.sendall(bytes([byte]))

    return answer


def endless(head: bytes, block: bytes) -> Answer:
    """A head, then the same block again and again, until the client leaves."""

    def answer(connection: socket.socket, before: int) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)

    return answer


ENDLESS_CHUNKS = endless(
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"
)


def never(connection: socket.socket, before: int) -> None:
    """Nothing, until the client leaves."""
    connection.recv(1)


def after(failures: int, then: Answer, first: Answer) -> Answer:
    """`first` for so many requests, `then` from there on."""
    return lambda connection, before: (first if before < failures else then)(connection, before)
