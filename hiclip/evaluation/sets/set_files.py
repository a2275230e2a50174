"""Reads what lies in the folder of an evaluation set; what is missing or damaged is named in one line."""

from __future__ import annotations

import json
import logging

from pipeline.manifest import DatasetError
from pipeline.storage import Folder

log = logging.getLogger(__name__)

_PICTURES = (".jpeg", ".jpg", ".png", ".webp")


def stored_bytes(place: Folder, file: str, called: str) -> bytes:
    """A file of the set `called`; DatasetError if it is not there."""
    if not place.exists(file):
        raise DatasetError(f"{place.join(file)}: the evaluation set {called} is not there")
    return place.read_bytes(file)


def stored_text(place: Folder, file: str, called: str) -> str:
    """A UTF-8 file of the set `called`; DatasetError if it is not there or no text."""
    try:
        return stored_bytes(place, file, called).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{place.join(file)}: expected text in UTF-8: {error}") from None


def stored_lines(place: Folder, file: str, called: str) -> list[str]:
    """The lines of a text file, without spaces around them and without empty ones at its end."""
    return [line.strip() for line in stored_text(place, file, called).rstrip().split("\n")]


def stored_json(place: Folder, file: str, called: str) -> dict[str, object]:
    """The object in a JSON file; DatasetError if it is not there or something else."""
    text = stored_text(place, file, called)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place.join(file)}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{place.join(file)}: expected an object, came {type(content).__name__}")
    return content


def picture_files(place: Folder, below: str, called: str) -> list[str]:
    """Pictures below the folder `below` of a set ("" for all of it), sorted, relative to the set's own folder.

    Hidden files are passed over: an archive from a Mac holds a `._NAME` beside every picture. DatasetError if there
    are none.
    """
    prefix = f"{below}/" if below else ""
    files = [
        prefix + name
        for name in place.child(below).names()
        if name.lower().endswith(_PICTURES) and not any(part.startswith(".") for part in name.split("/"))
    ]
    if not files:
        raise DatasetError(f"{place.join(below)}: no pictures below it: the evaluation set {called} is not there")
    return files


def told_published(called: str, found: int, published: int) -> None:
    """Warns of a copy that is not whole: its numbers cannot stand beside published ones."""
    if found != published:
        log.warning("%s: %d pictures, but the published set has %d", called, found, published)
