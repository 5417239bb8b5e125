"""What the tests of faults on an open connection share: an ear, and frames made by hand."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from evtws import Connection, EvtwsError, Message, SlowUserCode, json_params, keyed
from evtws.testing import ClientConnection, Server

from ..timing import MS, SOON

T = TypeVar("T")


class Ear:
    """Hears all that a connection reports; `wait_for` waits until a predicate is true."""

    def __init__(self) -> None:
        self.errors: list[EvtwsError] = []
        #: Kept apart: on a busy machine any function may seem slow.
        self.slow: list[SlowUserCode] = []
        self.disconnected: list[EvtwsError | None] = []
        self.messages: list[str | bytes] = []
        self.connected = 0
        self._changed = threading.Condition()

    @property
    def options(self) -> dict[str, Any]:
        """What the connection is told, to hear all and to match requests and replies by their "id"."""
        return {
            "on_error": self.on_error,
            "on_disconnected": self.on_disconnected,
            "on_message": self.on_message,
            "on_connected": self.on_connected,
            "msg_prep": json_params,
            "match_key": keyed("id"),
        }

    def on_error(self, error: EvtwsError) -> None:
        with self._changed:
            if isinstance(error, SlowUserCode):
                self.slow.append(error)
            else:
                self.errors.append(error)
            self._changed.notify_all()

    def on_disconnected(self, _connection: Connection, error: EvtwsError | None) -> None:
        with self._changed:
            self.disconnected.append(error)
            self._changed.notify_all()

    def on_message(self, message: Message, _connection: Connection) -> None:
        with self._changed:
            self.messages.append(message.body)
            self._changed.notify_all()

    def on_connected(self, _connection: Connection) -> None:
        with self._changed:
            self.connected += 1
            self._changed.notify_all()

    def wait_for(self, what: Callable[[], T]) -> T:
        """What `what()` returns, once that is true; it is asked again whenever something was heard."""
        with self._changed:
            found = self._changed.wait_for(what, SOON)
        assert found, (self.errors, self.disconnected, len(self.messages), self.messages[-3:])
        return found

    def one_error(self) -> EvtwsError:
        """The one error that was reported when the connection was lost, which `on_disconnected` heard too."""
        self.wait_for(lambda: self.errors and self.disconnected)
        assert self.errors == self.disconnected
        assert len(self.errors) == 1
        return self.errors[0]


def frame(first: int, payload: bytes = b"", *, mask: bool = False, length: bytes | None = None) -> bytes:
    """One frame, right or wrong: its first byte, and its length as the shortest form unless `length` says it."""
    if length is None:
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
    if mask:
        return bytes([first, length[0] | 0x80]) + length[1:] + b"\0\0\0\0" + payload
    return bytes([first]) + length + payload


def ask(number: int = 1) -> Message:
    """A request with this id."""
    return Message.json({"id": number})


def echo(client: ClientConnection, body: str | bytes) -> None:
    """A server's script that answers each request by itself."""
    client.send(body)


def until(what: Callable[[], T], within: float = SOON) -> T:
    """Ask until `what()` is true, for what nobody notifies of; returns what it returned last."""
    deadline = time.monotonic() + within
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(MS)
    return found


def only_client(server: Server) -> ClientConnection:
    """The server's end of the one connection."""
    clients = server.wait_for(lambda: server.connections, SOON)
    assert len(clients) == 1
    return clients[0]


@contextmanager
def dialled(url: str, ear: Ear, **options: Any) -> Iterator[Connection]:
    """A connection that is closed at the end, however it fares meanwhile."""
    connection = Connection(**(ear.options | options))
    connection.dial(url)
    with connection:
        yield connection
