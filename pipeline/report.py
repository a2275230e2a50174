"""The page of a build for a person: what came in, what was refused and why, what is left, with the pictures.

`report.html` is one file that can be mailed: pictures are inside it, nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline import report_page as part
from pipeline.facts import REFUSED_SHOWN, SHOWN, Facts, most_frequent, side_bars, word_bars
from pipeline.manifest import Manifest
from pipeline.page import figures, page, text
from pipeline.pool import Pool
from pipeline.storage import Folder


def write_report(target: Folder, name: str, manifest: Manifest, facts: Facts, pool: Pool) -> None:
    """Writes the page; `pool` has the pictures of the rows in `facts`."""
    kept = pa.concat_tables(facts.kept)
    parts = [
        *_head(manifest),
        "<h2>Funnel</h2><p>Every row of the lists ends in one place. Green: rows that a step let through; "
        "amber: rows that it refused; the number: rows that came out.</p><div class=panel>",
        *(_step(one, manifest.funnel[0]["went_in"]) for one in manifest.funnel),
        "</div>\n<h2>What is left</h2><p>Of the pairs in the dataset.</p><div class=charts>",
        *_histograms(facts),
        f"</div>\n<h2>Kept pairs</h2><p>The first {kept.num_rows} of the dataset. "
        "Its order is that of a hash, so they are a fair sample.</p>",
        part.cards(_cards(kept, pool)),
        "<h2>Refused pairs</h2><p>Pictures that were fetched and are not in the dataset, up to "
        f"{REFUSED_SHOWN} of each reason. Duplicates: the refused picture left, the one that it repeats right.</p>",
        *_refused_with_picture(manifest.funnel, facts, pool),
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


def _histograms(facts: Facts) -> Iterator[str]:
    yield part.histogram("Caption length", "words", word_bars(facts))
    yield part.histogram("Picture size", "shorter side as downloaded, px", side_bars(facts))
    yield part.histogram("Source", "the list or column that a pair came from", most_frequent(facts.sources))
    if facts.languages:
        yield part.histogram("Language", "of the caption, as the annotation has it", most_frequent(facts.languages))


def _cards(rows: pa.Table, pool: Pool, beside: pa.Table | None = None) -> list[part.Card]:
    """Cards of `rows`; `beside` has the row that each is shown next to."""
    pictures = [_pictures(table, pool) for table in (rows, beside) if table is not None]
    kept: list[dict[str, Any] | None] = [None] * rows.num_rows if beside is None else beside.to_pylist()
    return [
        part.Card(tuple(image for image in images if image is not None), row["caption"], _notes(row, stays))
        for row, stays, *images in zip(rows.to_pylist(), kept, *pictures, strict=True)
    ]


def _pictures(rows: pa.Table, pool: Pool) -> list[bytes | None]:
    wanted = np.asarray(rows["row"])
    found = pa.concat_tables(pool.pairs(np.unique(wanted), ["image"]))["image"].to_pylist()
    return [found[at] for at in np.searchsorted(np.unique(wanted), wanted)]


def _notes(row: dict[str, Any], stays: dict[str, Any] | None) -> tuple[str, ...]:
    facts = [row["source"], f"{row['original_width']} × {row['original_height']} px"]
    if row["step"] == "language":
        facts.append(f"{row['language']} {row['language_score']:.2f}")
    if stays is not None:
        facts.append(f"stays: {stays['caption'][:100]}")
    return tuple(facts)


def _refused_with_picture(funnel: Sequence[dict[str, Any]], facts: Facts, pool: Pool) -> Iterator[str]:
    for one in funnel:
        for reason, count in one["refused"].items():
            shown = facts.refused.get((one["step"], reason))
            if shown:
                rows = pa.concat_tables(shown)
                stays = None if rows["of"].null_count else _rows(rows["of"].to_pylist(), pool)
                pairs = f"{count:,} pair{'s' * (count != 1)}"
                yield f"<h3>{text(one['step'])}: {text(reason)} <small>{pairs}</small></h3>"
                yield part.cards(_cards(rows, pool, stays))


def _rows(rows: Sequence[int], pool: Pool) -> pa.Table:
    """The pairs beside which others were refused, one by one."""
    return pa.concat_tables(pool.judged_rows(row, row + 1, SHOWN) for row in rows)


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
