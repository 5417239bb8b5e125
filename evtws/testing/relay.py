"""Relay: one connection through a FaultProxy: two sockets, and a pipe each way."""

from __future__ import annotations

import errno
import functools
import selectors
import socket
import struct
import time
from collections.abc import Callable

from .direction import Direction, How
from .loop import Loop
from .pipe import Pipe

#: Bytes that the system holds for us of what we do not read; a small number lets a writer soon find no room.
RECEIVE_BUFFER = 1 << 16

_LINGER = 1.0  # seconds that a side has to close after our FIN
_RESET = struct.pack("ii", 1, 0)
_UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class _Side:
    """One of the two sockets, and what is watched of it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.sock = sock
        self.watched = 0
        #: What is read here.
        self.incoming: Pipe
        #: What is written here.
        self.outgoing: Pipe


class Relay:
    """Passes bytes on between an accepted socket and one of its own. In the loop's thread only.

    `family` is that of the upstream's address; `on_gone(relay)` is called when both sockets are closed. Raises OSError
    when the system has no descriptor left.
    """

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        family: int,
        to_server: Direction,
        to_client: Direction,
        on_gone: Callable[[Relay], None],
    ) -> None:
        #: Whether it has not been ended; a half-open connection is open.
        self.is_open = True
        self._loop = loop
        self._on_gone = on_gone
        self._connected = False
        self._gone = False
        self._wakes_at: float | None = None
        self._client = _Side(client)
        self._server = _Side(socket.socket(family, socket.SOCK_STREAM))
        self._sides = (self._client, self._server)
        self._client.incoming = self._server.outgoing = Pipe(to_server, client, self._server.sock)
        self._server.incoming = self._client.outgoing = Pipe(to_client, self._server.sock, client)

    def connect(self, address: tuple[object, ...]) -> None:
        """Connect to the upstream; a failure resets the client."""
        if self._server.sock.connect_ex(address) in _UNDER_WAY:
            self._watch()
        else:
            self.end("RST")

    def refresh(self) -> None:
        """Do what can be done now; to be called when a setting has changed."""
        for side in self._sides:
            self._pump(side)
        self._watch()

    def silence(self) -> None:
        """Leave the connection half-open: nothing is passed on any more, not even its end."""
        for side in self._sides:
            side.incoming.silence()
        self._watch()

    def end(self, how: How) -> None:
        """End the connection on both sides: by an RST, or by a FIN, after which each has a moment to close too."""
        self.is_open = False
        if how == "RST":
            self.close(reset=True)
            return
        # Closing at once, with bytes unread, would send an RST that may take our last bytes away from the peer.
        for side in self._sides:
            side.incoming.silence()
            _send_fin(side.sock)
        self._loop.later(_LINGER, self.close)
        self._watch()

    def close(self, *, reset: bool = False) -> None:
        """Close both sockets, at once."""
        if self._gone:
            return
        self.is_open = False
        self._gone = True
        for side in self._sides:
            side.incoming.forget()
            self._watch_side(side, 0)
            if reset:
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.sock.close()
        self._on_gone(self)

    def _ready(self, side: _Side, events: int) -> None:
        if self._gone:
            return
        try:
            if not self._connected:
                self._finish_connect()
            elif events & selectors.EVENT_READ and side.incoming.wants_read:
                side.incoming.read()
            self.refresh()
        except Exception:
            self.close(reset=True)  # or the loop would come here again and again
            raise

    def _finish_connect(self) -> None:
        if self._server.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.end("RST")
        else:
            self._connected = True

    def _pump(self, side: _Side) -> None:
        """Pass on what came from this side."""
        pipe, back = side.incoming, side.outgoing
        try:
            how = pipe.pump()
        except OSError:
            # The sink takes nothing any more, but what it sent before that may be there still, and comes first.
            pipe.silence()
            back.broken = True
            if back.ended:
                back.source_ended("RST")
        else:
            if how is not None:
                self.end(how)

    def _watch(self) -> None:
        if self._gone:
            return
        if all(side.incoming.is_over for side in self._sides):
            self.close()
            return
        now = time.monotonic()
        for side in self._sides:
            self._watch_side(side, self._wanted(side, now))
            self._wake_when_due(side.incoming.due_at, now)

    def _wanted(self, side: _Side, now: float) -> int:
        if not self._connected:
            return selectors.EVENT_WRITE if side is self._server else 0
        due_at = side.outgoing.due_at
        writing = selectors.EVENT_WRITE if due_at is not None and due_at <= now else 0
        return writing | selectors.EVENT_READ if side.incoming.wants_read else writing

    def _watch_side(self, side: _Side, wanted: int) -> None:
        if wanted != side.watched:
            side.watched = wanted
            self._loop.watch(side.sock, wanted, functools.partial(self._ready, side))

    def _wake_when_due(self, due_at: float | None, now: float) -> None:
        if due_at is not None and due_at > now and (self._wakes_at is None or due_at < self._wakes_at):
            self._wakes_at = due_at
            self._loop.later(due_at - now, self._wake)

    def _wake(self) -> None:
        self._wakes_at = None
        if not self._gone:
            self.refresh()


def _send_fin(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is not connected, or no longer
