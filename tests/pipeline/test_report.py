"""The page of a build is one file that a person can read, and nothing that a stranger wrote becomes part of it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from small_dataset import small_dataset
from small_pool import small_pool

from pipeline.facts import facts_of, total_facts
from pipeline.funnel import make_funnel, make_ledger, tally
from pipeline.pool import REFUSED
from pipeline.report import write_report
from pipeline.storage import Folder
from pipeline.url_lists import LISTED

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & 'quotes'"
ENDS = [None, ("caption_length", "too_few_words"), ("duplicates", "near_duplicate"), ("download", "http_404")]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (90, 60), (number * 40 % 256, 90, 160)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = []
    for number in range(12):
        step, reason = ENDS[number % 4] or (None, None)
        image = None if step == "download" else picture(number)
        side = None if image is None else 60 + number
        rows.append(
            {"pair_id": f"{number:016x}", "caption": HOSTILE if number < 8 else f"caption {number}",
             "source": "<i>s</i>",
             "url": f"http://a.example/{number}?<b>", "image": image, "original_width": side, "original_height": side,
             "width": side, "height": side, "step": step, "reason": reason, "language": "en", "language_score": 0.9}
        )  # fmt: skip
    columns = pa.schema([pa.field("language", pa.string()), pa.field("language_score", pa.float32())])
    before = [row | {"step": None} if row["step"] == "duplicates" else row for row in rows]
    pool = small_pool(folder, before, columns)
    repeated = [
        {"row": number, "reason": row["reason"], "detail": f"of {0:016x}", "of": 0}
        for number, row in enumerate(rows) if row["step"] == "duplicates"
    ]  # fmt: skip
    pool.refused("duplicates.near", 0, pa.Table.from_pylist(repeated, schema=REFUSED))
    pool = pool.after("duplicates.near", 1)
    facts = total_facts(facts_of(pool, span)[0] for span in range(pool.spans))
    listed = [{"row": number} | {name: row[name] for name in LISTED.names[1:5]} for number, row in enumerate(rows)]
    ledger = make_ledger(pa.Table.from_pylist(listed, schema=LISTED), pool.verdicts(0, 12))
    ledger = ledger.set_column(
        ledger.schema.get_field_index("detail"), "detail",
        pc.if_else(pc.equal(ledger["step"], "download"), "Not <Found>", ledger["detail"]),
    )  # fmt: skip
    funnel = make_funnel(tally(ledger), ["list", "download", "caption_length", "duplicates"])
    manifest = small_dataset(folder / "dataset").model_copy(update={"funnel": funnel, "pairs": 3, "name": "tiny & <b>"})
    write_report(Folder(str(folder)), "report.html", manifest, facts, pool)
    return folder / "report.html"


class Seen(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_stands_alone(page: Path) -> None:
    seen = Seen(page.read_text())
    assert not {tag for tag, _ in seen.elements} & {"script", "link", "iframe", "object", "embed", "base", "a"}
    pictures = [attributes["src"] or "" for tag, attributes in seen.elements if tag == "img"]
    assert len(pictures) == 3 + 3 + 2 * 3, "kept, refused, and duplicates beside what stays"
    assert all(source.startswith("data:image/webp;base64,") for source in pictures)
    assert "url(" not in "".join(seen.words)


def test_what_strangers_wrote_is_text(page: Path) -> None:
    seen = Seen(page.read_text())
    assert not {name for _, attributes in seen.elements for name in attributes if name.startswith("on")}
    assert seen.words.count(HOSTILE) == 6
    for words in ("tiny & <b>", "http://a.example/3?<b>", "Not <Found>"):
        assert words in seen.words


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; the page's text is tested above")
def test_a_browser_shows_it(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update",
             f"--user-data-dir={tmp_path}"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *quiet, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=180)
    assert "<title>Build of tiny &amp; &lt;b&gt;</title>" in done.stdout
    assert len(re.findall(r'<div class="step">', done.stdout)) == 4
    assert len(re.findall(r"<figure", done.stdout)) == 9
    for words in ("too_few_words 3", "near_duplicate 3", "http_404", "Caption length", "the resolved job"):
        assert words in done.stdout
