"""The parts of a results page: ranges, bars, cards, a matrix. HTML and inline SVG, no scripts, nothing fetched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hiclip.data.images import ImageError, decode
from pipeline.page import data_uri, text

_THUMBNAIL_PX = 200
_SMALL_BYTES = 20_000

STYLE = """
:root{--pale:#2f7d6b38;--other:#d58a2a;--chance:#9a9ea5;--right:#e3f0ec;--cell:47,125,107}
@media(prefers-color-scheme:dark){:root{--pale:#57b59d40;--other:#e0a458;--chance:#7c828a;--right:#23403a;
--cell:87,181,157}}
td,th{text-align:right;padding:7px 0 7px 16px;border-top:1px solid var(--line);font-variant-numeric:tabular-nums;
white-space:nowrap}
td:first-child,th:first-child{text-align:left;padding-left:0}
td.value{font-weight:600}
td.range{width:250px}
.key{display:flex;flex-wrap:wrap;gap:20px;font-size:12.5px;color:var(--soft);margin:12px 0 2px}
.key span{display:flex;align-items:center;gap:7px}
.bars{columns:3 300px;column-gap:34px}
.family{break-inside:avoid;margin:0 0 16px}
.family b{font-size:13px}
.row{display:grid;grid-template-columns:138px 1fr 42px;gap:10px;align-items:center;font-size:12.5px;height:21px}
.row .name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;color:var(--soft)}
.row .value{text-align:right;font-variant-numeric:tabular-nums}
.track{position:relative;height:9px;background:var(--line);border-radius:3px}
.track i{position:absolute;left:0;top:0;bottom:0;border-radius:3px;background:var(--pale)}
.track i+i{background:var(--good)}
.matrix td{text-align:center;padding:6px 4px;min-width:54px;border:2px solid var(--paper);border-radius:6px}
.matrix th{text-align:center;padding:4px;font-size:12px;white-space:normal;vertical-align:bottom}
.matrix td.name{text-align:left;color:var(--soft);padding-right:14px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(172px,1fr));gap:12px}
.card>img{display:block;width:100%;height:118px;object-fit:contain;padding:10px;background:#fff}
.card ol{margin:6px 0 0;padding:0;font-size:12px;color:var(--soft);list-style-position:inside}
.card li{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.card li.right{color:var(--good);font-weight:600}
.found{display:grid;grid-template-columns:1fr repeat(5,86px) 190px;gap:12px;align-items:center;padding:7px 0}
.found+.found{border-top:1px solid var(--line)}
.found img{width:86px;height:72px;object-fit:contain;background:#fff;border:1px solid var(--line);border-radius:8px;
padding:5px}
.found img.right{border:3px solid var(--good);padding:3px}
.drawing{margin:0 0 16px}
.drawing img{display:block;max-width:100%;margin:0 auto;border-radius:6px;background:#fff}
"""


@dataclass(frozen=True)
class Mark:
    """A value on a range: a `dot` (the model), a `tick` (chance) or a `diamond` (a baseline)."""

    value: float
    shape: str
    title: str


def value_range(marks: Sequence[Mark], low: float, high: float, end: float) -> str:
    """A line from 0 to `end` with an interval and marks on it."""
    width, middle = 250.0, 9.0

    def at(value: float) -> float:
        return 6 + (width - 12) * min(max(value / end, 0.0), 1.0) if end > 0 else 6.0

    drawn = [
        f'<rect x="6" y="{middle - 0.5}" width="{width - 12}" height="1" fill="var(--line)"/>',
        f'<rect x="{at(low):.1f}" y="{middle - 4}" width="{max(at(high) - at(low), 1):.1f}" height="8" rx="4" '
        'fill="var(--pale)"/>',
        *(_shape(mark, at(mark.value), middle) for mark in marks),
    ]
    return f'<svg viewBox="0 0 {width:g} 18" width="{width:g}" height="18" role="img">{"".join(drawn)}</svg>'


def _shape(mark: Mark, x: float, y: float) -> str:
    title = f"<title>{text(mark.title)}</title>"
    if mark.shape == "dot":
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="var(--good)">{title}</circle>'
    if mark.shape == "tick":
        return f'<rect x="{x - 1:.1f}" y="{y - 7}" width="2" height="14" fill="var(--chance)">{title}</rect>'
    return (
        f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" fill="var(--other)" '
        f'transform="rotate(45 {x:.1f} {y})">{title}</rect>'
    )


def key(entries: Sequence[tuple[str, str]]) -> str:
    """What the shapes of a range mean: (shape, words)."""
    shown = "".join(
        f'<span><svg viewBox="0 0 18 18" width="18" height="18">{_shape(Mark(0, shape, words), 9, 9)}</svg>'
        f"{text(words)}</span>"
        for shape, words in entries
    )
    return f'<div class="key">{shown}</div>'


def matrix(names: Sequence[str], shares: Sequence[Sequence[float]], counts: Sequence[int]) -> str:
    """Shares (rows sum to one) as a tinted table: row what it is, column what it was taken for."""
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    rows = "".join(
        f'<tr><td class="name">{text(name)} <small>{count:,}</small></td>'
        + "".join(
            f'<td style="background:rgba(var(--cell),{0.08 + 0.82 * share if share else 0:.2f})">'
            f"{f'{100 * share:.0f}' if share >= 0.005 else ''}</td>"
            for share in row
        )
        + "</tr>"
        for name, row, count in zip(names, shares, counts, strict=True)
    )
    return f'<div class="panel"><table class="matrix"><tr><th></th>{head}</tr>{rows}</table></div>\n'


def thumbnail(image: bytes) -> str:
    """The address of a picture as a page shows it: itself if it is small, else shrunken; grey if it cannot be read."""
    try:
        pixels = decode(image)
    except ImageError:
        pixels = np.full((_THUMBNAIL_PX, _THUMBNAIL_PX, 3), 200, dtype=np.uint8)
    else:
        if len(image) <= _SMALL_BYTES:
            return data_uri(image)
    shown = Image.fromarray(pixels)
    shown.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    encoded = io.BytesIO()
    shown.save(encoded, "WEBP", quality=82)
    return data_uri(encoded.getvalue())


def card(image: bytes, title: str, note: str, answers: Sequence[tuple[str, bool]]) -> str:
    """A picture, what it is, and a list of answers: (answer, whether it is right)."""
    items = "".join(
        f'<li{" class=right" if right else ""} title="{text(answer)}">{text(answer)}</li>' for answer, right in answers
    )
    return (
        f'<figure class="card"><img src="{thumbnail(image)}" alt="" loading="lazy"><figcaption>{text(title)}'
        f'<div class="soft">{text(note)}</div><ol>{items}</ol></figcaption></figure>'
    )


def found(caption: str, images: Sequence[tuple[bytes, bool]], note: str) -> str:
    """A caption, the pictures found for it (picture, whether it is right), and a note."""
    shown = "".join(
        f'<img src="{thumbnail(image)}" alt="" loading="lazy"{" class=right" if right else ""}>'
        for image, right in images
    )
    return f'<div class="found"><div>{text(caption)}</div>{shown}<div class="soft">{text(note)}</div></div>'


def bar_row(name: str, inner: float, outer: float, value: str, title: str) -> str:
    """A line of a bar chart: a solid bar inside a pale one, both shares from 0 to 1."""
    return (
        f'<div class="row" title="{text(title)}"><span class="name">{text(name)}</span><span class="track">'
        f'<i style="width:{100 * outer:.1f}%"></i><i style="width:{100 * inner:.1f}%"></i></span>'
        f'<span class="value">{text(value)}</span></div>'
    )
