"""A caption is cleaned once, before it gets its name: what the page meant, in plain characters."""

from __future__ import annotations

import html
import re
import unicodedata

_TAGS = re.compile(r"</?(?:a|b|i|u|em|strong|br|p|span|font)(?:\s[^<>]*)?/?>", re.IGNORECASE)
# Line feeds and other controls part words; marks without width (byte order mark, zero-width space, soft hyphen, bidi
# overrides) are within them. Joiners (U+200C, U+200D) stay: Persian, Hindi and emoji need them.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WIDTHLESS = re.compile("[\ufeff\u200b\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean_caption(text: str) -> str:
    """Entities resolved, mark-up and controls dropped, blanks collapsed, accents composed (Unicode NFC)."""
    if text.isascii() and text.isprintable() and "&" not in text and "<" not in text:
        return " ".join(text.split())
    text = _TAGS.sub(" ", html.unescape(text))
    text = _WIDTHLESS.sub("", _CONTROLS.sub(" ", text))
    return unicodedata.normalize("NFC", " ".join(text.split()))
