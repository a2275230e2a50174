"""The five sources of the sample crawl: which of their pictures are taken, how each is stored, what captions say.

Everything is decided by the picture's path and its package's metadata, never by chance: `draw` stands in for a coin.
Captions are put together from the packages' own labels, tags, titles and descriptions; no word is made up.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import cairosvg
from PIL import Image, ImageChops

from pipeline.spoilt_pictures import on_white

LONGEST_SIDE_PX = 144
OPENMOJI_PX = 96


@dataclass(frozen=True)
class Row:
    """One picture and what its package says about it; `path` is its path on its host."""

    path: str
    image: bytes
    caption: str
    captions: list[str]
    concept: str
    group: str
    subgroup: str
    source: str
    licence: str


def draw(key: str, choices: int) -> int:
    """A number from 0 to choices - 1 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % choices


def some_of(words: Sequence[str], fewest: int, most: int, key: str) -> list[str]:
    """Between `fewest` and `most` of the words, in their own order."""
    wanted = fewest + draw(f"{key} how many", most - fewest + 1)
    drawn = sorted(words, key=lambda word: draw(f"{key} {word}", 2**62))[:wanted]
    return [word for word in words if word in drawn]


# Emoji: the same concepts drawn by Google, by Twitter, and, kept for evaluation, by OpenMoji


@dataclass(frozen=True)
class Concept:
    """What emojibase says about an emoji: label and tags, group and subgroup."""

    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def wordings(self) -> list[str]:
        """The label; with some tags; with its subgroup; with its group; with all tags."""
        wordings = [self.label]
        if self.tags:
            wordings.append(", ".join([self.label, *some_of(self.tags, 2, 4, self.label)]))
        wordings.append(f"{self.label} ({self.subgroup.replace('-', ' ')})")
        wordings.append(f"{self.group.replace('-', ' and ')}: {self.label}")
        if len(self.tags) > 4:
            wordings.append(", ".join([self.label, *self.tags]))
        return wordings


def hexcode(text: str) -> str:
    """Code points without the variation selector, which the packages write or leave out as they like."""
    return "-".join(point for point in text.upper().split("-") if point != "FE0F")


def concepts(packages: Path) -> dict[str, Concept]:
    """Every emoji that has a label, a group and a subgroup; without skin tones, hair styles and letters."""
    data = packages / "emojibase-data/package"
    names = json.loads((data / "meta/groups.json").read_bytes())
    found = {}
    for entry in json.loads((data / "en/data.json").read_bytes()):
        group = names["groups"][str(entry["group"])] if "group" in entry else "component"
        if group == "component":
            continue
        said = set(re.findall(r"\w+", entry["label"].lower()))
        tags = tuple(
            tag for tag in entry.get("tags", []) if re.fullmatch(r"[a-z][a-z -]{2,24}", tag) and tag not in said
        )
        subgroup = names["subgroups"][str(entry["subgroup"])]
        found[hexcode(entry["hexcode"])] = Concept(entry["label"], tags, group, subgroup)
    return found


def emoji(packages: Path, vendor: str) -> Iterator[Row]:
    """Google's (Noto) or Twitter's (Twemoji) drawing of every concept, 64 x 64 px.

    Of the two drawings of a concept one has the plain label as its caption and the other a longer wording.
    """
    package = packages / f"emoji-datasource-{vendor}/package"
    known = concepts(packages)
    source, licence = {"google": ("noto", "Apache-2.0"), "twitter": ("twemoji", "CC-BY-4.0")}[vendor]
    for entry in json.loads((package / "emoji.json").read_bytes()):
        concept = known.get(hexcode(entry["unified"]))
        if concept is None:
            continue
        plain = draw(f"plain {concept.label}", 2) == (vendor == "google")
        longer = concept.wordings[1:]
        caption = concept.label if plain else longer[min(draw(f"longer {concept.label}", 8) // 2, len(longer) - 1)]
        drawing = (package / f"img/{vendor}/64" / entry["image"]).read_bytes()
        path, image = (entry["image"], drawing) if vendor == "google" else as_webp(entry["image"], drawing)
        yield Row(
            path, image, caption, concept.wordings, concept.label, concept.group, concept.subgroup, source, licence
        )


def openmoji(packages: Path) -> Iterator[Row]:
    """OpenMoji's drawing of every concept, drawn from the SVG in 64 colours. For evaluation: never served.

    OpenMoji leaves a margin of about an eighth on all sides, Google and Twitter none; it is cut, so that the style is
    what differs and not the size of things.
    """
    package = packages / "openmoji/package"
    known = concepts(packages)
    for entry in json.loads((package / "data/openmoji.json").read_bytes()):
        concept = known.get(hexcode(entry["hexcode"]))
        if concept is None or entry["skintone"]:
            continue
        svg = (package / "color/svg" / f"{entry['hexcode']}.svg").read_bytes()
        drawn = cairosvg.svg2png(bytestring=svg, output_width=2 * OPENMOJI_PX, output_height=2 * OPENMOJI_PX)
        framed = Image.open(io.BytesIO(drawn)).convert("RGBA").crop(square_frame(drawn))
        picture = framed.resize((OPENMOJI_PX, OPENMOJI_PX), Image.Resampling.LANCZOS)
        picture = picture.quantize(64, method=Image.Quantize.FASTOCTREE)
        yield Row(
            path=f"{entry['hexcode']}.png",
            image=encoded(picture, "PNG", optimize=True),
            caption=concept.label,
            captions=concept.wordings,
            concept=concept.label,
            group=concept.group,
            subgroup=concept.subgroup,
            source="openmoji",
            licence="CC-BY-SA-4.0",
        )


# Clip art


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


MOST_OF_ONE_TITLE = 6  # what stands over more pictures is the name of a collection
LEFT_OUT = (
    # themes of icons whose titles name the theme; near copies under one title; letters, cards and lamps
    "computer/icons", "computer/buttons", "buttons", "shapes", "special", "recreation/games/cards",
    "signs_and_symbols/led", "unsorted/duplicates",
    # trade marks, flags, weapons, and what not everyone wants to be shown
    "logos", "signs_and_symbols/flags", "tools/weapons", "people/clothing/pantyhose",
)  # fmt: skip
COLLECTION = re.compile(r"clipart by|collection|theme|iconset|^advertising$|various|sibmission|\.svg$|^\W*$", re.I)
BOOKKEEPING = {
    "hash",
    "unsorted",
    "work",
    "icon",
    "icons",
    "clipart",
    "clip art",
    "svg",
    "externalsource",
    "color",
    "image",
}
TITLES_IN_ITALIAN = "rollandin"  # one author of 400 pictures


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
    if not (work := re.search(r"<(?:cc:)?Work.*?</(?:cc:)?Work>", svg, re.S)) or "PublicDomain" not in work[0]:
        return None
    agents = " ".join(re.findall(r"<(?:cc:)?Agent.*?</(?:cc:)?Agent>", work[0], re.S)).lower()
    about = re.sub(r"<(?:cc:)?Agent.*?</(?:cc:)?Agent>", "", work[0], flags=re.S)
    title = words_of(element(about, "title"))
    if TITLES_IN_ITALIAN in agents or COLLECTION.search(title) or len(re.findall(r"[A-Za-z]", title)) < 3:
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
    plain = re.sub(r"[\s-]*#?\b\d{1,3}\s*$", "", plain)
    return re.sub(r"\s+", " ", plain).strip(" .,;:-!")


def sentence(text: str, title: str) -> str:
    """A description of 3 to 40 words that says more than the title and is no address; else empty."""
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text))).strip()
    says_more = plain.lower().strip(" .") != title.lower()
    is_sentence = 3 <= len(plain.split()) <= 40 and not re.search(
        r"@|https?:|www\.|\.svg|licen[cs]e|copyright", plain, re.I
    )
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


# Stamps


def tuxpaint(packages: Path) -> Iterator[Row]:
    """Cut-out photographs and drawings with a sentence in English; without letters and coins."""
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for file in sorted(stamps.rglob("*.png")):
        inside = file.relative_to(stamps)
        if (
            inside.parts[:2] in (("symbols", "alphabets"), ("symbols", "money"))
            or not file.with_suffix(".txt").exists()
        ):
            continue
        english = file.with_suffix(".txt").read_text("utf-8").splitlines()[0].strip()
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


# Pictures


def fitted(file: Path) -> Image.Image | None:
    """The picture without its margin, at most LONGEST_SIDE_PX long; None where it is tiny, very narrow, blank, huge or
    unreadable."""
    try:
        with Image.open(file) as opened:
            if max(opened.size) > 6_000:
                return None
            picture = without_margin(opened.convert("RGBA"))
    except (OSError, Image.DecompressionBombError):
        return None
    if min(picture.size) < 32 or max(picture.size) > 4 * min(picture.size):
        return None
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    darkest, lightest = on_white(picture).convert("L").getextrema()
    return picture if lightest - darkest > 24 and min(picture.size) >= 32 else None


def drawn_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of what is not white; the whole picture where nothing is."""
    flat = on_white(picture)
    return ImageChops.difference(flat, Image.new("RGB", flat.size, "white")).getbbox() or (0, 0, *flat.size)


def without_margin(picture: Image.Image) -> Image.Image:
    """The part of a page that is drawn on: many drawings sit in a corner of an empty page."""
    return picture.crop(drawn_box(picture))


def square_frame(png: bytes) -> tuple[int, int, int, int]:
    """The square around what is drawn, at least 0.7 of the picture wide: small signs stay small."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    left, upper, right, lower = drawn_box(picture)
    side = max(right - left, lower - upper, round(0.7 * picture.width))
    x, y = (left + right - side) // 2, (upper + lower - side) // 2
    return x, y, x + side, y + side


def stored(file: Path, picture: Image.Image) -> tuple[str, bytes]:
    """Path and bytes: PNG where it is small, else JPEG on white or WebP, as the web would have it."""
    png = encoded(picture, "PNG", optimize=True)
    if len(png) <= 5_000:
        return quote(file.as_posix()), png
    if draw(file.as_posix(), 2):
        return quote(file.with_suffix(".jpg").as_posix()), encoded(on_white(picture), "JPEG", quality=88)
    return quote(file.with_suffix(".webp").as_posix()), encoded(picture, "WEBP", quality=88, method=3)


def as_webp(file: str, png: bytes) -> tuple[str, bytes]:
    """The picture as WebP."""
    with Image.open(io.BytesIO(png)) as picture:
        return f"{Path(file).stem}.webp", encoded(picture.convert("RGBA"), "WEBP", quality=92, method=3)


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    """The picture's bytes in a format that Pillow writes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()
