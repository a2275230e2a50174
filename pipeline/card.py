"""The card of a dataset: `card.md`, what a reader has to know of it, in Markdown, every number as it was counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from pipeline.build_job import BuildJob
from pipeline.facts import Facts, most_frequent, side_bars, word_bars
from pipeline.funnel import Tally, refused_counts
from pipeline.manifest import MANIFEST, Manifest
from pipeline.storage import Folder

CARD = "card.md"


def write_card(target: Folder, job: BuildJob, manifest: Manifest, tally: Tally, facts: Facts) -> None:
    """Writes the card of a dataset that is about to be whole."""
    target.write_text(CARD, "\n".join(_lines(job, manifest, tally, facts)) + "\n")


def _lines(job: BuildJob, manifest: Manifest, tally: Tally, facts: Facts) -> Iterator[str]:
    listed = manifest.funnel[0]["went_in"]
    yield f"# {manifest.name}"
    yield from _paragraph(
        job.card.description or "Pictures from the web, each with the caption that its source gives it."
    )
    size = sum(shard.bytes for shard in manifest.shards)
    yield from _paragraph(
        f"{manifest.pairs:,} pairs, {manifest.pairs / listed:.1%} of {listed:,} listed rows; "
        f"{len(manifest.shards):,} shards, {size / 1e9:,.2f} GB."
    )
    yield from _paragraph(f"Fingerprint: `{manifest.fingerprint}`")
    yield from _paragraph(f"Contact: {job.card.contact or 'none is given'}")
    yield "## Sources\n"
    yield from _table(("source", "rows listed", "pairs kept", "share", "licence"), _sources(job, tally, facts), 3)
    yield from _paragraph("Pictures and captions remain their owners'; a licence of a list is not one of its pictures.")
    yield from _rules(job, manifest)
    yield "## Funnel\n"
    yield from _table(("step", "rows in", "refused", "rows out", "reasons"), map(_step, manifest.funnel), 3)
    yield from _paragraph(_opted_out(job, manifest))
    yield from _numbers(facts)
    yield from _how(manifest)


def _sources(job: BuildJob, tally: Tally, facts: Facts) -> Iterator[Sequence[str]]:
    for source, rows in sorted(tally.sources.items(), key=lambda one: (-one[1], one[0])):
        kept = facts.sources[source]
        licence = job.card.licences.get(source, "not stated")
        yield source, f"{rows:,}", f"{kept:,}", f"{kept / rows:.1%}", licence


def _rules(job: BuildJob, manifest: Manifest) -> Iterator[str]:
    """Of the job as it is in the manifest, so that every threshold stands there, defaults too."""
    said = manifest.job
    yield "## Rules\n"
    yield from _paragraph("A pair is refused by the first of these that does not like it.")
    for one in said["filters"]:
        yield f"- `{one['name']}`: {_settings(one)}"
    for step in ("decontaminate", "duplicates", "balance"):
        if said[step] is not None:
            yield f"- `{step}`: {_settings(said[step])}"
    yield from _paragraph("\nColumns beside picture and caption:")
    for one, annotation in zip(said["annotations"], job.annotations, strict=True):
        settings = _settings({key: one[key] for key in one if key != "resources"})
        yield f"- `{one['name']}`, version {annotation.version}: {settings}"
    if not job.annotations:
        yield "- none"
    download = said["download"]
    yield from _paragraph(
        f"\nStored at {download['image_px']} px ({download['resize']}), {download['encode_format']}, "
        f"quality {download['encode_quality']}."
    )


def _settings(one: dict[str, Any]) -> str:
    said = yaml.safe_dump({key: value for key, value in one.items() if key != "name"}, default_flow_style=True,
                          sort_keys=False, allow_unicode=True, width=10_000)  # fmt: skip
    return f"`{said.strip()}`" if said.strip() != "{}" else "as it is"


def _step(one: dict[str, Any]) -> Sequence[str]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in one["refused"].items())
    refused = one["went_in"] - one["came_out"]
    return one["step"], f"{one['went_in']:,}", f"{refused:,}", f"{one['came_out']:,}", reasons


def _opted_out(job: BuildJob, manifest: Manifest) -> str:
    if not job.download.honour_opt_out:
        return "Opt-outs (X-Robots-Tag) were not asked for."
    count = refused_counts(manifest.funnel).get("download", {}).get("opt_out", 0)
    return f"Opt-outs honoured: {count:,} pictures whose server says noai, noimageai, noindex or noimageindex."


def _numbers(facts: Facts) -> Iterator[str]:
    yield "## What is in it\n"
    for title, bars in (
        ("Words of a caption", word_bars(facts)),
        ("Shorter side as downloaded, px", side_bars(facts)),
        ("Language of the caption, as the annotation has it", most_frequent(facts.languages)),
    ):
        if bars:
            total = sum(count for _, count in bars)
            yield f"{title}: " + ", ".join(f"{name} {count / total:.1%}" for name, count in bars) + ".\n"
    if facts.rated:
        yield f"Not safe for work (`unsafe_score` of 0.5 or more): {facts.unsafe / facts.rated:.2%}.\n"
    else:
        yield "Whether pictures are safe for work was not rated.\n"


def _how(manifest: Manifest) -> Iterator[str]:
    yield "## How to build and check it\n"
    yield "    python -m pipeline.build job.yaml                  # the job that lies beside this card"
    yield "    python -m pipeline.build job.yaml --check          # every shard and the ledger against the manifest"
    yield "    python -m pipeline.build job.yaml --rebuild-check  # from the snapshot, byte for byte"
    yield "    python -m pipeline.build job.yaml --explain ID     # what became of one pair, and why"
    yield "    python -m pipeline.build job.yaml --drift 1000     # how much of it is still on the web\n"
    yield from _paragraph(
        f"Shards, columns and hashes stand in `{MANIFEST}`, every row of the lists and where it ended in `ledger/`, "
        f"pictures of both in `report.html`. Snapshot: `{manifest.snapshot}`."
    )
    yield from _table(("list", "sha256"), ((path, f"`{sha256}`") for path, sha256 in manifest.lists.items()))
    yield from _paragraph("Versions: " + ", ".join(f"{name} {one}" for name, one in manifest.versions.items()) + ".")
    yield "## Known limits\n"
    yield "- Links rot: built again from the lists alone, and not from the snapshot, it will be smaller."
    yield "- Captions are what strangers wrote beside their pictures; filters take out the worst and check no facts."
    yield "- Near duplicates are found by looks; crops, translations and redrawn pictures stay."
    yield "- Whoever is in the pictures was not asked. A pair that has to go is named by its pair_id or address."


def _paragraph(text: str) -> Iterator[str]:
    yield f"{text}\n"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]], numbers: int = 0) -> Iterator[str]:
    """Columns 1 to `numbers` stand at the right."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---:' if 0 < at <= numbers else '---' for at in range(len(head)))}|"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""
