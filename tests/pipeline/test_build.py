"""The whole build on the sample crawl: each kind of dirt arrives at its reason, and content alone decides bytes."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from pipeline.annotations import LanguageAnnotation
from pipeline.build import build, plan
from pipeline.build_job import BuildJob
from pipeline.filters import LanguageFilter
from pipeline.funnel import KEPT
from pipeline.jobfile import make_job
from pipeline.manifest import MANIFEST, DatasetError, check_shards, read_manifest
from pipeline.pair import PAIR_SCHEMA, pair_id
from pipeline.sample_dirt import BY_NAME, DIRT
from pipeline.shards import DatasetReader
from pipeline.storage import StorageError

ROOT = Path(__file__).parents[2]
CRAWL = ROOT / "jobs" / "walk" / "crawl"
FILTERS = ("caption_length", "caption_letters", "caption_repetition", "language", "image_size", "image_shape")
STEPS = (*FILTERS, KEPT)


def kind_of(row: dict[str, Any]) -> str:
    """The dirt that a row is, its source when it is none."""
    if row["source"] != "dirt":
        return str(row["source"])
    return next((dirt.name for dirt in DIRT if f"/{dirt.name}/" in (row["url"] or "")), "other dirt")


def small_list() -> list[dict[str, Any]]:
    """Some rows of every kind: all rows of a few pictures, the originals of the copies, good rows of each source."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(CRAWL / "list.parquet").to_pylist():
        by_kind[kind_of(row)].append(row)
    rows = []
    for kind, members in by_kind.items():
        if kind in ("ten_addresses", "row_twice"):
            pictures = [row["url"].split("?")[0] for row in members if not is_taken_for_foreign(row["caption"])]
            rows += [row for row in members if row["url"].split("?")[0] == pictures[0]]
        elif kind in BY_NAME or kind == "other dirt":
            rows += members[: 10 if kind in ("caption_language", "near_copy", "other dirt") else 4]
        else:
            rows += members[:30]
    homes = {f"http://{home}" for home in (row["url"].split("/near_copy/")[-1] for row in by_kind["near_copy"][:10])}
    everywhere = [row for members in by_kind.values() for row in members]
    rows += [
        row for row in everywhere if (row["url"] or "").replace(".crawl.example", "", 1) in homes and row not in rows
    ]
    return rows


def job(folder: Path, rows: list[dict[str, Any]], **more: Any) -> BuildJob:
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    content = {
        "name": "small",
        "out": str(folder / "out"),
        "lists": [{"path": str(folder / "list.parquet"), "columns": {"source": "source"}}],
        "sample_crawl": str(CRAWL),
        "download": {
            "connect_to": {"*.crawl.example": "sample_crawl"}, "timeout_s": 2, "first_pause_s": 0.05,
            "max_bytes": 8_000_000, "max_pixels": 50_000_000, "image_px": 64, "rows_per_task": 120, "cpus_per_task": 2,
        },
        "annotations": ["language"],
        "filters": [{"caption_length": {"max_words": 100}}, "caption_letters", "caption_repetition", "language",
                    {"image_size": {"min_px": 24}}, {"image_shape": {"max_aspect": 4}}],
        "shards": {"pairs_per_shard": 40, "rows_per_group": 8},
        "tasks": {"rows": 200},
    }  # fmt: skip
    return make_job(content | more, BuildJob, "test")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return small_list()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ray_session: None) -> BuildJob:
    """A whole build in this process, with four CPUs."""
    one = job(tmp_path_factory.mktemp("built"), rows)
    build(one)
    return one


def result_of(one: BuildJob) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(one.out) / "result.json").read_text())
    return content


def ledger_of(one: BuildJob) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(Path(one.out) / "ledger").sort_by("row").to_pylist()
    return found


def is_taken_for_foreign(caption: str | None) -> bool:
    table = LanguageAnnotation().annotate(pa.table({"caption": [caption or "-"]}))
    return LanguageFilter().reasons(table).null_count == 0


def test_every_row_ends_in_one_place_and_the_counts_add_up(built: BuildJob, rows: list[dict[str, Any]]) -> None:
    result, ledger = result_of(built), ledger_of(built)
    assert [row["row"] for row in ledger] == list(range(len(rows)))
    assert not (Path(built.out) / "work").exists()
    assert [row["url"] for row in ledger] == [(row["url"] or "").strip() for row in rows]
    refused = sum(count for reasons in result["refused"].values() for count in reasons.values())
    assert result["listed"] == len(rows) == result["kept"] + refused
    assert result["kept"] == sum(row["step"] == KEPT for row in ledger)


def test_each_kind_of_dirt_arrives_at_its_reason(built: BuildJob, rows: list[dict[str, Any]]) -> None:
    ends: dict[str, list[str]] = defaultdict(list)
    for row, end in zip(rows, ledger_of(built), strict=True):
        # A detector of languages errs now and then; what it takes for foreign says nothing about the kind.
        if not (
            end["step"] == "language" and kind_of(row) != "caption_language" and is_taken_for_foreign(end["caption"])
        ):
            ends[kind_of(row)].append(end["step"] if end["step"] in STEPS else end["reason"])
    copies = {"ten_addresses": {"duplicate_image": 9, KEPT: 1}, "row_twice": {"duplicate_row": 1, KEPT: 1}}
    for kind, found in ends.items():
        if kind in copies:
            assert {end: found.count(end) for end in set(found)} == copies[kind], kind
        elif kind in ("caption_language", "near_copy"):
            assert found.count(BY_NAME[kind].expectation) >= 0.8 * len(found), (kind, found)
        elif kind in BY_NAME:
            assert set(found) == {BY_NAME[kind].expectation}, (kind, found)
    assert len(ends.keys() & BY_NAME.keys()) >= len(BY_NAME) - 4, "hardly a kind is missing from the small list"
    good = [end for kind in ("noto", "twemoji", "tuxpaint", "openclipart") for end in ends[kind]]
    assert good.count(KEPT) >= 0.95 * len(good)


def test_the_dataset_is_whole_and_in_order(built: BuildJob) -> None:
    manifest = read_manifest(built.out)
    check_shards(built.out, manifest)
    assert [shard.pairs for shard in manifest.shards[:-1]] == [40] * (len(manifest.shards) - 1)
    reader = DatasetReader(built.out, manifest)
    columns = list(manifest.columns)
    table = pa.concat_tables([reader.read_group(group, columns) for group in range(reader.groups)])
    assert columns == [*PAIR_SCHEMA.names, *LanguageAnnotation().columns.names]
    assert {field.name: str(field.type) for field in table.schema} == manifest.columns
    pairs = table.to_pylist()
    names = [pair["pair_id"] for pair in pairs]
    assert names == sorted(set(names))
    for pair in pairs:
        assert pair["pair_id"] == pair_id(pair["url"], pair["caption"])
        with Image.open(io.BytesIO(pair["image"])) as image:
            assert (image.format, image.size) == ("JPEG", (pair["width"], pair["height"]))
            assert image.mode in ("RGB", "L")
    assert manifest.job["download"]["image_px"] == 64
    assert {"python", "img2dataset", "pyarrow"} <= manifest.versions.keys()


def test_the_same_job_again_says_that_it_is_done(built: BuildJob, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(built.out).rglob("*")}
    faster = built.download.model_copy(update={"connections": 2, "rows_per_task": 7})
    elsewhere = built.model_copy(update={"name": "renamed", "download": faster})
    assert build(elsewhere) == str(Path(built.out) / "result.json")
    assert "this job has built this dataset already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(built.out).rglob("*")} == before


def test_the_dataset_of_another_job_is_neither_taken_nor_overwritten(built: BuildJob) -> None:
    other = built.model_copy(update={"filters": built.filters[1:]})
    with pytest.raises(DatasetError, match=r"holds the dataset of another job \('small', which differs in: filters\)"):
        build(other)


def test_a_list_that_changed_is_not_taken_for_the_old_one(built: BuildJob) -> None:
    path = Path(built.lists[0].path)
    before = path.read_bytes()
    rows = pq.read_table(path)
    try:
        pq.write_table(rows.slice(1), path)
        with pytest.raises(DatasetError, match=r"list\.parquet: this list has changed since"):
            build(built)
        path.unlink()
        build(built)
    finally:
        path.write_bytes(before)


def test_a_dataset_that_lost_a_shard_is_not_called_whole(built: BuildJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built.out, out)
    (out / "shards" / "00001.parquet").unlink()
    with pytest.raises(
        DatasetError, match=r"00001\.parquet: the manifest lists this shard, and it is not there; remove"
    ):
        build(built.model_copy(update={"out": str(out)}))


def test_an_unfinished_build_goes_on_from_its_snapshot(built: BuildJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built.out, out)
    (out / MANIFEST).unlink()
    (out / "shards" / "99999.parquet").write_bytes(b"of a longer dataset")
    snapshot = {path: path.stat().st_mtime_ns for path in (out / "snapshot").rglob("*")}
    again = built.model_copy(update={"out": str(out)})
    build(again)
    assert {path: path.stat().st_mtime_ns for path in (out / "snapshot").rglob("*")} == snapshot
    assert result_of(again)["fingerprint"] == result_of(built)["fingerprint"]
    assert len(list((out / "shards").iterdir())) == result_of(built)["shards"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds the ledger, and no shard."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place]).returncode:
        pytest.skip("a small file system can only be mounted as root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(built: BuildJob, small_disk: Path) -> None:
    one = built.model_copy(update={"out": str(small_disk), "snapshot": str(Path(built.out) / "snapshot")})
    with pytest.raises(StorageError, match=r"small/.*: cannot be written: No space left on device"):
        build(one)
    assert not (small_disk / MANIFEST).exists()
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".unfinished")]


def test_a_read_only_folder_is_said_at_once(built: BuildJob) -> None:
    with pytest.raises(StorageError, match=r"/proc/here/job\.yaml: cannot be written"):
        build(built.model_copy(update={"out": "/proc/here"}))


def test_where_nothing_is_left_there_is_no_dataset(built: BuildJob, tmp_path: Path) -> None:
    strict = make_job(
        built.model_dump(mode="json") | {"out": str(tmp_path), "snapshot": str(Path(built.out) / "snapshot"),
                                         "filters": [{"caption_length": {"min_words": 200}}]},
        BuildJob, "test",
    )  # fmt: skip
    with pytest.raises(DatasetError, match="no pair is left of"):
        build(strict)
    assert not (tmp_path / MANIFEST).exists()
    assert (tmp_path / "ledger").exists()


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """A bucket `pairs` on a loopback S3 server; yields the environment that leads there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                   "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    import boto3

    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], aws_access_key_id="x", aws_secret_access_key="x",
                 region_name="us-east-1").create_bucket(Bucket="pairs")  # fmt: skip
    yield environment
    server.stop()


def test_one_cpu_another_order_and_s3_give_the_same_dataset(
    built: BuildJob, rows: list[dict[str, Any]], tmp_path: Path, s3: dict[str, str]
) -> None:
    """As a command of its own, like a user's: one CPU, rows shuffled, other task sizes, everything on s3://."""
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    one = job(tmp_path, shuffled, out="s3://pairs/small", ray={"num_cpus": 1})
    content = one.model_dump(mode="json")
    content["download"] |= {"rows_per_task": 70, "connections": 5, "cpus_per_task": 0.5}
    content["tasks"] |= {"rows": 10_000}
    (tmp_path / "job.yaml").write_text(json.dumps(content))  # JSON is YAML
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.build", str(tmp_path / "job.yaml")],
        capture_output=True, text=True, cwd=ROOT,
        env=os.environ | s3 | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "result: s3://pairs/small/result.json"
    ours = result_of(built)
    assert f"{ours['kept']:,} pairs in {ours['shards']} shards, fingerprint {ours['fingerprint']}" in done.stdout


def test_the_bill_comes_without_lists_and_the_build_says_which_are_missing(tmp_path: Path) -> None:
    path = str(ROOT / "jobs" / "build_30m.yaml")
    bill = subprocess.run([path, "--dry-run"], capture_output=True, text=True, cwd=ROOT, env=on_path())
    assert bill.returncode == 0, bill.stderr
    assert "15,388,848" in bill.stdout
    assert "12,423,374" in bill.stdout
    assert "3,318,333" in bill.stdout
    started = subprocess.run([path, f"out={tmp_path}/out"], capture_output=True, text=True, cwd=ROOT, env=on_path())
    assert started.returncode == 2
    assert started.stderr.count("\n") == 1
    for words in ("expected these URL lists", "cc12m.tsv", "Train_GCC-training.tsv", "yfcc15m_clean_open_data.json"):
        assert words in started.stderr


def on_path() -> dict[str, str]:
    """The environment in which `python` is this Python, as in an activated virtual environment."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_plan_counts_the_rows_that_are_here(built: BuildJob, rows: list[dict[str, Any]]) -> None:
    table = plan(built)
    assert f"{len(rows):,}" in list(table.columns[1].cells)
