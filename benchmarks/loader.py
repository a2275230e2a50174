"""Pictures a second that one core reads: ours beside Pillow's loop and beside decoding alone, by turns, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.loader [--keep] [--ray]

Two sets of real pictures. `photo` is matplotlib's JPEG of Grace Hopper (512 x 600), shown at 224 px: what a web crawl
holds. `crawl` is what the walk trains on (jobs/walk/crawl: small drawings, PNG, WebP and JPEG), shown at 64 px.

`reader` is all that a task of the loader does: order, row groups, decoding, crop, tokens; `views` is decoding and crop
of it. `pillow` is the usual loop: open, convert, the box of RandomResizedCrop, bicubic resize. `decoding` is
libjpeg-turbo, Pillow's decoder where it is no JPEG, and nothing else.
`--ray` adds the seconds to a first batch through a local Ray, cold and warm, and the pictures a second of one task.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from benchmarks.measurement import interleaved, report, summary
from hiclip.batch import Views
from hiclip.data.chance import Chance
from hiclip.data.image_views import random_box, random_crop
from hiclip.data.images import Picture
from hiclip.data.step_reader import StepReader
from hiclip.data.stream_plan import LoaderSettings, StreamPlan, plan_stream
from hiclip.data.view_settings import ViewSettings
from pipeline.manifest import Manifest, dataset_fingerprint, write_manifest
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.shards import write_shards
from pipeline.storage import folder

CRAWL = Path("jobs/walk/crawl")
BATCH = 128
SETTINGS = ViewSettings()


def photo() -> list[tuple[bytes, str]]:
    """Pictures and captions: one photograph, as often as a few batches need."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return [(Path(str(path)).read_bytes(), "a photograph of a woman in uniform in front of a flag")] * (4 * BATCH)


def crawl() -> list[tuple[bytes, str]]:
    """Pictures and captions that the walk trains on, in no order."""
    tables = [pq.read_table(CRAWL / f"{name}.parquet") for name in ("noto", "twemoji", "openclipart", "tuxpaint")]
    pairs = [pair for t in tables for pair in zip(t["image"].to_pylist(), t["caption"].to_pylist(), strict=True)]
    return [pairs[place] for place in np.random.default_rng(0).permutation(len(pairs))]


def write_dataset(path: str, pairs: list[tuple[bytes, str]]) -> None:
    """A dataset of these pairs, as the build would write it."""
    target = folder(path)
    rows = []
    for number, (image, caption) in enumerate(pairs):
        size = Image.open(io.BytesIO(image)).size
        url = f"http://benchmark.crawl.example/{number}"
        rows.append((pair_id(url, caption), url, caption, "benchmark", image, *size, hashlib.sha256(image).hexdigest()))
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), PAIR_SCHEMA, strict=True)]
    shards = tuple(write_shards([pa.Table.from_arrays(columns, schema=PAIR_SCHEMA)], target, 2048, 256))
    types = {field.name: str(field.type) for field in PAIR_SCHEMA}
    manifest = Manifest(
        name="benchmark", pairs=len(pairs), pairs_per_shard=2048, rows_per_group=256, shards=shards, columns=types,
        fingerprint=dataset_fingerprint(shards, types), job={}, snapshot="", funnel=[], versions={},
    )  # fmt: skip
    write_manifest(target, manifest)


def ways(pairs: list[tuple[bytes, str]], plan: StreamPlan) -> dict[str, Callable[[], int]]:
    """The ways to read a batch; each gives the number of pictures that it read, and goes on where it ended."""
    reader, steps = StepReader(plan), itertools.count()
    chances = [Chance(0, str(number), 0, "crop") for number in range(BATCH)]

    def batches() -> Callable[[], list[bytes]]:
        images = itertools.cycle([image for image, _ in pairs])
        return lambda: list(itertools.islice(images, BATCH))

    def read() -> int:
        return len(reader.read(next(steps), 0, 1).pair_ids)

    def views(images: list[bytes]) -> int:
        for image, chance in zip(images, chances, strict=True):
            random_crop(Picture(image), {}, plan.image_px, chance, SETTINGS)
        return len(images)

    def pillow(images: list[bytes]) -> int:
        for data, chance in zip(images, chances, strict=True):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            box = random_box(image.height, image.width, chance.generator(), SETTINGS.crop_scale, SETTINGS.crop_ratio)
            corners = (box.left, box.top, box.left + box.width, box.top + box.height)
            np.asarray(image.resize((plan.image_px, plan.image_px), Image.Resampling.BICUBIC, corners))
        return len(images)

    def decoding(images: list[bytes]) -> int:
        for data in images:
            if data[:2] == b"\xff\xd8":
                simplejpeg.decode_jpeg(data)
            else:
                Image.open(io.BytesIO(data)).load()
        return len(images)

    next_views, next_pillow, next_decoding = batches(), batches(), batches()
    return {
        "reader": read,
        "views": lambda: views(next_views()),
        "pillow": lambda: pillow(next_pillow()),
        "decoding": lambda: decoding(next_decoding()),
    }


def through_ray(plan: StreamPlan) -> dict[str, float]:
    """Seconds to the first batch with cold and with warm processes, and pictures a second of one task after it."""
    import ray

    from hiclip.data.ray_stream import rank_stream

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    numbers = {}
    for name in ("first_batch_cold_s", "first_batch_warm_s"):
        began = time.perf_counter()
        stream = rank_stream(plan, LoaderSettings(), 0, 40)
        next(stream)
        numbers[name] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()
        pictures = sum(len(step.pair_ids) for step in stream)
        numbers["task_per_s"] = round(pictures / (time.perf_counter() - began), 1)
    ray.shutdown()
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="append the lines to benchmarks/results/loader.jsonl")
    parser.add_argument("--ray", action="store_true", help="also through a local Ray")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    against = {
        "reader over pillow": ("reader", "pillow"),
        "reader over decoding": ("reader", "decoding"),
        "views over pillow": ("views", "pillow"),
        "views over decoding": ("views", "decoding"),
    }
    for name, pairs, px in (("photo", photo(), 224), ("crawl", crawl(), 64)):
        with tempfile.TemporaryDirectory() as path:
            write_dataset(path, pairs)
            plan = plan_stream(path, BATCH, 64, 0, Views(("crop",), ("caption",)), px, 77)
            numbers = summary(interleaved(ways(pairs, plan), arguments.rounds), against)
            ray_numbers = through_ray(plan) if arguments.ray else {}
        report("loader", {"pictures": name, "px": px, **numbers, **ray_numbers}, arguments.keep)


if __name__ == "__main__":
    main()
