"""ImageNet and its shifts on miniature copies of their layouts: every label by hand, every damage named in one line."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hiclip.data.images import decode
from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_set import EvaluationSet
from hiclip.evaluation.sets.imagenet_classes import imagenet_classes, imagenet_lemmas, imagenet_parents
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import DatasetError

TENCH, GOLDFISH, TABBY, CRANE_BIRD, CRANE = "n01440764", "n01443537", "n02123045", "n02012849", "n03126707"


def load(root: Path, name: str, split: Any = "test", **keys: object) -> EvaluationSet:
    content = {"name": "x", "out": "o", "checkpoint": "c", "sets": [{"name": name, "root": str(root), **keys}]}
    return make_job(content, EvaluateJob, "job").sets[0].load(split)


def picture(colour: tuple[int, int, int] = (9, 9, 9), px: int = 8, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (px, px), colour).save(file, kind)
    return file.getvalue()


def put(root: Path, *files: str, content: bytes | None = None) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture() if content is None else content)


def named(content: EvaluationSet) -> dict[str, str]:
    """Picture -> the name of its class."""
    asked = content.classification
    assert asked is not None
    names = content.pictures.names()
    return {
        names[row]: asked.tree.classes[label]
        for row, label in zip(asked.rows.tolist(), asked.labels.tolist(), strict=True)
    }


def devkit(root: Path, truth: list[int | str], without: str | None = None) -> dict[str, int]:
    """Writes the devkit with its 1000 classes in an order of its own, and groups after them; wnid -> its number."""
    wnids = list(imagenet_classes().wnids)
    random.Random(4).shuffle(wnids)
    rows = [(number, wnid, 0) for number, wnid in enumerate(wnids, 1) if wnid != without]
    rows += [(1001, "n02084071", 118), (1002, "n02121808", 5)]
    kinds = np.dtype([("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)])
    table = np.array([(number, wnid, "words", children) for number, wnid, children in rows], dtype=kinds)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True, exist_ok=True)
    savemat(data / "meta.mat", {"synsets": table.reshape(-1, 1)}, do_compression=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    return {wnid: number for number, wnid, children in rows if not children}


def test_the_order_of_wnids_is_that_of_the_names() -> None:
    classes = imagenet_classes()
    assert len(classes.wnids) == len(set(classes.wnids)) == len(classes.names) == 1000
    assert list(classes.wnids) == sorted(classes.wnids)
    assert len(classes.templates) == 80
    assert all(template.count("{}") == 1 for template in classes.templates)
    by_hand = {
        "n01440764": "tench",
        "n01514668": "rooster",
        "n01514859": "hen",
        "n01608432": "kite (bird of prey)",
        "n01943899": "conch",
        "n02012849": "crane bird",
        "n02077923": "sea lion",
        "n02085620": "Chihuahua",
        "n02123045": "tabby cat",
        "n02391049": "zebra",
        "n02504458": "African bush elephant",
        "n02690373": "airliner",
        "n02776631": "bakery",
        "n03126707": "construction crane",
        "n03197337": "digital watch",
        "n03530642": "honeycomb",
        "n03710637": "tights",
        "n03710721": "one-piece bathing suit",
        "n03773504": "missile",
        "n04008634": "missile",
        "n04355933": "sunglasses",
        "n04356056": "sunglasses",
        "n07753592": "banana",
        "n09472597": "volcano",
        "n15075141": "toilet paper",
    }
    called = dict(zip(classes.wnids, classes.names, strict=True))
    assert {wnid: called[wnid] for wnid in by_hand} == by_hand
    assert len(set(classes.names)) == 998, "OpenAI's list has two names twice"


def test_every_class_lies_below_the_root_of_wordnet() -> None:
    parents, lemmas = imagenet_parents(), imagenet_lemmas()
    assert set(imagenet_classes().wnids) < set(parents) == set(lemmas)
    assert [wnid for wnid, above in parents.items() if not above] == ["n00001740"]
    assert lemmas["n00001740"] == "entity"

    def ways(wnid: str) -> list[list[str]]:
        above = [[wnid, *way] for parent in parents[wnid] for way in ways(parent)]
        return above or [[wnid]]

    (way,) = ways(TENCH)
    assert [lemmas[wnid] for wnid in way[:4]] == ["tench", "cyprinid", "cypriniform fish", "soft-finned fish"]
    dog = {lemmas[wnid] for way in ways("n02085620") for wnid in way}
    assert {"toy dog", "dog", "canine", "domestic animal", "mammal", "entity"} <= dog
    assert len(ways("n02085620")) > 1, "a dog is a canine and a domestic animal"
    assert all(way[-1] == "n00001740" for wnid in imagenet_classes().wnids for way in ways(wnid))


def test_both_layouts_of_imagenet_give_the_same_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = [TABBY, TENCH, CRANE, TABBY, CRANE_BIRD, GOLDFISH]
    folders, flat = tmp_path / "folders", tmp_path / "flat"
    number = devkit(flat, [])
    devkit(flat, [number[wnid] for wnid in shown])
    for place, wnid in enumerate(shown, 1):
        put(folders, f"val/{wnid}/ILSVRC2012_val_{place:08d}.JPEG")
        put(flat, f"val/ILSVRC2012_val_{place:08d}.JPEG")
    put(folders, f"val/{TENCH}/._ILSVRC2012_val_00000002.JPEG", "val/README.txt")
    one, other = load(folders, "imagenet"), load(flat, "imagenet")
    by_number = {file.split("/")[-1]: name for file, name in named(one).items()}
    assert by_number == {file.split("/")[-1]: name for file, name in named(other).items()}
    expected = ["tabby cat", "tench", "construction crane", "tabby cat", "crane bird", "goldfish"]
    assert [by_number[f"ILSVRC2012_val_{place:08d}.JPEG"] for place in range(1, 7)] == expected
    assert one.classification is not None
    assert other.classification is not None
    assert len(one.classification.tree.classes) == 1000
    assert one.classification.tree.flat
    assert other.classification.labels.tolist() == [281, 0, 517, 281, 134, 1]
    assert one.classification.prompts()[:2] == ["a bad photo of a tench.", "a bad photo of a goldfish."]
    assert one.pictures.read([0]) == [picture()]
    assert "imagenet: 6 pictures, but the published set has 50000" in caplog.text


def test_imagenet_has_training_pictures_if_their_folder_is_there(tmp_path: Path) -> None:
    put(tmp_path, f"val/{TENCH}/a.JPEG", f"train/{CRANE}/b.JPEG", f"train/{TABBY}/c.JPEG")
    assert named(load(tmp_path, "imagenet", "train")) == {
        f"train/{CRANE}/b.JPEG": "construction crane",
        f"train/{TABBY}/c.JPEG": "tabby cat",
    }
    only_val = tmp_path / "only"
    put(only_val, f"val/{TENCH}/a.JPEG")
    with pytest.raises(DatasetError, match=r"only/train: no pictures below it: .* imagenet \(train\) is not there"):
        load(only_val, "imagenet", "train")
    for name in ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet"):
        with pytest.raises(DatasetError, match=f"{name}: expected the split test, came train"):
            load(tmp_path, name, "train")


def test_a_folder_of_v2_is_the_number_of_its_class(tmp_path: Path) -> None:
    put(tmp_path, "0/a.jpeg", "1/a.jpeg", "10/a.jpeg", "2/a.jpeg", "999/a.jpeg", "134/a.jpeg", "517/a.jpeg")
    content = load(tmp_path, "imagenet_v2")
    assert named(content) == {
        "0/a.jpeg": "tench",
        "1/a.jpeg": "goldfish",
        "10/a.jpeg": "brambling",
        "2/a.jpeg": "great white shark",
        "134/a.jpeg": "crane bird",
        "517/a.jpeg": "construction crane",
        "999/a.jpeg": "toilet paper",
    }
    put(tmp_path, "1000/a.jpeg")
    with pytest.raises(DatasetError, match=r"1000/a.jpeg: expected .* 1000 classes of imagenet_v2 \(0 to 999\)"):
        load(tmp_path, "imagenet_v2")


def test_sketch_asks_for_all_classes_and_a_and_r_for_their_200(tmp_path: Path) -> None:
    put(tmp_path / "sketch", f"{CRANE}/sketch_1.JPEG", f"{TENCH}/sketch_2.JPEG")
    sketch = load(tmp_path / "sketch", "imagenet_sketch", templates=["a {}"])
    assert named(sketch) == {f"{CRANE}/sketch_1.JPEG": "construction crane", f"{TENCH}/sketch_2.JPEG": "tench"}
    assert sketch.classification is not None
    assert len(sketch.classification.prompts()) == 1000
    put(tmp_path / "a", "n01498041/a.jpg", "n12267677/a.jpg", "README.txt")
    put(tmp_path / "r", f"{TABBY}/art_0.jpg", f"{GOLDFISH}/art_1.jpg", "n12267677/art_2.jpg")
    for name, first, last in (("a", "stingray", "acorn"), ("r", "goldfish", "acorn")):
        content = load(tmp_path / name, f"imagenet_{name}")
        assert content.classification is not None
        classes = content.classification.tree.classes
        assert (len(classes), classes[0], classes[-1]) == (200, first, last)
    assert named(load(tmp_path / "a", "imagenet_a")) == {"n01498041/a.jpg": "stingray", "n12267677/a.jpg": "acorn"}
    assert named(load(tmp_path / "r", "imagenet_r"))[f"{TABBY}/art_0.jpg"] == "tabby cat"
    assert imagenet_classes().wnids_of("imagenet_r")[0] == GOLDFISH
    put(tmp_path / "r", f"{TENCH}/art_0.jpg")
    with pytest.raises(DatasetError, match=rf"expected .* the 200 classes of imagenet_r .* came '{TENCH}'"):
        load(tmp_path / "r", "imagenet_r")


def framed(px: int = 12) -> bytes:
    """A blue picture in a red border of two pixels."""
    image = Image.new("RGB", (px, px - 2), (255, 0, 0))
    image.paste((0, 0, 255), (2, 2, px - 2, px - 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def objectnet(root: Path) -> None:
    labels = {"air_freshener": "Air freshener", "weight_exercise": "Weight (exercise)", "alarm_clock": "Alarm clock"}
    overlap = {"Weight (exercise)": "dumbbell", "Alarm clock": "analog clock; digital clock"}
    put(root, "mappings/folder_to_objectnet_label.json", content=json.dumps(labels).encode())
    put(root, "mappings/objectnet_to_imagenet_1k.json", content=json.dumps(overlap).encode())
    put(root, "images/weight_exercise/b.png", "images/alarm_clock/a.png", content=framed())
    put(root, "images/air_freshener/c.png", "images/alarm_clock/tiny.png", content=picture(px=4, kind="PNG"))
    put(root, "images/alarm_clock/damaged.png", content=b"no picture")


def test_objectnet_asks_for_the_overlap_and_cuts_the_border_off(tmp_path: Path) -> None:
    objectnet(tmp_path)
    content = load(tmp_path, "objectnet")
    assert content.classification is not None
    assert content.classification.tree.classes == ("alarm clock", "weight (exercise)")
    assert named(content) == {
        "images/alarm_clock/a.png": "alarm clock",
        "images/alarm_clock/damaged.png": "alarm clock",
        "images/alarm_clock/tiny.png": "alarm clock",
        "images/weight_exercise/b.png": "weight (exercise)",
    }
    shown, damaged, tiny, other = content.pictures.read([0, 1, 2, 3])
    assert damaged == b"no picture", "it is counted where it is decoded"
    assert tiny == picture(px=4, kind="PNG"), "nothing would be left"
    assert shown == other
    assert decode(shown).tolist() == np.full((6, 8, 3), (0, 0, 255)).tolist()


def test_objectnet_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"folder_to_objectnet_label.json: the evaluation set objectnet is not there"
    ):
        load(tmp_path, "objectnet")
    objectnet(tmp_path)
    put(tmp_path, "images/bench/a.png")
    with pytest.raises(DatasetError, match=r"images/bench/a.png: expected .* came 'bench'"):
        load(tmp_path, "objectnet")
    mapping = tmp_path / "mappings/objectnet_to_imagenet_1k.json"
    mapping.write_text(json.dumps({"Alarm clock": "x", "Chair": "y"}))
    with pytest.raises(DatasetError, match="names 2 labels, but 1 of them"):
        load(tmp_path, "objectnet")
    for text, why in (
        ("[1]", "expected an object, came list"),
        ("{", "is not JSON"),
        ('{"a": 1}', "expected words for words"),
    ):
        mapping.write_text(text)
        with pytest.raises(DatasetError, match=f"objectnet_to_imagenet_1k.json: {why}"):
            load(tmp_path, "objectnet")


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    for name in ("imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        with pytest.raises(DatasetError, match=f"nowhere.*: no pictures below it: the evaluation set {name}"):
            load(tmp_path / "nowhere", name)
    put(tmp_path, f"val/{TENCH}/a.JPEG", "val/n99999999/b.JPEG")
    with pytest.raises(DatasetError, match=r"val/n99999999/b.JPEG: expected .* of imagenet \(n01440764 to n15075141\)"):
        load(tmp_path, "imagenet")
    put(tmp_path / "loose", f"{TENCH}/a.JPEG", "b.JPEG")
    with pytest.raises(DatasetError, match=r"loose/b.JPEG: expected a picture in a folder"):
        load(tmp_path / "loose", "imagenet_sketch")


def test_a_devkit_that_does_not_fit_is_named(tmp_path: Path) -> None:
    put(tmp_path, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(
        DatasetError, match=r"ILSVRC2012_validation_ground_truth.txt: the evaluation set imagenet is not"
    ):
        load(tmp_path, "imagenet")
    devkit(tmp_path, [1, 1001])
    with pytest.raises(DatasetError, match="line 2: expected a number from 1 to 1000, came '1001'"):
        load(tmp_path, "imagenet")
    devkit(tmp_path, [1, "two"])
    with pytest.raises(DatasetError, match="line 2: expected a number from 1 to 1000, came 'two'"):
        load(tmp_path, "imagenet")
    devkit(tmp_path, [1])
    with pytest.raises(DatasetError, match=r"00000002.JPEG: expected .* to ILSVRC2012_val_00000001.JPEG"):
        load(tmp_path, "imagenet")
    devkit(tmp_path, [1, 2], without=TABBY)
    with pytest.raises(DatasetError, match=r"meta.mat: expected the 1000 classes"):
        load(tmp_path, "imagenet")
    devkit(tmp_path, [1, 2])
    table = tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat"
    whole = table.read_bytes()
    for damaged in (b"", b"no table", whole[: len(whole) // 2], whole[:200], whole[:128]):
        table.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"meta.mat: (expected a MATLAB|cannot be read|expected a var)") as error:
            load(tmp_path, "imagenet")
        assert "\n" not in str(error.value)


def test_a_prompt_has_one_place(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"expected a prompt with one \{\} for the label, came 'a photo'"):
        load(tmp_path, "imagenet", templates=["a photo"])
