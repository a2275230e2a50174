"""Drawings and cut-out photographs for the sample crawl: openclipart and Tux Paint's stamps.

Captions are put together from the packages' own titles, keywords, descriptions and file names; no word is made up.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crawl_pictures import Row, draw, fitted, some_of, stored

from pipeline.spoilt_pictures import on_white

MOST_OF_ONE_TITLE = 6  # what stands over more pictures is the name of a collection
LEFT_OUT = (
    # themes of icons whose titles name the theme; near copies under one title; letters, cards and lamps
    "computer/icons", "computer/buttons", "buttons", "shapes", "special", "recreation/games/cards",
    "signs_and_symbols/led", "unsorted/duplicates",
    # trade marks, flags, weapons, and what not everyone wants to be shown
    "logos", "signs_and_symbols/flags", "tools/weapons", "people/clothing/pantyhose",
)  # fmt: skip
NAMED_BY_THEIR_FILES = re.compile(r"AIGA.Symbol|svg road signs|sibmission|australian maps|clipart by nicu", re.I)
UNTITLED = re.compile(r"collection|theme|iconset|^advertising$|various|inkscape|creation day|\.(svg|py)$|^\W*$", re.I)
NAMING = re.compile(r"[A-Za-z]{2}.*[A-Za-z]")
UNWANTED = re.compile(
    r"sun ?wheel|sexy|stripper|pimp|chav|grenade|gallows|hide girl|wmd|you done|bad guy|male silhouette|enthusiast"
    r"|ammo",
    re.I,
)
OUTSIDE_PICTURE = re.compile(r"""<image[^>]*href=["'](?!data:|#)""")  # drawn as a box that says "not found"
BOOKKEEPING = {
    "hash", "unsorted", "work", "icon", "icons", "clipart", "clip art", "svg", "externalsource", "color", "image",
    "mapsym", "signs and symbols", "symbol", "bodypart", "musicstuff", "networksym",
}  # fmt: skip
NO_DESCRIPTION = re.compile(r"@|https?:|www\.|\.svg|licen[cs]e|copyright|inkscape|vector|clip ?art", re.I)
TITLES_IN_ITALIAN = "rollandin"  # one author of 400 pictures


def openclipart(packages: Path) -> Iterator[Row]:
    """Drawings with a title that says what they show, each picture once."""
    pngs = packages / "openclipart-png/usr/share/openclipart/png"
    svgs = packages / "openclipart-svg/usr/share/openclipart/svg"
    files = [file for file in sorted(pngs.rglob("*.png")) if not file.is_symlink()]
    described = [(file, said) for file in files if (said := clipart_words(svgs, file.relative_to(pngs))) is not None]
    titles = Counter(said.title.lower() for _, said in described)
    seen: set[bytes] = set()
    for file, said in described:
        if titles[said.title.lower()] > MOST_OF_ONE_TITLE:
            continue
        picture = fitted(file)
        if picture is None or (digest := hashlib.sha256(on_white(picture).tobytes()).digest()) in seen:
            continue
        seen.add(digest)
        path, image = stored(file.relative_to(pngs), picture)
        wordings = said.wordings(path)
        group, _, subgroup = file.relative_to(pngs).parent.as_posix().partition("/")
        caption = wordings[draw(f"caption {path}", len(wordings))]
        yield Row(path, image, caption, wordings, said.title, group, subgroup or group, "openclipart", "public domain")


@dataclass(frozen=True)
class ClipartWords:
    """What the RDF of a drawing says."""

    title: str
    description: str
    keywords: tuple[str, ...]

    def wordings(self, key: str) -> list[str]:
        """The title; with some keywords; the description, alone or after the title."""
        wordings = [self.title]
        if self.keywords:
            wordings.append(", ".join([self.title, *some_of(self.keywords, 1, 4, key)]))
        if self.description:
            wordings += [self.description, f"{self.title}: {self.description}"]
        return wordings


def clipart_words(svgs: Path, file: Path) -> ClipartWords | None:
    """Title, description and keywords of a drawing, or None where they do not say what it shows."""
    folder = file.parent.as_posix()
    if any(folder == left_out or folder.startswith(left_out + "/") for left_out in LEFT_OUT):
        return None
    svg = (svgs / file).with_suffix(".svg").read_bytes().decode("utf-8", "replace")
    if OUTSIDE_PICTURE.search(svg):
        return None
    if not (work := re.search(r"<(?:cc:)?Work.*?</(?:cc:)?Work>", svg, re.S)) or "PublicDomain" not in work[0]:
        return None
    agents = " ".join(re.findall(r"<(?:cc:)?Agent.*?</(?:cc:)?Agent>", work[0], re.S)).lower()
    about = re.sub(r"<(?:cc:)?Agent.*?</(?:cc:)?Agent>", "", work[0], flags=re.S)
    title = words_of(element(about, "title"))
    if NAMED_BY_THEIR_FILES.search(title):
        title = words_of(file.stem.replace("aiga_", "").replace("_bw", "_(B and W)").replace("-", " "))
    if TITLES_IN_ITALIAN in agents or UNTITLED.search(title) or UNWANTED.search(title) or not NAMING.search(title):
        return None
    listed = [words_of(keyword).lower() for keyword in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", about, re.S)]
    return ClipartWords(title, sentence(element(about, "description"), title), keywords(listed, title, agents))


def element(rdf: str, name: str) -> str:
    """The text of a Dublin Core element; empty where there is none."""
    found = re.search(rf"<dc:{name}[^>/]*>(.*?)</dc:{name}>", rdf, re.S)
    return found[1] if found else ""


def words_of(text: str) -> str:
    """Readable words: entities resolved, tags, underscores and running numbers gone."""
    plain = re.sub(r"<[^>]*>", " ", html.unescape(html.unescape(text))).replace("_", " ")
    plain = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain)
    plain = re.sub(r"[\s-]*#?(\b|(?<=[a-z]{2}))\d{1,3}(\s\d{1,3})*\s*$", "", plain)
    return re.sub(r"\s+", " ", plain).strip(" .,;:-!")


def sentence(text: str, title: str) -> str:
    """A description of 3 to 40 words that says more than the title and is no address; else empty."""
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text))).strip()
    says_more = plain.lower().strip(" .") != title.lower()
    is_sentence = 3 <= len(plain.split()) <= 40 and not NO_DESCRIPTION.search(plain)
    return plain if says_more and is_sentence else ""


def keywords(listed: Sequence[str], title: str, agents: str) -> tuple[str, ...]:
    """Keywords that describe: no bookkeeping, no author, nothing that the title says already."""
    said = set(re.findall(r"\w+", title.lower()))
    fitting = [
        word
        for word in dict.fromkeys(listed)
        if re.fullmatch(r"[a-z][a-z' -]{2,20}", word) and word not in BOOKKEEPING | said and word not in agents
    ]
    return tuple(fitting[:8])


def tuxpaint(packages: Path) -> Iterator[Row]:
    """Cut-out photographs and drawings with a sentence in English; without letters and coins."""
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for file in sorted(stamps.rglob("*.png")):
        inside = file.relative_to(stamps)
        words = file.with_suffix(".txt")
        if inside.parts[:2] in (("symbols", "alphabets"), ("symbols", "money")) or not words.exists():
            continue
        english = words.read_text("utf-8").splitlines()[0].strip()
        if len(english) < 3 or (picture := fitted(file)) is None:
            continue
        path, image = stored(inside, picture)
        concept = re.sub(r"^(an?|the|some) ", "", english.rstrip(".!"), flags=re.I)
        wordings = [english, *([concept] if concept != english else [])]
        group, _, subgroup = inside.parent.as_posix().partition("/")
        yield Row(path, image, english, wordings, concept, group, subgroup or group, "tuxpaint", "GPL-2.0-only")


def translations_of(packages: Path, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The captions of stamps in other widely read languages, those of four words or more."""
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    languages = ("de", "es", "fr", "ru", "el", "ja", "zh_cn", "ar", "uk", "pt_br", "hu", "tr")
    return {path: tuple(translated(stamps / path, languages)) for path in paths}


def translated(stamp: Path, languages: Sequence[str]) -> Iterator[str]:
    """The stamp's captions in the languages; Chinese and Japanese write no blanks, so letters count there."""
    for line in stamp.with_suffix(".txt").read_text("utf-8").splitlines()[1:]:
        language, _, caption = line.partition(".utf8=")
        caption = caption.strip()
        if language.lower() in languages and (len(caption.split()) > 3 or (caption and ord(caption[0]) > 0x3000)):
            yield caption
