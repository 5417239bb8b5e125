"""The specification of evtws/stats.py."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from evtws.connection import Connection
from evtws.state import State
from evtws.stats import NOTHING


def test_stats_of_a_connection_that_was_never_dialled() -> None:
    """Before the first dial all counts are 0, the state is CLOSED, and there are no times."""
    stats = Connection().stats()
    assert stats == NOTHING
    assert stats.state is State.CLOSED
    values = asdict(stats)
    del values["state"]
    times = [values.pop(name) for name in ("uptime", "rtt_last", "rtt_min", "rtt_mean")]
    assert times == [None] * 4
    assert set(values.values()) == {0}


def test_stats_are_immutable() -> None:
    """A snapshot cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        NOTHING.pending = 1  # type: ignore[misc]
