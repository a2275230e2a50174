"""Where the hosts are reached that a build job names in `connect_to`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.build_job import BuildJob
from pipeline.download_settings import SAMPLE_CRAWL
from pipeline.fetch import Route
from pipeline.sample_crawl import serve_crawl
from pipeline.storage import absolute


@contextlib.contextmanager
def open_routes(job: BuildJob) -> Iterator[tuple[Route, ...]]:
    """The routes of the job; while they are open the sample crawl is served, where one of them leads there."""
    with contextlib.ExitStack() as stack:
        places = dict(job.download.connect_to)
        if SAMPLE_CRAWL in places.values():
            port = stack.enter_context(serve_crawl(absolute(job.sample_crawl or "")))
            places = {hosts: f"127.0.0.1:{port}" if to == SAMPLE_CRAWL else to for hosts, to in places.items()}
        yield tuple(Route(hosts, to.rpartition(":")[0], int(to.rpartition(":")[2])) for hosts, to in places.items())
