"""The web in small: a loopback server of the sample crawl, good pictures at their own addresses, dirt beside them.

It answers by Host header and path, so a build connects `*.crawl.example` to this port as curl's --connect-to does, and
the addresses in the list, with them the names of the pairs, never depend on the port.

    python -m pipeline.sample_crawl jobs/walk/crawl --port 8000
"""

from __future__ import annotations

import argparse
import logging
import select
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.jobfile import InputError
from pipeline.sample_dirt import BY_NAME, DIRT_HOST, Answer, Request

DOMAIN = ".crawl.example"
SERVED_SOURCES = ("noto", "twemoji", "openclipart", "tuxpaint")
"""OpenMoji lies in the same folder and is never served: it is what models are measured on."""
CONTENT_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
NO_SUCH_PAGE = Answer(b"no such page", "text/plain", 404)

log = logging.getLogger(__name__)


class CrawlError(InputError):
    """The folder of the sample crawl is missing or damaged."""


class Site:
    """Every picture of the crawl by source and path, and how often each spoilt address was asked for."""

    def __init__(self, folder: str | Path) -> None:
        self._pictures = {source: _pictures(Path(folder) / f"{source}.parquet") for source in SERVED_SOURCES}
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(len(pictures) for pictures in self._pictures.values())

    def answer(self, host: str, target: str) -> Answer:
        """What is at `target` (path and query) of `host`; 404 where nothing is."""
        address = urlsplit(target)
        path = unquote(address.path).removeprefix("/")
        host = host.partition(":")[0].lower()
        if host == DIRT_HOST:
            return self._dirt(*path.partition("/")[::2], query=address.query)
        source = host.removesuffix(DOMAIN)
        image = self._pictures.get(source, {}).get(path)
        return NO_SUCH_PAGE if image is None else Answer(image, _content_type(path))

    def _dirt(self, kind: str, picture: str, query: str) -> Answer:
        source, _, path = picture.partition("/")
        image = self._pictures.get(source, {}).get(path)
        if kind not in BY_NAME or image is None:
            return NO_SUCH_PAGE
        with self._lock:
            earlier_attempts = self._attempts[f"{kind}/{picture}"]
            self._attempts[f"{kind}/{picture}"] += 1
        home = f"http://{source}{DOMAIN}/{path}"
        return BY_NAME[kind].answer(Request(image, _content_type(path), home, earlier_attempts, query))


def _pictures(file: Path) -> dict[str, bytes]:
    try:
        table = pq.read_table(file, columns=["path", "image"])
    except FileNotFoundError:
        raise CrawlError(f"expected the sample crawl's pictures in {file}, found no such file") from None
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CrawlError(f"expected a parquet file with columns path and image, {file}: {_one_line(error)}") from None
    return dict(zip(table["path"].to_pylist(), table["image"].to_pylist(), strict=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _content_type(path: str) -> str:
    return CONTENT_TYPES[path.rpartition(".")[2]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Without it closing would wait for the threads of the addresses that never answer.
    block_on_close = False
    request_queue_size = 512

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def shutdown(self) -> None:
        self.closing.set()
        super().shutdown()

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that goes away in the middle is the client's business.
        log.debug("client %s went away", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one piece
    timeout = 60  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        answer = self.server.site.answer(self.headers.get("Host", ""), self.path)
        if answer.delivery == "never":
            self._wait_for_the_client_to_leave()
        if answer.delivery in ("never", "hang_up"):
            self.close_connection = True
            return
        self._send_head(answer)
        if self.command == "GET":
            self._send_body(answer)

    do_HEAD = do_GET

    def _send_head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if answer.delivery == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, answer: Answer) -> None:
        if answer.delivery == "cut":
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        elif answer.delivery == "slow":
            self._send_slowly(answer.body)
        elif answer.delivery == "chunked":
            self._send_chunks(answer.body)
        else:
            self.wfile.write(answer.body)

    def _send_slowly(self, body: bytes, pieces: int = 5, pause_s: float = 0.1) -> None:
        size = -(-len(body) // pieces)
        for start in range(0, len(body), size):
            self.wfile.flush()
            self.server.closing.wait(pause_s)
            self.wfile.write(body[start : start + size])

    def _send_chunks(self, body: bytes, size: int = 2**18) -> None:
        for start in range(0, len(body), size):
            chunk = body[start : start + size]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def _wait_for_the_client_to_leave(self) -> None:
        while not self.server.closing.wait(0.1):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


@contextmanager
def serve_crawl(folder: str | Path, port: int = 0) -> Iterator[int]:
    """Serve the sample crawl of `folder` on 127.0.0.1 and yield the port; port 0 takes any free one.

    Raises CrawlError where the folder is missing or damaged. Leaving ends the server at once, also while
    somebody waits for an address that never answers.
    """
    site = Site(folder)
    server = _Server(site, port)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="sample-crawl", daemon=True
    )
    thread.start()
    log.info("%d pictures of %s at 127.0.0.1:%d", len(site), folder, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(argv: list[str] | None = None) -> int:
    """`python -m pipeline.sample_crawl FOLDER [--port N]`: serve until interrupted; exit code 2 for a bad folder."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sample_crawl", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="the sample crawl, such as jobs/walk/crawl")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    arguments = parser.parse_args(argv)
    try:
        with serve_crawl(arguments.folder, arguments.port) as port:
            sys.stdout.write(f"serving {arguments.folder} at http://127.0.0.1:{port}; end with Ctrl-C\n")
            sys.stdout.flush()
            threading.Event().wait()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
