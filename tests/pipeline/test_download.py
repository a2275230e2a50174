"""Every failure of the web has its own class, nothing that the web does stops a build, and each row has one fate."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import io
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from small_web import ENDLESS_CHUNKS, after, drip, endless, never, raw, reply, small_web

from pipeline.download import download
from pipeline.download_settings import DownloadSettings
from pipeline.fetch import GuardedOpener, Limits, Names, Route
from pipeline.fetch_rows import Fate, fetch_rows
from pipeline.host_slots import SharedSlots, shared_slots
from pipeline.pair import pair_id
from pipeline.refusal import Refusal, from_text
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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


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
        (raw(CHUNKED + b"ff\r\nabc"), "truncated"),
        (reply(b"x", length=100_001), "too_large_bytes"),
        (raw(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_001), "too_large_bytes"),
        (reply(b"x", length=10 * 2**30), "too_large_bytes"),
        (ENDLESS_CHUNKS, "too_large_bytes"),
        (endless(CHUNKED + b"fffffffffffff\r\n", b"x" * 65536), "too_large_bytes"),
        (endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536), "connection_failed"),
        (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout"),
        (raw(CHUNKED + b"number\r\n"), "truncated"),
        (reply(b"", "302 Found", Location="http://[::1/"), "malformed_url"),
        (reply(b"", "302 Found", Location=""), "redirect_loop"),
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


def test_a_handshake_that_drips_for_ever_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"\x16\x03\x03\x40\x00" + bytes(200):
                    time.sleep(0.05)
                    connection.sendall(bytes([byte]))

        thread = threading.Thread(target=answer)
        thread.start()
        began = time.monotonic()
        assert refused(f"https://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.5) == "timeout"
        assert time.monotonic() - began < 1.5
        thread.join()


def test_a_name_that_does_not_resolve_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, released, asked = socket.getaddrinfo, threading.Event(), Counter[str]()

    def slow(host: str, *more: Any, **options: Any) -> Any:
        asked[host] += 1
        if host == "slow.example":
            released.wait(20)
        return resolve("127.0.0.1" if host.endswith(".example") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with small_web({"/x": reply(b"here")}) as web:
        with pytest.raises(Refusal) as caught:
            get(web.url("/x", host="slow.example"), timeout_s=0.3)
        assert (caught.value.reason, caught.value.detail[:28]) == ("dns", "the name did not resolve in ")
        assert [get(web.url("/x", host="quick.example")) for _ in range(3)] == [b"here"] * 3, "others go on"
        assert asked == {"slow.example": 1, "quick.example": 1}, "a name is asked for once"
        assert refused(web.url("/x", host="quick.example"), allow_private=()) == "private_address", "known or not"
        released.set()


def test_names_are_kept_for_a_while_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    def resolve(host: str, *_: Any, **__: Any) -> Any:
        asked[host] += 1
        if host == "lost.example":
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    names = Names(found_s=60, lost_s=0.1, most=2, threads=2)

    def ask(host: str) -> None:
        with contextlib.suppress(Refusal):
            names.places(host, 80, time.monotonic() + 5)

    for host in ("lost.example", "lost.example", "a.example", "a.example"):
        ask(host)
    assert asked == {"lost.example": 1, "a.example": 1}
    time.sleep(0.15)
    for host in ("lost.example", "a.example", "b.example", "a.example"):
        ask(host)
    assert asked == {"lost.example": 2, "a.example": 2, "b.example": 1}, "two are kept, the oldest goes"


ROBOTS = ("noai", "noimageai", "noindex", "noimageindex", "none")


@pytest.mark.parametrize(
    ("headers", "refuses"),
    [
        (["noai"], True), (["NoAI"], True), (["nofollow , noindex"], True), (["none"], True), (["all"], False),
        (["noarchive"], False), ([""], False), (["nofollow", "noimageai"], True), (["HiClip: noai"], True),
        (["hiclip : NOAI"], True), (["*: noai"], True), (["otherbot: noai"], False),
        (["otherbot: noai, noindex"], False),
        (["otherbot: noai, hiclip: noindex"], True), (["otherbot: noai", "noindex"], True),
        (["noindex, max-image-preview:large"], True), (["max-image-preview: large, noindex"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True), (["hiclip: max-snippet: 5, noai"], True),
        (["unavailable_after: Tuesday, 25 Jun 2030 15:00:00 PST"], False), (["otherbot: max-snippet: 5, noai"], False),
    ],
)  # fmt: skip
def test_who_opts_out(headers: list[str], refuses: bool) -> None:
    lines = "".join(f"x-ROBOTS-tag: {one}\r\n" for one in headers)
    answer = raw(f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 4\r\n\r\nhere".encode())
    with small_web({"/x": answer}) as web:
        if refuses:
            assert refused(web.url("/x"), opt_out=ROBOTS, user_agent_token="hiclip") == "opt_out"
        else:
            assert get(web.url("/x"), opt_out=ROBOTS, user_agent_token="hiclip") == b"here"
        assert get(web.url("/x")) == b"here", "where the job says so"


@pytest.mark.parametrize(
    ("status", "after_s", "expected"),
    [("429 Slow", "7", 7), ("503 Busy", " 120 ", 120), ("429 Slow", "soon", 0), ("429 Slow", "-1", 0),
     ("404 No", "7", 0), ("503 Busy", "Mon, 32 Foo 2001 00:00:00 GMT", 0),
     ("503 Busy", "Fri, 01 Jan 2021 00:00:00 GMT", 0),
     ("503 Busy", "in 500 s", 500), ("503 Busy", "9" * 5000, 999_999_999)],
)  # fmt: skip
def test_a_server_may_ask_for_patience(status: str, after_s: str, expected: float) -> None:
    # The date of a moment after the test's, which may run long after it was collected.
    after_s = email.utils.formatdate(time.time() + 500, usegmt=True) if after_s == "in 500 s" else after_s
    with small_web({"/x": reply(b"", status, Retry_After=after_s)}) as web, pytest.raises(Refusal) as caught:
        get(web.url("/x"))
    assert caught.value.retry_after_s == pytest.approx(expected, abs=60)
    assert from_text(str(caught.value)).retry_after_s == caught.value.retry_after_s


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


def started(urls: list[str], port: int, settings: DownloadSettings, slots: SharedSlots | None = None) -> Any:
    routes = (Route("*.example", "127.0.0.1", port),)
    return ray.remote(fetch_rows).options(num_cpus=2).remote(urls, settings, routes, slots)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode_format": "png"}, "expected 0..9 with encode_format png, came 95"),
        ({"user_agent": "a\r\nCookie: b"}, "user_agent"),
        ({"user_agent": "a ü"}, "user_agent"),
        ({"connections_per_host": 0}, "connections_per_host"),
        ({"downscale_interpolation": "sharp"}, "downscale_interpolation"),
    ],
)
def test_settings_that_would_refuse_every_row(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        DownloadSettings(**settings)


@pytest.mark.usefixtures("ray_session")
def test_interpolation_is_what_the_job_says() -> None:
    with small_web({"/x": reply(picture(size=(31, 31)))}) as web:
        stored = [
            fates(["http://a.example/x"], web.port, SETTINGS.model_copy(update=options | {"enlarge": True}))[0].image
            for options in (
                {"image_px": 64, "upscale_interpolation": "nearest"},
                {"image_px": 64, "upscale_interpolation": "linear"},
                {"image_px": 16, "downscale_interpolation": "nearest"},
                {"image_px": 16, "downscale_interpolation": "linear"},
            )
        ]
    assert len({*stored, None}) == 5, "four pictures, all different"


def fates(urls: list[str], port: int, settings: DownloadSettings = SETTINGS) -> list[Fate]:
    """In a worker, as in a build: the guarded opener is installed in the process that fetches."""
    found: list[Fate] = ray.get(started(urls, port, settings))
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


@pytest.mark.usefixtures("ray_session")
def test_an_address_that_failed_waits_and_others_go_on() -> None:
    settings = SETTINGS.model_copy(update={"connections": 1, "first_pause_s": 0.4, "retries": 1})
    good = reply(picture())
    with small_web({f"/{number}": good for number in range(5)}) as web:
        web.answers["/flaky"] = after(1, good, reply(b"", "500 Oh"))
        found = fates([f"http://a.example/{path}" for path in ("flaky", 0, 1, 2, 3, 4)], web.port, settings)
        order = [request.split()[1] for request in web.requests]
    assert [fate.reason for fate in found] == [None] * 6
    assert order[0] == order[-1] == "/flaky"
    assert sorted(order[1:-1]) == ["/0", "/1", "/2", "/3", "/4"]


@pytest.mark.usefixtures("ray_session")
def test_a_host_that_asks_for_patience_is_left_alone_and_other_hosts_are_not() -> None:
    settings = SETTINGS.model_copy(update={"connections": 1, "first_pause_s": 0, "retries": 1, "max_pause_s": 0.5})
    with small_web({f"/{number}": reply(picture()) for number in range(4)}) as web:
        web.answers["/busy"] = after(1, reply(picture()), reply(b"", "429 Slow", Retry_After="3600"))
        urls = ["http://a.example/busy", "http://a.example/0", "http://a.example/1", "http://b.example/2",
                "http://b.example/3"]  # fmt: skip
        began = time.monotonic()
        found = fates(urls, web.port, settings)
        took = time.monotonic() - began
        order = [request.split()[1] for request in web.requests]
    assert [fate.reason for fate in found] == [None] * 5
    assert order[:3] == ["/busy", "/2", "/3"]
    assert sorted(order[3:]) == ["/0", "/1", "/busy"]
    assert 0.5 < took < 30, "no pause is longer than max_pause_s"


@pytest.mark.usefixtures("ray_session")
def test_hosts_with_many_rows_do_not_keep_the_others_waiting() -> None:
    settings = SETTINGS.model_copy(update={"connections": 4, "connections_per_host": 1})
    with small_web({f"/{number}": reply(picture()) for number in range(40)}) as web:
        web.answers["/other"] = reply(picture())
        urls = [f"http://{'ab'[number % 2]}.example/{number}" for number in range(40)]
        fates([*urls, *(f"http://{number}.example/other" for number in range(8))], web.port, settings)
        order = [request.split()[1] for request in web.requests]
    assert len(order) == 48
    assert max(place for place, path in enumerate(order) if path == "/other") < 40


class Crowd:
    """Counts how many connections are served at a time."""

    def __init__(self, body: bytes, each_s: float, begins: threading.Event | None = None) -> None:
        self._answer, self._each_s, self._lock = reply(body), each_s, threading.Lock()
        self._begins = begins
        self.now = self.most = 0

    def __call__(self, connection: socket.socket, before: int) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        if self._begins is not None:
            self._begins.wait(20)
        time.sleep(self._each_s)
        with self._lock:
            self.now -= 1
        self._answer(connection, before)


@pytest.mark.usefixtures("ray_session")
def test_all_tasks_together_open_no_more_connections_to_a_host_than_the_limit() -> None:
    both = threading.Event()
    crowded, alone, free = Crowd(picture(), 0.05, both), Crowd(picture(), 0.05), Crowd(picture(), 0.05)
    patient = SETTINGS.model_copy(update={"timeout_s": 30})

    def begin(connection: socket.socket, before: int) -> None:
        if before == 1:
            both.set()  # the second task is here
        reply(picture())(connection, before)

    slots = shared_slots(3)
    with small_web({f"/{number}": crowded for number in range(24)} | {"/free": free, "/begin": begin}) as web:
        urls = [f"http://a.example/{number}" for number in range(24)]
        others = [f"http://{number}.example/free" for number in range(8)] + ["http://begin.example/begin"]
        tasks = [started([*urls[half::2], *others], web.port, patient, slots) for half in (0, 1)]
        assert [fate.reason for found in ray.get(tasks) for fate in found] == [None] * 42
        web.answers = {f"/{number}": alone for number in range(24)}
        fates(urls, web.port, SETTINGS.model_copy(update={"connections_per_host": 2}))
    assert crowded.most in (2, 3), "of two tasks with eight connections each"
    assert alone.most == 2, "a call without a crowd keeps to the job's limit"
    assert free.most > 3, "rows of other hosts do not wait for one"


@pytest.mark.usefixtures("ray_session")
@examples(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a.example", "B.example", "c.example", "no-such-host.invalid", "127.0.0.1:9", ""]),
                  st.integers(0, 11)),
        max_size=25,
    ),
    st.integers(1, 9), st.integers(1, 3),
)  # fmt: skip
def test_every_address_has_one_fate_whatever_the_web_does(
    rows: list[tuple[str, int]], connections: int, per_host: int
) -> None:
    good = picture()
    faults = [
        reply(good), reply(good[:-20]), reply(b"<html>"), reply(b"", "429 Slow", Retry_After="1"), raw(b"\xff" * 100),
        reply(good, length=10**10), after(1, reply(good), raw(b"")), never, reply(good, X_Robots_Tag="noai"),
        reply(b"", "302 Found", Location="http://b.example/0"), ENDLESS_CHUNKS, reply(b"", "302 Found", Location="?"),
    ]  # fmt: skip
    settings = SETTINGS.model_copy(
        update={
            "timeout_s": 0.5, "retries": 1, "max_pause_s": 0.1, "connections": connections,
            "connections_per_host": per_host,
        }
    )  # fmt: skip
    with small_web({f"/{number}": answer for number, answer in enumerate(faults)}) as web:
        found = fates([f"http://{host}/{number}" for host, number in rows], web.port, settings)
    assert len(found) == len(rows)
    for (host, number), fate in zip(rows, found, strict=True):
        assert (fate.image is None) != (fate.reason is None)
        assert fate.reason != "failed", fate.detail
        if host.endswith(".example") and number in (0, 6, 9) and fate.reason != "timeout":
            assert fate.image is not None or (number == 6 and rows.count((host, number)) > 1), fate


MEMORY = """
import json, resource, sys
from pipeline.download_settings import DownloadSettings
from pipeline.fetch import Route
from pipeline.fetch_rows import fetch_rows

port, addresses, connections, max_bytes = map(int, sys.argv[1:])
settings = DownloadSettings(retries=0, connections=connections, connections_per_host=connections, max_bytes=max_bytes)

def reasons(path, count):
    urls = [f"http://{number}.example/{path}" for number in range(count)]
    return [fate.reason for fate in fetch_rows(urls, settings, [Route("*.example", "127.0.0.1", port)])]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

assert reasons("picture", 2 * connections) == [None] * 2 * connections
before = peak()
found = reasons("endless", addresses)
print(json.dumps([peak() - before, sorted(set(found))]))
"""


def test_the_memory_of_a_worker_is_that_of_its_connections() -> None:
    """300 servers that would send without end: the bodies in flight are all that is held."""
    connections, max_bytes = 8, 2 * 2**20
    with small_web({"/endless": ENDLESS_CHUNKS, "/picture": reply(picture())}) as web:
        arguments = [str(number) for number in (web.port, 300, connections, max_bytes)]
        done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
    grown, reasons = json.loads(done.stdout)
    assert reasons == ["too_large_bytes"]
    assert grown < connections * max_bytes + 24 * 2**20, f"{grown / 2**20:.1f} MiB"


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
