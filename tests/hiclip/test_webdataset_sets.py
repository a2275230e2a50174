"""Sets in tars: what lies where, from disk and from S3, and every damage in one line."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from loopback_s3 import bucket

from hiclip.evaluation.evaluate_job import EvaluateJob
from hiclip.evaluation.evaluation_set import EvaluationSet
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, StorageError

Members = list[tuple[str, bytes]]


def load(root: str | Path, split: Any = "test", **keys: object) -> EvaluationSet:
    asked = {"name": "webdataset", "called": "flowers", "root": str(root), **keys}
    content = {"name": "x", "out": "o", "checkpoint": "c", "sets": [asked]}
    return make_job(content, EvaluateJob, "job").sets[0].load(split)


def tar(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def shot(number: int) -> bytes:
    """Bytes that stand for a picture; their lengths differ and fill no block of a tar."""
    return bytes([number]) * (700 + 513 * number)


def write(place: Folder, tars: list[bytes], split: str = "test") -> None:
    place.write_text("classnames.txt", "rose\ntulip\ndaisy\n")
    place.write_text("zeroshot_classification_templates.txt", "a photo of a {c}.\n{c}\n")
    place.write_text(f"{split}/nshards.txt", f"{len(tars)}\n")
    for number, content in enumerate(tars):
        place.write_bytes(f"{split}/{number}.tar", content)


def labelled(*labels: int | str, first: int = 0, kind: str = "jpg") -> Members:
    members: Members = []
    for number, label in enumerate(labels, first):
        members += [(f"s{number:07d}.{kind}", shot(number)), (f"s{number:07d}.cls", str(label).encode())]
    return members


def check(content: EvaluationSet) -> None:
    asked = content.classification
    assert asked is not None
    assert content.name == "flowers"
    assert asked.tree.classes == ("rose", "tulip", "daisy")
    assert asked.labels.tolist() == [2, 0, 1, 1]
    assert asked.prompts() == [
        *("a photo of a rose.", "a photo of a tulip.", "a photo of a daisy."),
        *("rose", "tulip", "daisy"),
    ]
    assert list(content.pictures.names()) == [
        *("test/0.tar/s0000000.jpg", "test/0.tar/s0000001.jpg"),
        *("test/1.tar/s0000002.webp", "test/1.tar/s0000003.webp"),
    ]
    pictures = pickle.loads(pickle.dumps(content.pictures))  # as a task gets them
    assert pictures.read([0, 1, 2, 3]) == [shot(0), shot(1), shot(2), shot(3)]
    assert pictures.read([3, 0, 2]) == [shot(3), shot(0), shot(2)]


def test_pictures_are_read_from_the_tars_on_disk_and_on_s3_byte_by_byte(tmp_path: Path) -> None:
    tars = [tar(labelled(2, 0)), tar(labelled(1, 1, first=2, kind="webp"))]
    here = Folder(str(tmp_path))
    write(here, tars)
    here.write_text("dataset_type.txt", "classification\n")
    check(load(tmp_path))
    with bucket("sets") as address:
        write(Folder(f"{address}/flowers"), tars)
        there = load(f"{address}/flowers")
        check(there)
    assert there.fingerprint == load(tmp_path).fingerprint
    write(here, [tar(labelled(2, 1)), tars[1]])
    assert there.fingerprint != load(tmp_path).fingerprint


def test_members_of_any_order_and_origin(tmp_path: Path) -> None:
    long = "deep/" * 30 + "a long name of a picture that needs a header of its own"
    members: Members = [
        ("./b.cls", b" 1\n"),
        ("./._b.jpg", b"what a Mac leaves"),
        ("./b.seg.png", b"a mask"),
        ("./b.json", b"{}"),
        ("./b.JPG", shot(1)),
        (f"{long}.png", shot(2)),
        (f"{long}.cls", b"2"),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write(Folder(str(tmp_path)), [tar(members, form)])
        content = load(tmp_path, templates=["{}"], convention="mean_per_class")
        assert content.classification is not None
        assert content.classification.labels.tolist() == [1, 2]
        assert content.classification.templates == ("{}",)
        assert content.classification.convention == "mean_per_class"
        assert content.pictures.read([0, 1]) == [shot(1), shot(2)]


def test_captions_one_a_line(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    members: Members = [
        ("s0.jpg", shot(0)),
        ("s0.txt", "a rose\r\na red\u2028rose\n".encode()),
        ("s1.jpg", shot(1)),
        ("s1.txt", b"a tulip"),
    ]
    write(place, [tar(members)])
    place.write_text("dataset_type.txt", "retrieval\n")
    content = load(tmp_path)
    assert content.classification is None
    assert content.retrieval is not None
    assert content.retrieval.captions == ("a rose", "a red\u2028rose", "a tulip")
    assert content.retrieval.owners.tolist() == [0, 0, 1]
    assert content.retrieval.right.pairs.tolist() == [[0, 0], [0, 1], [1, 2]]
    for text, line in ((b"", 1), (b"one\n\nthree\n", 2)):
        write(place, [tar([*members[:3], ("s1.txt", text)])])
        with pytest.raises(DatasetError, match=rf"0.tar: s1.txt: expected a caption a line, line {line} is empty"):
            load(tmp_path)


def test_the_training_pictures_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    write(Folder(str(tmp_path)), [tar(labelled(1))], split="val")
    write(Folder(str(tmp_path)), [tar(labelled(2))], split="train")
    assert list(load(tmp_path, split="train").pictures.names()) == ["train/0.tar/s0000000.jpg"]
    content = {"name": "x", "out": "o", "checkpoint": "c"}
    content |= {"sets": [{"name": "webdataset", "called": "flowers", "root": str(tmp_path), "split": "val"}]}
    settings = make_job(content, EvaluateJob, "job").sets[0]
    assert list(settings.load().pictures.names()) == ["val/0.tar/s0000000.jpg"]
    assert list(settings.load("train").pictures.names()) == ["train/0.tar/s0000000.jpg"]
    with pytest.raises(DatasetError, match=r"test/nshards.txt: the evaluation set flowers is not there"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (labelled(0, 3), r"s0000001.cls: expected a number from 0 to 2, came '3'"),
        (labelled(0, -1), r"s0000001.cls: expected a number from 0 to 2, came '-1'"),
        (labelled(0, "rose"), r"s0000001.cls: expected a number from 0 to 2, came 'rose'"),
        (labelled(0)[:1], r"s0000000: has a picture and no .cls; a set of captions says retrieval"),
        (labelled(0)[1:], r"s0000000: has a .cls and no picture"),
        ([*labelled(0), ("s0000000.png", b"x")], r"s0000000.png: a second picture of its key, after s0000000.jpg"),
        ([("a.jpg", b""), ("a.cls", b"0")], r"a.jpg: expected a picture of at most \d+ bytes, came 0"),
        ([("a.cls", b"0" * ((1 << 20) + 1))], r"a.cls: expected at most 1048576 bytes of text, came 1048577"),
        ([("a.cls", b"\xff")], r"0.tar: is no whole tar: .*utf-8"),
        ([("readme.md", b"x")], r"0.tar: holds no pictures"),
        ([], r"0.tar: holds no pictures"),
    ],
)
def test_a_member_that_does_not_fit_is_named(tmp_path: Path, members: Members, why: str) -> None:
    write(Folder(str(tmp_path)), [tar(members)])
    with pytest.raises(DatasetError, match=why) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tar_that_was_cut_anywhere_or_damaged_is_named(tmp_path: Path) -> None:
    whole = tar(labelled(0, 1, 2), tarfile.USTAR_FORMAT)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member; the end mark follows
    place = Folder(str(tmp_path))
    for length in [0, 100, *range(512, end, 512), 700, end - 300, end, end + 100]:
        write(place, [whole[:length]])
        with pytest.raises(DatasetError, match=r"test/0.tar: is no whole tar"):
            load(tmp_path)
    write(place, [whole[: end + 512]])
    assert len(load(tmp_path).pictures) == 3
    for damaged in (whole[:1540] + b"x" * 300 + whole[1840:], b"no tar" * 400, b"\x1f\x8b" + whole):
        write(place, [damaged])
        with pytest.raises(DatasetError, match=r"test/0.tar: is no whole tar"):
            load(tmp_path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        label = tarfile.TarInfo("a.cls")
        label.size = 1
        archive.addfile(label, io.BytesIO(b"0"))
    write(Folder(str(tmp_path)), [file.getvalue()])
    with pytest.raises(DatasetError, match=r"a: has a .cls and no picture"):
        load(tmp_path)


def test_files_beside_the_tars_are_checked(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    write(place, [tar(labelled(0))])
    for file, text, why in (
        ("test/nshards.txt", "2", r"test/1.tar: is not there, but test/nshards.txt counts 2 tars"),
        ("test/nshards.txt", "many", r"nshards.txt: expected the number of tars, came 'many'"),
        ("test/nshards.txt", "0", r"nshards.txt: expected the number of tars, came '0'"),
        ("classnames.txt", "a\n\nb\n", r"classnames.txt: expected a class a line, line 2 is empty"),
        ("classnames.txt", "", r"classnames.txt: expected a class a line, line 1 is empty"),
        ("zeroshot_classification_templates.txt", "{c}\na photo\n", r"line 2: expected a prompt with one {c}, came 'a"),
        ("dataset_type.txt", "multilabel", r"expected classification or retrieval, came 'multilabel'"),
    ):
        before = place.read_text(file) if place.exists(file) else None
        place.write_text(file, text)
        with pytest.raises(DatasetError, match=why.replace("{c}", r"\{c\}")):
            load(tmp_path)
        if before is None:
            place.remove(file)
        else:
            place.write_text(file, before)
    for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
        place.remove(file)
        with pytest.raises(DatasetError, match=rf"{file}: the evaluation set flowers is not there"):
            load(tmp_path)
        write(place, [tar(labelled(0))])
    place.write_bytes("classnames.txt", b"caf\xe9\n")
    with pytest.raises(DatasetError, match=r"classnames.txt: expected text in UTF-8"):
        load(tmp_path)


def test_its_own_name_is_a_name_of_files(tmp_path: Path) -> None:
    for name in ("../x", "", "a b", "a/b"):
        with pytest.raises(JobError, match=r"sets.0.*called"):
            load(tmp_path, called=name)


def test_a_store_that_is_away_is_not_a_damaged_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError):
        load("s3://nobody/flowers")
