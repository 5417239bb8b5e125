"""Reconnecting to a server that accepts and drops: no oftener than the policy allows, and nothing is left of it."""

from __future__ import annotations

import os

import tenacity

from evtws import ReconnectPolicy
from tests.load.reconnects import Held, count_dials, grown, reconnect_often
from tests.timing import MS

FULL = bool(os.environ.get("EVTWS_FULL"))


def test_the_policy_bounds_the_dials() -> None:
    """A server that accepts and drops is dialled as often as the waits between the attempts allow, and no oftener."""
    wait = 100 * MS
    dials = count_dials(ReconnectPolicy(wait=tenacity.wait_fixed(wait)), 20 * wait)
    assert dials.allowed <= 21  # the first at once, then one each wait
    assert dials.allowed // 2 <= dials.made <= dials.allowed


def test_the_default_policy_bounds_the_dials() -> None:
    """The default policy, too, takes a connection that is dropped at once for a failed attempt, and waits longer."""
    dials = count_dials(ReconnectPolicy(), 10.0 if FULL else 1.0)
    assert 1 <= dials.made <= dials.allowed


def test_reconnects_leave_nothing_behind() -> None:
    """However often the connection is lost, threads and descriptors are as many as before, and memory is bounded."""
    before, after, _ = reconnect_often(10_000 if FULL else 300)
    assert grown(before, after) == []


def test_what_has_grown_is_told() -> None:
    """One thread or descriptor more is a leak, as is memory beyond the bound."""
    before = Held(4, 17, 70_000, 30_000_000)
    assert grown(before, before._replace(objects=200_000, memory=31_000_000)) == []
    told = grown(before, Held(5, 18, 400_000, 50_000_000))
    assert [line.split(":")[0] for line in told] == ["threads", "descriptors", "objects", "memory"]
