"""Columns made elsewhere join their pairs, and a table that is not what the job says is refused at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotation_resources import Resources
from pipeline.annotations.joined_columns import JoinedColumnsAnnotation
from pipeline.annotations.language import LanguageAnnotation
from pipeline.jobfile import InputError

PAIRS = pa.table({"url": ["http://b/2", "http://a/1", "http://c/3"], "caption": ["two", "one", "three"]})


def written(folder: Path, **columns: list[object]) -> str:
    file = folder / "made.parquet"
    pq.write_table(pa.table(columns), file)
    return str(file)


def test_each_pair_gets_the_row_of_its_key(tmp_path: Path) -> None:
    table = written(
        tmp_path,
        url=["http://a/1", "http://b/2", "http://b/2", "http://z/9"],
        object_tags=["red cat", "green dog", "second row of this key", "nobody's"],
        score=[0.25, 0.5, 0.75, 1.0],
    )
    joined = JoinedColumnsAnnotation(table=table, key="url", adds={"score": "float", "object_tags": "string"})
    found = joined.ready().annotate(PAIRS)
    assert found.column_names == ["url", "caption", "score", "object_tags"]
    assert found.schema.field("score").type == pa.float32()
    assert found["object_tags"].to_pylist() == ["green dog", "red cat", None]
    assert found["score"].to_pylist() == [0.5, 0.25, None]
    assert found["caption"].to_pylist() == ["two", "one", "three"]


def test_a_batch_without_rows_has_the_columns(tmp_path: Path) -> None:
    joined = JoinedColumnsAnnotation(table=written(tmp_path, url=["x"], n=[1]), key="url", adds={"n": "int"})
    assert joined.annotate(PAIRS.slice(0, 0)).schema.field("n").type == pa.int64()


def test_the_file_that_the_job_names_by_its_bytes_is_the_only_one(tmp_path: Path) -> None:
    table = written(tmp_path, url=["http://a/1"], n=[1])
    digest = hashlib.sha256(Path(table).read_bytes()).hexdigest()
    JoinedColumnsAnnotation(table=table, key="url", adds={"n": "int"}, sha256=digest).ready()
    written(tmp_path, url=["http://a/1"], n=[2])
    with pytest.raises(InputError, match=r"made\.parquet: expected the file with sha256 " + digest[:16]):
        JoinedColumnsAnnotation(table=table, key="url", adds={"n": "int"}, sha256=digest).ready()


@pytest.mark.parametrize(
    ("key", "adds", "said"),
    [
        ("pair_id", {"n": "int"}, "expected a column pair_id, found url, n"),
        ("url", {"tags": "string"}, "expected a column tags, found url, n"),
        ("url", {"n": "int"}, "expected int64 in the column n, found string"),
    ],
)
def test_a_table_that_is_not_what_the_job_says(tmp_path: Path, key: str, adds: dict[str, str], said: str) -> None:
    table = written(tmp_path, url=["http://a/1"], n=["no number"])
    joined = JoinedColumnsAnnotation.model_validate({"table": table, "key": key, "adds": adds})
    with pytest.raises(InputError, match=said):
        joined.ready()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.parquet"):
        JoinedColumnsAnnotation(table=str(tmp_path / "nothing.parquet"), adds={"n": "int"}).ready()


def test_lists_of_numbers_join(tmp_path: Path) -> None:
    table = written(tmp_path, url=["http://a/1"], embedding=[[0.5, 0.25]])
    found = JoinedColumnsAnnotation(table=table, key="url", adds={"embedding": "floats"}).annotate(PAIRS)
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    assert found["embedding"].to_pylist() == [None, [0.5, 0.25], None]


def test_resources_decide_nothing() -> None:
    many = LanguageAnnotation(resources=Resources(cpus=2, workers=(1, 4)))
    assert many.deciding() == LanguageAnnotation().deciding() == {"name": "language", "wanted": ["en"]}
    assert many.deciding() != LanguageAnnotation(wanted=("de",)).deciding()
    with pytest.raises(ValueError, match="expected the least before the most"):
        Resources(workers=(4, 1))
