"""Whatever a list holds and the web answers: every row ends in one place, once, and the kept ones are in the shards."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_drawings import drawing, encoded
from small_web import Answer, after, drip, never, raw, reply, small_web

from pipeline.build import build
from pipeline.build_job import BuildJob
from pipeline.funnel import KEPT
from pipeline.jobfile import make_job
from pipeline.manifest import check_shards, read_manifest
from pipeline.shards import DatasetReader

CAPTIONS = (
    *("a dog", "a  dog ", "", "  ", None, "caf\u00e9 & <b>tea</b>", "x" * 3000, "DSC_0042.JPG", "no no no no no no"),
    *("ein Hund l\u00e4uft \u00fcber die gr\u00fcne Wiese im Park", "\x00\x07", "\u202ea cat"),
)
ADDRESSES = ("ftp://a.example/1", "", None, "http://", "http://127.0.0.1:1/x", "http://[::1]/", "javascript:x", "/path")


def answer(chance: random.Random) -> Answer:
    """What one path of the web does."""
    picture = encoded(drawing(chance.randrange(40), chance.choice((30, 60, 160))), chance.choice(("PNG", "JPEG")))
    busy = reply(b"", "503 Busy", Retry_After="0")
    answers = [
        *[reply(picture)] * 12,
        *(reply(b"", status) for status in ("404 Not Found", "403 Forbidden", "500 Oh", "429 Slow Down", "302 Found")),
        reply(picture[: len(picture) // 2]),
        reply(picture, length=10 * len(picture)),
        reply(b"<html>", Content_Type="image/png"),
        reply(picture, X_Robots_Tag="noai"),
        reply(b"", "301 Moved", Location="/elsewhere"),
        reply(b"", "302 Found", Location="http://169.254.169.254/"),
        reply(b""),
        reply(b"x" * 300_000),
        raw(b"nonsense\r\n\r\n"),
        raw(b""),
        after(1, reply(picture), first=busy),
        drip(b"HTTP/1.1 200 OK\r\n", 0.1),
        never,
    ]
    return chance.choice(answers)


def rows_of(chance: random.Random, paths: int) -> list[dict[str, Any]]:
    rows = [{"url": f"http://host{chance.randrange(5)}.example/{chance.randrange(paths)}",
             "caption": chance.choice(CAPTIONS) if chance.random() < 0.3 else f"a red thing number {number}"}
            for number in range(110)]  # fmt: skip
    rows += [{"url": chance.choice(ADDRESSES), "caption": "a thing"} for _ in range(12)]
    rows += [dict(chance.choice(rows)) for _ in range(15)]
    chance.shuffle(rows)
    return rows


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_ends_in_one_place(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows = rows_of(chance, paths := 120)
    with small_web({f"/{number}": answer(chance) for number in range(paths)}) as web:
        (tmp_path / "lists").mkdir()
        columns = pa.schema([("url", pa.string()), ("caption", pa.string())])
        for start in range(0, len(rows), 60):
            part = pa.Table.from_pylist(rows[start : start + 60], columns)
            pq.write_table(part, tmp_path / "lists" / f"{start:03d}.parquet")
        content = {
            "name": "random",
            "out": str(tmp_path / "out"),
            "lists": [{"path": f"{tmp_path}/lists/", "format": "parquet"}],
            "download": {
                "connect_to": {"*.example": f"127.0.0.1:{web.port}"}, "timeout_s": 0.4, "first_pause_s": 0.05,
                "max_pause_s": 0.1, "max_bytes": 200_000, "image_px": 48, "rows_per_task": 30, "retries": 1,
                "cpus_per_task": 0.5,
            },
            "annotations": ["language"],
            "filters": [{"caption_length": {"max_words": 50}}, "caption_letters", "caption_repetition", "language",
                        {"image_size": {"min_px": 40}}],
            "duplicates": {"common_captions": 3},
            "shards": {"pairs_per_shard": 12, "rows_per_group": 4},
            "tasks": {"rows": 40},
            "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }  # fmt: skip
        build(make_job(content, BuildJob, "test"))
    ledger = pq.read_table(tmp_path / "out" / "ledger").to_pylist()
    assert sorted(row["row"] for row in ledger) == list(range(len(rows))), "each row once"
    for row in ledger:
        assert row["url"] == (rows[row["row"]]["url"] or "").strip()
        assert (row["step"] == KEPT) == (row["reason"] is None)
    assert [row["pair_id"] for row in ledger] == sorted(row["pair_id"] for row in ledger)
    manifest = read_manifest(str(tmp_path / "out"))
    check_shards(str(tmp_path / "out"), manifest)
    reader = DatasetReader(str(tmp_path / "out"), manifest)
    pairs = [
        name for group in range(reader.groups) for name in reader.read_group(group, ["pair_id"])["pair_id"].to_pylist()
    ]
    assert pairs == [row["pair_id"] for row in ledger if row["step"] == KEPT], "in order, and nothing else"
    assert len(set(pairs)) == len(pairs) > 3  # how many depends on how many answers came in time
    ends = Counter((row["step"], row["reason"]) for row in ledger if row["step"] != KEPT)
    told = {(one["step"], reason): count for one in manifest.funnel for reason, count in one["refused"].items()}
    assert told == ends
    assert manifest.funnel[-1]["came_out"] == len(pairs) == len(rows) - ends.total()
    assert len(ends) > 12, "hardly a kind of fault was tried"
    assert not (tmp_path / "out" / "work").exists()
