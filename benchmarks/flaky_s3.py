"""An S3 server on loopback that fails some of its requests: `python -m benchmarks.flaky_s3 --port N --share 0.05`.

Failures are what S3 itself answers under load, 500 and 503, before anything was done; some answers come a second late.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

_LATE_S = 1.0


class Flaky:
    """A WSGI application that stands before another one and does not always ask it."""

    def __init__(self, whole: Any, share: float, seed: int) -> None:
        self._whole, self._share, self._chance = whole, share, random.Random(seed)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Fails `share` of the requests, and delays a fifth as many."""
        drawn = self._chance.random()
        if drawn < self._share:
            code, status = self._chance.choice((("InternalError", "500 Oh"), ("SlowDown", "503 Slow Down")))
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by chance</Message></Error>".encode()]
        if drawn < 1.2 * self._share:
            time.sleep(_LATE_S)
        answer: Iterable[bytes] = self._whole(environ, start_response)
        return answer


def main() -> None:
    """Serves until it is ended."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    server = Flaky(DomainDispatcherApplication(create_backend_app), given.share, given.seed)
    run_simple("127.0.0.1", given.port, server, threaded=True)


if __name__ == "__main__":
    main()
