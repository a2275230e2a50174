"""Every failure of the web has its own class, nothing that the web does stops a build, and each row has one fate."""

from __future__ import annotations

import datetime
import hashlib
import io
import socket
import ssl
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from small_web import after, drip, never, raw, reply, small_web

from pipeline.download import download
from pipeline.download_settings import DownloadSettings
from pipeline.fetch import GuardedOpener, Limits, Route
from pipeline.fetch_rows import Fate, fetch_rows
from pipeline.pair import pair_id
from pipeline.refusal import Refusal
from pipeline.snapshot import (
    SNAPSHOT_SCHEMA,
    commit_shard,
    finished_shard,
    has_record,
    read_snapshot_shard,
    snapshot_hash,
    write_snapshot_shard,
)
from pipeline.storage import Folder


def picture(seed: int = 0, size: tuple[int, int] = (300, 200), kind: str = "PNG") -> bytes:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)).resize(size)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def limits(**more: object) -> Limits:
    options = {"timeout_s": 1.0, "max_bytes": 100_000, "max_redirects": 3, "user_agent": "test/1 (me@here.example)",
               "allow_private": ("127.0.0.0/8",)}  # fmt: skip
    return Limits(**(options | more))  # type: ignore[arg-type]


def get(url: str, **more: object) -> bytes:
    with GuardedOpener(limits(**more)).open(url) as body:
        return body.read()


def refused(url: str, **more: object) -> str:
    with pytest.raises(Refusal) as caught:
        get(url, **more)
    return caught.value.reason


def test_a_good_answer_and_what_the_server_was_told() -> None:
    with small_web({"/a%20b?c=%C3%BC": reply(b"bytes")}) as web:
        assert get(web.url("/a b?c=ü")) == b"bytes"
        request = web.requests[0]
    assert f"Host: 127.0.0.1:{web.port}\r\n" in request
    assert "User-Agent: test/1 (me@here.example)\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request


def test_every_kind_of_body_is_read_whole() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    kept_open = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
    until_the_end = b"HTTP/1.0 200 OK\r\n\r\nabcde"
    with small_web({"/1": raw(chunked), "/2": raw(kept_open), "/3": raw(until_the_end)}) as web:
        assert [get(web.url(path)) for path in ("/1", "/2", "/3")] == [b"abcde"] * 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"", "404 Not Found"), "http_404"),
        (reply(b"", "403 Forbidden"), "http_403"),
        (reply(b"", "500 Oh"), "http_500"),
        (reply(b"", "304 Not Modified"), "http_304"),
        (reply(b"", "302 Found"), "http_302"),
        (reply(b""), "empty_body"),
        (reply(b"", "204 No Content"), "empty_body"),
        (reply(b"abc", length=10), "truncated"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"), "truncated"),
        (reply(b"x", length=100_001), "too_large_bytes"),
        (raw(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_001), "too_large_bytes"),
        (raw(b""), "connection_failed"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "connection_failed"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "connection_failed"),
        (never, "timeout"),
    ],
)  # fmt: skip
def test_each_failure_has_its_class(answer: object, reason: str) -> None:
    with small_web({"/x": answer}) as web:  # type: ignore[dict-item]
        assert refused(web.url("/x")) == reason


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_server_that_drips_for_ever_is_left_in_time(head: bytes) -> None:
    """Whether the drops are headers or body: a timeout of each read alone would wait for 65,536 bytes of either."""
    with small_web({}) as web:
        dripping = drip(b"x" * 1000, 0.1, web.closing)

        def answer(connection: socket.socket, before: int) -> None:
            connection.sendall(head or b"HTTP/1.1 200 OK\r\nX: ")
            dripping(connection, before)

        web.answers["/x"] = answer
        began = time.monotonic()
        assert refused(web.url("/x"), timeout_s=0.6) == "timeout"
        assert time.monotonic() - began < 1.5


def test_nobody_listens_and_nobody_is_called_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert refused(f"http://127.0.0.1:{unused.getsockname()[1]}/") == "connection_failed"
    assert refused("http://no-such-host.invalid/") == "dns"


def test_redirects_are_followed_so_far() -> None:
    with small_web({}) as web:
        web.answers |= {
            "/1": reply(b"", "301 Moved", Location="/a/2"),
            "/a/2": reply(b"", "302 Found", Location="3"),
            "/a/3": reply(b"", "308 Moved", Location=web.url("/ä").encode().decode("latin-1")),
            "/%C3%A4": reply(b"there"),
            "/loop": reply(b"", "302 Found", Location="?again"),
            "/loop?again": reply(b"", "302 Found", Location="/loop"),
            "/file": reply(b"", "302 Found", Location="file:///etc/passwd"),
        }
        assert get(web.url("/1")) == b"there"
        assert refused(web.url("/1"), max_redirects=2) == "redirect_loop"
        assert refused(web.url("/loop")) == "redirect_loop"
        assert refused(web.url("/file")) == "malformed_url"


INSIDE = [
    "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://0.0.0.0:{port}/", "http://2130706433:{port}/", "http://0x7f.1:{port}/", "http://169.254.169.254/latest",
]  # fmt: skip


@pytest.mark.parametrize("url", INSIDE)
def test_machines_inside_are_not_asked_in_any_disguise(url: str) -> None:
    with small_web({"/": reply(b"secret")}) as web:
        assert refused(url.format(port=web.port), allow_private=()) == "private_address"
        assert web.requests == []


@pytest.mark.parametrize("url", INSIDE)
def test_nor_after_a_redirect(url: str) -> None:
    with small_web({"/": reply(b"secret")}) as inside, small_web({}) as web:
        web.answers["/"] = reply(b"", "302 Found", Location=url.format(port=inside.port))
        out = Route("public.example", "127.0.0.1", web.port)
        assert refused("http://public.example/", routes=(out,), allow_private=()) == "private_address"
        assert inside.requests == []


def test_a_route_leads_elsewhere_and_the_address_stays() -> None:
    with small_web({"/x": reply(b"here")}) as web:
        route = Route("*.crawl.example", "127.0.0.1", web.port)
        assert get("http://a.crawl.example/x", routes=(route,), allow_private=()) == b"here"
        assert "Host: a.crawl.example\r\n" in web.requests[0]
        assert refused("http://crawl.example.invalid/x", routes=(route,)) == "dns"


def certificate(folder: Path, host: str) -> Path:
    """A certificate for `host` that signs itself, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return path


def test_https_checks_the_certificate_and_keeps_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path, "safe.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    with small_web({"/x": reply(b"secret")}, tls) as web:
        web.answers["/drip"] = drip(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000, 0.1, web.closing)
        routes = tuple(Route(host, "127.0.0.1", web.port) for host in ("safe.example", "other.example"))
        assert refused("https://safe.example/x", routes=routes) == "tls", "nobody has vouched for it"
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert get("https://safe.example/x", routes=routes) == b"secret"
        assert refused("https://other.example/x", routes=routes) == "tls", "the certificate is another's"
        began = time.monotonic()
        assert refused("https://safe.example/drip", routes=routes, timeout_s=0.8) == "timeout"
        assert time.monotonic() - began < 2


SETTINGS = DownloadSettings(
    timeout_s=1,
    retries=2,
    first_pause_s=0.05,
    max_bytes=1_000_000,
    max_pixels=4_000_000,
    image_px=64,
    connections=8,
    cpus_per_task=2,
)


def fates(urls: list[str], port: int, settings: DownloadSettings = SETTINGS) -> list[Fate]:
    """In a worker, as in a build: the guarded opener is installed in the process that fetches."""
    routes = (Route("*.example", "127.0.0.1", port),)
    found: list[Fate] = ray.get(ray.remote(fetch_rows).options(num_cpus=2).remote(urls, settings, routes))
    return found


@pytest.mark.usefixtures("ray_session")
def test_each_row_has_one_fate_through_img2dataset() -> None:
    good, html = picture(), b"<html></html>"
    with small_web({}) as web:
        web.answers |= {
            "/good": reply(good),
            "/small": reply(picture(1, (20, 30), "JPEG"), Content_Type="text/plain"),
            "/html": reply(html, Content_Type="image/jpeg"),
            "/cut": reply(picture(2, kind="JPEG")[:-500]),
            "/huge": reply(picture(3, (2001, 2000), "WEBP")),
            "/noai": reply(good, X_Robots_Tag="noai"),
            "/noindex": reply(good, X_Robots_Tag="noindex, nofollow"),
            "/other-bot": reply(good, X_Robots_Tag="otherbot: noai"),
            "/our-bot": reply(good, X_Robots_Tag="hiclip: noai"),
            "/never": never,
            "/flaky": after(2, reply(good), reply(b"", "503 Busy")),
            "/broken": reply(b"", "500 Oh"),
        }
        paths = list(web.answers)
        urls = [f"http://a.example{path}" for path in paths] + ["ftp://a.example/", "http://127.0.0.1:9/"]
        found = fates(urls, web.port)
        asked = Counter(web.asked)
    reasons = dict(zip([*paths, "ftp", "private"], [fate.reason for fate in found], strict=True))
    assert reasons == {
        "/good": None, "/small": None, "/html": "not_an_image", "/cut": "truncated", "/huge": "too_many_pixels",
        "/noai": "opt_out", "/noindex": "opt_out", "/other-bot": None, "/our-bot": "opt_out", "/never": "timeout",
        "/flaky": None, "/broken": "http_500", "ftp": "malformed_url", "private": "private_address",
    }  # fmt: skip
    assert found[0].image_sha256 == hashlib.sha256(good).hexdigest()
    assert (found[0].width, found[0].height, found[0].original_width, found[0].original_height) == (96, 64, 300, 200)
    assert (found[1].width, found[1].height) == (20, 30), "small pictures are not blown up"
    with Image.open(io.BytesIO(found[0].image or b"")) as stored:
        assert (stored.format, stored.size) == ("JPEG", (96, 64))
    again = {path for path, times in asked.items() if times > 1}
    assert again == {"/never", "/flaky", "/broken"}, "only what may pass is asked for again"


@pytest.mark.usefixtures("ray_session")
def test_opt_outs_are_ignored_only_where_the_job_says_so() -> None:
    with small_web({"/x": reply(picture(), X_Robots_Tag="noai")}) as web:
        ignoring = SETTINGS.model_copy(update={"honour_opt_out": False, "resize": "border", "encode_format": "webp"})
        (fate,) = fates(["http://a.example/x"], web.port, ignoring)
    assert fate.reason is None
    with Image.open(io.BytesIO(fate.image or b"")) as stored:
        assert (stored.format, stored.size) == ("WEBP", (64, 64))


@pytest.mark.usefixtures("ray_session")
def test_see_through_is_laid_on_white() -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    with small_web({"/x": reply(file.getvalue())}) as web:
        (fate,) = fates(["http://a.example/x"], web.port)
    with Image.open(io.BytesIO(fate.image or b"")) as stored:
        assert np.asarray(stored).min() >= 250


def rows(count: int) -> pa.Table:
    urls = [f"http://a.example/{number}" for number in range(count)]
    ids = [pair_id(url, "a") for url in urls]
    return pa.table({"pair_id": ids, "url": urls, "caption": ["a"] * count, "source": ["s"] * count}).sort_by("pair_id")


@pytest.mark.usefixtures("ray_session")
def test_a_download_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    place, settings = Folder(str(tmp_path)), SETTINGS.model_copy(update={"rows_per_task": 4})
    done: list[tuple[int, bool]] = []

    def advance(more: int, from_before: bool = False) -> None:
        done.append((more, from_before))

    with small_web({f"/{number}": reply(picture(number)) for number in range(10)}) as web:
        routes = (Route("*.example", "127.0.0.1", web.port),)
        first = download(rows(10), settings, routes, place, advance)
        assert [shard.rows for shard in first] == [4, 4, 2]
        assert sorted(done) == [(2, False), (4, False), (4, False)]
        (tmp_path / "000001.json").unlink()  # as after a kill between a shard and its record
        web.asked.clear()
        second = download(rows(10), settings, routes, place, advance)
        assert sum(web.asked.values()) == 4, "only the rows of that shard are fetched again"
        assert done[3:] == [(4, True), (2, True), (4, False)]
        assert snapshot_hash(second) == snapshot_hash(first)
        faster = settings.model_copy(update={"connections": 3, "tasks_in_flight": 1})
        download(rows(10), faster, routes, place, advance)
        assert sum(web.asked.values()) == 4, "pace decides nothing"
        place.write_text("annotations/look-1/000001.parquet", "of the larger pictures")
        download(rows(10), settings.model_copy(update={"image_px": 32}), routes, place, advance)
        assert sum(web.asked.values()) == 14, "another size is another snapshot"
        assert not place.names("annotations/"), "what was said of other pictures is not said of these"
    names = [name for shard in second for name in read_snapshot_shard(place, shard.number)["pair_id"].to_pylist()]
    assert names == rows(10)["pair_id"].to_pylist()


def test_a_shard_counts_only_with_its_record(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    empty = {name: [None] * 3 for name in SNAPSHOT_SCHEMA.names}
    table = pa.table(empty | {name: rows(3)[name] for name in rows(3).column_names}, schema=SNAPSHOT_SCHEMA)
    shard = write_snapshot_shard(place, 7, table, 0, "wanted")
    assert not has_record(set(place.names()), 7), "its worker may have outlived its driver"
    commit_shard(place, shard)
    assert has_record(set(place.names()), 7)
    assert finished_shard(place, 7, "wanted") == shard
    assert finished_shard(place, 7, "something else") is None
    place.write_text("000007.json", "{}")
    assert finished_shard(place, 7, "wanted") is None


@pytest.mark.usefixtures("ray_session")
def test_a_shard_of_failures_is_not_done(tmp_path: Path) -> None:
    place, settings = Folder(str(tmp_path)), SETTINGS.model_copy(update={"retries": 0})
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = (Route("*.example", "127.0.0.1", unused.getsockname()[1]),)
        (shard,) = download(rows(3), settings, dead, place, lambda *_, **__: None)
    assert (shard.pictures, shard.unreached) == (0, 3)
    with small_web({f"/{number}": reply(picture(number)) for number in range(3)}) as web:
        alive = (Route("*.example", "127.0.0.1", web.port),)
        (shard,) = download(rows(3), settings, alive, place, lambda *_, **__: None)
    assert shard.pictures == 3
