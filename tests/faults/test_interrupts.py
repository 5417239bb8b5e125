"""A Ctrl-C at any moment of a call: the call is over, nothing is left taken, and the connection works or is lost."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest

from evtws import Connection, ConnectionLost, EvtwsError, NotConnected
from evtws.testing import Server

from ..interrupts import Interrupt, interrupts, needs_alarm
from ..live import QUICK, nothing_leaks
from ..timing import SOON
from .support import Ear, ask, dialled, echo, until

__all__ = ["nothing_leaks"]

#: How often each kind of call is interrupted.
TIMES = 300

CALLS: dict[str, Callable[[Connection], object]] = {
    "send": lambda connection: connection.send(ask(1)),
    "request": lambda connection: connection.request(ask(1), None),
    "submit": lambda connection: connection.submit(ask(1), None).result(),
    "submit_many": lambda connection: [f.result() for f in connection.submit_many([ask(n) for n in range(20)], None)],
    "stream": lambda connection: list(connection.stream(ask(1), until=lambda _: True, timeout=None)),
    "ping": lambda connection: connection.ping(None),
}


def call_on(connection: Connection, call: Callable[[Connection], object]) -> None:
    """Make the call again and again, also while the connection is lost, until this is interrupted."""
    while True:
        try:
            call(connection)
        except (ConnectionLost, NotConnected):
            connection.wait_open(SOON)


def works(connection: Connection) -> bool:
    """Whether a request of another thread is answered, on this connection or the next one."""
    answered = threading.Event()

    def request() -> None:
        try:
            connection.wait_open(SOON)
            connection.request(ask(99), SOON / 2)
            answered.set()
        except EvtwsError:
            pass

    for _ in range(2):
        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        thread.join(SOON)
        if answered.is_set():
            return True
    return False


@needs_alarm
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_interrupted_anywhere(call: Callable[[Connection], object]) -> None:
    """A call that is interrupted at any moment leaves nothing pending, and the connection works or is dialled again."""
    ear = Ear()
    with Server(echo) as server, dialled(server.url, ear, reconnect=QUICK) as connection, interrupts() as ring_in:
        for number in range(TIMES):
            try:
                ring_in(0.0001 + number % 97 * 0.00001)
                call_on(connection, call)
            except Interrupt:
                ring_in(0)
            assert works(connection), number
            assert until(lambda: not connection.pending), number
    gc.collect()  # a descriptor that was made, and not yet held, when the alarm rang
