"""Every row of the lists ends in one place, and the counts add up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.funnel import KEPT, LEDGER, make_funnel, make_ledger, refused_counts, write_ledger
from pipeline.stages import JUDGED
from pipeline.storage import Folder
from pipeline.url_lists import LISTED

STEPS = ["list", "download", "caption_length", "duplicates"]
ENDS = st.sampled_from([*STEPS, KEPT])


def tables(ends: list[str]) -> tuple[pa.Table, pa.Table]:
    """A list whose rows end as told, in an order unlike that of the list, and what the later steps said of them."""
    listed, judged = [], []
    for place, end in enumerate(ends):
        name = f"{place:016x}"
        at_list = end == "list"
        listed.append(
            {"row": (place * 7 + 3) % len(ends) if len(ends) % 7 else place, "pair_id": name, "url": f"http://x/{name}",
             "caption": f"caption {place}", "source": "s", "reason": "malformed_url" if at_list else None,
             "detail": "no host" if at_list else None}
        )  # fmt: skip
        if not at_list:
            kept = end == KEPT
            one = dict.fromkeys(JUDGED.names)
            judged.append(
                one | {"pair_id": name, "step": None if kept else end, "reason": None if kept else f"r{place % 3}"}
            )
    return pa.Table.from_pylist(listed, schema=LISTED), pa.Table.from_pylist(judged, schema=JUDGED)


@given(st.lists(ENDS, min_size=1, max_size=50))
def test_kept_and_refused_are_all_rows_each_once(ends: list[str]) -> None:
    listed, judged = tables(ends)
    ledger = make_ledger(listed, judged)
    assert ledger["row"].to_pylist() == list(range(len(ends)))
    by_name = dict(zip(ledger["pair_id"].to_pylist(), ledger["step"].to_pylist(), strict=True))
    assert by_name == {f"{place:016x}": end for place, end in enumerate(ends)}
    funnel = make_funnel(ledger, STEPS)
    assert [one["step"] for one in funnel] == STEPS
    assert funnel[0]["went_in"] == len(ends)
    for one, after in pairwise(funnel):
        assert one["came_out"] == after["went_in"]
    for one in funnel:
        assert one["went_in"] - one["came_out"] == sum(one["refused"].values()) == ends.count(one["step"])
        assert all(1 <= len(shown) <= 3 for shown in one["examples"].values())
    counted = sum(count for step in refused_counts(funnel).values() for count in step.values())
    assert counted + funnel[-1]["came_out"] == len(ends)


def test_a_lost_row_is_noticed() -> None:
    listed, judged = tables([KEPT, "download", KEPT])
    with pytest.raises(AssertionError, match="a row was lost or moved"):
        make_ledger(listed, judged.slice(1))


def test_the_ledger_explains_a_row(tmp_path: Path) -> None:
    listed, judged = tables(["list", KEPT, "download"])
    place = Folder(str(tmp_path))
    place.write_text("ledger/00007.parquet", "of an unfinished build")
    write_ledger(place, make_ledger(listed, judged))
    assert place.names("ledger/") == ["ledger/00000.parquet"]
    ledger = pq.read_table(tmp_path / "ledger")
    assert ledger.schema.equals(LEDGER)
    (row,) = ledger.filter(pa.compute.equal(ledger["pair_id"], f"{0:016x}")).to_pylist()
    assert (row["step"], row["reason"], row["detail"]) == ("list", "malformed_url", "no host")
