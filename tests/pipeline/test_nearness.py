"""Rounds over buckets refuse what one pass from the best row to the worst refuses, whatever the buckets."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_pool import small_pool, verdicts_by_name

from pipeline.all_pairs import nearest
from pipeline.keyed_hash import mixed
from pipeline.nearness import Places, best_alike, ranks, refuse_the_alike, row_of
from pipeline.pair import pair_numbers

CELL = 8
POINTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=100)


def spread(pairs: pa.Table, reach: int) -> pa.Table:
    """Points into the cells of a grid that they are in or near; those within `reach` of each other share one."""
    columns: dict[str, list[int]] = {name: [] for name in ("key", "at", "same")}
    for at, (x, y) in enumerate(zip(pairs["x"].to_pylist(), pairs["y"].to_pylist(), strict=True)):
        for across in {(2 * x - reach) // (2 * CELL), (2 * x + reach) // (2 * CELL)}:
            for down in {(2 * y - reach) // (2 * CELL), (2 * y + reach) // (2 * CELL)}:
                columns["key"].append((across + 9) * 100 + down + 9)
                columns["at"].append(at)
                columns["same"].append(x * 100 + y)
    at_row = np.array(columns["at"], np.int64)
    rank = ranks(np.asarray(pairs["original_width"], np.int64), np.asarray(pairs["row"]))
    return pa.table(
        {"key": mixed(np.array(columns["key"], np.uint64)), "rank": rank[at_row],
         "pair": pair_numbers(pairs["pair_id"])[at_row], "same": pa.array(columns["same"], pa.uint64()),
         "x": pairs["x"].combine_chunks().take(at_row), "y": pairs["y"].combine_chunks().take(at_row)}
    )  # fmt: skip


class Within:
    """Points that are no further apart than `reach` in x and in y."""

    def __init__(self, rows: pa.Table, reach: int) -> None:
        self._at, self._reach = np.stack([np.asarray(rows["x"]), np.asarray(rows["y"])], axis=1), reach

    def __call__(self, left: Places, right: Places) -> npt.NDArray[np.bool_]:
        return np.asarray(np.abs(self._at[left] - self._at[right]).max(axis=1, initial=0) <= self._reach)

    def split(self, places: Places) -> tuple[Places, Places] | None:
        x = 2 * self._at[places, 0]
        halves = places[x <= np.median(x) + self._reach], places[x >= np.median(x) - self._reach]
        return halves if max(map(len, halves)) < 0.9 * len(places) else None


def table(points: list[tuple[int, int, int]]) -> list[dict[str, int | str]]:
    return [{"row": row, "pair_id": f"{row:016x}", "x": x, "y": y, "original_width": size}
            for row, (x, y, size) in enumerate(points)]  # fmt: skip


def one_pass(points: list[tuple[int, int, int]], reach: int) -> dict[int, int]:
    """Refused row -> a row that stays and is within reach."""
    refused: dict[int, int] = {}
    stays: list[int] = []
    for row in sorted(range(len(points)), key=lambda row: (-points[row][2], row)):
        x, y, _ = points[row]
        near = [other for other in stays if abs(points[other][0] - x) <= reach and abs(points[other][1] - y) <= reach]
        if near:
            refused[row] = near[0]
        else:
            stays.append(row)
    return refused


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(POINTS, st.integers(0, 5), st.integers(1, 5), st.sampled_from((2, 5, 128)))
def test_rounds_refuse_what_one_pass_refuses(
    monkeypatch: pytest.MonkeyPatch, points: list[tuple[int, int, int]], reach: int, buckets: int, few: int
) -> None:
    monkeypatch.setattr("pipeline.nearness._FEW", few)
    keys = spread(pa.Table.from_pylist(table(points)), reach)
    number = np.asarray(keys["key"]) % np.uint64(buckets)
    parts = [keys.filter(pa.array(number == bucket)) for bucket in range(buckets)]
    alike = partial(Within, reach=reach)
    edges = refuse_the_alike(lambda among: np.concatenate([best_alike(part, alike, among) for part in parts]))
    found = {int(row_of(edge["rank"])): int(row_of(edge["best"])) for edge in edges}
    assert found == one_pass(points, reach)
    assert all(int(edge["pair"]) == found[int(row_of(edge["rank"]))] for edge in edges)


def test_ranks_put_the_larger_picture_first_and_hold_the_row() -> None:
    pixels = np.array([10, 20, 20, 10**12, 0], np.int64)
    rows = np.array([0, 2**36, 1, 4, 3], np.int64)
    found = ranks(pixels, rows)
    assert np.argsort(found).tolist() == [3, 2, 1, 0, 4]
    assert row_of(found).tolist() == rows.tolist()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("shards_per_span", [1, 50])
def test_tasks_refuse_what_one_pass_refuses(tmp_path: Path, shards_per_span: int) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    chance = np.random.default_rng(0)
    points = [tuple(map(int, chance.integers((0, 0, 1), (25, 25, 4)))) for _ in range(90)]
    columns = pa.schema([pa.field("x", pa.int64()), pa.field("y", pa.int64())])
    pool = small_pool(tmp_path, table(points), columns, per_shard=20, shards_per_span=shards_per_span)  # type: ignore[arg-type]
    reads = ("pair_id", "original_width", "x", "y")
    alike, keys = partial(Within, reach=2), partial(spread, reach=2)
    pool = nearest(pool, "near.points", "too_near", reads, keys, 2, alike)
    expected = one_pass(points, 2)  # type: ignore[arg-type]
    assert len(expected) > 20
    for name, (reason, detail) in verdicts_by_name(pool).items():
        beside = expected.get(int(name, 16))
        assert (reason, detail) == ((None, None) if beside is None else ("too_near", f"of {beside:016x}"))
    assert pool.work.names("met/") == []
