"""Miniature copies of published classification sets, file for file as their archives unpack: a few classes of each."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from small_drawings import drawing, encoded


def picture(name: str) -> bytes:
    """A small JPEG that no other name has."""
    return encoded(drawing(sum(name.encode()) * 131 + len(name), side=24), "JPEG")


def write_pictures(root: Path, names: Sequence[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(name))


def write_lines(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def write_dtd(root: Path) -> None:
    test = ["banded/banded_0002.jpg", "zigzagged/zigzagged_0001.jpg", "polka-dotted/polka-dotted_0007.jpg"]
    train, val = ["banded/banded_0005.jpg"], ["woven/woven_0131.jpg"]
    write_pictures(root, [f"images/{name}" for name in [*test, *train, *val]])
    for name, lines in (("test1", test), ("train1", train), ("val1", val)):
        write_lines(root / f"labels/{name}.txt", *lines)


def write_fgvc_aircraft(root: Path) -> None:
    write_pictures(root, [f"data/images/{number}.jpg" for number in ("1514522", "0747566", "1008575", "1025794")])
    write_lines(root / "data/images_variant_test.txt", "1514522 707-320", "0747566 F/A-18", "1008575 BAE 146-200")
    write_lines(root / "data/images_variant_trainval.txt", "1025794 Yak-42")
    write_lines(root / "data/variants.txt", "707-320", "BAE 146-200", "F/A-18", "Yak-42")


def write_food101(root: Path) -> None:
    test = ["waffles/971843", "cheese_plate/1011328", "cheesecake/1011328"]
    write_pictures(root, [f"images/{name}.jpg" for name in [*test, "apple_pie/1005649"]])
    write_lines(root / "meta/classes.txt", "apple_pie", "cheesecake", "cheese_plate", "waffles")
    write_lines(root / "meta/test.txt", *test)
    write_lines(root / "meta/train.txt", "apple_pie/1005649")


def write_oxford_pets(root: Path) -> None:
    lines = ["Abyssinian_201 1 1 1", "yorkshire_terrier_19 37 2 25", "american_bulldog_203 2 2 1", "Bengal_105 6 1 2"]
    write_pictures(root, [f"images/{line.split()[0]}.jpg" for line in [*lines, "german_shorthaired_7"]])
    write_lines(root / "annotations/test.txt", *lines)
    write_lines(root / "annotations/trainval.txt", "german_shorthaired_7 15 2 8")


def write_sun397(root: Path) -> None:
    test = ["/j/jail_cell/sun_a.jpg", "/j/jail/indoor/sun_b.jpg", "/a/abbey/sun_c.jpg"]
    train = ["/t/theater/indoor_procenium/sun_d.jpg"]
    write_pictures(root / "SUN397", [name.lstrip("/") for name in [*test, *train]])
    write_lines(
        root / "SUN397/ClassName.txt", "/a/abbey", "/j/jail/indoor", "/j/jail_cell", "/t/theater/indoor_procenium"
    )
    write_lines(root / "Testing_01.txt", *test)
    write_lines(root / "Training_01.txt", *train)


def write_caltech101(root: Path) -> None:
    """31 to 33 pictures a class, so that a training split of 30 leaves 1 to 3."""
    counts = {"BACKGROUND_Google": 31, "Faces": 33, "Faces_easy": 32, "yin_yang": 31}
    for category, count in counts.items():
        write_pictures(
            root / "101_ObjectCategories", [f"{category}/image_{number:04d}.jpg" for number in range(1, count + 1)]
        )
    (root / "101_ObjectCategories/BACKGROUND_Google/tmp").write_text("as published")


def write_matlab(file: Path, **variables: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(file, variables)


def cells(*texts: str) -> Any:
    """A row of cells, one text in each."""
    row = np.empty((1, len(texts)), dtype=object)
    row[0, :] = texts
    return row


def annotations(*rows: tuple[int, str]) -> Any:
    """A struct array as the devkit has it: a box, a class and a file a picture."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    table = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for place, (number, file) in enumerate(rows):
        table[0, place] = (1, 2, 20, 20, np.uint8(number), file)
    return table


CARS = ("AM General Hummer SUV 2000", "smart fortwo Convertible 2012", "Ram C/V Cargo Van Minivan 2012")


def write_stanford_cars(root: Path) -> None:
    """Its class names stand in an order of their own, which the labels follow."""
    write_matlab(root / "devkit/cars_meta.mat", class_names=cells(*CARS))
    write_matlab(
        root / "cars_test_annos_withlabels.mat",
        annotations=annotations((3, "00001.jpg"), (1, "00002.jpg"), (2, "00003.jpg")),
    )
    write_matlab(root / "devkit/cars_train_annos.mat", annotations=annotations((2, "00001.jpg")))
    write_pictures(root, ["cars_test/00001.jpg", "cars_test/00002.jpg", "cars_test/00003.jpg", "cars_train/00001.jpg"])


def write_flowers102(root: Path) -> None:
    """Six pictures: numbers 2, 4, 6 are the test."""
    write_matlab(root / "imagelabels.mat", labels=np.array([[1, 102, 21, 16, 54, 1]], dtype=np.uint8))
    write_matlab(
        root / "setid.mat",
        trnid=np.array([[3]], dtype=np.uint16),
        valid=np.array([[5, 1]], dtype=np.uint16),
        tstid=np.array([[6, 2, 4]], dtype=np.uint16),
    )
    write_pictures(root, [f"jpg/image_{number:05d}.jpg" for number in range(1, 7)])


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes texts and bytes as Python 2 wrote its strings; CIFAR was pickled by it."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _string(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    def save_bytes(self, content: bytes) -> None:
        self._string(content)

    def save_str(self, content: str) -> None:
        self._string(content.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str


def python2_pickle(content: object) -> bytes:
    """Protocol 2, its strings bytes, its numpy that of the time."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3_pickle(content: object) -> bytes:
    """Protocol 2 of a later Python, whose bytes are texts in latin1."""
    return pickle.dumps(content, protocol=2)


def planes(seed: int, count: int) -> Any:
    """(count, 3072) bytes, as CIFAR lays pictures out."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar10(root: Path, pickled: Callable[[object], bytes] = python2_pickle) -> None:
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True)
    (place / "batches.meta").write_bytes(
        pickled({"num_cases_per_batch": 3, "label_names": list(CIFAR10), "num_vis": 3072})
    )
    batches = {"test_batch": (0, [9, 0, 3])} | {f"data_batch_{number}": (number, [number]) for number in range(1, 6)}
    for name, (seed, labels) in batches.items():
        content = {
            "batch_label": name,
            "labels": labels,
            "data": planes(seed, len(labels)),
            "filenames": [f"{name}_{row}.png" for row in range(len(labels))],
        }
        (place / name).write_bytes(pickled(content))


def cifar100_names() -> list[str]:
    """100 names that stand where the published meta has those of the tests."""
    from hiclip.evaluation.sets.labelled_files import published_classes

    return list(published_classes("cifar100").classes)


def write_cifar100(root: Path, pickled: Callable[[object], bytes] = python2_pickle) -> None:
    place = root / "cifar-100-python"
    place.mkdir(parents=True)
    (place / "meta").write_bytes(pickled({"fine_label_names": cifar100_names(), "coarse_label_names": ["aquatic"]}))
    for name, labels in (("test", [99, 0, 41]), ("train", [1])):
        content = {"fine_labels": labels, "coarse_labels": [0] * len(labels), "data": planes(7, len(labels))}
        (place / name).write_bytes(pickled(content))


def write_parquet(
    file: Path, image_column: str, label_column: str, labels: Sequence[int], names: Sequence[str] | None
) -> None:
    """Rows in groups of two; `names` is what Hugging Face's note in the schema says that the labels mean."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(f"{file.name}/{row}"), "path": None} for row in range(len(labels))]
    table = pa.table({image_column: images, label_column: pa.array(labels, pa.int64())})
    if names is not None:
        note = {"info": {"features": {label_column: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, file, row_group_size=2)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "caltech101": write_caltech101,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "dtd": write_dtd,
    "fgvc_aircraft": write_fgvc_aircraft,
    "flowers102": write_flowers102,
    "food101": write_food101,
    "oxford_pets": write_oxford_pets,
    "stanford_cars": write_stanford_cars,
    "sun397": write_sun397,
}
"""Name of a set -> writes its miniature below a folder."""
