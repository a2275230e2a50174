"""The dirt of the sample crawl: a table of what goes wrong on the web, what is served then, what a build must do.

An address `http://dirt.crawl.example/KIND/SOURCE/PATH` asks for the picture PATH of SOURCE, spoilt as KIND says. So
nothing broken is stored: every broken answer is made from a good picture, or from nothing, and is the same every time.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Literal

from PIL import Image

from pipeline import spoilt_pictures as spoilt

DIRT_HOST = "dirt.crawl.example"
JPEG = "image/jpeg"
PNG = "image/png"

Expectation = Literal[
    "kept",
    # refused before or while downloading
    "malformed_url", "private_address", "http_404", "http_403", "http_410", "http_500", "redirect_loop",
    "timeout", "connection_failed", "truncated", "too_large_bytes", "empty_body", "opt_out",
    # refused when the bytes are looked at
    "not_an_image", "unsupported_format", "too_many_pixels", "image_size", "image_shape",
    # refused for the caption
    "caption_missing", "caption_length", "caption_letters", "caption_repetition", "language",
    # refused beside another row
    "duplicate_row", "duplicate_image", "near_duplicate",
]  # fmt: skip
"""What becomes of a row in a correct build: kept, or the class of the reason for which it is refused."""

Delivery = Literal["whole", "cut", "slow", "chunked", "never", "hang_up"]
"""How an answer travels: as announced; cut short of its Content-Length; in pieces with pauses; without a length; not at
all on an open connection; not at all on a connection that is closed."""


@dataclass(frozen=True)
class Answer:
    """What the server sends."""

    body: bytes = b""
    content_type: str = PNG
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = "whole"


@dataclass(frozen=True)
class Picture:
    """A good picture of the crawl, its caption, all its wordings, and its captions in other languages, if any."""

    source: str
    path: str
    caption: str
    wordings: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What an answer is made from: the good picture, its own address, and how often it was asked for here before."""

    image: bytes
    content_type: str
    home: str
    earlier_attempts: int
    query: str


Captioner = Callable[[Picture], str | None]
Answerer = Callable[[Request], Answer]


def as_it_is(request: Request) -> Answer:
    """The picture itself: the dirt is in the address or in the caption."""
    return Answer(request.image, request.content_type)


def own_caption(picture: Picture) -> str:
    """The picture's caption: the dirt is in the address or in the bytes."""
    return picture.caption


@dataclass(frozen=True)
class Dirt:
    """One kind of dirt."""

    name: str
    serves: str
    """What the row or the answer is like."""
    expectation: Expectation
    """What a correct build does with its rows."""
    pictures: int
    """How many pictures of the crawl have it in the URL list."""
    answer: Answerer = as_it_is
    caption: Captioner = own_caption
    url: str | None = "http://{host}/{name}/{source}/{path}"
    copies: int = 1
    """Rows a picture. Of several rows that are duplicates the first is kept."""
    takes_picture: bool = False
    """Whether the picture is in the list as dirt only: beside a row at its own address it would be a duplicate."""

    @property
    def path(self) -> str:
        """Where the server answers with it."""
        return f"/{self.name}/"

    def rows(self, picture: Picture) -> Iterator[tuple[str | None, str | None]]:
        """The rows (url, caption) of the URL list that one picture gets."""
        for copy in range(self.copies):
            url = self.url and self.url.format(
                host=DIRT_HOST, name=self.name, source=picture.source, path=picture.path, copy=copy
            )
            yield url, self.caption(picture)


# Captions


def _one_of(*captions: str | None) -> Captioner:
    # Which one goes with the path's length: any choice that never changes will do.
    return lambda picture: captions[len(picture.path) % len(captions)]


def _other_language(picture: Picture) -> str:
    return picture.translations[len(picture.path) % len(picture.translations)]


def _other_wording(picture: Picture) -> str:
    return next((wording for wording in picture.wordings if wording != picture.caption), picture.caption)


def _as_html(picture: Picture) -> str:
    first, rest = picture.caption[0], picture.caption[1:]
    escaped = html.escape(rest).replace(" ", "&nbsp;")
    return f"&#{ord(first)};{escaped} &ndash; &quot;{html.escape(picture.caption)}&quot;"


def _control_characters(picture: Picture) -> str:
    return "\ufeff" + picture.caption.replace(" ", "\x07 \x1b\t") + "\x00\u200b\r\n"


def _undecodable(picture: Picture) -> str:
    return "".join("\ufffd" if place % 2 else letter for place, letter in enumerate(picture.caption * 3))


def _five_thousand_words(picture: Picture) -> str:
    return " ".join(islice(cycle(picture.caption.split()), 5000))


def _repeated(picture: Picture) -> str:
    return " ".join([picture.caption.split()[0]] * 24)


# Answers


def _status(status: int) -> Answerer:
    page = f"<!doctype html><title>{status}</title><p>There is no picture here.".encode()
    return lambda _: Answer(page, "text/html", status)


def _body(body: bytes | Callable[[], bytes], content_type: str) -> Answerer:
    return lambda _: Answer(body() if callable(body) else body, content_type)


def _flaky(request: Request) -> Answer:
    refusals = 1 + len(request.home) % 2
    if request.earlier_attempts < refusals:
        return Answer(b"busy", "text/plain", 503, {"Retry-After": "0"})
    return as_it_is(request)


def _moved(request: Request) -> Answer:
    return Answer(status=301, headers={"Location": request.home})


def _loop(request: Request) -> Answer:
    return Answer(status=302, headers={"Location": "?b" if request.query == "a" else "?a"})


def _to_private_address(_: Request) -> Answer:
    return Answer(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})


def _delivered(delivery: Delivery) -> Answerer:
    return lambda request: Answer(request.image, request.content_type, delivery=delivery)


def _opted_out(request: Request) -> Answer:
    rule = ("noai", "noimageai", "noindex, noai")[len(request.home) % 3]
    return Answer(request.image, request.content_type, headers={"X-Robots-Tag": rule})


def _too_large(delivery: Delivery) -> Answerer:
    return lambda _: Answer(spoilt.oversized(), JPEG, delivery=delivery)


Spoiler = Callable[[Image.Image], bytes]


def _spoilt(spoil: Spoiler, content_type: str) -> Answerer:
    def answer(request: Request) -> Answer:
        with Image.open(io.BytesIO(request.image)) as picture:
            return Answer(spoil(spoilt.on_white(picture)), content_type)

    return answer


DIRT: tuple[Dirt, ...] = (
    # Addresses
    Dirt("ftp_url", "an ftp:// address", "malformed_url", 4, url="ftp://{host}/{name}/{source}/{path}"),
    Dirt("script_url", "a javascript: address", "malformed_url", 3, url="javascript:open('/{name}/{path}')"),
    Dirt("data_url", "a data: address", "malformed_url", 2, url="data:image/png,/{name}/{path}"),
    Dirt("hostless_url", "an address without a host", "malformed_url", 4, url="http:///{name}/{source}/{path}"),
    Dirt("bare_path", "a path where an address should be", "malformed_url", 4, url="/{name}/{source}/{path}"),
    Dirt("empty_url", "an empty address", "malformed_url", 2, url=""),
    Dirt("null_url", "no address (null)", "malformed_url", 2, url=None),
    Dirt("private_address", "a machine inside", "private_address", 4, url="http://10.0.0.1/{name}/{path}"),
    Dirt("loopback_address", "this machine", "private_address", 4, url="http://127.0.0.1:9/{name}/{path}"),
    Dirt("loopback_name", "this machine by name", "private_address", 3, url="http://localhost:9/{name}/{path}"),
    Dirt("loopback_v6", "this machine in IPv6", "private_address", 3, url="http://[::1]:9/{name}/{path}"),
    # Answers without a picture
    Dirt("gone_missing", "404", "http_404", 30, _status(404)),
    Dirt("forbidden", "403", "http_403", 10, _status(403)),
    Dirt("gone", "410", "http_410", 8, _status(410)),
    Dirt("broken_server", "500, always", "http_500", 5, _status(500)),
    Dirt("flaky_server", "503 once or twice, then the picture", "kept", 20, _flaky, takes_picture=True),
    Dirt("moved", "301 to the picture's own address", "kept", 12, _moved, takes_picture=True),
    Dirt("redirect_loop", "302 in a circle", "redirect_loop", 4, _loop),
    Dirt("redirect_inside", "302 to a private address", "private_address", 4, _to_private_address),
    Dirt("never_answers", "nothing, on an open connection", "timeout", 2, _delivered("never")),
    Dirt("slow", "the picture in pieces, half a second in all", "kept", 4, _delivered("slow"), takes_picture=True),
    Dirt("hangs_up", "nothing, the connection is closed", "connection_failed", 3, _delivered("hang_up")),
    Dirt("empty_body", "200 and no byte", "empty_body", 6, _body(b"", JPEG)),
    Dirt("cut_body", "half of what Content-Length says", "truncated", 4, _delivered("cut")),
    Dirt("too_large", "48 MiB, announced", "too_large_bytes", 1, _too_large("whole")),
    Dirt("too_large_unannounced", "48 MiB in chunks", "too_large_bytes", 1, _too_large("chunked")),
    Dirt("opt_out", "a picture with X-Robots-Tag: noai", "opt_out", 12, _opted_out),
    # Bytes
    Dirt("truncated_jpeg", "two thirds of a JPEG", "truncated", 12, _spoilt(spoilt.truncated_jpeg, JPEG)),
    Dirt("truncated_png", "half a PNG", "truncated", 6, _spoilt(spoilt.truncated_png, PNG)),
    Dirt("html_as_jpeg", "an HTML page as image/jpeg", "not_an_image", 12, _body(spoilt.HTML, JPEG)),
    Dirt("svg_as_jpeg", "an SVG as image/jpeg", "not_an_image", 6, _body(spoilt.SVG, JPEG)),
    Dirt("animated_gif", "a GIF of two frames", "unsupported_format", 8, _spoilt(spoilt.animated_gif, "image/gif")),
    Dirt("decompression_bomb", "400 megapixels in 60 kB", "too_many_pixels", 2, _body(spoilt.bomb, PNG)),
    Dirt("very_wide", "29,700 x 60 px", "image_shape", 3, _body(spoilt.very_wide, PNG)),
    Dirt("two_px", "2 x 2 px", "image_size", 8, _spoilt(spoilt.two_px, PNG)),
    Dirt("png_as_jpeg", "a PNG as image/jpeg", "kept", 15, _spoilt(spoilt.png, JPEG), takes_picture=True),
    Dirt("picture_as_text", "a JPEG as text/plain", "kept", 6, _spoilt(spoilt.jpeg, "text/plain"), takes_picture=True),
    Dirt("cmyk", "a JPEG in CMYK", "kept", 8, _spoilt(spoilt.cmyk_jpeg, JPEG), takes_picture=True),
    Dirt("sixteen_bit", "a 16-bit PNG", "kept", 8, _spoilt(spoilt.sixteen_bit_png, PNG), takes_picture=True),
    Dirt("exif_rotation", "upright by EXIF", "kept", 8, _spoilt(spoilt.lying_on_its_side, JPEG), takes_picture=True),
    # Captions
    Dirt("caption_entities", "HTML entities", "kept", 20, caption=_as_html, takes_picture=True),
    Dirt("caption_controls", "control characters", "kept", 12, caption=_control_characters, takes_picture=True),
    Dirt("caption_undecodable", "every other letter lost", "caption_letters", 8, caption=_undecodable),
    Dirt("caption_file_name", "a camera's file name", "caption_letters", 10,
         caption=_one_of("DSC_00417392.JPG", "20231004_113245.jpg", "1024x768-0042.png", "#1 (2) [3] 04/05/2006")),
    Dirt("caption_empty", "empty or only blanks", "caption_missing", 6, caption=_one_of("", "   ", "\t\n")),
    Dirt("caption_null", "no caption (null)", "caption_missing", 5, caption=_one_of(None)),
    Dirt("caption_endless", "5,000 words", "caption_length", 3, caption=_five_thousand_words),
    Dirt("caption_repeated", "one word 24 times", "caption_repetition", 8, caption=_repeated),
    Dirt("caption_language", "another language (nine in ten are found)", "language", 90, caption=_other_language),
    # Rows beside other rows
    Dirt("row_twice", "the same row twice", "duplicate_row", 10, copies=2, takes_picture=True),
    Dirt("ten_addresses", "one picture at ten addresses", "duplicate_image", 6, copies=10, takes_picture=True,
         url="http://{host}/{name}/{source}/{path}?size={copy}"),
    Dirt("two_captions", "an address again, with another caption", "duplicate_image", 12, caption=_other_wording,
         url="http://{source}.crawl.example/{path}"),
    Dirt("near_copy", "a smaller JPEG of a listed picture", "near_duplicate", 100, _spoilt(spoilt.near_copy, JPEG)),
)  # fmt: skip
"""Every kind of dirt in the URL list: its name, what it serves, what a correct build does, how many pictures it has."""

BY_NAME = {dirt.name: dirt for dirt in DIRT}
