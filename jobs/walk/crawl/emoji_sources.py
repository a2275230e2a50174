"""Emoji for the sample crawl: the same concepts drawn by Google, by Twitter and, kept for evaluation, by OpenMoji.

Captions are put together from emojibase's labels, tags and groups; no word is made up.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cairosvg
from crawl_pictures import Row, draw, drawn_box, encoded, some_of
from PIL import Image

OPENMOJI_PX = 96


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
        if not self.label.startswith("flag"):  # "flags: flag: Oman" says nothing new
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


def square_frame(png: bytes) -> tuple[int, int, int, int]:
    """The square around what is drawn, at least 0.7 of the picture wide: small signs stay small."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    left, upper, right, lower = drawn_box(picture)
    side = max(right - left, lower - upper, round(0.7 * picture.width))
    x, y = (left + right - side) // 2, (upper + lower - side) // 2
    return x, y, x + side, y + side


def as_webp(file: str, png: bytes) -> tuple[str, bytes]:
    """The picture as WebP."""
    with Image.open(io.BytesIO(png)) as picture:
        return f"{Path(file).stem}.webp", encoded(picture.convert("RGBA"), "WEBP", quality=92, method=3)
