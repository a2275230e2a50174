"""How much of a dataset is still on the web as it was: `JOB.yaml --drift N` asks for a sample of its pictures again."""

from __future__ import annotations

import datetime
import json
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from pipeline.build_job import BuildJob
from pipeline.command import console
from pipeline.fetch_rows import Fate, fetch_rows
from pipeline.jobfile import JobError
from pipeline.keyed_hash import mixed
from pipeline.manifest import Manifest, read_manifest
from pipeline.pair import pair_numbers
from pipeline.progress import progress
from pipeline.routes import open_routes
from pipeline.storage import Folder, folder

_KEY = np.uint64(0x64726966740A)
"""Of the hash that draws the sample: the same pairs every time, and none of them by what else a pair_id decides."""
_AT_ONCE = 8
_FETCHED_AT_ONCE = 512
"""Rows between two lines of progress."""
_SAME, _CHANGED = "same", "changed"


@dataclass(frozen=True)
class Share:
    """How many of a sample, their share, and the 95 % Wilson interval of the share in the dataset."""

    what: str
    pairs: int
    share: float
    low: float
    high: float


def read_count(text: str) -> int:
    """Pairs to ask for again; JobError unless at least one."""
    if not text.isdigit() or not int(text):
        raise JobError(f"drift: expected a number of pairs, at least 1, came '{text}'")
    return int(text)


def drift(job: BuildJob, pairs: int) -> str:
    """Asks for a sample of so many kept pairs again and returns the path of `drift-DATE.json` in `out`.

    With the settings that `job` downloads with, in this process and its threads. DatasetError if there is no dataset.
    """
    target = folder(job.out)
    manifest = read_manifest(target.root)
    sample = _sample(target, manifest, pairs)
    fates: list[Fate] = []
    with open_routes(job) as routes, progress("drift", sample.num_rows, "pairs") as advance:
        try:
            for start in range(0, sample.num_rows, _FETCHED_AT_ONCE):
                urls = sample["url"].slice(start, _FETCHED_AT_ONCE).to_pylist()
                fates += fetch_rows(urls, job.download, routes)
                advance(len(urls))
        finally:
            urllib.request.install_opener(None)  # the default again: fetch_rows has set its own
    ends = [_end(fate, before) for fate, before in zip(fates, sample["image_sha256"].to_pylist(), strict=True)]
    shares = shares_of(Counter(ends))
    console.print(_table(manifest, shares, len(ends)))
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "date": now.isoformat(timespec="seconds"),
        "fingerprint": manifest.fingerprint,
        "pairs": manifest.pairs,
        "sample": len(ends),
        "shares": [asdict(share) for share in shares],
        "rows": [
            {"pair_id": row["pair_id"], "url": row["url"], "end": end, "detail": fate.detail}
            for row, end, fate in zip(sample.to_pylist(), ends, fates, strict=True)
            if end != _SAME
        ],
    }
    name = f"drift-{now.date().isoformat()}.json"
    target.write_text(name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return target.join(name)


def _end(fate: Fate, before: str) -> str:
    if fate.image_sha256 is None:
        return fate.reason or "failed"
    return _SAME if fate.image_sha256 == before else _CHANGED


def _sample(target: Folder, manifest: Manifest, most: int) -> pa.Table:
    """(sample rows): pair_id, url and image_sha256 of the pairs whose names hash lowest, in the dataset's order."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        names = [shard.path for shard in manifest.shards]
        hashes = list(threads.map(partial(_hashes, target), names))
        chosen = np.sort(np.argsort(np.concatenate(hashes), kind="stable")[:most])
        begins = np.cumsum([0, *map(len, hashes)])
        rows = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(begins)]
        wanted = [(name, of) for name, of in zip(names, rows, strict=True) if len(of)]
        return pa.concat_tables(threads.map(lambda one: _read(target, *one), wanted)).combine_chunks()


def _hashes(target: Folder, name: str) -> npt.NDArray[np.uint64]:
    with target.open(name) as file:
        names = pq.read_table(file, columns=["pair_id"], use_threads=False)["pair_id"]
    return mixed(pair_numbers(names), _KEY)


def _read(target: Folder, name: str, rows: npt.NDArray[np.int64]) -> pa.Table:
    with target.open(name) as file:
        return pq.read_table(file, columns=["pair_id", "url", "image_sha256"], use_threads=False).take(rows)


def shares_of(ends: Counter[str]) -> list[Share]:
    """What became of a sample: same, changed, gone, and what is gone by reason, the most frequent first."""
    sample = ends.total()
    gone = Counter({reason: count for reason, count in ends.items() if reason not in (_SAME, _CHANGED)})
    counts: list[tuple[str, int]] = [(_SAME, ends[_SAME]), (_CHANGED, ends[_CHANGED]), ("gone", gone.total())]
    counts += [(f"gone: {reason}", count) for reason, count in sorted(gone.items(), key=lambda one: (-one[1], one[0]))]
    return [Share(what, count, count / sample, *wilson(count, sample)) for what, count in counts]


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which is right near 0 and 1 too."""
    z = NormalDist().inv_cdf(0.975)
    middle = (count + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * (count * (of - count) / of + z * z / 4) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _table(manifest: Manifest, shares: Sequence[Share], sample: int) -> Table:
    title = f"{sample:,} of {manifest.pairs:,} pairs of {manifest.name}, asked for again"
    table = Table("", "pairs", "share", "95 % interval", title=title, title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in shares:
        table.add_row(one.what, f"{one.pairs:,}", f"{one.share:.1%}", f"{one.low:.1%} to {one.high:.1%}")
    return table
