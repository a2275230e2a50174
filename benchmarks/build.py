"""How fast a dataset is built: download beside img2dataset's own command, filters beside a plain pass, duplicates.

    python -m benchmarks.build [download] [filter] [duplicates] [--keep] [--rows 500000 1000000 ...] [--pictures 3000]

`download`: a list of photographs on a loopback web server, fetched by `python -m pipeline.build` (Ray's start, the list
and its download count) and by `img2dataset`, by turns, on the same cores, with the same size, encoding and threads.
`filter`: the filters of jobs/build_30m.yaml over a snapshot without pictures, by `judge` with one Ray CPU, which also
writes its verdicts, and by one process that reads the same columns, asks the same filters and writes nothing.
`duplicates`: pictures that look the same among pairs of which one in twenty is a copy, four in ten stand on white and
one in a hundred is blank.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.measurement import report
from pipeline.annotation_columns import Annotated, annotated
from pipeline.build_job import BuildJob
from pipeline.duplicates import DuplicateSettings, NearDuplicates
from pipeline.jobfile import RaySettings, read_job
from pipeline.look import LOOK_BYTES, Look
from pipeline.pool import METADATA, Pool
from pipeline.ray_session import ray_session
from pipeline.snapshot import SNAPSHOT_SCHEMA, read_snapshot_shard, write_snapshot_shard
from pipeline.storage import Folder

_CORES = 2
_THREADS = 32
_ROWS_A_SHARD = 2048
_FILTER_SPAN, _DUPLICATES_SPAN = 250_000, 100_000
"""Rows that a task takes at a time; a build takes a million by default (`tasks.rows`)."""
_LANGUAGE = Annotated(
    "language-made",
    pa.schema(
        [
            pa.field("language", pa.string()),
            pa.field("language_score", pa.float32()),
            pa.field("wanted_language_score", pa.float32()),
        ]
    ),
)


def main() -> None:
    """Runs the parts that are asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["download", "filter", "duplicates"])
    parser.add_argument("--rows", nargs="*", type=int, default=[500_000, 1_000_000, 2_000_000, 5_000_000])
    parser.add_argument("--pairs", nargs="*", type=int, default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="append the lines to benchmarks/results/build.jsonl")
    parser.add_argument("--json", action="store_true", help="as it is anyway: a line of JSON a part")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="hiclip-build-") as work:
        if "download" in given.parts:
            report("build", {"part": "download", **download(Path(work), given.pictures, given.rounds)}, given.keep)
        if "filter" in given.parts:
            report("build", {"part": "filter", **filters(Path(work), given.rows)}, given.keep)
        if "duplicates" in given.parts:
            with tempfile.TemporaryDirectory(prefix="hiclip-build-") as other:
                report("build", {"part": "duplicates", **duplicates(Path(other), given.pairs)}, given.keep)


def download(work: Path, pictures: int, rounds: int) -> dict[str, object]:
    """Pictures a second of both, and the median ratio over the rounds."""
    with _web() as port:
        rows = {"url": [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(pictures)],
                "caption": [f"photograph number {number}" for number in range(pictures)]}  # fmt: skip
        pq.write_table(pa.table(rows), work / "list.parquet")
        ways = {"ours": partial(_ours, work), "img2dataset": partial(_theirs, work)}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                fetched, seconds = way(number)
                assert fetched == pictures, f"{name} fetched {fetched} of {pictures}"
                rates[name].append(pictures / seconds)
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["img2dataset"], strict=True)]
    return {
        "pictures": pictures,
        "per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _ours(work: Path, number: int) -> tuple[int, float]:
    job = {
        "name": "benchmark",
        "out": f"{work}/ours-{number}",
        "lists": [{"path": f"{work}/list.parquet"}],
        "ray": {"num_cpus": _CORES},
        "download": {
            "allow_private": ["127.0.0.0/8"],
            "connections_per_host": _CORES * _THREADS,
            "connections": _THREADS,
            "rows_per_task": 512,
            "cpus_per_task": 1,
            "image_px": 256,
            "encode_quality": 95,
        },
        "duplicates": {"exact": None, "near": None},
        "mlflow": {"tracking_uri": f"sqlite:///{work}/mlflow.db"},
    }
    (work / "job.yaml").write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, "-m", "pipeline.build", str(work / "job.yaml")], check=True, stdout=subprocess.DEVNULL
    )
    result = json.loads((work / f"ours-{number}" / "result.json").read_text())
    return result["kept"], sum(result["seconds_by_step"][step] for step in ("ray", "list", "download"))


def _theirs(work: Path, number: int) -> tuple[int, float]:
    out = work / f"theirs-{number}"
    options = {
        "url_list": work / "list.parquet", "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_format": "parquet", "output_folder": out, "processes_count": _CORES, "thread_count": _THREADS,
        "image_size": 256, "resize_mode": "keep_ratio", "resize_only_if_bigger": True, "encode_quality": 95,
        "number_sample_per_shard": 512, "enable_wandb": False,
    }  # fmt: skip
    words = [str(Path(sys.executable).parent / "img2dataset"), *(f"--{key}={value}" for key, value in options.items())]
    began = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    return sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json")), seconds


class _web:
    """Photographs on loopback, in a process of their own: 64 crops of one, about 60 kB each."""

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.build import serve; serve()"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def serve() -> None:
    """Serves until it is ended; says its port first."""
    with Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as opened:
        photo = opened.convert("RGB")
    pictures = []
    for number in range(64):
        content = io.BytesIO()
        crop = photo.crop((number % 8, number // 8, photo.width - 8 + number % 8, photo.height - 8 + number // 8))
        crop.save(content, "JPEG", quality=88)
        pictures.append(content.getvalue())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures[int(self.path.strip("/").removesuffix(".jpg")) % len(pictures)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def filters(work: Path, sizes: list[int]) -> dict[str, object]:
    """Seconds of `judge` and of the plain pass at every size, their ratio, and the most memory that a task took."""
    from pipeline.judge import judge, refusals

    sizes = [rows // _ROWS_A_SHARD * _ROWS_A_SHARD for rows in sizes]
    place = Folder(str(work / "snapshot"))
    ready = [one.ready() for one in read_job("jobs/build_30m.yaml", [], BuildJob).filters]
    _write_metadata(place, max(sizes))
    seconds: dict[str, list[float]] = {"judge": [], "plain": []}
    memory: list[float] = []

    def plain(rows: int) -> None:
        for number in range(-(-rows // _ROWS_A_SHARD)):
            table = read_snapshot_shard(place, number, [*METADATA, "reason"])
            for name, column in _annotations(place, number).items():
                table = table.append_column(name, column)
            refusals(table.combine_chunks(), ready)

    with ray_session(RaySettings(num_cpus=1)):
        for rows in sizes:
            span = _FILTER_SPAN // _ROWS_A_SHARD
            pool = Pool(place, Folder(str(work / "work")), rows, _ROWS_A_SHARD, span, (_LANGUAGE,))
            plain(rows)  # the page cache is warm for both
            with _peak("ray::") as peak:
                seconds["judge"].append(_timed(lambda pool=pool: judge(pool, ready, lambda *_, **__: None)))  # type: ignore[misc]
            memory.append(peak.megabytes)
            seconds["plain"].append(_timed(lambda rows=rows: plain(rows)))  # type: ignore[misc]
    line = np.polyfit(sizes, seconds["judge"], 1)
    off = np.abs(np.polyval(line, sizes) - seconds["judge"]) / seconds["judge"]
    return {
        "rows": sizes,
        "seconds": {name: [round(one, 2) for one in values] for name, values in seconds.items()},
        "rows_per_s": round(sizes[-1] / seconds["judge"][-1]),
        "judge_over_plain": [round(a / b, 3) for a, b in zip(seconds["judge"], seconds["plain"], strict=True)],
        "furthest_from_a_line": round(float(off.max()), 3),
        "worker_megabytes": [round(one) for one in memory],
    }


def _annotations(place: Folder, number: int) -> dict[str, pa.ChunkedArray]:
    from pipeline.annotation_columns import read_annotations

    return read_annotations(place, number, (_LANGUAGE,), _LANGUAGE.columns.names)


def _write_metadata(place: Folder, rows: int, gone: float = 0.1) -> None:
    chance = np.random.default_rng(0)
    words = np.array(
        [
            "a",
            "the",
            "of",
            "red",
            "dog",
            "cat",
            "runs",
            "in",
            "park",
            "with",
            "big",
            "small",
            "house",
            "tree",
            "photo",
            "blue",
            "sky",
            "man",
            "woman",
            "on",
            "street",
        ]
    )
    for number, start in enumerate(range(0, rows, _ROWS_A_SHARD)):
        count = min(_ROWS_A_SHARD, rows - start)
        lost = chance.random(count) < gone
        sides = [pa.array(chance.integers(50, 2000, count).astype(np.int32), mask=lost) for _ in range(2)]
        length = chance.integers(1, 15, count)
        columns = {
            "pair_id": [f"{place * 3:016x}" for place in range(start, start + count)],
            "url": [f"http://host{place % 997}.example/{place}.jpg" for place in range(start, start + count)],
            "caption": [" ".join(words[chance.integers(0, len(words), one)]) for one in length],
            "source": ["cc12m"] * count, "image": pa.nulls(count, pa.binary()),
            "width": sides[0], "height": sides[1], "original_width": sides[0], "original_height": sides[1],
            "original_bytes": pa.array(chance.integers(1000, 500_000, count), mask=lost),
            "original_format": pa.array(["JPEG"] * count, mask=lost),
            "image_sha256": pa.array([f"{place:064x}" for place in range(start, start + count)], mask=lost),
            "reason": pa.array(["http_404"] * count, mask=~lost), "detail": pa.array(["Not Found"] * count, mask=~lost),
        }  # fmt: skip
        write_snapshot_shard(
            place, number, pa.table(columns).select(SNAPSHOT_SCHEMA.names).cast(SNAPSHOT_SCHEMA), 0, ""
        )
        score = chance.random(count).astype(np.float32)
        found = {"language": ["en"] * count, "language_score": score, "wanted_language_score": score}
        _LANGUAGE.write(place, number, pa.table(found))


def duplicates(work: Path, sizes: list[int]) -> dict[str, object]:
    """Seconds of both steps (exact, near) on Ray at every size, and the most memory that a task took."""
    from pipeline.judge import judge
    from pipeline.selection import refuse_duplicates

    sizes = [rows // _ROWS_A_SHARD * _ROWS_A_SHARD for rows in sizes]
    place, looks = Folder(str(work / "snapshot")), annotated(Look())
    _write_metadata(place, max(sizes), gone=0.0)
    table = _looks(max(sizes))
    for number in range(max(sizes) // _ROWS_A_SHARD):
        looks.write(place, number, table.slice(number * _ROWS_A_SHARD, _ROWS_A_SHARD))
    del table
    near = NearDuplicates(max_bits=4, max_cell=12, max_share=0.03)
    steps = {"exact": DuplicateSettings(near=None), "near": DuplicateSettings(exact=None, near=near)}
    seconds: dict[str, list[float]] = {step: [] for step in steps}
    memory: dict[str, list[int]] = {step: [] for step in steps}
    for rows in sizes:
        with ray_session(RaySettings(num_cpus=_CORES)):  # a worker keeps what it once took, so each size has its own
            span = _DUPLICATES_SPAN // _ROWS_A_SHARD
            pool = Pool(place, Folder(str(work / "work")), rows, _ROWS_A_SHARD, span, (looks,))
            judge(pool, [], lambda *_, **__: None)  # nothing is refused before
            for step, settings in steps.items():
                with _peak("ray::") as peak:
                    refuse = partial(refuse_duplicates, pool, settings)
                    seconds[step].append(_timed(refuse))
                memory[step].append(round(peak.megabytes))
    return {
        "pairs": sizes,
        "seconds": {step: [round(one, 1) for one in values] for step, values in seconds.items()},
        "pairs_per_s": {step: round(sizes[-1] / values[-1]) for step, values in seconds.items()},
        "worker_megabytes": memory,
    }


def _looks(pairs: int) -> pa.Table:
    chance = np.random.default_rng(0)
    thumbnails = np.empty((pairs, 8, 8, 3), np.float32)
    for start in range(0, pairs, 50_000):
        some = min(50_000, pairs - start)
        coarse = chance.integers(0, 256, (some, 4, 4, 3)).astype(np.float32).repeat(2, 1).repeat(2, 2)
        wide = np.pad(coarse, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        smooth = sum(wide[:, down : down + 8, across : across + 8] for down in range(3) for across in range(3)) / 9
        on_white = chance.random(some) < 0.4
        for part in (np.s_[on_white, :2], np.s_[on_white, :, :3], np.s_[on_white, :, 5:]):
            smooth[part] = 255
        thumbnails[start : start + some] = smooth
    blank = chance.random(pairs) < 0.01
    thumbnails[blank] = chance.integers(0, 256, (int(blank.sum()), 1, 1, 1))
    copies, of = chance.integers(0, pairs, (2, pairs // 20))
    thumbnails[copies] = np.clip(thumbnails[of] + chance.normal(0, 1.5, thumbnails[of].shape), 0, 255)
    grey = thumbnails.mean(axis=3)
    bits = np.diff(np.concatenate([grey, grey[:, :, -1:]], axis=2), axis=2) > 3
    hashes = np.packbits(bits.reshape(pairs, 64), axis=1).view(">u8").reshape(-1).astype(np.uint64)
    content = pa.py_buffer(thumbnails.round().astype(np.uint8).tobytes())
    columns = {
        "row": np.arange(pairs), "pair_id": [f"{number:016x}" for number in range(pairs)],
        "original_width": chance.integers(100, 1000, pairs), "original_height": chance.integers(100, 1000, pairs),
        "hash": hashes,
        "thumbnail": pa.FixedSizeBinaryArray.from_buffers(pa.binary(LOOK_BYTES), pairs, [None, content]),
    }  # fmt: skip
    return pa.table(columns)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class _peak:
    """The most memory of its own in MB, while it was open, of the largest child whose command holds `name`; "": of this
    process, beyond what it had before. What processes share, as Ray's object store, is not counted."""

    def __init__(self, name: str) -> None:
        self.megabytes, self._name, self._ended = 0.0, name, threading.Event()
        self._before = 0.0 if name else self._largest()

    def __enter__(self) -> _peak:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.megabytes = max(self.megabytes, self._largest() - self._before)

    def _largest(self) -> float:
        import psutil

        sizes = [0]
        here = psutil.Process()
        for process in here.children(recursive=True) if self._name else [here]:
            try:
                if self._name in " ".join(process.cmdline()):
                    memory = process.memory_info()
                    sizes.append(memory.rss - memory.shared)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return max(sizes) / 1e6


if __name__ == "__main__":
    main()
