"""What is measured: the loops that every client runs, and the numbers that are asked of evtws.

The loops are the same code for every client, so that what differs is the client alone. Each request is a JSON
object of 130 bytes; every client encodes it by one `json.dumps` and decodes its reply by one `json.loads`.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

#: Seconds that a reply may take; reached only when something is broken.
TIMEOUT = 60.0

WINDOW = 64
THREADS = 8

Json = dict[str, Any]

_PADDING = "x" * 90


def request_of(number: int) -> Json:
    """A request of 130 bytes, give or take the digits of its id and the encoder's spaces."""
    return {"id": number, "method": "echo", "params": _PADDING}


class Caller(Protocol):
    """A client that calls: one request, one reply."""

    def request(self, obj: Json) -> Json:
        """Send `obj` and return its reply."""


class Submitter(Caller, Protocol):
    """A client that can have several calls in flight."""

    def submit(self, obj: Json) -> Future[Any]:
        """Send `obj`; the Future ends with its reply."""


class Listener(Protocol):
    """A client that takes events as they come."""

    def take(self, count: int) -> None:
        """Have the server push `count` events and return when the last of them was counted."""


class Countdown:
    """An `on_message` that counts: `wait` returns when as many events came as `start` was told."""

    def __init__(self) -> None:
        self._left = 0
        self._done = threading.Event()

    def start(self, count: int) -> None:
        """Begin to count `count` events down."""
        self._done.clear()
        self._left = count

    def __call__(self, first: object, second: object) -> None:
        """Count one event; its message and its connection, in the client's order, are ignored."""
        self._left -= 1
        if not self._left:
            self._done.set()

    def wait(self) -> None:
        """Wait for the last event; raises TimeoutError."""
        if not self._done.wait(TIMEOUT):
            raise TimeoutError(f"{self._left} events did not come")


def one_after_another(client: Caller, count: int) -> None:
    """`count` calls, each after the reply to the one before."""
    _call(client, range(count))


def eight_threads(client: Caller, count: int) -> None:
    """`count` calls shared out among 8 threads, in each of them one after another."""
    start = threading.Barrier(THREADS)

    def work(numbers: range) -> None:
        start.wait()
        _call(client, numbers)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, [range(first, count, THREADS) for first in range(THREADS)]))


def window_of_64(client: Submitter, count: int) -> None:
    """`count` calls of which 64 are in flight: the next goes out when the oldest was answered."""
    in_flight: deque[Future[Any]] = deque()
    for number in range(count):
        if len(in_flight) == WINDOW:
            in_flight.popleft().result(TIMEOUT)
        in_flight.append(client.submit(request_of(number)))
    while in_flight:
        in_flight.popleft().result(TIMEOUT)


def events(client: Listener, count: int) -> None:
    """`count` pushed events, counted and not decoded."""
    client.take(count)


def _call(client: Caller, numbers: range) -> None:
    for number in numbers:
        reply = client.request(request_of(number))
        if reply["id"] != number:
            raise AssertionError(f"request {number} got the reply to {reply['id']}")
