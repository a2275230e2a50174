"""One interface for a folder and for s3://, atomic on both, and errors that name the place."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Folder, StorageError, absolute, folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a loopback S3 server; yields its address."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        make_bucket("pairs")
        yield "s3://pairs"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def make_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return folder(str(tmp_path / "a" / "b"))
    return folder(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_what_is_written_can_be_listed_read_and_removed(place: Folder) -> None:
    assert place.names() == []
    place.write_bytes("deep/er/x.bin", b"0123456789")
    place.write_text("y.txt", "Größe")
    assert place.names() == ["deep/er/x.bin", "y.txt"]
    assert place.names(prefix="deep/", suffix=".bin") == ["deep/er/x.bin"]
    assert place.child("deep").names() == ["er/x.bin"]
    assert place.exists("y.txt")
    assert not place.exists("z.txt")
    assert place.read_text("y.txt") == "Größe"
    with place.open("deep/er/x.bin") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    place.remove("deep")
    place.remove("never-there")
    assert place.names() == ["y.txt"]


def test_files_travel_whole(place: Folder, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    here.write_bytes(os.urandom(100_000))
    place.upload(str(here), "far")
    place.download("far", str(back))
    assert back.read_bytes() == here.read_bytes()


def test_a_second_write_replaces_the_first(place: Folder) -> None:
    place.write_text("x", "one")
    place.write_text("x", "two")
    assert place.read_text("x") == "two"


def test_a_state_changes_with_what_may_have_changed(place: Folder) -> None:
    for name in ("a/x", "a/y", "b/x", "z"):
        place.write_text(name, f"in {name}")
    states = {place.state(names) for names in (["a/x"], ["a/x", "a/y"], ["a/y", "a/x"], ["a/x", "b/x"], ["z"], [])}
    assert len(states) == 6
    asked, known = ["a/x", "b/x", "lost"], place.state(["a/x", "b/x", "lost"])
    place.write_text("a/y", "something else")
    assert place.state(asked) == known, "of another file"
    place.write_text("b/x", "IN b/x")
    changed = place.state(asked)
    assert changed != known, "as many bytes as before"
    place.write_text("lost", "found")
    assert place.state(asked) != changed
    for name in ("a/x", "b/x"):
        place.write_text(f"copy/{name}", place.read_text(name))
    assert place.child("copy").state(["a/x", "b/x"]) != place.state(["a/x", "b/x"])


def test_what_is_missing_is_named(place: Folder) -> None:
    with pytest.raises(StorageError, match=r"nothing\.txt.*no such file"):
        place.read_bytes("nothing.txt")


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/x"):
        folder("s3://no-such-bucket").write_text("x", "y")


def test_other_schemes_are_refused() -> None:
    with pytest.raises(StorageError, match=r"expected a folder or s3://, came gs://"):
        folder("gs://x").exists()


def test_a_write_that_is_cut_off_is_never_seen(tmp_path: Path) -> None:
    place = folder(str(tmp_path))
    place.write_text("x", "old")
    (tmp_path / ".unfinished-0123").write_text("half")
    assert place.names() == ["x"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/x: cannot be written"):
        folder(str(tmp_path / "file")).write_text("x", "y")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode:
        pytest.skip("a small file system can only be mounted as root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_leaves_the_old_file_whole(small_disk: Path) -> None:
    place = folder(str(small_disk))
    place.write_text("x", "old")
    with pytest.raises(StorageError, match="x: cannot be written: No space left on device"):
        place.write_bytes("x", b"\0" * 100_000)
    assert place.read_text("x") == "old"
    assert os.listdir(small_disk) == ["x"]


def test_a_read_only_file_system_is_said(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="cannot be written: Read-only file system"):
        folder(str(small_disk)).write_text("x", "y")


def test_paths_get_an_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("/runs") == "/runs"
    assert absolute("s3://a/b") == "s3://a/b"
    unpacked = tmp_path / "_ray_pkg_0123"
    unpacked.mkdir()
    monkeypatch.chdir(unpacked)
    monkeypatch.setenv("HICLIP_HOME", "/home/me")
    assert absolute("runs") == "/home/me/runs"


def test_s3_without_credentials_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://nobody/x: cannot be looked at: Unable to locate credentials"):
        folder("s3://nobody").exists("x")


def test_only_what_is_read_travels_from_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    travelled = 0
    fetch = s3fs.S3File._fetch_range

    def counted(file: object, start: int, end: int) -> bytes:
        nonlocal travelled
        travelled += end - start
        return bytes(fetch(file, start, end))

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", counted)
    chance = np.random.default_rng(0)
    table = pa.table(
        {"name": [f"{row:016x}" for row in range(200)], "image": [chance.bytes(20_000) for _ in range(200)]}
    )
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=20)
    place = folder(s3)
    place.write_bytes("pairs.parquet", content.getvalue())
    with place.open("pairs.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3).num_rows == 20
    assert 20 * 20_000 < travelled < 1.3 * 20 * 20_000, "a row group and the footer"
    travelled = 0
    with place.open("pairs.parquet") as file:
        assert pq.read_table(file, columns=["name"], use_threads=False) == table.select(["name"])
    assert travelled < 100_000
    place.write_bytes("lines.txt", b"a line\n" * 100_000)
    travelled = 0
    with place.open("lines.txt", to_the_end=True) as file:
        assert sum(1 for _ in file) == 100_000
    assert travelled == 700_000
