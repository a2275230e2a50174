"""How fast evaluation is: pictures embedded beside the bare forward of the same model, and retrieval of very many.

    python -m benchmarks.evaluate [embed] [retrieval] [--keep]

`embed`: pictures a second from encoded JPEG files to unit vectors by Ray tasks (read, decode, resize, forward), and of
the model's forward alone on tensors that are there already, in turns, one thread each. `retrieval`: ranks both ways of
N pictures and N captions on two Ray CPUs: seconds, and the most memory that a task and the driver took.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.build import _peak
from benchmarks.measurement import report
from hiclip.evaluation.embed import Embedder, embed_pictures
from hiclip.evaluation.ray_blocks import RayBlocks
from hiclip.evaluation.retrieval import Fits, VectorScores, answers
from hiclip.evaluation.set_pictures import FilePictures
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from pipeline.jobfile import RaySettings
from pipeline.ray_session import ray_session
from pipeline.storage import Folder


def main() -> None:
    """Runs the parts that are asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["embed", "retrieval"])
    parser.add_argument("--size", default="vit_b_32", help="of the model that embeds")
    parser.add_argument("--hierarchy", action="store_true", help="HiCLIP's towers, not CLIP's")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000, help="pictures, and captions, of retrieval")
    parser.add_argument("--width", type=int, default=512, help="of the vectors of retrieval")
    parser.add_argument("--keep", action="store_true", help="append the lines to benchmarks/results/evaluate.jsonl")
    given = parser.parse_intermixed_args()
    if "embed" in given.parts:
        model = ModelSettings(size=given.size, text_hierarchy=given.hierarchy, image_hierarchy=given.hierarchy)
        report("evaluate", {"part": "embed", **embed(model, given.pictures, given.batch, given.rounds)}, given.keep)
    if "retrieval" in given.parts:
        report("evaluate", {"part": "retrieval", **retrieval(given.rows, given.width)}, given.keep)


def embed(model: ModelSettings, pictures: int, batch: int, rounds: int) -> dict[str, object]:
    """Pictures a second of both, round by round, and the median of their ratios."""
    torch.set_num_threads(1)
    towers = TwoTowers(model).eval()
    embedder = Embedder(towers)
    ready = torch.randn(batch, 3, embedder.sizes.image_px, embedder.sizes.image_px)
    rates: dict[str, list[float]] = {"embedded": [], "forward": []}
    with tempfile.TemporaryDirectory(prefix="hiclip-evaluate-") as work, ray_session(RaySettings(num_cpus=1)):
        place = Folder(work)
        for number in range(pictures):
            place.write_bytes(f"{number}.jpg", _photograph(number))
        shown = [(FilePictures(place, tuple(f"{number}.jpg" for number in range(pictures))), np.arange(pictures))]
        blocks = RayBlocks()  # one of an evaluation, which ships the model once
        list(embed_pictures(embedder, [(shown[0][0], np.arange(batch))], batch, blocks, "warm"))  # starts a worker
        for _ in range(rounds):
            began = time.perf_counter()
            (found,) = embed_pictures(embedder, shown, batch, blocks, "pictures")
            rates["embedded"].append(pictures / (time.perf_counter() - began))
            assert not found.broken
            began = time.perf_counter()
            with torch.inference_mode():
                for _ in range(pictures // batch):
                    towers.image_tower(ready)
            rates["forward"].append(pictures // batch * batch / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(rates["embedded"], rates["forward"], strict=True)]
    return {
        "model": {"size": model.size, "hierarchy": model.image_hierarchy},
        "pictures": pictures,
        "batch": batch,
        "pictures_per_s": {name: [round(one, 2) for one in values] for name, values in rates.items()},
        "embedded_over_forward": round(statistics.median(ratios), 3),
    }


def _photograph(number: int) -> bytes:
    """A JPEG of 500 x 375 px with structure at all scales, as in ImageNet; about 60 KB."""
    chance = np.random.default_rng(number)
    pixels = sum(
        np.asarray(Image.fromarray(chance.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((500, 375)), float)
        for side in (4, 16, 64, 200)
    )
    content = io.BytesIO()
    Image.fromarray((pixels / 4).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def retrieval(rows: int, width: int) -> dict[str, object]:
    """Seconds of ranks both ways, and memory; every picture's own caption is near it among random ones."""
    chance = np.random.default_rng(0)
    pictures = chance.normal(size=(rows, width)).astype(np.float32)
    captions = pictures + 4 * chance.normal(size=(rows, width)).astype(np.float32)
    for vectors in (pictures, captions):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    right = Fits.of_owners(np.arange(rows), rows)
    with ray_session(RaySettings(num_cpus=2)):
        before = psutil.Process().memory_info().rss
        with _peak("ray::") as task, _peak("") as driver:
            began = time.perf_counter()
            images, texts = answers(VectorScores(pictures, captions), right, 100.0, RayBlocks())
            seconds = time.perf_counter() - began
    return {
        "rows": rows,
        "width": width,
        "seconds": round(seconds, 1),
        "gflops_per_s": round(2 * rows * rows * width / seconds / 1e9, 1),
        "task_megabytes": round(task.megabytes),
        "driver_megabytes_more": round(driver.megabytes),
        "driver_megabytes_before": round(before / 1e6),
        "matrix_megabytes": round(4 * rows * rows / 1e6),
        "recall_at_1": [round(float((one.ranks <= 1).mean()), 4) for one in (images, texts)],
    }


if __name__ == "__main__":
    main()
