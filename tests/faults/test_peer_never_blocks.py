"""No call of a polled peer blocks, whatever the other end or the resolver does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from evtws import EvtwsError, State, WebSocketPeer
from evtws.testing import ClientConnection, Server

from ..live import nothing_leaks
from ..timing import MS, SOON

__all__ = ["nothing_leaks"]

#: Rounds of every call, and how often all of them are repeated.
ROUNDS, RUNS = 100, 5
#: Seconds by which the longest call may exceed the longest empty round.
WITHIN = 5 * MS

AUTHORITY = trustme.CA()


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def serving() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


class Timed:
    """The longest call, and the longest of as many calls that do nothing."""

    def __init__(self) -> None:
        self.call = self.nothing = 0.0
        self.name = ""

    def __call__(self, name: str, function: Callable[[], object]) -> None:
        began = time.perf_counter()
        with contextlib.suppress(EvtwsError, IndexError):
            function()
        took = time.perf_counter() - began
        if took > self.call:
            self.call, self.name = took, name
        began = time.perf_counter()
        with contextlib.suppress(EvtwsError, IndexError):
            _nothing()
        self.nothing = max(self.nothing, time.perf_counter() - began)

    @property
    def excess(self) -> float:
        """Seconds by which the longest call exceeded the longest that does nothing."""
        return self.call - self.nothing


def check(run: Callable[[Timed], object]) -> None:
    """What blocks does so in each run; what the machine does meanwhile, in few of them."""
    runs = [Timed() for _ in range(RUNS)]
    for timed in runs:
        run(timed)
    excesses = sorted((timed.excess, timed.name) for timed in runs)
    assert excesses[RUNS // 2][0] < WITHIN, excesses


def _nothing() -> None:
    time.perf_counter()


def all_calls(timed: Timed, peer: WebSocketPeer) -> None:
    """Every call there is, but those that begin and end a connection."""
    timed("poll", peer.poll)
    timed("send", lambda: peer.send(bytes(20_000)))
    timed("send_text", lambda: peer.send_text("x" * 20_000))
    timed("put_packet", lambda: peer.put_packet(b"x"))
    timed("get_packet", peer.get_packet)
    timed("set_no_delay", lambda: peer.set_no_delay(True))
    for name in (
        "get_ready_state",
        "get_available_packet_count",
        "was_string_packet",
        "get_close_code",
        "get_close_reason",
        "get_connected_host",
        "get_connected_port",
        "get_requested_url",
        "get_selected_protocol",
        "get_current_outbound_buffered_amount",
        "fileno",
    ):
        timed(name, getattr(peer, name))
    for name in ("ready_state", "wants_read", "wants_write", "poll_within"):
        timed(name, lambda name=name: getattr(peer, name))  # type: ignore[misc]


def begin_client(timed: Timed, url: str) -> WebSocketPeer:
    peer = WebSocketPeer()
    context = trusting()
    timed("connect_to_url", lambda: peer.connect_to_url(url, ssl=context if url.startswith("wss") else None))
    return peer


@contextlib.contextmanager
def hanging_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's resolver does not answer until the end."""
    answer = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        answer.wait(SOON)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield
    finally:
        answer.set()


def rounds(timed: Timed, peer: WebSocketPeer, state: State) -> None:
    """All calls, again and again, on a peer that stays in that state; then its end."""
    for _ in range(ROUNDS):
        all_calls(timed, peer)
        time.sleep(MS / 10)
    assert peer.ready_state is state
    timed("close", peer.close)
    timed("poll", peer.poll)
    timed("close(-1)", lambda: peer.close(-1))


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the resolver hangs every call returns at once."""
    with hanging_resolver(monkeypatch):
        check(lambda timed: rounds(timed, begin_client(timed, "ws://example.invalid"), State.CONNECTING))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_server_that_says_nothing(scheme: str) -> None:
    """While a server never completes the TLS or the HTTP handshake every call returns at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        check(lambda timed: rounds(timed, begin_client(timed, url), State.CONNECTING))


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_a_client_that_says_nothing(secure: bool) -> None:
    """While a client never completes the TLS or the HTTP handshake every call returns at once."""
    context = serving()

    def run(timed: Timed) -> None:
        with socket.create_connection(listener.getsockname()):
            sock, _ = listener.accept()
            if secure:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            peer = WebSocketPeer()
            timed("accept_stream", lambda: peer.accept_stream(sock))
            rounds(timed, peer, State.CONNECTING)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        check(run)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_peer_that_does_not_read(secure: bool) -> None:
    """While the other end does not read, and its pushes wait to be got, every call returns at once."""

    def push(client: ClientConnection) -> None:
        client.pause_reading()
        for _ in range(5000):
            client.send(bytes(100))

    def run(timed: Timed) -> None:
        peer = begin_client(timed, server.url)
        peer.outbound_buffer_size = 1 << 20
        # Untimed until the server's thread has nothing to do any more: it is this process's interpreter that it holds.
        deadline = time.monotonic() + SOON
        while peer.ready_state is State.CONNECTING or peer.wants_read:
            assert time.monotonic() < deadline
            peer.poll()
            time.sleep(MS)
        rounds(timed, peer, State.OPEN)

    with Server(on_connect=push, ssl=serving() if secure else None) as server:
        check(run)
