"""Published classification sets in miniature: each picture has the class that its own layout gives it, and mistakes in
the files end in one line.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_s3 import bucket
from PIL import Image
from published_layouts import (
    CARS,
    CIFAR10,
    LAYOUTS,
    annotations,
    cells,
    cifar100_names,
    picture,
    planes,
    python2_pickle,
    python3_pickle,
    write_cifar10,
    write_cifar100,
    write_lines,
    write_matlab,
    write_parquet,
)
from pydantic import TypeAdapter
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from small_checkpoint import small_checkpoint
from small_drawings import drawing, encoded

from hiclip.data.images import eval_transform, normalise
from hiclip.data.tokenizer import Tokenizer
from hiclip.evaluation.asked import ask
from hiclip.evaluation.blocks import map_here
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.outcome import finished_outcome
from hiclip.evaluation.run_evaluation import evaluate
from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.evaluation.set_pictures import NOT_THERE
from hiclip.evaluation.sets import SetSettings
from hiclip.evaluation.sets.labelled_files import published_classes
from hiclip.training.checkpoint import load_towers
from pipeline.jobfile import make_job
from pipeline.manifest import DatasetError
from pipeline.storage import folder


def settings(name: str, root: object, **more: Any) -> SetSettings:
    adapter: TypeAdapter[SetSettings] = TypeAdapter(SetSettings)
    return adapter.validate_python({"name": name, "root": str(root), **more})


def classes_of(content: EvaluationSet) -> list[str]:
    """The name of each picture's class."""
    asked = content.classification
    assert asked is not None
    assert asked.rows.tolist() == list(range(len(content.pictures)))
    return [asked.tree.classes[label] for label in asked.labels]


# Name, how many classes and prompts, convention, then (file, class) of each test picture and of each training picture.
EXPECTED: list[tuple[str, int, int, str, list[tuple[str, str]], list[tuple[str, str]]]] = [
    (
        "dtd",
        47,
        8,
        "top1",
        [
            ("images/banded/banded_0002.jpg", "banded"),
            ("images/zigzagged/zigzagged_0001.jpg", "zigzagged"),
            ("images/polka-dotted/polka-dotted_0007.jpg", "polka-dotted"),
        ],
        [("images/banded/banded_0005.jpg", "banded"), ("images/woven/woven_0131.jpg", "woven")],
    ),
    (
        "fgvc_aircraft",
        100,
        2,
        "mean_per_class",
        [
            ("data/images/1514522.jpg", "707-320"),
            ("data/images/0747566.jpg", "F/A-18"),
            ("data/images/1008575.jpg", "BAE 146-200"),
        ],
        [("data/images/1025794.jpg", "Yak-42")],
    ),
    (
        "flowers102",
        102,
        1,
        "mean_per_class",
        [
            ("jpg/image_00006.jpg", "pink primrose"),
            ("jpg/image_00002.jpg", "blackberry lily"),
            ("jpg/image_00004.jpg", "globe flower"),
        ],
        [
            ("jpg/image_00003.jpg", "fire lily"),
            ("jpg/image_00005.jpg", "sunflower"),
            ("jpg/image_00001.jpg", "pink primrose"),
        ],
    ),
    (
        "food101",
        101,
        1,
        "top1",
        [
            ("images/waffles/971843.jpg", "waffles"),
            ("images/cheese_plate/1011328.jpg", "cheese plate"),
            ("images/cheesecake/1011328.jpg", "cheesecake"),
        ],
        [("images/apple_pie/1005649.jpg", "apple pie")],
    ),
    (
        "oxford_pets",
        37,
        1,
        "mean_per_class",
        [
            ("images/Abyssinian_201.jpg", "Abyssinian"),
            ("images/yorkshire_terrier_19.jpg", "yorkshire terrier"),
            ("images/american_bulldog_203.jpg", "american bulldog"),
            ("images/Bengal_105.jpg", "Bengal"),
        ],
        [("images/german_shorthaired_7.jpg", "german shorthaired")],
    ),
    (
        "stanford_cars",
        196,
        8,
        "top1",
        [
            ("cars_test/00001.jpg", "Ram C/V Cargo Van Minivan 2012"),
            ("cars_test/00002.jpg", "AM General Hummer SUV 2000"),
            ("cars_test/00003.jpg", "smart fortwo Convertible 2012"),
        ],
        [("cars_train/00001.jpg", "smart fortwo Convertible 2012")],
    ),
    (
        "sun397",
        397,
        2,
        "top1",
        [
            ("j/jail_cell/sun_a.jpg", "jail cell"),
            ("j/jail/indoor/sun_b.jpg", "jail indoor"),
            ("a/abbey/sun_c.jpg", "abbey"),
        ],
        [("t/theater/indoor_procenium/sun_d.jpg", "theater indoor procenium")],
    ),
]


@pytest.mark.parametrize(("name", "classes", "templates", "convention", "test", "train"), EXPECTED)
def test_each_picture_has_the_class_of_its_layout(
    name: str,
    classes: int,
    templates: int,
    convention: str,
    test: list[tuple[str, str]],
    train: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    LAYOUTS[name](tmp_path)
    asked = settings(name, tmp_path)
    content = asked.load()
    assert content.name == name
    assert list(zip(content.pictures.names(), classes_of(content), strict=True)) == test
    assert content.classification is not None
    assert content.classification.convention == convention
    assert len(content.classification.tree.classes) == classes
    assert content.classification.tree.flat
    assert len(content.classification.prompts()) == classes * templates
    below = "SUN397/" if name == "sun397" else ""
    assert content.pictures.read([2, 0]) == [(tmp_path / below / test[row][0]).read_bytes() for row in (2, 0)]

    other = asked.load("train")
    assert other.name == f"{name}-train"
    assert list(zip(other.pictures.names(), classes_of(other), strict=True)) == train
    assert other.classification is not None
    assert other.classification.tree == content.classification.tree
    assert other.fingerprint != content.fingerprint

    # Other prompts are another question.
    bare = settings(name, tmp_path, templates=["{}"]).load()
    assert bare.classification is not None
    assert tuple(bare.classification.prompts()) == content.classification.tree.classes
    assert bare.fingerprint != content.fingerprint


def test_caltech_trains_on_thirty_a_class_and_asks_all_others(tmp_path: Path) -> None:
    LAYOUTS["caltech101"](tmp_path)
    asked = settings("caltech101", tmp_path)
    test, train = asked.load(), asked.load("train")
    assert classes_of(test) == ["background"] + 3 * ["off-center face"] + 2 * ["centered face"] + [
        "yin and yang symbol"
    ]
    assert [classes_of(train).count(name) for name in dict.fromkeys(classes_of(test))] == [30, 30, 30, 30]
    assert test.classification is not None
    assert test.classification.convention == "mean_per_class"
    assert len(test.classification.prompts()) == 102 * 34
    assert "a photo of a head of a  crocodile." in test.classification.prompts()
    every = {str(file.relative_to(tmp_path / "101_ObjectCategories")) for file in tmp_path.rglob("*.jpg")}
    assert set(test.pictures.names()) | set(train.pictures.names()) == every
    assert not set(test.pictures.names()) & set(train.pictures.names())
    assert test.pictures.names()[0].startswith("BACKGROUND_Google/")
    assert test.pictures.read([1]) == [picture(test.pictures.names()[1])]
    assert asked.load().fingerprint == test.fingerprint, "drawn by hash"


@pytest.mark.parametrize("pickled", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("in_archive", [True, False])
def test_cifar_pickles(pickled: Callable[[object], bytes], in_archive: bool, tmp_path: Path) -> None:
    write_cifar10(tmp_path / "ten", pickled)
    write_cifar100(tmp_path / "hundred", pickled)
    ten = settings("cifar10", tmp_path / "ten" / ("" if in_archive else "cifar-10-batches-py"))
    hundred = settings("cifar100", tmp_path / "hundred" / ("" if in_archive else "cifar-100-python"))
    content = ten.load()
    assert classes_of(content) == ["truck", "airplane", "cat"]
    assert content.classification is not None
    assert len(content.classification.prompts()) == 10 * 18
    assert content.classification.convention == "top1"
    assert content.pictures.names() == ["test_batch/0", "test_batch/1", "test_batch/2"]
    for row, encoded_picture in zip([2, 0], content.pictures.read([2, 0]), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(encoded_picture)))
        plane = planes(0, 3)[row].reshape(3, 32, 32)
        assert (pixels == np.stack([plane[0], plane[1], plane[2]], axis=-1)).all(), "red, green, blue"
    train = ten.load("train")
    assert classes_of(train) == ["automobile", "bird", "cat", "deer", "dog"]
    (fourth,) = train.pictures.read([3])
    assert (np.asarray(Image.open(io.BytesIO(fourth)))[:, :, 2].ravel() == planes(4, 1)[0, 2048:]).all()
    assert classes_of(hundred.load()) == ["worm", "apple", "lawn mower"]
    assert classes_of(hundred.load("train")) == ["aquarium fish"]
    prompts = hundred.load().classification
    assert prompts is not None
    assert len(prompts.prompts()) == 100 * 18


def test_real_batches_of_python_2_name_what_the_stand_ins_stand_for() -> None:
    content = python2_pickle({"data": planes(0, 1), "labels": [1]})
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content
    assert isinstance(next(iter(pickle.loads(content, encoding="bytes"))), bytes)


class _Malice:
    """Asks whoever unpickles it to write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "was here"))


def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py/test_batch"
    target = tmp_path / "harm"
    batch.write_bytes(pickle.dumps({"data": planes(0, 1), "labels": [1], "more": _Malice(target)}, protocol=2))
    with pytest.raises(DatasetError, match=r"test_batch: expected arrays, lists and texts, .* asks for \S+$"):
        settings("cifar10", tmp_path).load()
    assert not target.exists()
    pickle.loads(pickle.dumps(_Malice(target)))
    assert target.exists(), "the same pickle does harm where nothing refuses it"


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'echo x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n(c_codecs\nencode\nS'__globals__'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        b"c_codecs\ndecode\n.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"c_codecs\nencode\n(dS'__globals__'\n(dsb.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\ndtype\nN(dS'numpy'\n(ds\x86b.",
        b"Pid\n.",
        b"(lp0\n.",
        b"",
        b"not a pickle",
    ],
)
def test_no_other_pickle_gets_further(content: bytes, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(content)
    with pytest.raises(DatasetError, match="test_batch: ") as raised:
        settings("cifar10", tmp_path).load()
    assert "\n" not in str(raised.value)
    write_cifar10(tmp_path / "again")
    assert classes_of(settings("cifar10", tmp_path / "again").load()) == ["truck", "airplane", "cat"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"labels": [1]}, "expected 'data' of 3072 bytes"),
        ({"data": np.zeros((1, 3072), np.int64), "labels": [1]}, "expected 'data' of 3072 bytes"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [1]}, "expected 'data' of 3072 bytes"),
        ({"data": planes(0, 1), "labels": ["cat"]}, "'labels', a list of whole numbers"),
        ({"data": planes(0, 1), "fine_labels": [1]}, "'labels', a list of whole numbers"),
        ({"data": planes(0, 1), "labels": [1, 2]}, "came 2 for 1 pictures"),
        ({"data": planes(0, 1), "labels": [10]}, "expected numbers from 0 to 9, came 10"),
        ({"data": planes(0, 1), "labels": [-1]}, "expected numbers from 0 to 9, came -1"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "expected pictures of cifar10, came none"),
        ({"data": np.array([[None]]), "labels": [1]}, "whole numbers"),
        ([1], "expected a dictionary, came list"),
    ],
)
def test_a_batch_that_is_none(content: Any, expected: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(python2_pickle(content))
    with pytest.raises(DatasetError, match=expected):
        settings("cifar10", tmp_path).load()


def test_labels_of_numpy_and_columns_first_are_read_too(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    content = {"data": np.asfortranarray(planes(3, 2)), "labels": np.array([4, 2])}
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(python2_pickle(content))
    found = settings("cifar10", tmp_path).load()
    assert classes_of(found) == ["deer", "bird"]
    (second,) = found.pictures.read([1])
    assert (np.asarray(Image.open(io.BytesIO(second)))[:, :, 0].ravel() == planes(3, 2)[1, :1024]).all()


@pytest.mark.parametrize(
    ("name", "image", "label", "labels", "expected"),
    [
        ("cifar10", "img", "label", [9, 0, 3], ["truck", "airplane", "cat"]),
        ("cifar10", "image", "label", [9, 0, 3], ["truck", "airplane", "cat"]),
        ("cifar100", "img", "fine_label", [99, 41, 1], ["worm", "lawn mower", "aquarium fish"]),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_cifar_in_parquet(
    name: str, image: str, label: str, labels: list[int], expected: list[str], named: bool, tmp_path: Path
) -> None:
    published = list(CIFAR10) if name == "cifar10" else cifar100_names()
    names = [one.replace("crab", "cra") for one in published] if named else None  # as Hugging Face spells it
    write_parquet(tmp_path / "data/test-00000-of-00002.parquet", image, label, labels, names)
    write_parquet(tmp_path / "data/test-00001-of-00002.parquet", image, label, [0], names)
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", image, label, [2, 2], names)
    content = settings(name, tmp_path).load()
    assert classes_of(content) == [*expected, published[0]]
    wanted = [f"test-00000-of-00002.parquet/{row}" for row in (2, 0)] + ["test-00001-of-00002.parquet/0"]
    assert content.pictures.read([2, 0, 3]) == [picture(one) for one in wanted]
    assert classes_of(settings(name, tmp_path).load("train")) == [published[2]] * 2


def test_parquet_in_another_order_of_labels_is_refused(tmp_path: Path) -> None:
    swapped = ["automobile", "airplane", *CIFAR10[2:]]
    write_parquet(tmp_path / "test.parquet", "img", "label", [0], swapped)
    with pytest.raises(DatasetError, match=r"test\.parquet: expected 'airplane' .* came 'automobile'"):
        settings("cifar10", tmp_path).load()
    write_parquet(tmp_path / "test.parquet", "picture", "label", [0], None)
    with pytest.raises(DatasetError, match="expected a column img or image, came picture, label"):
        settings("cifar10", tmp_path).load()
    write_parquet(tmp_path / "test.parquet", "img", "label", [10], None)
    with pytest.raises(DatasetError, match="expected numbers from 0 to 9, came 10"):
        settings("cifar10", tmp_path).load()
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match=r"test\.parquet: cannot be read"):
        settings("cifar10", tmp_path).load()


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_that_may_have_changed_are_another_state_of_the_same_questions(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    before, again = settings(name, tmp_path).load(), settings(name, tmp_path).load()
    assert before.state == again.state
    for file in tmp_path.rglob("*"):
        if file.is_file():
            os.utime(file, ns=(0, 0))
    after = settings(name, tmp_path).load()
    assert after.fingerprint == before.fingerprint
    assert after.state != before.state


@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow 3.17 with SQLAlchemy 2.1
def test_a_picture_replaced_under_its_name_is_looked_at_anew(tmp_path: Path) -> None:
    root, other = tmp_path / "aircraft", tmp_path / "cars"
    LAYOUTS["fgvc_aircraft"](root)
    LAYOUTS["stanford_cars"](other)
    small_checkpoint(tmp_path / "run", "nowhere", "0" * 64)
    content: dict[str, Any] = {
        "name": "remembered", "out": str(tmp_path / "out"), "checkpoint": str(tmp_path / "run"), "draws": 100,
        "sets": [{"name": "fgvc_aircraft", "root": str(root)}, {"name": "stanford_cars", "root": str(other)}],
        "baselines": {"pixel_neighbours": None}, "hierarchy": None,
    }  # fmt: skip
    job = make_job(content, EvaluateJob, "test")
    out = folder(job.out).make()
    first = evaluate(ask(job), map_here, out)
    assert finished_outcome(out, ask(job).key) == first

    (root / "data/images/0747566.jpg").write_bytes(encoded(drawing(77, side=64), "JPEG"))
    assert finished_outcome(out, ask(job).key) is None
    second = evaluate(ask(job), map_here, out)
    assert second.sets == first.sets, "the same questions"
    assert len(out.names("sets/stanford_cars")) == 1, "remembered"
    looked_at = {json.loads(out.read_text(name))["seen"]["sha256"] for name in out.names("sets/fgvc_aircraft")}
    assert len(looked_at) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_set_that_is_not_there_names_the_file_it_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"{tmp_path}/\S+: the evaluation set {name} is not there") as raised:
        settings(name, tmp_path).load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "file", "line", "expected"),
    [
        ("dtd", "labels/test1.txt", "spotted/spotted_0001.jpg", "one of the 47 classes of dtd, came 'spotted'"),
        ("dtd", "labels/test1.txt", "banded_0001.jpg", "two parts with '/' between"),
        ("fgvc_aircraft", "data/images_variant_test.txt", "0000001 747", "one of the 100 classes .* came '747'"),
        ("fgvc_aircraft", "data/images_variant_test.txt", "0000001", "two parts with ' ' between"),
        ("food101", "meta/test.txt", "soup/1", "one of the 101 classes of food101, came 'soup'"),
        ("food101", "meta/classes.txt", "soup", "one of the 101 classes of food101, came 'soup'"),
        (
            "oxford_pets",
            "annotations/test.txt",
            "Bengal_106 5 1 1",
            "Bengal_106 with the number of Bengal, came .* beagle",
        ),
        ("oxford_pets", "annotations/test.txt", "Bengal_106 38 1 1", "numbers from 1 to 37, came 38"),
        ("oxford_pets", "annotations/test.txt", "Bengal_106 six", "a number behind each name, came 'six'"),
        ("oxford_pets", "annotations/test.txt", "lion_1 1 1 1", "one of the 37 classes of oxford_pets, came 'lion'"),
        ("sun397", "Testing_01.txt", "/a/attic/indoor/sun_x.jpg", "came '/a/attic/indoor'"),
        ("sun397", "SUN397/ClassName.txt", "/a/abbey_road", "came '/a/abbey_road'"),
        ("caltech101", "101_ObjectCategories/lion/image_0001.jpg", "", "one of the 102 classes .* came 'lion'"),
    ],
)
def test_an_unknown_class_is_an_error(name: str, file: str, line: str, expected: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    before = (tmp_path / file).read_text().splitlines() if (tmp_path / file).exists() else []
    write_lines(tmp_path / file, *before, line)
    with pytest.raises(DatasetError, match=expected) as raised:
        settings(name, tmp_path).load()
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"])
def test_cars_without_a_file(missing: str, tmp_path: Path) -> None:
    LAYOUTS["stanford_cars"](tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DatasetError, match=rf"{missing}: .*is not there"):
        settings("stanford_cars", tmp_path).load()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "file", "change", "expected"),
    [
        ("stanford_cars", "devkit/cars_meta.mat", _cut, "cars_meta.mat: cannot be read"),
        (
            "stanford_cars",
            "devkit/cars_meta.mat",
            lambda file: file.write_bytes(b"\x00" * 400),
            "cars_meta.mat: expected a MATLAB file of version 5",
        ),
        ("stanford_cars", "devkit/cars_meta.mat", lambda file: write_matlab(file, names=cells(*CARS)), "'class_names'"),
        (
            "stanford_cars",
            "devkit/cars_meta.mat",
            lambda file: write_matlab(file, class_names=cells(*CARS[:2], "Ford T 1908")),
            "one of the 196 classes of stanford_cars, came 'Ford T 1908'",
        ),
        (
            "stanford_cars",
            "cars_test_annos_withlabels.mat",
            lambda file: write_matlab(file, annotations=annotations((4, "00001.jpg"))),
            "expected numbers from 1 to 3, came 4",
        ),
        (
            "stanford_cars",
            "cars_test_annos_withlabels.mat",
            lambda file: write_matlab(file, annotations=annotations((0, "00001.jpg"))),
            "expected numbers from 1 to 3, came 0",
        ),
        (
            "stanford_cars",
            "cars_test_annos_withlabels.mat",
            lambda file: write_matlab(file, annotations=np.array([1, 2])),
            "'annotations' with a field 'class'",
        ),
        (
            "flowers102",
            "imagelabels.mat",
            lambda file: write_matlab(file, labels=np.array([[1, 103, 1, 1, 1, 1]])),
            "imagelabels.mat: expected numbers from 1 to 102, came 103",
        ),
        (
            "flowers102",
            "imagelabels.mat",
            lambda file: write_matlab(file, labels=np.array([[1, 2]])),
            "setid.mat: expected numbers from 1 to 2, came 6",
        ),
        ("flowers102", "imagelabels.mat", lambda file: write_matlab(file, labels=np.array([[1.5]])), "whole numbers"),
        ("flowers102", "imagelabels.mat", lambda file: write_matlab(file, labels=np.array([[np.nan]])), "came nan"),
        ("flowers102", "imagelabels.mat", lambda file: write_matlab(file, labels=np.array([[np.inf]])), "came inf"),
        (
            "oxford_pets",
            "annotations/test.txt",
            lambda file: file.write_text(f"Abyssinian_201 {'9' * 5000} 1 1\n"),
            "a number behind each name, came '9999",
        ),
        ("flowers102", "setid.mat", lambda file: write_matlab(file, trnid=np.array([[1]])), "a variable 'tstid'"),
        ("flowers102", "setid.mat", lambda file: file.unlink(), "setid.mat: is not there"),
        ("flowers102", "setid.mat", lambda file: write_matlab(file, tstid=np.zeros((1, 0))), "expected pictures"),
        ("dtd", "labels/test1.txt", lambda file: file.write_bytes(b"\xff\xfe\x00"), "expected a list in UTF-8"),
        ("dtd", "labels/test1.txt", lambda file: file.write_text("\n"), "expected pictures of dtd, came none"),
        ("food101", "meta/test.txt", lambda file: file.unlink(), "test.txt: the evaluation set food101 is not there"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(
    name: str, file: str, change: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    change(tmp_path / file)
    with pytest.raises(DatasetError, match=expected) as raised:
        settings(name, tmp_path).load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("unpacked", ["caltech-101", "caltech101"])
def test_caltech_may_lie_in_the_folder_that_its_archive_makes(unpacked: str, tmp_path: Path) -> None:
    LAYOUTS["caltech101"](tmp_path / unpacked)
    assert len(settings("caltech101", tmp_path).load().pictures) == 1 + 3 + 2 + 1


def test_one_annotated_car_is_a_table_too(tmp_path: Path) -> None:
    LAYOUTS["stanford_cars"](tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    write_matlab(tmp_path / "devkit/cars_test_annos_withlabels.mat", annotations=annotations((3, "00002.jpg")))
    content = settings("stanford_cars", tmp_path).load()
    assert classes_of(content) == ["Ram C/V Cargo Van Minivan 2012"]
    assert content.pictures.read([0]) == [picture("cars_test/00002.jpg")]


def test_a_missing_picture_stays_and_none_at_all_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LAYOUTS["dtd"](tmp_path)
    whole = settings("dtd", tmp_path).load()
    (tmp_path / "images/banded/banded_0002.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        content = settings("dtd", tmp_path).load()
    assert content.fingerprint == whole.fingerprint
    assert content.pictures.read([0, 1]) == [NOT_THERE, picture("images/zigzagged/zigzagged_0001.jpg")]
    assert "expected 1880 pictures of 47 classes, came 3 of 3" in caplog.text
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DatasetError, match=r"banded_0002\.jpg: the pictures of dtd are not there"):
        settings("dtd", tmp_path).load()


@pytest.mark.parametrize("name", ["caltech101", "cifar10", "dtd", "stanford_cars"])
def test_the_same_set_on_s3(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / "cars_test/00003.jpg").unlink(missing_ok=True)
    here = settings(name, tmp_path).load()
    rows = range(len(here.pictures))
    with bucket("published") as address:
        place = folder(f"{address}/sets")
        for file in tmp_path.rglob("*"):
            if file.is_file():
                place.upload(str(file), str(file.relative_to(tmp_path)))
        there = settings(name, f"{address}/sets").load()
        assert classes_of(there) == classes_of(here)
        assert there.fingerprint == here.fingerprint
        assert there.pictures.read(rows) == here.pictures.read(rows)
        assert (NOT_THERE in there.pictures.read(rows)) == (name == "stanford_cars")
        with pytest.raises(DatasetError, match=f"the evaluation set {name} is not there"):
            settings(name, f"{address}/elsewhere").load()


def test_names_and_prompts_that_come_with_the_package() -> None:
    """Counts as published, and names that stand where one of their neighbours is easily taken for them."""
    counts = {
        "caltech101": (102, 34),
        "cifar10": (10, 18),
        "cifar100": (100, 18),
        "dtd": (47, 8),
        "fgvc_aircraft": (100, 2),
        "flowers102": (102, 1),
        "food101": (101, 1),
        "oxford_pets": (37, 1),
        "stanford_cars": (196, 8),
        "sun397": (397, 2),
    }
    for name, (classes, templates) in counts.items():
        published = published_classes(name)
        assert (len(published.classes), len(published.templates)) == (classes, templates), name
        assert len(set(published.classes.values())) == classes, f"{name}: two classes of one name"
        assert published.source, name
    # What a key says must be what its name says, but for the renamed ones of Caltech and the numbers of Flowers.
    for name in set(counts) - {"flowers102", "caltech101"}:
        for key, called in published_classes(name).classes.items():
            plain = key[3:] if name == "sun397" else key
            assert plain.replace("_", " ").replace("/", " ").lower() == called.replace("/", " ").lower(), name
    caltech = {key: called for key, called in published_classes("caltech101").classes.items()}
    assert list(caltech) == sorted(caltech), "in the order of their bytes, capitals first, as CLIP has them"
    assert {key: called for key, called in caltech.items() if key.replace("_", " ") != called} == {
        "BACKGROUND_Google": "background",
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "car_side": "side of a car",
        "cougar_body": "body of a cougar cat",
        "cougar_face": "face of a cougar cat",
        "crocodile_head": "head of a  crocodile",
        "flamingo_head": "head of a flamingo",
        "snoopy": "snoopy (cartoon beagle)",
        "yin_yang": "yin and yang symbol",
    }
    flowers = published_classes("flowers102").classes
    assert list(flowers) == [str(number) for number in range(1, 103)]
    known = {1: "pink primrose", 12: "colt's foot", 21: "fire lily", 51: "petunia", 74: "rose", 100: "blanket flower"}
    assert {number: flowers[str(number)] for number in known} == known
    pets = list(published_classes("oxford_pets").classes)
    assert pets == sorted(pets, key=str.casefold), "the published numbers are alphabetical, whatever the case"
    assert list(published_classes("cifar10").classes) == list(CIFAR10)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_numbers_of_a_checkpoint_are_those_of_scikit_learn(tmp_path: Path) -> None:
    checkpoint = str(small_checkpoint(tmp_path / "run", None, "0"))
    root, variants = tmp_path / "aircraft", list(published_classes("fgvc_aircraft").classes)
    towers = load_towers(checkpoint)[0].eval()
    names = [f"{number:07d}" for number in range(24)]
    files = [encoded(drawing(number, side=48), "JPEG") for number in range(24)]

    # The towers' own cosines, a prompt and a picture at a time.
    tokenizer = Tokenizer(16)
    prompts = ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft.")
    with torch.inference_mode():

        def unit(vector: torch.Tensor) -> torch.Tensor:
            return vector / vector.norm()

        def text(prompt: str) -> torch.Tensor:
            return unit(towers.text_tower(torch.from_numpy(tokenizer.encode([prompt]))).vector[0])

        classes = [unit((text(prompts[0].format(name)) + text(prompts[1].format(name))) / 2) for name in variants]
        pixels = torch.from_numpy(np.stack([eval_transform(file, 32, 0.875) for file in files]))
        pictures = [unit(towers.image_tower(one[None]).vector[0]) for one in normalise(pixels)]
        scores = torch.stack([torch.stack([picture @ one for one in classes]) for picture in pictures]).numpy()

    # Some first answers are right, some second to seventh ones are; one picture is not there.
    order = np.argsort(-scores, axis=1)
    truth = np.array([order[row, (0, 1, 0, 6, 2)[row % 5]] for row in range(24)])
    (root / "data/images").mkdir(parents=True)
    for name, file in zip(names[:-1], files, strict=False):
        (root / f"data/images/{name}.jpg").write_bytes(file)
    write_lines(
        root / "data/images_variant_test.txt",
        *(f"{name} {variants[label]}" for name, label in zip(names, truth, strict=True)),
    )
    scores[-1] = 0
    scores[-1, truth[-1]] = -1
    first = scores.argmax(axis=1)
    expected = {
        "top1": accuracy_score(truth, first),
        "top5": top_k_accuracy_score(truth, scores, k=5, labels=np.arange(100)),
        "mean_per_class": balanced_accuracy_score(truth, first),
    }
    assert len(set(expected.values())) == 3, "the three are told apart"
    assert 0.2 < expected["top1"] < expected["top5"] < 0.95

    found = evaluate_checkpoint(
        checkpoint, [settings("fgvc_aircraft", root)], metrics=set(expected), batch=7, draws=100
    )
    assert {one.metric: one.value for one in found} == pytest.approx(expected)
    assert {one.set for one in found} == {"fgvc_aircraft"}
