"""The steps after the filters, which need all pairs, in the order of the job's keys."""

from __future__ import annotations

from functools import partial

from pipeline.all_pairs import meet, nearest
from pipeline.build_job import BuildJob
from pipeline.duplicates import (
    LOOK_KEYS_A_ROW,
    RANKED,
    DuplicateSettings,
    LooksAlike,
    exact_columns,
    exact_keys,
    look_keys,
    repeated,
)
from pipeline.pool import Pool


def select(pool: Pool, job: BuildJob) -> Pool:
    """The pool without what the job's steps that need all pairs refuse."""
    return refuse_duplicates(pool, job.duplicates)


def refuse_duplicates(pool: Pool, settings: DuplicateSettings) -> Pool:
    """The pool without repeated pictures; the detail names the pair that stays, as `of PAIR_ID`.

    Reasons: `duplicate_image` for the same bytes, `near_duplicate` for the same looks.
    """
    if settings.exact is not None:
        keys = partial(exact_keys, settings=settings)
        pool = meet(pool, "duplicates.exact", exact_columns(settings), keys, repeated)
    if (near := settings.near) is not None:
        columns = (*RANKED, "hash", "thumbnail")
        keys, alike = partial(look_keys, settings=near), partial(LooksAlike, settings=near)
        pool = nearest(pool, "duplicates.near", "near_duplicate", columns, keys, LOOK_KEYS_A_ROW, alike)
    return pool
