"""The page of a build for a person: what came in, what was refused and why, what is left, with the pictures.

`report.html` is one file that can be mailed: pictures are inside it, nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline import report_page as part
from pipeline.manifest import Manifest
from pipeline.page import figures, page, text
from pipeline.rules import word_counts
from pipeline.snapshot import pictures_of
from pipeline.storage import Folder

_KEPT_SHOWN = 64
_REFUSED_SHOWN = 8  # of each reason
_WORDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 50)
_SIDES_PX = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


def write_report(target: Folder, name: str, manifest: Manifest, judged: pa.Table, snapshot: Folder) -> None:
    """Writes the page; `judged` (stages.JUDGED) has what is known of the fetched rows, `snapshot` their pictures."""
    kept = judged.filter(pc.is_null(judged["step"]))
    parts = [
        *_head(manifest),
        "<h2>Funnel</h2><p>Every row of the lists ends in one place. Green: rows that a step let through; "
        "amber: rows that it refused; the number: rows that came out.</p><div class=panel>",
        *(_step(one, manifest.funnel[0]["went_in"]) for one in manifest.funnel),
        "</div>\n<h2>What is left</h2><p>Of the pairs in the dataset.</p><div class=charts>",
        *_histograms(kept),
        f"</div>\n<h2>Kept pairs</h2><p>The first {min(_KEPT_SHOWN, kept.num_rows)} of the dataset. "
        "Its order is that of a hash, so they are a fair sample.</p>",
        part.cards(_cards(kept.slice(0, _KEPT_SHOWN), snapshot)),
        "<h2>Refused pairs</h2><p>Pictures that were fetched and are not in the dataset, up to "
        f"{_REFUSED_SHOWN} of each reason. Duplicates: the refused picture left, the one that stays right.</p>",
        *_refused_with_picture(manifest.funnel, judged, snapshot),
        "<h2>Refused without a picture</h2><p>Rows that the list or the web refused, with an example.</p>",
        _refused_without_picture(manifest.funnel),
        *_foot(manifest),
    ]
    target.write_text(name, page(f"Build of {manifest.name}", part.STYLE, parts))


def _head(manifest: Manifest) -> Iterator[str]:
    listed = manifest.funnel[0]["went_in"]
    yield f"<h1>{text(manifest.name)}</h1>"
    yield f'<div class="soft mono">fingerprint {text(manifest.fingerprint)}</div>'
    yield figures(
        [
            (f"{listed:,}", "rows in the lists"),
            (f"{manifest.pairs:,}", "pairs kept"),
            (f"{manifest.pairs / listed:.1%}", "of all rows"),
            (f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB", f"in {len(manifest.shards)} shards"),
        ]
    )


def _step(one: dict[str, Any], listed: int) -> str:
    return part.funnel_step(one["step"], listed, one["went_in"], one["came_out"], one["refused"])


def _histograms(kept: pa.Table) -> Iterator[str]:
    yield part.histogram("Caption length", "words", _binned(word_counts(kept["caption"]), _WORDS))
    shorter = pc.min_element_wise(kept["original_width"], kept["original_height"])
    yield part.histogram("Picture size", "shorter side as downloaded, px", _binned(shorter, _SIDES_PX))
    yield part.histogram("Source", "the list or column that a pair came from", _counted(kept["source"]))
    if "language" in kept.schema.names:
        yield part.histogram("Language", "of the caption, as the annotation has it", _counted(kept["language"]))


def _binned(values: pa.Array, edges: Sequence[int]) -> list[tuple[str, int]]:
    """Counts below the first edge, from each edge to the next, and from the last on; empty ends are left out."""
    places = np.searchsorted(np.array(edges), np.asarray(values), side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    labels = [f"<{edges[0]}"]
    labels += [f"{low}" if high - low == 1 else f"{low}+" for low, high in pairwise(edges)]
    labels += [f"{edges[-1]}+"]
    used = np.flatnonzero(counts)
    span = range(used[0], used[-1] + 1) if len(used) else range(0)
    return [(labels[place], int(counts[place])) for place in span]


def _counted(values: pa.ChunkedArray, most: int = 9) -> list[tuple[str, int]]:
    """The most frequent values, and the rest as one."""
    counts = sorted(((one["values"] or "none", one["counts"]) for one in pc.value_counts(values).to_pylist()),
                    key=lambda pair: (-pair[1], pair[0]))  # fmt: skip
    rest = sum(count for _, count in counts[most:])
    return counts[:most] + ([("others", rest)] if rest else [])


def _cards(rows: pa.Table, snapshot: Folder, beside: pa.Table | None = None) -> list[part.Card]:
    """Cards of `rows`; `beside` has the row that each is shown next to."""
    pictures = [pictures_of(snapshot, table["shard"].to_pylist(), table["place"].to_pylist())
                for table in (rows, beside) if table is not None]  # fmt: skip
    kept: list[dict[str, Any] | None] = [None] * rows.num_rows if beside is None else beside.to_pylist()
    return [
        part.Card(tuple(image for image in images if image is not None), row["caption"], _notes(row, stays))
        for row, stays, *images in zip(rows.to_pylist(), kept, *pictures, strict=True)
    ]


def _notes(row: dict[str, Any], stays: dict[str, Any] | None) -> tuple[str, ...]:
    facts = [row["source"], f"{row['original_width']} × {row['original_height']} px"]
    if row["step"] == "language":
        facts.append(f"{row['language']} {row['language_score']:.2f}")
    if stays is not None:
        facts.append(f"stays: {stays['caption'][:100]}")
    return tuple(facts)


def _refused_with_picture(funnel: Sequence[dict[str, Any]], judged: pa.Table, snapshot: Folder) -> Iterator[str]:
    fetched = judged.filter(pc.and_(pc.is_valid(judged["step"]), pc.is_valid(judged["width"])))
    for one in funnel:
        for reason, count in one["refused"].items():
            mask = pc.and_(pc.equal(fetched["step"], one["step"]), pc.equal(fetched["reason"], reason))
            rows = fetched.filter(mask).slice(0, _REFUSED_SHOWN)
            if rows.num_rows:
                stays = _named_in_detail(rows, judged) if one["step"] == "duplicates" else None
                pairs = f"{count:,} pair{'s' * (count != 1)}"
                yield f"<h3>{text(one['step'])}: {text(reason)} <small>{pairs}</small></h3>"
                yield part.cards(_cards(rows, snapshot, stays))


def _named_in_detail(rows: pa.Table, judged: pa.Table) -> pa.Table:
    """The pairs that the details of duplicates name, `of PAIR_ID`, row for row."""
    names = pa.array([detail.removeprefix("of ") for detail in rows["detail"].to_pylist()])
    return judged.take(pc.index_in(names, value_set=judged["pair_id"].combine_chunks()))


def _refused_without_picture(funnel: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in funnel:
        if one["step"] in ("list", "download"):
            for reason, count in one["refused"].items():
                example = one["examples"][reason][0]
                rows.append(
                    (one["step"], reason, count, example["url"][:160] or example["caption"][:160], example["detail"])
                )
    return part.table(("step", "reason", "rows", "for example", "detail"), rows)


def _foot(manifest: Manifest) -> Iterator[str]:
    yield "<h2>How it was made</h2>"
    facts = [("snapshot", manifest.snapshot), ("pairs a shard", f"{manifest.pairs_per_shard:,}")]
    yield part.table(("", ""), [*facts, *manifest.versions.items()])
    job = yaml.safe_dump(manifest.job, sort_keys=False, allow_unicode=True)
    yield f"<details><summary>the resolved job</summary><pre class=mono>{text(job)}</pre></details>"
