"""A whole checkpoint of an untrained small model, as a run would have written it, and a small part of OpenMoji."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml

from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import (
    TrainState,
    begin_checkpoint,
    checkpoint_name,
    complete_checkpoint,
    write_contents,
)
from pipeline.storage import Folder

SMALL_MODEL = ModelSettings(width=64, depth=2, image_px=32, patch_px=8, context=16, embedding=32)
CRAWL = Path(__file__).parent.parent / "jobs/walk/crawl"


def small_checkpoint(
    run: Path, dataset: object, fingerprint: str, model: ModelSettings = SMALL_MODEL, seen: int = 640, seed: int = 3
) -> Path:
    """Writes a checkpoint of the run at `run` and returns its folder; `dataset` is what its job says it saw."""
    torch.manual_seed(seed)
    place = Folder(str(run / checkpoint_name(seen)))
    begin_checkpoint(place)
    state = TrainState(
        step=seen // 64,
        seen=seen,
        world=1,
        seconds=1.0,
        wait_s=0.0,
        job_fingerprint="0" * 64,
        manifest_fingerprint=fingerprint,
    )
    weights = {f"towers.{name}": tensor for name, tensor in TwoTowers(model).state_dict().items()}
    job = yaml.safe_dump({"name": "small", "data": {"dataset": dataset}})
    write_contents(place, weights, {}, model, job, state, [])
    complete_checkpoint(place)
    return Path(place.root)


def small_openmoji(root: Path) -> Path:
    """Circles, squares and hearts, a few animals and a few country flags of OpenMoji, in a folder of their own."""
    rows = pq.read_table(CRAWL / "openmoji.parquet").to_pylist()
    shapes = [row for row in rows if re.search(r"\b(circle|square|heart)$", row["concept"])]
    animals = [row for row in rows if row["subgroup"] == "animal-mammal"][:10]
    flags = [row for row in rows if row["subgroup"] == "country-flag"][:6]
    root.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(CRAWL / "openmoji.parquet").slice(0, 0).from_pylist([*shapes, *animals, *flags])
    pq.write_table(table, root / "openmoji.parquet")
    return root
