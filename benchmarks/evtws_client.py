"""evtws, as its README says to use it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import evtws

from .workloads import TIMEOUT, Countdown, Json


class Calls:
    """Requests that are told apart by their "id"."""

    def __init__(self, connection: evtws.Connection) -> None:
        self._connection = connection

    def request(self, obj: Json) -> Json:
        """`connection.request()`."""
        reply: Json = self._connection.request(evtws.Message.json(obj), timeout=TIMEOUT).params
        return reply

    def submit(self, obj: Json) -> Future[Any]:
        """`connection.submit()`."""
        return self._connection.submit(evtws.Message.json(obj))


class Events:
    """Messages that answer no request."""

    def __init__(self, connection: evtws.Connection, countdown: Countdown) -> None:
        self._connection = connection
        self._countdown = countdown

    def take(self, count: int) -> None:
        """Count the events in `on_message`."""
        self._countdown.start(count)
        self._connection.send(evtws.Message(f"push {count}"))
        self._countdown.wait()


@contextmanager
def connected(url: str) -> Iterator[evtws.Connection]:
    """A connection whose replies are matched by their "id"."""
    with evtws.connect(
        url,
        match_key=evtws.keyed("id"),
        msg_prep=evtws.json_params,
        ping_interval=None,
        request_timeout=TIMEOUT,
    ) as connection:
        yield connection


@contextmanager
def calls(url: str) -> Iterator[Calls]:
    """evtws with `request()` and `submit()`."""
    with connected(url) as connection:
        yield Calls(connection)


@contextmanager
def pushed(url: str) -> Iterator[Events]:
    """evtws with `on_message`, told to stop reading rather than to drop: the others lose nothing either."""
    countdown = Countdown()
    with evtws.connect(url, on_message=countdown, overflow="block", ping_interval=None) as connection:
        yield Events(connection, countdown)
