"""The rows of URL lists, and their order: (row, pair_id, url, caption, source), sorted by pair_id.

Sorting by a hash of the content is one idea for five needs. The order of the dataset does not depend on the order of
the lists. Rows of one source or one host are spread, so that no server gets ten thousand requests in a row and training
sees a shuffled dataset. Rows that are listed twice are neighbours. Any cut of the rows into parts is a range of names.
And since every later step keeps the order, no picture is ever sorted or sent between machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.addresses import parse_address
from pipeline.captions import clean_caption
from pipeline.list_files import RawRow, UrlList, read_rows
from pipeline.manifest import DatasetError
from pipeline.pair import pair_id, pair_numbers
from pipeline.refusal import Refusal
from pipeline.storage import folder

LISTED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # place in the lists, all of them one after the other
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),  # cleaned
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # why the row is refused before anything is fetched; null: it is not
        pa.field("detail", pa.string()),
    ]
)
"""A row of a URL list."""

_ROWS_AT_ONCE = 65_536


def listed_rows(one: UrlList) -> Iterator[pa.Table]:
    """The rows of a list's file as LISTED, streamed, with `row` counted from 0; faulty rows carry their reason.

    Raises DatasetError in one line when the file is not what its format says.
    """
    raw, rows = read_rows(one), 0
    while batch := list(islice(raw, _ROWS_AT_ONCE)):
        yield _table(batch, rows, one.source_name)
        rows += len(batch)


def in_order(rows: pa.Table) -> pa.Table:
    """LISTED rows by pair_id, source and row; of rows with one pair_id all but the first are refused as repeated."""
    ordered = rows.sort_by([("pair_id", "ascending"), ("source", "ascending"), ("row", "ascending")])
    return _refuse_repeated(ordered.combine_chunks())


def parts_of(pair_ids: pa.Array | pa.ChunkedArray, parts: int) -> npt.NDArray[np.int64]:
    """(rows,): in which of `parts` files, which follow one another in the order of names, a row of this name lies."""
    first = pair_numbers(pair_ids) >> np.uint64(32)
    return (first * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def check_lists(lists: Sequence[UrlList]) -> None:
    """DatasetError that names every list that is not there, and where the public ones come from."""
    missing = [one for one in lists if not folder(one.path).exists()]
    if missing:
        named = "; ".join(f"{one.path}{f' ({one.layout.origin})' if one.layout.origin else ''}" for one in missing)
        raise DatasetError(f"expected these URL lists, found no such files: {named}")


def fetchable(listed: pa.Table) -> pa.Table:
    """The rows that the list did not refuse, in order."""
    return listed.filter(pc.is_null(listed["reason"])).combine_chunks()


def _table(batch: Sequence[RawRow], first_row: int, source: str) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in LISTED.names}
    for row, raw in enumerate(batch, first_row):
        for name, value in zip(LISTED.names, _listed(row, raw, source), strict=True):
            columns[name].append(value)
    return pa.table(columns, schema=LISTED)


def _listed(row: int, raw: RawRow, source: str) -> Iterator[object]:
    url, caption, reason, detail = _text(raw.url).strip(), "", None, None
    try:
        caption = _caption(raw)
        parse_address(url)
    except Refusal as refusal:
        reason, detail = refusal.reason, refusal.detail
    # A row that cannot be read still has a name, from the bytes that are there.
    name = pair_id(url, caption or raw.broken or _text(raw.caption))
    yield from (row, name, _storable(url), caption, _storable(_text(raw.source)) or source, reason, detail)


def _caption(raw: RawRow) -> str:
    if raw.broken:
        raise Refusal("malformed_row", raw.broken[:200])
    try:
        caption = clean_caption((raw.caption or b"").decode("utf-8"))
    except UnicodeDecodeError as error:
        # Guessing the encoding would put wrong letters into the dataset in silence.
        raise Refusal("caption_not_utf8", f"byte {error.start}") from None
    if not caption:
        raise Refusal("caption_missing")
    return caption


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogateescape")


def _storable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refuse_repeated(rows: pa.Table) -> pa.Table:
    """Refuses every row whose pair_id stands in the row before; rows are sorted, so the first of each name stays."""
    names = rows["pair_id"].combine_chunks()
    repeated = pa.concat_arrays([pa.array([False]), pc.equal(names[1:], names[:-1])])
    repeated = pc.and_(repeated, pc.is_null(rows["reason"]))
    reason = pc.if_else(repeated, pa.scalar("duplicate_row"), rows["reason"])
    return rows.set_column(rows.schema.get_field_index("reason"), LISTED.field("reason"), reason)
