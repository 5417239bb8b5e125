"""What the tests of a live connection share."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from evtws import Connection, ReconnectPolicy
from evtws.testing import ClientConnection, RawServer, Server

from .faults.support import Ear, until
from .raw import descriptors
from .timing import MS

#: Dials again almost at once.
QUICK = ReconnectPolicy(wait=lambda _: 5 * MS)
#: Dials again some day.
NEVER = ReconnectPolicy(wait=lambda _: 1000.0)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Threads and descriptors are what they were; in every test of a module that imports this."""
    threads, files = set(threading.enumerate()), descriptors()
    yield
    assert until(lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    assert until(lambda: descriptors() == files)


@contextmanager
def dialled(server: Server | RawServer, ear: Ear | None = None, **options: Any) -> Iterator[Connection]:
    """A connection to that server, closed at the end."""
    connection = Connection(**((ear or Ear()).options | options))
    connection.dial(server.url)
    with connection:
        yield connection


def hold(_client: ClientConnection, _body: str | bytes) -> None:
    """A server's script that answers nothing."""


def collect(dropped: weakref.ref[Any]) -> None:
    """Wait until that is collected."""

    def collected() -> bool:
        gc.collect()
        return dropped() is None

    assert until(collected)
