"""Every row of the lists ends in one place, and the counts add up."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.funnel import KEPT, LEDGER, make_funnel, make_ledger, refused_counts, tally, total
from pipeline.pool import VERDICT
from pipeline.url_lists import LISTED

STEPS = ["list", "download", "caption_length", "duplicates"]
ENDS = st.sampled_from([*STEPS, KEPT])


def tables(ends: list[str]) -> tuple[pa.Table, pa.Table]:
    """A list whose rows end as told, and what the later steps said of them."""
    listed, verdicts = [], []
    for place, end in enumerate(ends):
        name = f"{place:016x}"
        at_list = end == "list"
        listed.append(
            {"row": len(ends) - place, "pair_id": name, "url": f"http://x/{name}", "caption": f"caption {place}",
             "source": "s", "reason": "malformed_url" if at_list else None, "detail": "no host" if at_list else None}
        )  # fmt: skip
        if not at_list:
            kept = end == KEPT
            verdicts.append(
                {"row": len(verdicts), "step": None if kept else end, "reason": None if kept else f"r{place % 3}"}
            )
    return pa.Table.from_pylist(listed, schema=LISTED), pa.Table.from_pylist(verdicts, schema=VERDICT)


@given(st.lists(ENDS, min_size=1, max_size=50), st.integers(1, 20))
def test_kept_and_refused_are_all_rows_each_once(ends: list[str], rows_a_part: int) -> None:
    ledger = make_ledger(*tables(ends))
    assert ledger.schema.equals(LEDGER)
    by_name = dict(zip(ledger["pair_id"].to_pylist(), ledger["step"].to_pylist(), strict=True))
    assert by_name == {f"{place:016x}": end for place, end in enumerate(ends)}
    parts = [ledger.slice(start, rows_a_part) for start in range(0, len(ends), rows_a_part)]
    funnel = make_funnel(total(tally(part) for part in parts), STEPS)
    assert funnel == make_funnel(tally(ledger), STEPS), "the cut into parts is not seen"
    assert [one["step"] for one in funnel] == STEPS
    assert funnel[0]["went_in"] == len(ends)
    for one, after in pairwise(funnel):
        assert one["came_out"] == after["went_in"]
    for one in funnel:
        assert one["went_in"] - one["came_out"] == sum(one["refused"].values()) == ends.count(one["step"])
        assert one["examples"].keys() == one["refused"].keys()
        for shown in one["examples"].values():
            assert 1 <= len(shown) <= 3
            assert [example["pair_id"] for example in shown] == sorted(example["pair_id"] for example in shown)
    counted = sum(count for step in refused_counts(funnel).values() for count in step.values())
    assert counted + funnel[-1]["came_out"] == len(ends)


def test_a_lost_row_is_noticed() -> None:
    listed, verdicts = tables([KEPT, "download", KEPT])
    with pytest.raises(AssertionError, match="a row was lost"):
        make_ledger(listed, verdicts.slice(1))


def test_the_ledger_explains_a_row() -> None:
    ledger = make_ledger(*tables(["list", KEPT, "download"]))
    first, second, third = ledger.to_pylist()
    assert (first["step"], first["reason"], first["detail"]) == ("list", "malformed_url", "no host")
    assert (second["step"], second["reason"]) == (KEPT, None)
    assert (third["step"], third["reason"]) == ("download", "r2")
