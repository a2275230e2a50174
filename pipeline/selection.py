"""The steps after the filters, which need all pairs, in the order of the job's keys."""

from __future__ import annotations

from functools import partial

import pyarrow as pa

from pipeline.all_pairs import crowds, each, meet, nearest, over_spans
from pipeline.balance import READS, Balance, entry_counts, refused
from pipeline.build_job import BuildJob
from pipeline.command import console
from pipeline.decontaminate import (
    Decontaminate,
    Evaluated,
    Piece,
    contaminated,
    joined_looks,
    looks_of,
    pair_columns,
    pieces_of,
)
from pipeline.duplicates import (
    LOOK_KEYS_A_ROW,
    DuplicateSettings,
    LooksAlike,
    NearDuplicates,
    exact_columns,
    exact_keys,
    look_keys,
    part_looks,
    repeated,
    too_common,
    whole_captions,
)
from pipeline.near_captions import CAPTION_COLUMNS, CaptionsAlike, NearCaptions, caption_keys
from pipeline.nearness import RANKED
from pipeline.pool import Pool
from pipeline.progress import progress, told
from pipeline.semantic_duplicates import refuse_semantic
from pipeline.task_window import in_turn


def select(pool: Pool, job: BuildJob) -> Pool:
    """The pool without what the job's steps that need all pairs refuse."""
    if job.decontaminate is not None:
        pool = refuse_evaluated(pool, job.decontaminate)
    pool = refuse_duplicates(pool, job.duplicates)
    return pool if job.balance is None else balance(pool, job.balance)


def refuse_evaluated(pool: Pool, settings: Decontaminate) -> Pool:
    """The pool without pictures of evaluation sets, which are looked at first."""
    looks = []
    for one in settings.sets:
        pieces = list(pieces_of(one.pictures))
        with progress(f"look at {one.name}", len(pieces), "pieces") as advance:
            found = list(told(in_turn(_look_task, enumerate(pieces)), advance))
        looks.append((one.name, [table for table, _ in found]))
        if broken := sum(count for _, count in found):
            console.print(f"decontaminate.sets.{one.name}: {broken:,} pictures cannot be read and are not looked for")
    vectors = [(one.name, settings.vectors(one)) for one in settings.sets]
    evaluated = Evaluated(joined_looks(looks), tuple((name, one) for name, one in vectors if one is not None))
    decide = partial(contaminated, settings=settings, evaluated=evaluated)
    return each(pool, "decontaminate", pair_columns(settings), decide)


def _look_task(number: int, piece: Piece) -> tuple[int, tuple[pa.Table, int]]:
    return number, looks_of(piece)


def balance(pool: Pool, settings: Balance) -> Pool:
    """The pool without what balancing thins out: entries are counted in all pairs first."""
    with progress("balance: count", pool.spans, "spans") as advance:
        counts = sum(told(over_spans(pool, ["caption"], partial(entry_counts, path=settings.entries)), advance))
    return each(pool, "balance", READS, partial(refused, settings=settings, counts=counts))


def refuse_duplicates(pool: Pool, settings: DuplicateSettings) -> Pool:
    """The pool without repeated pictures; the detail names the pair that stays, as `of PAIR_ID`.

    Reasons: `duplicate_image` for the same bytes, `near_duplicate` for the same looks, `near_caption`,
    `common_caption`, `semantic_duplicate`.
    """
    if settings.exact is not None:
        keys = partial(exact_keys, settings=settings)
        pool = meet(pool, "duplicates.exact", exact_columns(settings), keys, repeated)
    if settings.near is not None:
        pool = _refuse_near_looks(pool, settings.near)
    if settings.near_captions is not None:
        pool = _refuse_near_captions(pool, settings.near_captions)
    if (most := settings.common_captions) is not None:
        decide = partial(too_common, most=most)
        pool = meet(pool, "duplicates.common", ("caption",), whole_captions, decide)
    return pool if settings.semantic is None else refuse_semantic(pool, settings.semantic)


def _refuse_near_looks(pool: Pool, settings: NearDuplicates) -> Pool:
    columns, alike = (*RANKED, "hash", "thumbnail"), partial(LooksAlike, settings=settings)
    cuts = crowds(pool, columns, partial(look_keys, settings=settings), partial(part_looks, settings=settings))
    keys = partial(look_keys, settings=settings, crowds=cuts)
    return nearest(pool, "duplicates.near", "near_duplicate", columns, keys, LOOK_KEYS_A_ROW, alike)


def _refuse_near_captions(pool: Pool, settings: NearCaptions) -> Pool:
    keys, alike = partial(caption_keys, settings=settings), partial(CaptionsAlike, settings=settings)
    return nearest(pool, "duplicates.captions", "near_caption", CAPTION_COLUMNS, keys, settings.bands, alike)
