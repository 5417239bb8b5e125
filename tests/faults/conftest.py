"""Every fault leaks nothing, and the next connection works."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from evtws.testing import Server

from ..raw import descriptors
from ..timing import SOON
from .support import Ear, ask, echo, until


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """Threads and descriptors are what they were, and the next connection works."""
    # Imported here, so that what measures coverage has started.
    import evtws

    threads, files = set(threading.enumerate()), descriptors()
    yield
    ear = Ear()
    with Server(echo) as server, evtws.connect(server.url, **ear.options) as connection:
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
    assert until(lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    assert descriptors() == files
