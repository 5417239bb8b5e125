"""What polls WebSocketPeers here: a wait for as long as they say, and an echo server that serves many in one loop."""

from __future__ import annotations

import math
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from evtws import EvtwsError, OutboxFull, WebSocketPeer, WriteMode
from tests.timing import SOON

#: Room for a message of 16 MiB, the largest that the Autobahn TestSuite sends, and for another one behind it.
ROOM = 32 << 20

T = TypeVar("T")


def new_peer(**settings: Any) -> WebSocketPeer:
    """A peer with room for large messages, and with these attributes."""
    peer = WebSocketPeer()
    for name, value in {"inbound_buffer_size": ROOM, "outbound_buffer_size": ROOM, **settings}.items():
        assert hasattr(peer, name), name
        setattr(peer, name, value)
    return peer


def wait(peers: Iterable[WebSocketPeer], *sockets: socket.socket, within: float = math.inf) -> set[int]:
    """Sleep until one of the peers is to be polled, as it says itself, or one of the sockets can be read.

    What it returns are the descriptors that are ready, the sockets' own and the peers'. It sleeps for `within` seconds
    at most.
    """
    poller = select.poll()
    for sock in sockets:
        poller.register(sock, select.POLLIN)
    for peer in peers:
        # One that wants nothing is left out: it would be told of a hang-up all the same, and again and again.
        if events := peer.wants_read * select.POLLIN | peer.wants_write * select.POLLOUT:
            poller.register(peer.fileno(), events)
        if peer.poll_within is not None:
            within = min(within, peer.poll_within)
    return {fd for fd, _ in poller.poll(None if math.isinf(within) else math.ceil(within * 1000))}


def poll_until(peer: WebSocketPeer, what: Callable[[], T], within: float = SOON) -> T:
    """What `what()` returns, once that is true; it is asked after each poll. Raises TimeoutError."""
    deadline = time.monotonic() + within
    while not (found := what()):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{peer} after {within:g} s")
        wait([peer], within=left)
        peer.poll()
    return found


def poll_until_closed(peer: WebSocketPeer, within: float = SOON) -> None:
    """Poll until it is CLOSED. Raises TimeoutError."""
    poll_until(peer, lambda: peer.get_ready_state() is peer.STATE_CLOSED, within)


def received(peer: WebSocketPeer) -> str | bytes:
    """The next packet, as `str` if it was text."""
    poll_until(peer, peer.get_available_packet_count)
    packet = peer.get_packet()
    return packet.decode() if peer.was_string_packet() else packet


class Echo:
    """Echoes a peer's packets, text as text; where there is no room for an echo it takes no further packet.

    The text "close CODE REASON" is not echoed: it is what to close with.
    """

    def __init__(self, peer: WebSocketPeer) -> None:
        self.peer = peer
        #: How often there was no room.
        self.refusals = 0
        self._held: tuple[bytes, WriteMode] | None = None

    def work(self) -> None:
        """Poll, and echo what came, as far as there is room."""
        self.peer.poll()
        try:
            while self.peer.get_ready_state() is self.peer.STATE_OPEN and (packet := self._next()):
                self._answer(*packet)
                self._held = None
        except OutboxFull:
            self.refusals += 1  # it is held until there is room

    def _next(self) -> tuple[bytes, WriteMode] | None:
        if self._held is None and self.peer.get_available_packet_count():
            packet = self.peer.get_packet()
            self._held = packet, WriteMode.TEXT if self.peer.was_string_packet() else WriteMode.BINARY
        return self._held

    def _answer(self, packet: bytes, mode: WriteMode) -> None:
        if mode is WriteMode.TEXT and packet.startswith(b"close "):
            _, code, reason = packet.decode().split(" ", 2)
            self.peer.close(int(code), reason)
        else:
            self.peer.send(packet, mode)


def echo_until_closed(peer: WebSocketPeer, within: float) -> None:
    """Echo until the peer is CLOSED. Raises TimeoutError."""
    echo, deadline = Echo(peer), time.monotonic() + within
    while peer.get_ready_state() is not peer.STATE_CLOSED:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{peer} was not closed within {within:g} s")
        wait([peer], within=within)
        echo.work()


@dataclass(frozen=True)
class End:
    """How the connection of an echo server's client went: what was asked for and agreed on, and how it ended."""

    url: str
    protocol: str
    code: int
    reason: str
    error: EvtwsError | None


class EchoServer:
    """An echo server at 127.0.0.1: one loop accepts, polls and echoes. `settings` are its peers' attributes."""

    def __init__(self, context: ssl.SSLContext | None, settings: dict[str, Any]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._context = context
        self._settings = settings
        self._echoes: list[Echo] = []
        #: Each connection that is over, the first one first.
        self.ends: queue.Queue[End] = queue.Queue()
        self.url = f"{'wss' if context else 'ws'}://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def refusals(self) -> int:
        """How often there was no room for an echo to one of those who are connected."""
        return sum(echo.refusals for echo in self._echoes)

    def serve(self, stop: socket.socket) -> None:
        """Serve until `stop` can be read, then drop who is still there."""
        ready: set[int] = set()
        with self._listener:
            while stop.fileno() not in ready:
                if self._listener.fileno() in ready:
                    self._accept()
                for echo in tuple(self._echoes):
                    self._work(echo)
                ready = wait((echo.peer for echo in self._echoes), self._listener, stop)
        for echo in self._echoes:
            echo.peer.close(-1)

    def _accept(self) -> None:
        stream, _ = self._listener.accept()
        if self._context is not None:
            stream = self._context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False)
        peer = new_peer(**self._settings)
        peer.accept_stream(stream)
        self._echoes.append(Echo(peer))

    def _work(self, echo: Echo) -> None:
        echo.work()
        peer = echo.peer
        if peer.get_ready_state() is peer.STATE_CLOSED:
            self._echoes.remove(echo)
            url, protocol = peer.get_requested_url(), peer.get_selected_protocol()
            self.ends.put(End(url, protocol, peer.get_close_code(), peer.get_close_reason(), peer.error))


@contextmanager
def echo_server(context: ssl.SSLContext | None = None, **settings: Any) -> Iterator[EchoServer]:
    """Run an echo server in a thread of its own, and end it; with `context` it speaks TLS."""
    server = EchoServer(context, settings)
    reader, writer = socket.socketpair()
    thread = threading.Thread(target=server.serve, args=(reader,), name="echo-server")
    with reader, writer:
        thread.start()
        try:
            yield server
        finally:
            writer.send(b"x")
            thread.join(SOON)
            assert not thread.is_alive()
