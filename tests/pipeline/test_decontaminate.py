"""Pairs that are in an evaluation set are found whatever their size and encoding, and counted for that set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageDraw
from pydantic import ValidationError
from small_drawings import drawing, encoded
from small_pool import small_pool, verdicts_by_name

from pipeline.decontaminate import Decontaminate, EvaluationPictures, looks_of, pieces_of, unit_vectors
from pipeline.look import Look, look
from pipeline.manifest import DatasetError, Manifest, dataset_fingerprint, write_manifest
from pipeline.selection import refuse_evaluated
from pipeline.shards import write_shards
from pipeline.storage import folder

COLUMNS = pa.schema([*Look().columns, pa.field("embedding", pa.list_(pa.float32()))])


def row(number: int, image: bytes, vector: list[float] | None = None) -> dict[str, object]:
    found, thumbnail = look(image)
    return {"pair_id": f"{number:016x}", "hash": found, "thumbnail": thumbnail, "embedding": vector}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    """Three evaluation sets: a parquet of drawings 0 to 9, a folder of 10 to 12, one of nothing that is known."""
    first = pa.table({"image": [encoded(drawing(seed)) for seed in range(10)]})
    pq.write_table(first, tmp_path / "first.parquet", row_group_size=4)
    (tmp_path / "second" / "deep").mkdir(parents=True)
    for seed in (10, 11, 12):
        (tmp_path / "second" / "deep" / f"{seed}.png").write_bytes(encoded(drawing(seed)))
    (tmp_path / "second" / "broken.jpg").write_bytes(b"no picture")
    pq.write_table(pa.table({"image": [encoded(drawing(500))]}), tmp_path / "third.parquet")
    return {name: str(tmp_path / path) for name, path in
            (("first", "first.parquet"), ("second", "second"), ("third", "third.parquet"))}  # fmt: skip


@pytest.mark.usefixtures("ray_session")
def test_copies_are_refused_for_the_set_that_they_are_in(
    tmp_path: Path, sets: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = tuple(EvaluationPictures(name=name, pictures=path) for name, path in sets.items())
    copies = {3: "first", 7: "first", 11: "second"}
    rows = [row(seed, encoded(drawing(seed, 100), "JPEG", quality=75)) for seed in copies]
    rows += [row(seed, encoded(drawing(seed, 128))) for seed in range(100, 130)]
    rows += [row(999, encoded(drawing(110, 90), "JPEG", quality=70))]  # like another pair, which is no matter here
    pool = refuse_evaluated(small_pool(tmp_path, rows, COLUMNS), Decontaminate(sets=named).ready())
    found = {int(name, 16): verdict for name, verdict in verdicts_by_name(pool).items() if verdict[0]}
    assert found == {3: ("in_first", "first.parquet/0/3"), 7: ("in_first", "first.parquet/1/3"),
                     11: ("in_second", "deep/11.png")}  # fmt: skip
    assert "sets.second: 1 pictures cannot be read" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_session")
def test_a_vector_near_enough_is_enough(tmp_path: Path, sets: dict[str, str]) -> None:
    pq.write_table(pa.table({"embedding": [[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]}), tmp_path / "vectors.parquet")
    one = EvaluationPictures(name="first", pictures=sets["first"], embeddings=str(tmp_path / "vectors.parquet"))
    rows = [row(200, encoded(drawing(200)), [0.1, 9.0, 0.0]), row(201, encoded(drawing(201)), [0.0, 1.0, 2.0]),
            row(202, encoded(drawing(202))), row(3, encoded(drawing(3)), [1.0, 0.0, 0.0])]  # fmt: skip
    settings = Decontaminate(sets=(one,), embedding="embedding").ready()
    found = verdicts_by_name(refuse_evaluated(small_pool(tmp_path, rows, COLUMNS), settings))
    assert [found[f"{number:016x}"][0] for number in (200, 201, 202, 3)] == ["in_first", None, None, "in_first"]
    assert found[f"{200:016x}"][1] == f"vector 0, cosine {9 / np.hypot(9, 0.1):.3f}"
    assert found[f"{3:016x}"][1] == "first.parquet/0/3", "looks come first"


def test_mistakes_are_named(tmp_path: Path, sets: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir()
    empty = Decontaminate(sets=(EvaluationPictures(name="none", pictures=str(tmp_path / "empty")),))
    with pytest.raises(DatasetError, match=r"sets\.none: .*empty: expected pictures, found none"):
        empty.ready()
    one = EvaluationPictures(name="first", pictures=sets["first"])
    with pytest.raises(ValidationError, match="expected a name once"):
        Decontaminate(sets=(one, one))
    with pytest.raises(ValidationError, match="embedding: expected the name of the column"):
        Decontaminate(sets=(one.model_copy(update={"embeddings": "x.parquet"}),))
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "other.parquet")
    (tmp_path / "no.parquet").write_bytes(b"no table")
    for name, said in (("other", "expected a column image, found picture"), ("no", "expected a parquet table")):
        wrong = EvaluationPictures(name="wrong", pictures=str(tmp_path / f"{name}.parquet"))
        with pytest.raises(DatasetError, match=said):
            Decontaminate(sets=(one, wrong)).ready()


def test_a_picture_of_16_bits_looks_as_its_copy_of_8() -> None:
    shades = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    deep = Image.fromarray(shades.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert look(encoded(deep)) == look(encoded(Image.fromarray(shades)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_see_through_picture_looks_as_its_copy_on_white(mode: str) -> None:
    """A download lays pictures on white; evaluation sets such as OpenMoji are see-through as they come."""
    ink = drawing(3)
    ImageDraw.Draw(ink).rectangle((0, 0, 20, 20), fill="black")
    hole = Image.new("L", ink.size, 0)
    ImageDraw.Draw(hole).ellipse((20, 20, 140, 140), fill=255)
    ink.putalpha(hole)
    see_through = ink.quantize(64) if mode == "P" else ink.convert(mode)
    rgba = see_through.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    assert on_white.getpixel((0, 0)) == (255, 255, 255)
    assert see_through.convert("RGB").getpixel((0, 0)) != (255, 255, 255), "what lies under the hole is dark"
    assert look(encoded(see_through)) == look(encoded(on_white))


def test_a_picture_held_sideways_looks_as_it_is_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sideways = drawing(5).transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    sideways.save(file, "PNG", exif=exif)
    assert look(file.getvalue()) == look(encoded(drawing(5)))


def test_of_a_built_dataset_only_shards_are_looked_at(tmp_path: Path) -> None:
    images = pa.table({"image": [encoded(drawing(seed)) for seed in range(3)]})
    shards = write_shards([images], folder(str(tmp_path)), 2, 1)
    columns = {"image": "binary"}
    manifest = Manifest(
        name="small", pairs=3, pairs_per_shard=2, rows_per_group=1, shards=tuple(shards), columns=columns,
        fingerprint=dataset_fingerprint(shards, columns), job={}, lists={}, snapshot="", funnel=[], versions={},
    )  # fmt: skip
    write_manifest(folder(str(tmp_path)), manifest)
    (tmp_path / "ledger").mkdir()
    pq.write_table(pa.table({"row": [0]}), tmp_path / "ledger" / "00000.parquet")
    found = [looks_of(piece)[0]["name"].to_pylist() for piece in pieces_of(str(tmp_path))]
    assert found == [["00000.parquet/0/0"], ["00000.parquet/1/0"], ["00001.parquet/0/0"]]


def test_vectors_that_are_none_or_no_numbers_are_zeros_and_uneven_ones_are_a_mistake() -> None:
    def column(*vectors: list[float] | None) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array([one], pa.list_(pa.float32())) for one in vectors])

    nan, inf = float("nan"), float("inf")
    found = unit_vectors(column(None, [0.0, 2.0], [nan, 1.0], [3.0, 4.0], [inf, 0.0]))
    np.testing.assert_allclose(found, [[0, 0], [0, 1], [0, 0], [0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit_vectors(column(None)).tolist() == [[0.0]]
    with pytest.raises(DatasetError, match="expected vectors of one width, found 1 and 2"):
        unit_vectors(column([1.0, 2.0], [1.0]))
