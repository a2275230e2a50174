"""Columns about a dataset from a checkpoint: their values, their parts, going on after an interruption, mistakes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loopback_s3 import bucket
from rich.console import Console
from small_checkpoint import small_checkpoint
from small_dataset import small_dataset

from hiclip.data.images import CENTRE_CROP, eval_transform, normalise
from hiclip.data.tokenizer import Tokenizer
from hiclip.evaluate import main
from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.columns import COLUMNS, WrittenColumns, part_name, write_columns
from hiclip.evaluation.embed import Embedder
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_bill import bill
from hiclip.evaluation.ray_blocks import RayBlocks
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.training.checkpoint import load_towers
from pipeline.annotations import JoinedColumnsAnnotation
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import (
    UNFINISHED,
    DatasetError,
    dataset_fingerprint,
    read_manifest,
    write_manifest,
)
from pipeline.shards import DatasetReader, write_shard
from pipeline.storage import StorageError, folder

BROKEN = 21
"""The pair of the small dataset whose picture cannot be read."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 64 pairs in row groups of 8, one picture broken, and a run with a checkpoint."""
    root = tmp_path_factory.mktemp("columns")
    small_dataset(root / "build", pairs=64)
    _break_picture(root / "build")
    small_checkpoint(root / "run", str(root / "build"), read_manifest(str(root / "build")).fingerprint)
    return root


def _break_picture(build: Path) -> None:
    place, manifest = folder(str(build)), read_manifest(str(build))
    rows = pq.read_table(build / manifest.shards[0].path)
    pictures = rows["image"].to_pylist()
    pictures[BROKEN] = b"no picture"
    at = rows.column_names.index("image")
    rows = rows.set_column(at, rows.schema.field("image"), pa.array(pictures, pa.binary()))
    shards = (write_shard(rows, place, 0, manifest.rows_per_group), *manifest.shards[1:])
    update = {"shards": shards, "fingerprint": dataset_fingerprint(shards, manifest.columns)}
    write_manifest(place, manifest.model_copy(update=update))


def _content(place: Path, to: str, **changes: Any) -> dict[str, Any]:
    columns = {"dataset": str(place / "build"), "to": to, "adds": ["clip_score", "embedding"], "pairs_per_part": 20}
    return {
        "name": "small-columns",
        "out": f"{place}/out",
        "ray": {"num_cpus": 2},
        "checkpoint": str(place / "run"),
        "columns": {**columns, **changes},
        "hierarchy": None,
        "batch": 6,
    }


def _job(place: Path, to: str, **changes: Any) -> EvaluateJob:
    return make_job(_content(place, to, **changes), EvaluateJob, "small job")


def _write(job: EvaluateJob, map_blocks: Any = map_here) -> WrittenColumns:
    asked = ask(job)
    assert asked.columns is not None
    return write_columns(asked.columns, Embedder(asked.model.towers()), map_blocks)


def _run(job: dict[str, Any], file: Path, *more: str) -> int:
    file.write_text(json.dumps(job))  # JSON is YAML
    with pytest.raises(SystemExit) as end:
        main([str(file), *more])
    return int(end.value.code or 0)


def _pairs(place: Path) -> pa.Table:
    reader = DatasetReader(str(place / "build"))
    return pa.concat_tables(reader.read_group(group, ["pair_id", "caption", "image"]) for group in range(reader.groups))


def _rows(path: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(path.glob("*.parquet")))


def _files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.parquet")}


def test_the_values_are_those_of_the_towers(place: Path, tmp_path: Path) -> None:
    written = _write(_job(place, str(tmp_path)))
    # 20 pairs are three row groups of 8: parts of 24, 24 and 16.
    assert (written.rows, written.broken, written.parts) == (64, 1, 3)
    assert json.loads((tmp_path / COLUMNS).read_text()) == json.loads(written.model_dump_json())
    assert sorted(file.name for file in tmp_path.iterdir()) == [COLUMNS, *map(part_name, range(3))]
    assert written.bytes == sum(map(len, _files(tmp_path).values()))
    assert pq.read_metadata(tmp_path / part_name(0)).num_rows == 24
    found, pairs = _rows(tmp_path), _pairs(place)
    assert found["pair_id"].equals(pairs["pair_id"])
    assert found.schema.types == [pa.string(), pa.float32(), pa.list_(pa.float32())]

    towers = load_towers(str(place / "run"))[0].eval()
    readable = [row for row in range(64) if row != BROKEN]
    pictures = np.stack([eval_transform(pairs["image"][row].as_py(), 32, CENTRE_CROP) for row in readable])
    captions = [pairs["caption"][row].as_py() for row in readable]
    with torch.inference_mode():
        images = towers.image_tower(normalise(torch.from_numpy(pictures))).vector
        texts = towers.text_tower(torch.from_numpy(Tokenizer(16).encode(captions))).vector
    cosine = torch.cosine_similarity(images, texts)
    scores, vectors = found["clip_score"].to_pylist(), found["embedding"].to_pylist()
    assert (scores[BROKEN], vectors[BROKEN]) == (None, None)
    np.testing.assert_allclose([scores[row] for row in readable], cosine.numpy(), atol=1e-5)
    expected = torch.nn.functional.normalize(images, dim=-1).numpy()
    np.testing.assert_allclose(np.array([vectors[row] for row in readable]), expected, atol=1e-5)
    assert np.std(cosine.numpy()) > 1e-3, "another order would be seen"


@pytest.mark.usefixtures("ray_session")
def test_tasks_of_ray_write_the_same_bytes(place: Path, tmp_path: Path) -> None:
    _write(_job(place, str(tmp_path / "here")))
    written = _write(_job(place, str(tmp_path / "ray")), RayBlocks())
    assert (written.rows, written.broken) == (64, 1)
    assert _files(tmp_path / "ray") == _files(tmp_path / "here")


@pytest.mark.usefixtures("ray_session")
def test_a_shard_that_is_gone_is_said_in_the_words_of_the_worker(place: Path, tmp_path: Path) -> None:
    small_dataset(tmp_path / "build", pairs=64)
    job = _job(place, str(tmp_path / "to"), dataset=str(tmp_path / "build"))
    (tmp_path / "build" / "shards" / "00001.parquet").unlink()
    with pytest.raises(StorageError) as error:
        _write(job, RayBlocks())
    assert str(error.value).startswith(f"{tmp_path}/build/shards/00001.parquet: ")
    assert "Traceback" not in str(error.value)
    assert (tmp_path / "to" / UNFINISHED).exists()


class _Interrupted(Exception):
    """What the power cut of a test raises."""


def _until(count: int) -> Any:
    def mapped(function: Any, shared: Any, blocks: Iterable[Any], what: str) -> Iterator[Any]:
        for done, answer in enumerate(map_here(function, shared, blocks, what)):
            if done == count:
                raise _Interrupted
            yield answer

    return mapped


def test_an_interrupted_run_makes_only_what_is_missing(place: Path, tmp_path: Path) -> None:
    to = tmp_path / "columns"
    job = _job(place, str(to))
    with pytest.raises(_Interrupted):
        _write(job, _until(1))
    assert not (to / COLUMNS).exists()
    before = {name: (to / name).stat().st_mtime_ns for name in map(part_name, (0, 1))}
    with pytest.raises(DatasetError, match=f"expected a whole table, found {UNFINISHED}"):
        JoinedColumnsAnnotation(table=str(to), adds={"clip_score": "float"}).ready()
    with pytest.raises(JobError, match=r"columns\.to: .*adds clip_score\), came .*adds clip_score, embedding"):
        ask(_job(place, str(to), adds=["clip_score"]))

    whole = (to / part_name(0)).read_bytes()
    (to / part_name(0)).write_bytes(whole[: len(whole) // 2])  # as if the disk had been full
    written = _write(job)
    assert (to / part_name(0)).read_bytes() == whole
    assert (to / part_name(1)).stat().st_mtime_ns == before[part_name(1)]
    assert written == _write(_job(place, str(tmp_path / "whole"))).model_copy(update={"to": str(to)})
    assert _files(to) == _files(tmp_path / "whole")

    # What is whole is not touched again; what has lost a part gets that part.
    columns = ask(job).columns
    assert columns is not None
    assert columns.written == written
    (to / part_name(2)).unlink()
    assert _write(job) == written
    assert _files(to) == _files(tmp_path / "whole")


@pytest.mark.parametrize(("adds", "types"), [("clip_score", "float"), ("embedding", "floats")])
def test_a_build_joins_what_was_written(adds: str, types: Any, place: Path, tmp_path: Path) -> None:
    assert _write(_job(place, str(tmp_path), adds=[adds])).broken == 1
    ids = _pairs(place)["pair_id"].take([40, BROKEN, 3]).combine_chunks()
    pairs = pa.table({"pair_id": pa.concat_arrays([ids, pa.array(["of another"])])})
    found = JoinedColumnsAnnotation(table=str(tmp_path), adds={adds: types}).ready().annotate(pairs)[adds].to_pylist()
    whole = _rows(tmp_path)
    assert whole.column_names == ["pair_id", adds]
    assert found == [whole[adds][40].as_py(), None, whole[adds][3].as_py(), None]
    assert found[0] != found[2]


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
@pytest.mark.usefixtures("ray_session")
def test_a_job_may_ask_for_columns_alone(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, file, to = _content(place, str(tmp_path / "to")), tmp_path / "job.yaml", tmp_path / "to"
    assert _run(job, file, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "clip_score, embedding of 64 rows, about 0.00947 MB in 3 parts" in " ".join(said.split())
    assert not to.exists()
    assert _run(job, file) == 0
    said = capsys.readouterr().out
    assert "64 rows, 1 of them null for broken pictures" in said
    assert f"{{name: joined_columns, table: {to}, adds: {{clip_score: float, embedding: floats}}}}" in said
    result = json.loads((place / "out" / "result.json").read_text())
    assert result["columns"] == json.loads((to / COLUMNS).read_text())
    assert result["results"] == []
    assert "64 pairs in 3 parts, 1 of them null" in (place / "out" / result["report"]).read_text()

    assert _run(job, file) == 0
    assert "nothing was computed" in capsys.readouterr().out
    (to / part_name(1)).unlink()
    assert _run(job, file) == 0
    assert "2 of them made before an interruption" in capsys.readouterr().out
    assert (to / part_name(1)).exists()


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_drawings_stand_beside_columns_without_a_set(place: Path, tmp_path: Path) -> None:
    drawn = {"captions": ["a red circle and a blue square"], "training_pairs": 1, "set_pictures": 1}
    content = {**_content(place, str(tmp_path / "to")), "hierarchy": drawn, "out": str(tmp_path / "out")}
    asked = ask(make_job(content, EvaluateJob, "small job"))
    outcome = evaluate(asked, map_here, folder(asked.job.out).make())
    assert len(outcome.pictures) == 3, "two captions and the training pair's picture"
    lines = Console(width=300, file=io.StringIO())
    with lines.capture() as printed:
        lines.print(bill(ask(asked.job), 1))
    assert "written before" in printed.get()


def test_columns_may_lie_on_s3(place: Path) -> None:
    with bucket("columns") as address:
        job = _job(place, f"{address}/clip", adds=["clip_score"])
        written = _write(job)
        assert folder(written.to).names() == [COLUMNS, *map(part_name, range(3))]
        assert ask(job).columns.written == written  # type: ignore[union-attr]


def test_columns_of_others_are_refused_in_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, file = tmp_path / "to", tmp_path / "job.yaml"
    job = _content(place, str(to))
    _write(make_job(job, EvaluateJob, "small job"))
    before = _files(to)
    small_checkpoint(tmp_path / "other", str(place / "build"), "0", seed=4)
    small_dataset(tmp_path / "build", pairs=64)
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"pair_id": ["0" * 16]}), tmp_path / "foreign" / "scores.parquet")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / COLUMNS).write_text("{")

    def changed(**columns: Any) -> dict[str, Any]:
        return {**job, "columns": {**job["columns"], **columns}}

    for mistaken, expected in [
        ({**job, "checkpoint": str(tmp_path / "other")}, f"columns of this job (weights .*), came {to} with those of"),
        (changed(dataset=str(tmp_path / "build")), "(dataset_fingerprint"),
        ({**job, "precision": "bf16"}, "(precision bf16)"),
        (changed(to=str(tmp_path / "foreign")), "scores.parquet is none"),
        (changed(to=str(place / "build")), "shards/00000.parquet is none"),
        (changed(to=str(tmp_path / "torn")), "record cannot be read"),
        (changed(dataset="runs/no/such"), "build it first"),
        (changed(adds=["clip_scor"]), "columns.adds.0: expected"),
        (changed(adds=["embedding", "embedding"]), "columns.adds: expected each column once"),
        (changed(adds=[]), "columns.adds: expected a list of at least 1"),
        (
            {**job, "columns": None},
            "sets: expected one or more, or linear_probe, heads, columns, hierarchy.trees or .masks, came none",
        ),
    ]:
        assert _run({**mistaken, "out": str(tmp_path / "out")}, file) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert all(part in said for part in expected.split(".*")), said
    assert not (tmp_path / "out").exists()
    assert _files(to) == before
