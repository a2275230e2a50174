"""Order: an epoch shows every pair once, near its neighbours on disk, the same for every world, and never otherwise."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from hiclip.data.order import Order, Rows
from hiclip.data.permutation import Permutation, Words, derive_key, keys_of

ORDERS = st.builds(
    Order,
    pairs=st.integers(1, 3000),
    rows_per_group=st.integers(1, 100),
    window_groups=st.integers(1, 40),
    seed=st.integers(0, 2**70),
)
HUGE = Order(5_000_000_000, 1024, 256, seed=1)


def positions(first: int, last: int) -> Rows:
    return np.arange(first, last, dtype=np.int64)


def key(number: int) -> Words:
    return np.array([derive_key(number)], dtype=np.uint64)


def test_golden_values() -> None:
    """Runs under way rely on these numbers: whoever changes them makes every resumed run another run."""
    order = Order(1003, 10, 7, seed=42)
    assert order.rows(positions(0, 12)).tolist() == [92, 712, 98, 715, 252, 172, 713, 710, 255, 171, 325, 179]
    assert order.rows(positions(1003, 1011)).tolist() == [402, 252, 607, 405, 256, 403, 394, 393]
    assert order.rows_of_step(100, 8).tolist() == [4, 6, 313, 482, 542, 611, 614, 617]
    far = np.array([0, 4_999_999_999, 5_000_000_000, 10**15, 2**61])
    assert HUGE.rows(far).tolist() == [3453307294, 3288488291, 750584812, 2099741111, 3951009883]
    assert derive_key(0, 0, "rows") == 6906702230515534092
    ten = Permutation(10).forward(np.arange(10, dtype=np.uint64), np.ones(1, dtype=np.uint64))
    assert ten.tolist() == [9, 5, 6, 3, 1, 7, 8, 0, 2, 4]


@settings(max_examples=150, deadline=None)
@given(ORDERS, st.integers(0, 10**6))
def test_every_epoch_shows_every_pair_once(order: Order, epoch: int) -> None:
    rows = order.rows(positions(epoch * order.pairs, (epoch + 1) * order.pairs))
    assert (np.sort(rows) == positions(0, order.pairs)).all()
    assert (order.positions(rows, epoch) == positions(epoch * order.pairs, (epoch + 1) * order.pairs)).all()


@settings(max_examples=100, deadline=None)
@given(ORDERS, st.data())
def test_any_position_can_be_asked_for_alone(order: Order, data: st.DataObject) -> None:
    asked = np.array(data.draw(st.lists(st.integers(0, 3 * order.pairs - 1), max_size=40)), dtype=np.int64)
    assert (order.rows(asked) == order.rows(positions(0, 3 * order.pairs))[asked]).all()


@settings(max_examples=25, deadline=None)
@given(ORDERS, st.integers(1, 4), st.integers(0, 50))
def test_worlds_share_the_same_global_batch(order: Order, part: int, step: int) -> None:
    batch = 24 * part
    whole, epochs = order.rows_of_step(step, batch), order.epochs_of_rank(step, batch, 0, 1)
    in_order = order.rows(positions(step * batch, (step + 1) * batch))
    assert sorted(whole) == sorted(in_order)
    for world in (2, 3, 8):
        parts = [order.rows_of_rank(step, batch, rank, world) for rank in range(world)]
        assert (np.concatenate(parts) == whole).all()
        parts = [order.epochs_of_rank(step, batch, rank, world) for rank in range(world)]
        assert (np.concatenate(parts) == epochs).all()


@settings(max_examples=25, deadline=None)
@given(ORDERS, st.integers(20, 500))
def test_steps_cover_epochs_without_gap_and_each_row_in_its_epoch(order: Order, batch: int) -> None:
    steps = -(-2 * order.pairs // batch)
    shown = [
        (int(epoch), int(row))
        for step in range(steps)
        for epoch, row in zip(order.epochs_of_rank(step, batch, 0, 1), order.rows_of_step(step, batch), strict=True)
    ]
    assert sorted(shown)[: 2 * order.pairs] == list(itertools.product(range(2), range(order.pairs)))


@settings(max_examples=60, deadline=None)
@given(ORDERS, st.integers(0, 5))
def test_rows_of_a_window_lie_in_its_groups(order: Order, epoch: int) -> None:
    """An epoch cut where its row groups change falls into windows: of window_groups at most, none shared, all alike."""
    rows = order.rows(positions(epoch * order.pairs, (epoch + 1) * order.pairs))
    groups = rows // order.rows_per_group
    last_seen = {group: place for place, group in enumerate(groups.tolist())}
    windows, members, until = [], set(), -1
    for place, group in enumerate(groups.tolist()):
        if place > until and members:
            windows.append(members)
            members = set()
        members.add(group)
        until = max(until, last_seen[group])
    windows.append(members)
    assert sum(map(len, windows)) == order.groups
    assert max(map(len, windows)) <= order.window_groups
    wanted = -(-order.groups // order.window_groups)
    assert len(windows) >= wanted
    if order.rows_per_group > 30 and order.window_groups > 3:  # by chance a small window falls into two
        assert {len(window) for window in windows} <= {order.groups // wanted, -(-order.groups // wanted)}


def test_a_rank_reads_its_share_of_a_window() -> None:
    """Rows ascend within a step, so rank 2 of 8 always reads about the same eighth of a window's 256 groups."""
    batch, touched = 8192, set()
    first = 100 * 256 * 1024 // batch  # where window 100 begins
    for step in range(first, first + 32):
        touched |= set((HUGE.rows_of_rank(step, batch, 2, 8) // HUGE.rows_per_group).tolist())
    assert len(touched) <= 256 // 8 + 8


def test_seeds_and_epochs_differ() -> None:
    first = Order(1000, 10, 20, 0).rows(positions(0, 1000))
    for other in (Order(1000, 10, 20, 1).rows(positions(0, 1000)), Order(1000, 10, 20, 0).rows(positions(1000, 2000))):
        assert (first == other).mean() < 0.01


def test_five_billion_pairs_need_no_memory_and_no_time() -> None:
    HUGE.rows(positions(0, 10))
    tracemalloc.start()
    began = time.perf_counter()
    rows = HUGE.rows_of_rank(7 * 5_000_000_000 // 8192, 8192, 3, 8)  # crosses into the eighth epoch
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.shape == (1024,)
    assert seconds < 1
    assert peak < 4 << 20
    everywhere = np.random.default_rng(0).integers(0, HUGE.pairs, 10_000) + 3 * HUGE.pairs
    assert (HUGE.positions(HUGE.rows(everywhere), 3) == everywhere).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097])
def test_permutation_is_one_and_has_an_inverse(size: int) -> None:
    places = np.arange(size, dtype=np.uint64)
    for number in range(10):
        values = Permutation(size).forward(places, key(number))
        assert (np.sort(values) == places).all()
        assert (Permutation(size).inverse(values, key(number)) == places).all()


def test_keys_of_single_places() -> None:
    """A key for each place gives what that key gives alone."""
    keys = keys_of(5, np.arange(50, dtype=np.uint64))
    together = Permutation(50).forward(np.arange(50, dtype=np.uint64), keys)
    alone = [int(Permutation(50).forward(np.array([i], dtype=np.uint64), keys[i : i + 1])[0]) for i in range(50)]
    assert together.tolist() == alone


def shuffles(size: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(count, size): permutations of as many keys."""
    keys = np.repeat(keys_of(derive_key("fairness"), np.arange(count, dtype=np.uint64)), size)
    places = np.tile(np.arange(size, dtype=np.uint64), count)
    return Permutation(size).forward(places, keys).reshape(count, size).astype(np.int64)


def fair(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool:
    """Whether counts look like equal chances (chi-squared, one in 10,000 fair ones fails)."""
    expected = counts.sum() / counts.size
    return bool(chi2.sf(((counts - expected) ** 2).sum() / expected, counts.size - 1) > 1e-4)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_shuffles_of_few_places_are_as_likely(size: int) -> None:
    drawn = shuffles(size, 20_000) @ (size ** np.arange(size))
    _, counts = np.unique(drawn, return_counts=True)
    assert counts.size == math.factorial(size)
    assert fair(counts)


@pytest.mark.parametrize("size", [16, 61, 100])
def test_places_know_nothing_of_each_other(size: int) -> None:
    drawn = shuffles(size, 40_000)
    assert fair(np.bincount(drawn[:, 3], minlength=size))
    pairs = np.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=size * size).reshape(size, size)
    assert fair(pairs[~np.eye(size, dtype=bool)])
    # A number right before its successor, a number in its own place: as often as in a fair shuffle.
    for seen, expected in (
        ((np.diff(drawn, axis=1) == 1).sum(), drawn.shape[0] * (size - 1) / size),
        ((drawn == np.arange(size)).sum(), drawn.shape[0]),
    ):
        assert abs(seen - expected) < 4 * math.sqrt(expected)


def test_a_row_comes_anywhere_in_an_epoch() -> None:
    """Over 1,000 epochs the places of one row fill tenths of the epoch alike."""
    order = Order(500, 10, 8, seed=3)
    places = np.concatenate([order.positions(np.array([123]), epoch) % 500 for epoch in range(1000)])
    assert fair(np.bincount(places // 50, minlength=10))


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2**62, 1, 1)])
def test_impossible_orders_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|reaches to"):
        Order(*wrong)


def test_impossible_questions_are_refused() -> None:
    order = Order(10, 3, 2)
    with pytest.raises(ValueError, match="positions start at 0, came -1"):
        order.rows(np.array([-1]))
    with pytest.raises(ValueError, match=r"rows lie in 0\.\.9, came 0\.\.10"):
        order.positions(np.array([0, 10]), 0)
    for batch, rank, world in ((10, 0, 3), (10, 2, 2), (10, -1, 2)):
        with pytest.raises(ValueError, match=f"{batch} pairs has no equal slice for rank {rank} of {world}"):
            order.rows_of_rank(0, batch, rank, world)
    assert order.rows(np.array([], dtype=np.int64)).size == 0
