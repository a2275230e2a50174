"""The sample crawl and its server: real pictures at their addresses, and every kind of dirt as the table promises."""

from __future__ import annotations

import http.client
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from pipeline.sample_crawl import SERVED_SOURCES, CrawlError, main, serve_crawl
from pipeline.sample_dirt import BY_NAME, DIRT, DIRT_HOST

CRAWL = Path(__file__).parents[2] / "jobs" / "walk" / "crawl"
PICTURE_COLUMNS = ["path", "image", "caption", "captions", "concept", "group", "subgroup", "source", "licence"]
ListRow = dict[str, str | None]
Answer = tuple[http.client.HTTPResponse, bytes]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve_crawl(CRAWL) as port:
        yield port


@pytest.fixture(scope="module")
def listed() -> list[ListRow]:
    rows: list[ListRow] = pq.read_table(CRAWL / "list.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def dirty(listed: list[ListRow]) -> dict[str, list[str]]:
    """The addresses on the dirt's own host, by kind."""
    addresses: dict[str, list[str]] = defaultdict(list)
    for row in listed:
        if row["url"] and urlsplit(row["url"]).netloc == DIRT_HOST:
            addresses[urlsplit(row["url"]).path.split("/")[1]].append(row["url"])
    return addresses


def ask(port: int, url: str, method: str = "GET", timeout_s: float = 5) -> Answer:
    """One request with the address's own host in its head, sent to this machine."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        target = address.path + ("?" + address.query if address.query else "")
        connection.request(method, target, headers={"Host": address.netloc})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def picture(body: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(body))
    opened.load()
    return opened


# What lies in the folder


def test_the_crawl_is_large_enough_and_small_enough() -> None:
    pictures = {source: pq.read_metadata(CRAWL / f"{source}.parquet").num_rows for source in SERVED_SOURCES}
    assert sum(pictures.values()) >= 5_800
    assert len(pictures) >= 3
    assert sum(file.stat().st_size for file in CRAWL.rglob("*") if file.is_file()) <= 25_000_000


@pytest.mark.parametrize("source", [*SERVED_SOURCES, "openmoji"])
def test_every_picture_opens_and_has_words_and_a_licence(source: str) -> None:
    table = pq.read_table(CRAWL / f"{source}.parquet")
    assert table.column_names == PICTURE_COLUMNS
    rows = table.to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    for row in rows:
        with Image.open(io.BytesIO(row["image"])) as opened:
            assert min(opened.size) >= 32, row["path"]
            opened.verify()
        assert row["caption"].strip(), row["path"]
        assert row["caption"] in row["captions"]
        assert all((row["group"], row["subgroup"], row["concept"])), row["path"]
        assert row["source"] == source
    (licence,) = {row["licence"] for row in rows}
    assert licence.partition("-only")[0] in (CRAWL / "LICENCES.md").read_text()


def test_the_licences_file_counts_what_is_there() -> None:
    text = (CRAWL / "LICENCES.md").read_text()
    for source in [*SERVED_SOURCES, "openmoji"]:
        pictures = pq.read_metadata(CRAWL / f"{source}.parquet").num_rows
        assert f"| `{source}.parquet` | {pictures:,} |" in text


def test_openmoji_shows_the_concepts_of_the_emoji_in_a_style_that_nobody_is_shown(listed: list[ListRow]) -> None:
    unseen_style = pq.read_table(CRAWL / "openmoji.parquet", columns=["concept", "caption", "group", "subgroup"])
    concepts = set(unseen_style["concept"].to_pylist())
    assert unseen_style["caption"].to_pylist() == unseen_style["concept"].to_pylist()
    assert len(concepts) == unseen_style.num_rows, "a label stands for one concept, or zero-shot would be ambiguous"
    assert len(set(unseen_style["group"].to_pylist())) == 9
    for source in ("noto", "twemoji"):
        seen = set(pq.read_table(CRAWL / f"{source}.parquet")["concept"].to_pylist())
        assert seen < concepts
        assert len(concepts - seen) == 8
    assert not any("openmoji" in (row["url"] or "") for row in listed)


def test_each_concept_has_its_plain_label_in_one_style_and_more_words_in_the_other() -> None:
    noto, twemoji = (
        {row["concept"]: row["caption"] for row in pq.read_table(CRAWL / f"{source}.parquet").to_pylist()}
        for source in ("noto", "twemoji")
    )
    assert noto.keys() == twemoji.keys()
    for concept in noto:
        assert sorted(caption == concept for caption in (noto[concept], twemoji[concept])) == [False, True], concept
    words = [len(caption.split()) for caption in [*noto.values(), *twemoji.values()]]
    assert min(words) == 1
    assert max(words) >= 8


# The URL list


def test_the_list_has_every_picture_once_and_the_dirt_beside_it(listed: list[ListRow]) -> None:
    sources = Counter(row["source"] for row in listed)
    assert set(sources) == {*SERVED_SOURCES, "dirt"}
    assert 300 <= sources["dirt"] <= 700
    good = [row["url"] for row in listed if row["source"] != "dirt"]
    assert len(set(good)) == len(good)
    homes = {
        f"{source}/{path}"
        for source in SERVED_SOURCES
        for path in pq.read_table(CRAWL / f"{source}.parquet", columns=["path"])["path"].to_pylist()
    }
    taken = {kind.name for kind in DIRT if kind.takes_picture}
    addresses = [urlsplit(row["url"] or "") for row in listed if row["source"] == "dirt"]
    only_dirty = {
        address.path.split("/", 2)[2]
        for address in addresses
        if address.netloc == DIRT_HOST and address.path.split("/")[1] in taken
    }
    assert {(url or "").removeprefix("http://").replace(".crawl.example", "", 1) for url in good} == homes - only_dirty


def test_every_kind_of_dirt_is_in_the_list_as_often_as_its_table_says(listed: list[ListRow]) -> None:
    assert len(BY_NAME) == len(DIRT) >= 30
    elsewhere = {"empty_url": "", "null_url": None}
    urls = [row["url"] for row in listed if row["source"] == "dirt"]
    for kind in DIRT:
        if kind.name in elsewhere:
            found = urls.count(elsewhere[kind.name])
        elif kind.name == "two_captions":
            found = sum("//openclipart.crawl.example/" in (url or "") for url in urls)
        else:
            found = sum(kind.path in (url or "") for url in urls)
        assert found == kind.pictures * kind.copies, kind.name


# The server


def test_every_good_address_gives_its_picture_and_all_of_them_in_seconds(port: int, listed: list[ListRow]) -> None:
    pictures = {
        f"http://{row['source']}.crawl.example/{row['path']}": row["image"]
        for source in SERVED_SOURCES
        for row in pq.read_table(CRAWL / f"{source}.parquet", columns=["path", "image", "source"]).to_pylist()
    }
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for url in (row["url"] or "" for row in listed if row["source"] != "dirt"):
        address = urlsplit(url)
        connection.request("GET", address.path, headers={"Host": address.netloc})
        response = connection.getresponse()
        assert response.read() == pictures[url], url
        kind = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}[address.path.rpartition(".")[2]]
        assert (response.status, response.getheader("Content-Type")) == (200, kind)
    connection.close()
    assert time.monotonic() - began < 20


def test_head_says_the_same_without_a_body(port: int, dirty: dict[str, list[str]]) -> None:
    for url in ("http://noto.crawl.example/1f600.png", dirty["opt_out"][0], dirty["forbidden"][0]):
        (get, body), (head, nothing) = ask(port, url), ask(port, url, "HEAD")
        assert nothing == b""
        assert head.status == get.status
        assert head.getheader("Content-Length") == get.getheader("Content-Length") == str(len(body))


@pytest.mark.parametrize(
    "url",
    [
        "http://noto.crawl.example/nothing.png",
        "http://openmoji.crawl.example/1F600.png",
        "http://elsewhere.example/1f600.png",
        f"http://{DIRT_HOST}/no_such_kind/noto/1f600.png",
        f"http://{DIRT_HOST}/cmyk/noto/nothing.png",
        f"http://{DIRT_HOST}/",
    ],
)
def test_nothing_is_at_any_other_address(port: int, url: str) -> None:
    assert ask(port, url)[0].status == 404


def test_the_port_in_the_host_header_is_of_no_importance(port: int) -> None:
    assert ask(port, f"http://noto.crawl.example:{port}/1f600.png")[0].status == 200


@pytest.mark.parametrize(
    ("kind", "status"), [("gone_missing", 404), ("forbidden", 403), ("gone", 410), ("broken_server", 500)]
)
def test_statuses(port: int, dirty: dict[str, list[str]], kind: str, status: int) -> None:
    for url in dirty[kind]:
        assert [ask(port, url)[0].status for _ in range(2)] == [status, status]


def test_a_flaky_address_gives_way_at_the_second_or_third_attempt_also_when_many_ask(
    dirty: dict[str, list[str]],
) -> None:
    refused: dict[str, int] = {}
    with serve_crawl(CRAWL) as fresh:
        for url in dirty["flaky_server"]:
            statuses = [ask(fresh, url)[0].status for _ in range(4)]
            refused[url] = statuses.count(503)
            assert statuses == [503] * refused[url] + [200] * (4 - refused[url])
        assert set(refused.values()) == {1, 2}
    url = next(url for url, times in refused.items() if times == 2)
    statuses = []
    with serve_crawl(CRAWL) as fresh:
        crowd = [threading.Thread(target=lambda: statuses.append(ask(fresh, url)[0].status)) for _ in range(16)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
    assert Counter(statuses) == {503: 2, 200: 14}


def test_redirects_lead_home_in_circles_or_inside(port: int, dirty: dict[str, list[str]]) -> None:
    for url in dirty["moved"]:
        moved, _ = ask(port, url)
        assert moved.status == 301
        assert ask(port, moved.getheader("Location") or "")[0].status == 200
    there, _ = ask(port, dirty["redirect_loop"][0] + "?a")
    back, _ = ask(port, dirty["redirect_loop"][0] + "?b")
    assert (there.getheader("Location"), back.getheader("Location")) == ("?b", "?a")
    inside, _ = ask(port, dirty["redirect_inside"][0])
    assert (inside.status, inside.getheader("Location")) == (302, "http://169.254.169.254/latest/meta-data/")


def test_bodies_that_are_late_cut_absent_or_too_large(port: int, dirty: dict[str, list[str]]) -> None:
    began = time.monotonic()
    _, slow = ask(port, dirty["slow"][0])
    assert time.monotonic() - began >= 0.3
    assert min(picture(slow).size) >= 32
    with pytest.raises(http.client.IncompleteRead):
        ask(port, dirty["cut_body"][0])
    with pytest.raises(http.client.RemoteDisconnected):
        ask(port, dirty["hangs_up"][0])
    empty, nothing = ask(port, dirty["empty_body"][0])
    assert (empty.status, nothing) == (200, b"")
    announced, _ = ask(port, dirty["too_large"][0], "HEAD")
    unannounced, body = ask(port, dirty["too_large_unannounced"][0])
    assert int(announced.getheader("Content-Length") or 0) == len(body) > 48_000_000
    assert unannounced.getheader("Content-Length") is None


def test_an_address_that_never_answers_holds_nobody_up_when_the_server_ends(dirty: dict[str, list[str]]) -> None:
    with serve_crawl(CRAWL) as fresh:
        with pytest.raises(TimeoutError):
            ask(fresh, dirty["never_answers"][0], timeout_s=0.3)
        waiting = socket.create_connection(("127.0.0.1", fresh))
        target = urlsplit(dirty["never_answers"][1]).path
        waiting.sendall(f"GET {target} HTTP/1.1\r\nHost: {DIRT_HOST}\r\n\r\n".encode())
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    waiting.settimeout(2)
    assert waiting.recv(1) == b""
    waiting.close()


def test_opting_out_is_said_in_the_header(port: int, dirty: dict[str, list[str]]) -> None:
    rules = [ask(port, url)[0].getheader("X-Robots-Tag") for url in dirty["opt_out"]]
    assert set(rules) == {"noai", "noimageai", "noindex, noai"}


# Bytes


def test_bytes_that_are_no_picture_or_half_of_one(port: int, dirty: dict[str, list[str]]) -> None:
    for kind in ("html_as_jpeg", "svg_as_jpeg", "truncated_jpeg", "truncated_png"):
        response, body = ask(port, dirty[kind][0])
        with pytest.raises(OSError, match=r"cannot identify|truncated"):
            picture(body)
        assert response.getheader("Content-Type") == ("image/png" if kind == "truncated_png" else "image/jpeg")


@pytest.mark.parametrize(
    ("kind", "content_type", "format", "mode"),
    [
        ("png_as_jpeg", "image/jpeg", "PNG", "RGB"),
        ("picture_as_text", "text/plain", "JPEG", "RGB"),
        ("cmyk", "image/jpeg", "JPEG", "CMYK"),
        ("sixteen_bit", "image/png", "PNG", "RGB"),
        ("animated_gif", "image/gif", "GIF", "RGB"),
    ],
)
def test_pictures_of_other_kinds(
    port: int, dirty: dict[str, list[str]], kind: str, content_type: str, format: str, mode: str
) -> None:
    for url in dirty[kind]:
        response, body = ask(port, url)
        opened = Image.open(io.BytesIO(body))
        assert (response.getheader("Content-Type"), opened.format) == (content_type, format)
        opened.seek(getattr(opened, "n_frames", 1) - 1)
        assert opened.mode == mode
        assert (opened.tell() == 1) == (kind == "animated_gif")
    if kind == "sixteen_bit":
        assert body[24] == 16


def test_sizes_that_are_far_too_small_or_large(port: int, dirty: dict[str, list[str]]) -> None:
    assert picture(ask(port, dirty["two_px"][0])[1]).size == (2, 2)
    assert picture(ask(port, dirty["very_wide"][0])[1]).size == (29_700, 60)
    _, bomb = ask(port, dirty["decompression_bomb"][0])
    assert len(bomb) < 100_000
    assert (int.from_bytes(bomb[16:20], "big"), int.from_bytes(bomb[20:24], "big")) == (20_000, 20_000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb))


def test_a_picture_on_its_side_is_upright_by_its_exif(port: int, dirty: dict[str, list[str]]) -> None:
    for url in dirty["exif_rotation"]:
        source, path = urlsplit(url).path.split("/", 3)[2:]
        home = picture(ask(port, f"http://{source}.crawl.example/{path}")[1])
        on_its_side = picture(ask(port, url)[1])
        assert on_its_side.size == home.size[::-1]
        assert ImageOps.exif_transpose(on_its_side).size == home.size


def test_copies_differ_in_bytes_or_not_at_all(port: int, dirty: dict[str, list[str]]) -> None:
    ten = {ask(port, url)[1] for url in dirty["ten_addresses"] if url.partition("?")[0] in dirty["ten_addresses"][0]}
    assert len(ten) == 1
    url = dirty["near_copy"][0]
    source, path = urlsplit(url).path.split("/", 3)[2:]
    home, copy = (ask(port, address)[1] for address in (f"http://{source}.crawl.example/{path}", url))
    assert home != copy
    assert picture(copy).size == tuple(side * 4 // 5 for side in picture(home).size)
    assert ask(port, url)[1] == copy, "the same bytes every time"


# Captions


def test_dirty_captions(listed: list[ListRow]) -> None:
    captions: dict[str, list[str | None]] = defaultdict(list)
    for row in listed:
        if f"//{DIRT_HOST}/caption_" in (row["url"] or ""):
            captions[(row["url"] or "").split("/")[3]].append(row["caption"])
    said = {kind: [caption or "" for caption in kind_captions] for kind, kind_captions in captions.items()}
    assert all("&quot;" in caption and "&#" in caption for caption in said["caption_entities"])
    assert all("\x00" in caption for caption in said["caption_controls"])
    assert all(caption.count("\ufffd") >= len(caption) // 2 for caption in said["caption_undecodable"])
    assert all(len(caption.split()) == 5_000 for caption in said["caption_endless"])
    assert all(len(set(caption.split())) == 1 for caption in said["caption_repeated"])
    assert not any(caption.strip() for caption in said["caption_empty"])
    assert set(captions["caption_null"]) == {None}
    scripts = {"Cyrillic": "[а-я]", "Han or kana": "[぀-鿿]", "Latin with marks": "[äöüßéèñç]"}
    assert all(re.search(letters, " ".join(said["caption_language"])) for letters in scripts.values())


# What a person sees when the folder is not right


def test_a_missing_folder_and_a_damaged_file_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CrawlError, match=r"noto\.parquet, found no such file"), serve_crawl(tmp_path):
        pass
    (tmp_path / "noto.parquet").write_bytes((CRAWL / "noto.parquet").read_bytes()[:5_000])
    with pytest.raises(CrawlError, match=r"expected a parquet file.*noto\.parquet") as raised, serve_crawl(tmp_path):
        pass
    assert "\n" not in str(raised.value)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "pipeline.sample_crawl", str(CRAWL)]
    with subprocess.Popen(command, cwd=CRAWL.parents[2], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        port = int(said.partition("127.0.0.1:")[2].partition(";")[0])
        assert ask(port, "http://tuxpaint.crawl.example/nothing")[0].status == 404
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
