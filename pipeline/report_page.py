"""The parts of a report page: bars, histograms, cards. Plain HTML and inline SVG, no scripts, nothing fetched."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.page import data_uri, text
from pipeline.pictures import as_seen

THUMBNAIL_PX = 160

STYLE = """
:root{--lost:#e0a458;--lost-ink:#9a5b00;--chip:#f4ead9}
@media(prefers-color-scheme:dark){:root{--lost:#c98a3c;--lost-ink:#f0c27f;--chip:#3a3122}}
.step{display:grid;grid-template-columns:150px 1fr 84px;gap:4px 16px;align-items:center;padding:9px 0}
.step+.step{border-top:1px solid var(--line)}
.step .name{font-weight:600}
.step .out{text-align:right;font-variant-numeric:tabular-nums}
.bar{height:18px;background:var(--line);border-radius:4px;overflow:hidden;display:flex}
.bar i{display:block;height:100%;background:var(--good)}
.bar i+i{background:var(--lost)}
.chips{grid-column:2/4;display:flex;flex-wrap:wrap;gap:6px}
.chip{background:var(--chip);color:var(--lost-ink);border-radius:20px;padding:1px 10px;font-size:12.5px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:14px}
.charts h3{margin:0 0 8px}
svg{width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg rect{fill:var(--good)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:12px}
.cards.twins{grid-template-columns:repeat(auto-fill,minmax(268px,1fr))}
.card .pictures{display:flex;background:#fff}
.card img{flex:1;min-width:0;width:100%;aspect-ratio:1;object-fit:contain;padding:10px}
.card img+img{border-left:1px dashed #c9c7bf}
.card .caption{display:-webkit-box;-webkit-line-clamp:3;-webkit-box-orient:vertical;overflow:hidden;
overflow-wrap:anywhere}
.card .soft{font-size:11.5px;overflow-wrap:anywhere}
td,th{text-align:left;padding:6px 14px 6px 0;vertical-align:top;border-top:1px solid var(--line);overflow-wrap:anywhere}
td:first-child,td:nth-child(2){white-space:nowrap}
td.count{text-align:right;font-variant-numeric:tabular-nums}
details{margin-top:14px}
summary{cursor:pointer;color:var(--soft)}
pre{margin:10px 0 0}
"""


@dataclass(frozen=True)
class Card:
    """A pair to look at, with the pair that it repeats where it was refused for that."""

    pictures: tuple[bytes, ...]
    caption: str
    notes: tuple[str, ...]
    """Small facts below the caption, a line each."""


def funnel_step(name: str, listed: int, went_in: int, came_out: int, refused: dict[str, int]) -> str:
    """One step of the funnel: a bar of what came out, after it what was refused here, as shares of all rows."""
    lost = went_in - came_out
    chips = "".join(f'<span class="chip">{text(reason)} {count:,}</span>' for reason, count in refused.items())
    return (
        f'<div class="step"><span class="name">{text(name)}</span>'
        f'<span class="bar" title="{came_out:,} stay, {lost:,} refused">'
        f'<i style="width:{100 * came_out / listed:.3f}%"></i><i style="width:{100 * lost / listed:.3f}%"></i></span>'
        f'<span class="out">{came_out:,}</span>{f"<div class=chips>{chips}</div>" if chips else ""}</div>\n'
    )


def histogram(title: str, unit: str, bars: Sequence[tuple[str, int]]) -> str:
    """Bars side by side with a label below each: (label, count)."""
    width, height, foot = 520.0, 150.0, 20.0
    tallest = max((count for _, count in bars), default=0) or 1
    step = width / max(len(bars), 1)
    marks = []
    for number, (label, count) in enumerate(bars):
        tall = (height - 16) * count / tallest
        left, top = number * step, height - tall
        marks.append(
            f'<rect x="{left + 1.5:.1f}" y="{top:.1f}" width="{step - 3:.1f}" height="{tall:.1f}" rx="2">'
            f"<title>{text(label)}: {count:,}</title></rect>"
            f'<text x="{left + step / 2:.1f}" y="{height + 14:.0f}" text-anchor="middle">{text(label)}</text>'
            f'<text x="{left + step / 2:.1f}" y="{top - 4:.1f}" text-anchor="middle">{_short(count)}</text>'
        )
    return (
        f'<div class="panel"><h3>{text(title)} <small>{text(unit)}</small></h3>'
        f'<svg viewBox="0 0 {width:g} {height + foot:g}" role="img" aria-label="{text(title)}">{"".join(marks)}</svg>'
        "</div>\n"
    )


def _short(count: int) -> str:
    return f"{count / 1000:.1f}k" if count >= 10_000 else (f"{count:,}" if count else "")


def cards(shown: Sequence[Card]) -> str:
    """A grid of pairs."""
    kind = "cards twins" if any(len(card.pictures) > 1 for card in shown) else "cards"
    return f'<div class="{kind}">{"".join(_card(card) for card in shown)}</div>\n'


def _card(card: Card) -> str:
    pictures = "".join(f'<img src="{_thumbnail(image)}" alt="" loading="lazy">' for image in card.pictures)
    notes = "".join(f'<div class="soft">{text(note)}</div>' for note in card.notes)
    return (
        f'<figure class="card"><div class="pictures">{pictures}</div><figcaption title="{text(card.caption[:1000])}">'
        f'<div class="caption">{text(card.caption[:300])}</div>{notes}</figcaption></figure>'
    )


def _thumbnail(image: bytes) -> str:
    with Image.open(io.BytesIO(image)) as picture:
        small = as_seen(picture)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=82)
    return data_uri(encoded.getvalue())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand right."""
    head = "".join(f"<th>{text(one)}</th>" for one in header)
    body = "".join(f"<tr>{''.join(_cell(one) for one in row)}</tr>" for row in rows)
    return f'<div class="panel"><table><tr>{head}</tr>{body}</table></div>\n'


def _cell(value: object) -> str:
    return f'<td class="count">{value:,}</td>' if isinstance(value, int) else f"<td>{text(value)}</td>"
