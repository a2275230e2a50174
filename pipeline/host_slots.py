"""How many connections a host gets: a polite number over the whole cluster, shared out fairly among the tasks.

A task says now and then how many connections it wants to each host and how many it has open, and hears how many it may
have. One call speaks of many hosts, may be repeated without harm, and nobody waits for its answer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

_LEASE_S = 60.0  # a killed task's connections count for so long
_HEARTBEAT_S = 10.0
_PATIENCE_S = 20.0
_PAUSE_S = 0.5
_OWN_PAUSE_S = 0.02  # nobody else is asked


@dataclass
class _Claim:
    wants: int
    granted: int
    counted: int
    """What may be open at this moment: more than `granted` until the holder has heard that it lost some."""


class HostSlots:
    """At most `limit` connections a host, over all holders; a pure object, in one process or in a Ray actor."""

    def __init__(self, limit: int, lease_s: float = _LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._lease_s = lease_s
        self._clock = clock
        self._claims: dict[str, dict[str, _Claim]] = {}
        self._hosts_of: dict[str, set[str]] = {}
        self._heard: dict[str, float] = {}

    def take(self, holder: str, wants: Mapping[str, int], opened: Mapping[str, int]) -> dict[str, int]:
        """How many connections `holder` may have to each host of `wants` from now on; to all others none.

        `wants` counts those it has (`opened`) and more; until it hears the answer it opens none beyond `wants` nor
        beyond its last answer. Where a host has too few for all who want some, nobody gets more than an equal share.
        A holder that says nothing for `lease_s` loses all.
        """
        now = self._clock()
        for silent in [one for one, heard in self._heard.items() if heard < now - self._lease_s]:
            self._forget(silent)
        hosts = wants.keys() | opened.keys()
        if not hosts:
            self._forget(holder)
            return {}
        self._heard[holder] = now
        for host in self._hosts_of.get(holder, set()) - hosts:
            self._drop(holder, host)
        self._hosts_of[holder] = hosts
        for host in hosts:
            self._grant(holder, host, wants.get(host, 0), opened.get(host, 0))
        return {host: self._claims[host][holder].granted for host in wants}

    def _grant(self, holder: str, host: str, wants: int, opened: int) -> None:
        claims = self._claims.setdefault(host, {})
        before = claims.get(holder, _Claim(0, 0, 0))
        others = [claim for name, claim in claims.items() if name != holder]
        granted = min(wants, max(0, self.limit - sum(claim.counted for claim in others)))
        if any(claim.wants > claim.counted for claim in others):
            sharers = 1 + sum(claim.wants > 0 for claim in others)
            granted = min(granted, -(-self.limit // sharers))
        claims[holder] = _Claim(wants, granted, max(granted, opened, min(before.granted, wants)))

    def _drop(self, holder: str, host: str) -> None:
        claims = self._claims[host]
        del claims[holder]
        if not claims:
            del self._claims[host]

    def _forget(self, holder: str) -> None:
        for host in self._hosts_of.pop(holder, set()):
            self._drop(holder, host)
        self._heard.pop(holder, None)


@dataclass(frozen=True)
class SharedSlots:
    """The handle of HostSlots in a Ray actor: goes with a task to any node."""

    actor: Any
    limit: int


def shared_slots(limit: int) -> SharedSlots:
    """At most `limit` connections a host over all tasks that get this handle; ends when nobody holds it any more.

    The actor comes back on another node when its own dies, knowing nothing: until each task has spoken again (half a
    second) a host may get up to twice `limit`. While it cannot be asked for longer than 20 s each task keeps to `limit`
    by itself, and a host may get `limit` from each of them.
    """
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(HostSlots)
    return SharedSlots(actor.remote(limit), limit)


@dataclass
class Leases:
    """What one task may open; asks `slots` twice a second at most and never waits for the answer."""

    slots: HostSlots | SharedSlots
    granted: dict[str, int] = field(default_factory=dict)
    """Connections by host."""
    pending: Future[dict[str, int]] | None = None
    _wants: dict[str, int] = field(default_factory=dict)
    _asked_s: float = float("-inf")
    _looked_s: float = float("-inf")
    _holder: str = field(default_factory=lambda: secrets.token_hex(8))

    def next_s(self, rows_wait: bool) -> float:
        """The monotonic time at which something is to be done here."""
        if self.pending is not None:
            return self._asked_s + _PATIENCE_S
        if rows_wait:
            return self._looked_s + (_PAUSE_S if isinstance(self.slots, SharedSlots) else _OWN_PAUSE_S)
        return self._asked_s + _HEARTBEAT_S

    def may_ask(self, now: float) -> bool:
        """Whether no answer is waited for and the pause since the last question is over."""
        return self.pending is None and now >= self.next_s(rows_wait=True)

    def ask(self, now: float, wants: dict[str, int], opened: Mapping[str, int]) -> None:
        """Asks unless nothing has changed and everything was granted."""
        self._looked_s = now
        satisfied = wants == self._wants and all(self.granted.get(host, 0) >= wants[host] for host in wants)
        if satisfied and now < self._asked_s + _HEARTBEAT_S:
            return
        self._asked_s, self._wants = now, wants
        if isinstance(self.slots, HostSlots):
            self.granted = self.slots.take(self._holder, wants, opened)
            return
        # What the promise of HostSlots.take says about the time until the answer.
        self.granted = {host: min(self.granted.get(host, 0), count) for host, count in wants.items()}
        self.pending = self.slots.actor.take.remote(self._holder, wants, dict(opened)).future()

    def collect(self, now: float) -> None:
        """Takes the answer where it has come; goes on alone where it does not come."""
        if self.pending is None:
            return
        if self.pending.done():
            try:
                self.granted = self.pending.result()
            except RayError:
                self._go_on_alone()
            self.pending = None
        elif now >= self._asked_s + _PATIENCE_S:
            self._go_on_alone()
            self.pending = None

    def leave(self) -> None:
        """Gives everything back."""
        if isinstance(self.slots, HostSlots):
            self.slots.take(self._holder, {}, {})
        else:
            self.slots.actor.take.remote(self._holder, {}, {})

    def _go_on_alone(self) -> None:
        self.granted = {host: min(count, self.slots.limit) for host, count in self._wants.items()}
