"""Sets of captions: Karpathy's split against three plain loops, and a built dataset as a set of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_dataset import small_dataset

from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_set import EvaluationSet, drawn
from hiclip.evaluation.measure import Scores, measure
from hiclip.evaluation.retrieval import TableScores
from pipeline.jobfile import make_job
from pipeline.manifest import DatasetError, Manifest, dataset_fingerprint, read_manifest, write_manifest
from pipeline.shards import DatasetReader, write_shards
from pipeline.storage import Folder


def load(root: Path, name: str, **keys: object) -> EvaluationSet:
    content = {"name": "x", "out": "o", "checkpoint": "c", "sets": [{"name": name, "root": str(root), **keys}]}
    return make_job(content, EvaluateJob, "job").sets[0].load()


def image(number: int, split: str = "test", captions: int = 5, **more: object) -> dict[str, Any]:
    sentences = [{"raw": f" Picture {number},  caption {which}\n", "tokens": []} for which in range(captions)]
    return {"filename": f"{number}.jpg", "split": split, "sentences": sentences, "imgid": number, **more}


def coco(root: Path, images: list[dict[str, Any]], file: str = "dataset_coco.json") -> Path:
    root.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps({"images": images, "dataset": "coco"}))
    for one in images:
        picture = root / one.get("filepath", "flickr30k-images") / one["filename"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(f"picture {one['filename']}".encode())
    return root


def loops(scores: np.ndarray, owners: list[int], cut: int) -> tuple[float, float]:
    """Recall at `cut` from pictures to captions, and back."""
    hits = []
    for picture in range(scores.shape[0]):
        best = sorted(range(scores.shape[1]), key=lambda caption: -scores[picture, caption])[:cut]
        hits.append(any(owners[caption] == picture for caption in best))
    back = []
    for caption in range(scores.shape[1]):
        best = sorted(range(scores.shape[0]), key=lambda picture: -scores[picture, caption])[:cut]
        back.append(owners[caption] in best)
    return float(np.mean(hits)), float(np.mean(back))


def test_coco_counts_five_captions_of_each_test_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [image(number, filepath="val2014") for number in range(30)]
    images[3]["sentences"] += [{"raw": "a sixth"}, {"raw": "a seventh"}]
    del images[5]["sentences"][2:]
    others = [image(90, "train", filepath="train2014"), image(91, "restval", filepath="val2014")]
    content = load(coco(tmp_path, [others[0], *images, others[1]]), "coco_5k")
    found = content.retrieval
    assert found is not None
    assert list(content.pictures.names()) == [f"val2014/{number}.jpg" for number in range(30)]
    assert content.pictures.read([7]) == [b"picture 7.jpg"]
    owners = [number for number in range(30) for _ in range(2 if number == 5 else 5)]
    assert found.owners.tolist() == owners
    assert found.captions[:2] == ("Picture 0, caption 0", "Picture 0, caption 1")
    assert "a sixth" not in found.captions
    assert "coco_5k: 30 pictures, but the published set has 5000" in caplog.text
    scores = np.random.default_rng(1).normal(size=(30, len(owners)))
    values = {
        result.metric: result.value
        for result in measure(content, Scores(None, TableScores(scores)), seed=0, draws=100).results
    }
    for cut in (1, 5, 10):
        there, back = loops(scores, owners, cut)
        assert values[f"image_to_text_r{cut}"] == pytest.approx(there)
        assert values[f"text_to_image_r{cut}"] == pytest.approx(back)
        assert 0 < there < 1
    every = load(tmp_path, "coco_5k", captions=None)
    assert every.retrieval is not None
    assert len(every.retrieval.captions) == 30 * 5 + 2 - 3
    assert every.fingerprint != content.fingerprint


def test_flickr_has_its_pictures_in_one_folder(tmp_path: Path) -> None:
    root = coco(tmp_path, [image(4), image(2), image(3, "val")], "dataset_flickr30k.json")
    content = load(root, "flickr30k", captions=2)
    assert list(content.pictures.names()) == ["flickr30k-images/4.jpg", "flickr30k-images/2.jpg"]
    assert content.pictures.read([1, 0]) == [b"picture 2.jpg", b"picture 4.jpg"]
    assert content.retrieval is not None
    assert content.retrieval.owners.tolist() == [0, 0, 1, 1]
    (root / "flickr30k-images").rename(root / "Images")
    with pytest.raises(DatasetError, match=r"flickr30k-images/4.jpg: the pictures of flickr30k are not there"):
        load(root, "flickr30k")
    assert load(root, "flickr30k", pictures="Images").pictures.read([0]) == [b"picture 4.jpg"]


def test_what_is_wrong_with_a_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset_coco.json: the evaluation set coco_5k is not there"):
        load(tmp_path, "coco_5k")
    empty, none, nameless = image(1), image(2, captions=0), image(3)
    empty["sentences"][1]["raw"] = " \n"
    nameless["filename"] = ""
    for images, why in (
        ([image(1, "train"), image(2, "val")], "expected images of the split test, came none among 2"),
        ([image(0), empty], "1.jpg: expected captions, came an empty one or none"),
        ([none], "2.jpg: expected captions, came an empty one or none"),
        ([image(0) | {"sentences": "a dog"}], "0.jpg: expected captions, came an empty one or none"),
        ([image(0) | {"sentences": 7}], "0.jpg: expected captions, came an empty one or none"),
        ([nameless], "expected a filename"),
        ([image(0) | {"filename": None}], "expected a filename"),
        ([image(0) | {"filename": "../../secret"}], "expected a filename"),
        ([image(0) | {"filepath": 3}], "expected a filename"),
        ([3], "expected a list of images"),
        (None, "expected a list of images"),
    ):
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
        with pytest.raises(DatasetError, match=f"dataset_coco.json: {why}") as error:
            load(tmp_path, "coco_5k")
        assert "\n" not in str(error.value)
    for text in ("{", '["images"]', ""):
        (tmp_path / "dataset_coco.json").write_text(text)
        with pytest.raises(DatasetError, match=r"dataset_coco.json: (is not JSON|expected an object)"):
            load(tmp_path, "coco_5k")


def relabelled(root: Path, to: Path, captions: list[str], species: list[str | None]) -> Manifest:
    """A copy of a dataset with other captions and a column of labels."""
    reader, place = DatasetReader(str(root)), Folder(str(to))
    names = ["pair_id", "image", "width"]
    whole = pa.concat_tables([reader.read_group(group, names) for group in range(reader.groups)])
    whole = whole.append_column("caption", pa.array(captions)).append_column("species", pa.array(species, pa.string()))
    old = read_manifest(str(root))
    shards = tuple(write_shards([whole], place, old.pairs_per_shard, old.rows_per_group))
    columns = {field.name: str(field.type) for field in whole.schema}
    changes = {"shards": shards, "columns": columns, "fingerprint": dataset_fingerprint(shards, columns)}
    manifest = old.model_copy(update=changes)
    write_manifest(place, manifest)
    return manifest


def test_a_dataset_is_a_set_of_the_pairs_whose_hash_is_smallest(tmp_path: Path) -> None:
    small_dataset(tmp_path)
    content = load(tmp_path, "dataset", called="own", pairs=20)
    reader = DatasetReader(str(tmp_path))
    whole = pa.concat_tables(
        [reader.read_group(group, ["pair_id", "caption", "image"]) for group in range(reader.groups)]
    ).to_pylist()
    expected = [whole[row] for row in drawn([row["pair_id"] for row in whole], 20, "evaluation set")]
    assert content.name == "own"
    assert content.classification is None
    assert list(content.pictures.names()) == [row["pair_id"] for row in expected]
    assert content.retrieval is not None
    assert content.retrieval.captions == tuple(row["caption"] for row in expected)
    assert content.pictures.read([3, 19, 4]) == [expected[row]["image"] for row in (3, 19, 4)]
    assert content.retrieval.right.pairs.tolist() == [[row, row] for row in range(20)]
    assert len(load(tmp_path, "dataset", called="own").pictures) == 64
    assert content.fingerprint == load(tmp_path, "dataset", called="own", pairs=20).fingerprint
    assert content.fingerprint != load(tmp_path, "dataset", called="own", pairs=21).fingerprint


def test_equal_captions_are_right_for_each_other_and_a_column_may_be_the_label(tmp_path: Path) -> None:
    small_dataset(tmp_path / "one", pairs=6)
    captions = ["a dog", "A  Dog", "a cat", "a bird", "a dog ", "a fish"]
    species = ["dog", "dog", " cat", None, "dog", ""]
    relabelled(tmp_path / "one", tmp_path / "two", captions, species)
    content = load(tmp_path / "two", "dataset", called="own", label="species", templates=["{}", "a {}"])
    assert content.retrieval is not None
    right = content.retrieval.right
    assert [[text for text in range(6) if right.holds(picture, text)] for picture in range(6)] == [
        *([0, 1, 4], [0, 1, 4], [2], [3], [0, 1, 4], [5])
    ]
    asked = content.classification
    assert asked is not None
    assert asked.tree.classes == ("cat", "dog")
    assert asked.rows.tolist() == [0, 1, 2, 4]
    assert asked.labels.tolist() == [1, 1, 0, 1]
    assert asked.prompts() == ["cat", "dog", "a cat", "a dog"]
    for column, why in (("breed", "came none"), ("width", "came int32")):
        with pytest.raises(DatasetError, match=f"expected a column '{column}' of texts, {why}"):
            load(tmp_path / "two", "dataset", called="own", label=column)
    relabelled(tmp_path / "one", tmp_path / "three", captions, ["dog"] * 3 + [None] * 3)
    with pytest.raises(DatasetError, match="expected two or more classes in the column 'species', came 1"):
        load(tmp_path / "three", "dataset", called="own", label="species")


def test_the_same_pairs_with_other_pictures_are_another_set(tmp_path: Path) -> None:
    small_dataset(tmp_path / "one", px=48)
    small_dataset(tmp_path / "two", px=40)
    one, two = (load(tmp_path / name, "dataset", called="own") for name in ("one", "two"))
    assert list(one.pictures.names()) == list(two.pictures.names())
    assert one.fingerprint != two.fingerprint


def test_no_dataset_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"manifest.json: no dataset here"):
        load(tmp_path, "dataset", called="own")
