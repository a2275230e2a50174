"""The page of a comparison: which run is better where, at a glance and then number by number.

One file as every page here: inline SVG, no scripts, nothing fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from hiclip.evaluation.averages import eleven_sets
from hiclip.evaluation.compare import Comparison, Difference, Line
from hiclip.evaluation.compare_tables import (
    by_set,
    difference_text,
    explained,
    printed,
    published_columns,
    remarks,
    shown_columns,
    source_text,
    title,
)
from hiclip.evaluation.page_parts import STYLE
from hiclip.evaluation.published_rows import PublishedRow, rows_with
from hiclip.evaluation.result import Result
from hiclip.evaluation.table import interval, number, with_sign
from pipeline.page import figures, page, text

_COLOURS = ("#6b7f99", "#2f8f79", "#d58a2a", "#9a5ea6", "#b4503e", "#3f7fb8", "#7f8f3a", "#c2679a")
"""Of the runs in their order; readable on both grounds."""
_HEADLINES = ("top1", "image_to_text_r1", "text_to_image_r1")
"""Metrics of the figure: all of them shares, so that one axis serves."""

_Scale = Callable[[float], float]
"""A value to its place, in pixels from the left."""

_STYLE = """
.dot{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:7px;vertical-align:-1px}
.sub{display:block;font-size:12px;font-weight:400;color:var(--soft)}
.sub.up{color:var(--good)}.sub.down{color:var(--bad)}
td.lanes{width:230px}
td.best{font-weight:700}
td.long{white-space:normal;text-align:left;color:var(--soft);font-size:12px;min-width:230px}
.published td,.published th{padding-left:14px}
.published th{vertical-align:bottom;line-height:1.3}
.published .apart{border-left:18px solid var(--ground)}
.published th{white-space:normal;min-width:64px}
.published th.run{white-space:nowrap}
.published :has(+.apart){padding-right:10px}
td.left,th.left{text-align:left}
.remarks{font-size:12.5px;color:var(--soft);margin:8px 0 0;padding-left:18px}
svg text{font:12.5px system-ui,sans-serif;fill:var(--ink)}
svg text.soft{fill:var(--soft)}
svg text.up{fill:var(--good)}svg text.down{fill:var(--bad)}
"""


def compare_page(comparison: Comparison, published: Sequence[PublishedRow] = ()) -> str:
    """The whole page. `published`: rows to stand beside, where they have a number of a set that the runs have."""
    labels = [run.label for run in comparison.runs]
    parts = [
        f"<h1>{text(' · '.join(labels))}</h1>",
        *_runs(comparison),
        *_glance(comparison),
        f"<h2>Number by number</h2><p>{text(explained(comparison))}</p>",
    ]
    for name, lines in by_set(comparison):
        parts += _set(comparison, name, lines)
    parts += _published(comparison, published)
    return page(f"Comparison {', '.join(labels)}", STYLE + _STYLE, parts)


def _dot(place: int) -> str:
    return f'<span class="dot" style="background:{_COLOURS[place]}"></span>'


def _runs(comparison: Comparison) -> Iterator[str]:
    head = "".join(f"<th>{name}</th>" for name in ("run", "pairs seen", "parameters", "eleven sets"))
    yield f'<div class="panel" style="margin-top:22px"><table><tr>{head}<th class="left">checkpoint</th></tr>'
    for place, run in enumerate(comparison.runs):
        outcome = run.outcome
        seen = "–" if outcome.seen is None else f"{outcome.seen:,}"
        yield (
            f"<tr><td>{_dot(place)}{text(run.label)}</td><td>{seen}</td><td>{outcome.parameters / 1e6:.1f} M</td>"
            f'<td>{text(eleven_sets(outcome.results))}</td><td class="long mono">{text(outcome.checkpoint)}</td></tr>'
        )
    yield "</table></div>\n"


def _glance(comparison: Comparison) -> Iterator[str]:
    """Differences of the headline metrics to the first run on one axis."""
    first = comparison.runs[0].label
    lines = [line for line in comparison.lines if line.metric in _HEADLINES]
    known = [line for line in lines if any(isinstance(one, Difference) for one in line.differences)]
    yield f"<h2>Better or worse than {text(first)}</h2>"
    if not known:
        yield "<p>No set was asked of two runs about the same pictures, so no difference can be told.</p>"
        return
    counts, kinds = [], []
    for place, run in enumerate(comparison.runs[1:], 1):
        verdicts = [
            one.verdict(line.metric) for line in known if isinstance(one := line.differences[place], Difference)
        ]
        better, worse = verdicts.count(1), verdicts.count(-1)
        counts.append((f"{better} better, {worse} worse", f"{run.label}, of {len(verdicts)}; the rest is undecided"))
        kinds.append("good" if better > worse else "bad" if worse > better else "")
    yield figures(counts, kinds)
    yield (
        '<p style="margin-top:14px">Percentage points, with paired 95 % intervals. A full dot: the interval excludes '
        "zero. Top-1 of each set, and recall at 1 in both directions of retrieval.</p>"
    )
    yield f'<div class="panel">{_legend(comparison)}{_forest(comparison, known)}</div>\n'


def _legend(comparison: Comparison) -> str:
    if len(comparison.runs) == 2:
        return ""
    return '<div class="key">' + "".join(
        f"<span>{_dot(place)}{text(run.label)}</span>" for place, run in enumerate(comparison.runs) if place
    ) + "</div>"  # fmt: skip


def _forest(comparison: Comparison, lines: Sequence[Line]) -> str:
    left, right, width, lane = 270, 190, 1100, 20
    ends = [
        100 * end
        for line in lines
        for one in line.differences
        if isinstance(one, Difference)
        for end in (one.low, one.high)
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    others = range(1, len(comparison.runs))
    row = lane * len(others) + 8

    def at(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    height = row * len(lines) + 34
    drawn = []
    for tick in _ticks(low, high):
        colour = "var(--soft)" if tick == 0 else "var(--line)"
        drawn.append(f'<rect x="{at(tick):.1f}" y="4" width="1" height="{height - 30}" fill="{colour}"/>')
        drawn.append(
            f'<text class="soft" x="{at(tick):.1f}" y="{height - 10}" text-anchor="middle">{_signed(tick)}</text>'
        )
    for number_, line in enumerate(lines):
        top = 4 + number_ * row
        name = f"{line.set}, {title(line.metric)}"
        drawn.append(f'<text x="0" y="{top + row / 2 + 4:.1f}">{text(name)}</text>')
        for place in others:
            middle = top + 4 + lane * (place - 0.5)
            drawn += _estimate(line, line.differences[place], place, middle, at, width)
    return f'<svg viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(drawn)}</svg>'


def _estimate(line: Line, one: Difference | str, place: int, y: float, at: _Scale, width: int) -> Iterator[str]:
    if isinstance(one, str):
        yield f'<text class="soft" x="{width}" y="{y + 4:.1f}" text-anchor="end">{text(one)}</text>'
        return
    colour, verdict = _COLOURS[place], one.verdict(line.metric)
    low, high = at(100 * one.low), at(100 * one.high)
    said = difference_text(one, line.unit)
    yield f'<rect x="{low:.1f}" y="{y - 1:.1f}" width="{max(high - low, 1):.1f}" height="2" fill="{colour}"/>'
    yield (
        f'<circle cx="{at(100 * one.value):.1f}" cy="{y:.1f}" r="5" stroke="{colour}" stroke-width="2" '
        f'fill="{colour if verdict else "var(--paper)"}"><title>{text(said)}</title></circle>'
    )
    kind = {1: "up", -1: "down", 0: "soft"}[verdict]
    yield f'<text class="{kind}" x="{width}" y="{y + 4:.1f}" text-anchor="end">{text(said)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, zero among them."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough)
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if value else "0"


def _set(comparison: Comparison, name: str, lines: Sequence[Line]) -> Iterator[str]:
    runs = "".join(f"<th>{_dot(place)}{text(run.label)}</th>" for place, run in enumerate(comparison.runs))
    yield f'<h3>{text(name)}</h3><div class="panel"><table><tr><th>metric</th><th></th>{runs}</tr>'
    for line in lines:
        cells = "".join(_cell(line, place) for place in range(len(comparison.runs)))
        yield f'<tr><td>{text(title(line.metric))}</td><td class="lanes">{_lanes(line)}</td>{cells}</tr>'
    yield "</table>"
    said = list(remarks(comparison, lines))
    if said:
        yield '<ul class="remarks">' + "".join(f"<li>{text(one)}</li>" for one in said) + "</ul>"
    yield "</div>\n"


def _cell(line: Line, place: int) -> str:
    result, difference = line.results[place], line.differences[place]
    if result is None:
        return '<td class="soft">–</td>'
    below = f'<span class="sub">{text(interval(result))}</span>'
    if isinstance(difference, Difference):
        kind = {1: "up", -1: "down", 0: ""}[difference.verdict(line.metric)]
        below += f'<span class="sub {kind}">{text(difference_text(difference, line.unit))}</span>'
    best = ' class="best"' if line.best == place else ""
    return f"<td{best}>{text(with_sign(result.value, line.unit))}{below}</td>"


def _lanes(line: Line) -> str:
    """Every run's value and interval from zero on, one under the other."""
    width, lane = 230, 11
    there = [result for result in line.results if result is not None]
    end = 1.05 * max(max(result.high, result.value) for result in there) or 1.0
    height = lane * len(line.results) + 4

    def at(value: float) -> float:
        return 5 + (width - 10) * min(max(value / end, 0.0), 1.0)

    drawn = [f'<rect x="5" y="0" width="1" height="{height}" fill="var(--line)"/>']
    for place, result in enumerate(line.results):
        if result is not None:
            drawn += _lane(result, line.unit, place, 2 + lane * (place + 0.5), at)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(drawn)}</svg>'


def _lane(result: Result, unit: str, place: int, y: float, at: _Scale) -> Iterator[str]:
    low, high, colour = at(result.low), at(result.high), _COLOURS[place]
    yield (
        f'<rect x="{low:.1f}" y="{y - 3:.1f}" width="{max(high - low, 1):.1f}" height="6" rx="3" fill="{colour}" '
        'opacity=".35"/>'
    )
    yield f'<circle cx="{at(result.value):.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
    yield f"<title>{text(number(result.value, unit))}</title></circle>"


def _published(comparison: Comparison, published: Sequence[PublishedRow]) -> Iterator[str]:
    known = published_columns(comparison)
    rows = rows_with(published, known)
    if not rows:
        return
    columns = shown_columns(rows, known)
    encoders = dict.fromkeys(row.encoder or "no encoder" for row in rows)
    yield (
        f"<h2>As published <small class=soft>{text(', '.join(encoders))}</small></h2><p>Printed by papers and "
        "repositories, in percent (Rsum of 600), without intervals. Other copies of the pictures, other prompts and "
        "transforms, and other training may stand behind them. Left of the gap are the runs of this page.</p>"
    )
    sources = list(dict.fromkeys(source_text(row) for row in rows))
    head = "".join(f'<th class="run">{_dot(place)}{text(run.label)}</th>' for place, run in enumerate(comparison.runs))
    head += "".join(
        f'<th class="{_apart(place)}">{text(row.method)}<br><small>{text(row.data)} '
        f"[{sources.index(source_text(row)) + 1}]</small></th>"
        for place, row in enumerate(rows)
    )
    yield f'<div class="panel published"><table><tr><th></th>{head}</tr>'
    measured = {
        (line.set, line.metric): [number(one.value, one.unit) if one else "–" for one in line.results]
        for line in comparison.lines
    }
    averages = [eleven_sets(run.outcome.results).top1 for run in comparison.runs]
    measured["eleven_sets", "top1"] = [number(one, "share") for one in averages]
    for name, metric in columns:
        cells = "".join(f"<td>{one}</td>" for one in measured[name, metric])
        cells += "".join(
            f'<td class="{_apart(place)}">{printed(row, name, metric)}</td>' for place, row in enumerate(rows)
        )
        yield f"<tr><td>{text(name)}, {text(title(metric))}</td>{cells}</tr>"
    listed = "".join(f"<li>{text(source)}</li>" for source in sources)
    yield f'</table><ol class="remarks">{listed}</ol></div>\n'


def _apart(place: int) -> str:
    """The first published column stands off the runs'."""
    return "apart" if place == 0 else ""
