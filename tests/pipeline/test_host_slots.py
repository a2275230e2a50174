"""A host never gets more connections than the limit, whoever asks, and what a killed task held comes back."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future

import pytest
import ray
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ray.exceptions import RayError

from pipeline.host_slots import HostSlots, Leases, SharedSlots, shared_slots


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_holder_gets_what_there_is_and_gives_it_back() -> None:
    slots = HostSlots(8)
    assert slots.take("a", {"x": 3, "y": 20}, {}) == {"x": 3, "y": 8}
    assert slots.take("b", {"x": 9, "y": 1}, {}) == {"x": 5, "y": 0}
    assert slots.take("a", {"x": 3}, {"x": 3}) == {"x": 3}
    assert slots.take("b", {"x": 9, "y": 20}, {"x": 5}) == {"x": 5, "y": 8}
    slots.take("a", {}, {})
    assert slots.take("b", {"x": 9}, {"x": 4}) == {"x": 8}


def test_what_is_open_counts_until_it_is_closed() -> None:
    slots = HostSlots(4)
    assert slots.take("a", {"x": 4}, {}) == {"x": 4}
    assert slots.take("b", {"x": 4}, {}) == {"x": 0}
    assert slots.take("a", {"x": 4}, {"x": 4}) == {"x": 2}, "b wants some too"
    assert slots.take("b", {"x": 4}, {}) == {"x": 0}, "but four of a are still open"
    assert slots.take("a", {"x": 4}, {"x": 3}) == {"x": 2}
    assert slots.take("b", {"x": 4}, {}) == {"x": 1}
    assert slots.take("a", {}, {"x": 1}) == {}, "it wants no more and has one open"
    assert slots.take("b", {"x": 4}, {"x": 1}) == {"x": 3}


def test_a_question_may_be_repeated() -> None:
    slots = HostSlots(4)
    slots.take("a", {"x": 3}, {})
    assert slots.take("a", {"x": 3}, {}) == slots.take("a", {"x": 3}, {}) == {"x": 3}
    assert slots.take("b", {"x": 3}, {}) == {"x": 1}


def test_who_is_silent_loses_all() -> None:
    clock = Clock()
    slots = HostSlots(4, lease_s=60, clock=clock)
    slots.take("killed", {"x": 4}, {})
    clock.now = 50
    assert slots.take("a", {"x": 2}, {}) == {"x": 0}
    clock.now = 61
    assert slots.take("a", {"x": 2}, {}) == {"x": 2}
    assert slots.take("killed", {"x": 4}, {"x": 4}) == {"x": 2}, "it was alive: what it has open counts again"


@examples(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9)), st.integers(0, 9)
        ),
        max_size=40,
    ),
)
def test_no_order_of_questions_goes_beyond_the_limit(limit: int, calls: list[tuple[str, dict[str, int], int]]) -> None:
    """Each holder opens all that it may, closes `closing` of each host, and asks again."""
    slots = HostSlots(limit)
    opened: dict[str, Counter[str]] = {name: Counter() for name in "abcd"}
    for holder, more, closing in calls:
        mine = +Counter({host: count - closing for host, count in opened[holder].items()})
        granted = slots.take(holder, mine + Counter(more), mine)
        opened[holder] = Counter({host: max(mine[host], granted.get(host, 0)) for host in mine.keys() | granted})
        for host in "xyz":
            assert sum(one[host] for one in opened.values()) <= limit
    for holder in "abcd":
        slots.take(holder, {}, {})
    assert slots.take("e", {host: 9 for host in "xyz"}, {}) == {host: limit for host in "xyz"}, "nothing was lost"


def answer(leases: Leases) -> dict[str, int]:
    assert leases.pending is not None
    leases.pending.result(60)
    leases.collect(time.monotonic())
    return leases.granted


@pytest.mark.usefixtures("ray_session")
def test_tasks_share_an_actor_that_comes_back_when_it_dies() -> None:
    slots = shared_slots(4)
    first, second = Leases(slots), Leases(slots)
    first.ask(0.0, {"x": 3}, {})
    assert not first.may_ask(5.0), "one question at a time"
    assert answer(first) == {"x": 3}
    second.ask(0.0, {"x": 3}, {})
    assert answer(second) == {"x": 1}
    ray.kill(slots.actor, no_restart=False)
    for question in range(1, 200):  # the first ones may still reach the old one
        second.ask(100.0 * question, {"x": 3}, {"x": 1})
        assert second.granted == {"x": 1}, "what it had it keeps while it waits"
        if answer(second) == {"x": 3}:
            break
        time.sleep(0.05)
    assert second.granted == {"x": 3}, "the new one knows of nobody"
    first.ask(100.0, {"x": 3, "y": 1}, {"x": 3})
    assert answer(first) == {"x": 1, "y": 1}
    second.ask(1e6, {"x": 3}, {"x": 3})
    assert answer(second) == {"x": 1}, "until all have spoken"


@pytest.mark.usefixtures("ray_session")
def test_without_an_answer_a_task_goes_on_alone() -> None:
    slots = shared_slots(4)
    leases = Leases(slots)
    ray.kill(slots.actor)
    leases.ask(0.0, {"x": 9, "y": 1}, {})
    assert leases.pending is not None
    with pytest.raises(RayError):
        leases.pending.result(60)
    leases.collect(1.0)
    assert leases.granted == {"x": 4, "y": 1}


def test_nor_where_the_answer_does_not_come() -> None:
    leases = Leases(SharedSlots(None, 4), pending=Future())
    leases.granted, leases._wants, leases._asked_s = {"x": 1}, {"x": 9}, 100.0
    leases.collect(119.0)
    assert leases.granted == {"x": 1}
    leases.collect(120.0)
    assert leases.granted == {"x": 4}
    assert leases.may_ask(120.0)
