"""The pytest plugin of evtws: a websocket server and a fault proxy as fixtures, for the tests of your application.

A test that uses one of them fails if it leaves a thread running, a socket open or a Connection unclosed.
"""

# pytest imports this before pytest-cov begins to measure: evtws is imported by the fixtures only.
from __future__ import annotations

import gc
import os
import re
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from evtws.testing import FaultProxy, Server

T = TypeVar("T")

#: Seconds that threads and sockets have to go away after the test.
GRACE = 2.0

_KIT = ("evtws-testing", "evtws-fault-proxy")  # what the names of the threads of servers and proxies begin with
_DESCRIPTORS = "/proc/self/fd"  # where there is one
_DROPPED = r"unclosed (<socket|<ssl|transport)|a Connection was dropped"  # what a ResourceWarning begins with


@pytest.fixture
def evtws_server(_evtws_kit: ExitStack) -> Server:
    """A running `evtws.testing.Server` without a script; set `on_message`, `on_connect`, `on_handshake` of it."""
    from evtws.testing import Server

    return _evtws_kit.enter_context(Server())


@pytest.fixture
def evtws_tls_server(_evtws_kit: ExitStack) -> Server:
    """The same for wss; its `client_ssl` is the SSLContext of a client that trusts it."""
    from evtws.testing import Server

    return _evtws_kit.enter_context(Server(ssl=True))


@pytest.fixture
def evtws_fault_proxy(_evtws_kit: ExitStack) -> Callable[[Server], FaultProxy]:
    """A function: `evtws_fault_proxy(server)` is a new `FaultProxy` in front of that server."""
    from evtws.testing import FaultProxy

    return lambda server: _evtws_kit.enter_context(FaultProxy(server.port))


@pytest.fixture
def evtws_no_leaks(_evtws_kit: ExitStack) -> None:
    """The test fails if it leaves a thread running, a socket open or a Connection unclosed."""


@pytest.fixture
def _evtws_kit() -> Iterator[ExitStack]:
    """Closes the servers and the proxies after the test, and fails the test if it leaves anything else behind."""
    _forget_earlier_failure()
    threads, sockets = set(threading.enumerate()), set(_open_sockets())

    def running() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in threads]

    def opened() -> list[int]:
        return [descriptor for identity, descriptor in _open_sockets().items() if identity not in sockets]

    with _dropped_unclosed() as left:
        with ExitStack() as kit:
            yield kit
            gc.collect()
            # First without closing the servers, which would end the connections that the test did not close.
            stay = _wait_for_end(lambda: [thread for thread in running() if not thread.name.startswith(_KIT)])
            left += map(_describe_thread, stay)
        left += map(_describe_thread, _wait_for_end(lambda: [thread for thread in running() if thread not in stay]))
        left += map(_describe_socket, _wait_for_end(opened))
    if left:
        pytest.fail("\n".join(left), pytrace=False)


def _forget_earlier_failure() -> None:
    # pytest does so as well, but during this test: what the traceback keeps open would be this test's leak.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
    gc.collect()


def _wait_for_end(look: Callable[[], list[T]]) -> list[T]:
    """What `look()` still finds once the time of grace is over; returns as soon as it finds nothing."""
    deadline = time.monotonic() + GRACE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _describe_thread(thread: threading.Thread) -> str:
    if thread.name.startswith(_KIT):
        remedy = "close() the server or the proxy"
    elif thread.name.startswith("evtws-"):
        remedy = "close() the connection"
    else:
        remedy = "end it and join() it"
    return f"the test left a thread running: {thread!r}: {remedy}"


def _describe_socket(descriptor: int) -> str:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return f"the test left a socket open: descriptor {descriptor}: close() it"
    name = repr(sock)
    sock.detach()
    return f"the test left a socket open: {name}: close() it"


def _open_sockets() -> dict[object, int]:
    """The descriptor of each open socket of this process, by what identifies the socket."""
    if not os.path.isdir(_DESCRIPTORS):
        return {weakref.ref(sock): sock.fileno() for sock in _socket_objects() if sock.fileno() >= 0}
    found: dict[object, int] = {}
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):  # it has been closed, as that of the listing has
            target = os.readlink(f"{_DESCRIPTORS}/{name}")
            if target.startswith("socket:"):
                found[target] = int(name)
    return found


def _socket_objects() -> list[socket.socket]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), socket.socket)]


@contextmanager
def _dropped_unclosed() -> Iterator[list[str]]:
    """What is dropped meanwhile without having been closed; the warnings that say so are not passed on."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _DROPPED, ResourceWarning)
        pass_on = warnings.showwarning

        def note(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, ResourceWarning) and re.match(_DROPPED, str(message)):
                found.append(f"the test did not close what it opened: {message}")
            else:
                pass_on(message, category, *rest, **options)

        warnings.showwarning = note
        yield found
