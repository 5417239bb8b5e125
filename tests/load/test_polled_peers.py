"""Many polled peers in one thread, connected to one polled server in another."""

from __future__ import annotations

import os

from tests.load.polled_peers import OBJECTS_MAY_GROW, run

FULL = bool(os.environ.get("EVTWS_FULL"))


def test_nothing_is_lost() -> None:
    """Of many peers each gets each answer in its order, and memory does not grow with what they say."""
    peers, seconds = (500, 10.0) if FULL else (100, 1.0)
    report = run(peers, seconds)
    assert report.lost == 0
    assert report.answered >= peers
    assert report.grown <= OBJECTS_MAY_GROW
