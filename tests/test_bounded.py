"""Whatever a peer does or leaves undone, `close` returns in time, every call ends, and nothing is left behind."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import trustme

from evtws import Connection, ConnectionLost, EvtwsError, Message, NotConnected, ReconnectPolicy, State
from evtws.testing import RawConnection, RawServer, Server

from .faults.support import Ear, ask, echo, only_client, until
from .live import NEVER, hold
from .raw import descriptors
from .timing import MS, SOON

#: The timeout that `close` is given, unless said otherwise, and what it may take beyond it.
TIMEOUT = 300 * MS
GRACE = 500 * MS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["ws", "wss"])
def contexts(request: pytest.FixtureRequest, authority: trustme.CA) -> tuple[ssl.SSLContext | None, Any]:
    """The contexts of a server and of its client."""
    if request.param == "ws":
        return None, None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def ours() -> list[str]:
    """The names of evtws's threads."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("evtws-"))


@contextmanager
def nothing_left(*detached: str) -> Iterator[None]:
    """Within: threads and descriptors come and go; afterwards none but these threads is left."""
    threads, files = ours(), descriptors()
    yield
    assert until(lambda: ours() == sorted([*threads, *detached])), ours()
    if not detached:
        assert until(lambda: descriptors() == files), (descriptors(), files)


def close_in_time(connection: Connection, timeout: float = TIMEOUT) -> None:
    """Close, and see that it takes no longer than it may."""
    began = time.monotonic()
    connection.close(timeout=timeout)
    assert time.monotonic() - began < timeout + GRACE
    assert connection.state is State.CLOSED


def dialling(connection: Connection, url: str) -> Future[None]:
    """A dial in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(connection.dial, url)
    pool.shutdown(wait=False)
    return future


def test_a_send_that_is_under_way(contexts: tuple[Any, Any]) -> None:
    """A peer that does not read keeps nobody: under a send of 64 MiB `close` is in time, and the sender is told."""
    with (
        Server(on_connect=lambda client: client.pause_reading(), ssl=contexts[0]) as server,
        nothing_left(),
        ThreadPoolExecutor(2) as pool,
    ):
        connection = Connection(ssl=contexts[1], write_timeout=None, close_timeout=None)
        connection.dial(server.url)
        sending = pool.submit(connection.send, bytes(64 << 20))
        assert until(lambda: connection.stats().bytes_sent > 100_000)
        asking = pool.submit(connection.request, Message(bytes(1000)))
        assert until(lambda: connection.pending)
        assert not sending.done()
        close_in_time(connection, 1000 * MS)
        errors = [future.exception(SOON) for future in (sending, asking)]
        assert [isinstance(error, ConnectionLost) for error in errors] == [True, True]
        assert [getattr(error, "written", None) for error in errors] == ["maybe", "no"]
        server.drop_all()
        assert until(lambda: not server.connections)


def silent(peer: RawConnection) -> None:
    """Read the request and never answer."""
    peer.hold()


def drip(peer: RawConnection) -> None:
    """Answer the request byte by byte, without an end."""
    peer.read_request()
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nX: ")
    while True:
        peer.send(b"x")
        time.sleep(5 * MS)


@pytest.mark.parametrize("script", [silent, drip])
def test_a_handshake(script: Any, contexts: tuple[Any, Any]) -> None:
    """A handshake that is never answered, or byte by byte, is ended by `close`, and the dial raises."""
    with RawServer(script, context=contexts[0]) as server, nothing_left():
        connection = Connection(ssl=contexts[1], connect_timeout=None)
        future = dialling(connection, server.url)
        assert until(lambda: server.connections)
        close_in_time(connection)
        assert isinstance(future.exception(SOON), NotConnected)
        assert until(lambda: server.connections[0].sock.fileno() < 0)


@pytest.mark.parametrize("script", [silent, drip])
def test_a_handshake_times_out(script: Any, contexts: tuple[Any, Any]) -> None:
    """`connect_timeout` is for the whole of a handshake, however many bytes come meanwhile."""
    with RawServer(script, context=contexts[0]) as server, nothing_left():
        connection = Connection(ssl=contexts[1], connect_timeout=200 * MS)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.dial(server.url)
        assert time.monotonic() - began < 700 * MS
        assert until(lambda: server.connections[0].sock.fileno() < 0)


def test_a_tls_handshake(contexts: tuple[Any, Any]) -> None:
    """A peer that takes the connection and says nothing of TLS is left at once."""
    with RawServer(silent) as server, nothing_left():
        connection = Connection(ssl=contexts[1], connect_timeout=None)
        future = dialling(connection, server.url.replace("ws:", "wss:"))
        assert until(lambda: server.connections)
        close_in_time(connection)
        assert isinstance(future.exception(SOON), NotConnected)
        assert until(lambda: server.connections[0].sock.fileno() < 0)


def test_a_silent_close(contexts: tuple[Any, Any]) -> None:
    """A peer that never answers our close frame is left when `close`'s timeout has passed."""
    with Server(hold, ssl=contexts[0], echo_close=False) as server, nothing_left():
        ear = Ear()
        connection = Connection(**ear.options, ssl=contexts[1], close_timeout=None)
        connection.dial(server.url)
        future = connection.submit(ask())
        client = only_client(server)
        began = time.monotonic()
        close_in_time(connection)
        assert time.monotonic() - began >= TIMEOUT
        assert isinstance(future.exception(0), ConnectionLost)
        assert client.close_code == 1000
        assert ear.disconnected == [None]
        assert until(lambda: not server.connections)


def test_a_peer_that_never_ends_tcp(contexts: tuple[Any, Any]) -> None:
    """A peer that answers our close frame and does not end TCP is left when `close`'s timeout has passed."""

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        peer.receive(8)
        peer.send(b"\x88\x02\x03\xe8")
        peer.hold()

    with RawServer(script, context=contexts[0]) as server, nothing_left():
        connection = Connection(ssl=contexts[1])
        connection.dial(server.url)
        close_in_time(connection)
        assert until(lambda: server.connections[0].sock.fileno() < 0)


def test_a_backoff(contexts: tuple[Any, Any]) -> None:
    """`close` ends a backoff; what waits in the outbox is told."""
    with Server(hold, ssl=contexts[0]) as server, nothing_left():
        ear = Ear()
        connection = Connection(**ear.options, ssl=contexts[1], reconnect=NEVER, outbox=1)
        connection.dial(server.url)
        server.drop_all()
        ear.one_error()
        future = connection.submit(ask())
        close_in_time(connection)
        error = future.exception(0)
        assert isinstance(error, ConnectionLost)
        assert error.written == "no"


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs keeps one thread, detached, which ends when it returns; `close` is in time."""
    asked, release = threading.Event(), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        asked.set()
        release.wait(SOON)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with nothing_left():
        with nothing_left("evtws-resolve"):
            connection = Connection(connect_timeout=None, proxy=None)
            future = dialling(connection, "ws://hangs.invalid")
            assert asked.wait(SOON)
            close_in_time(connection)
            assert isinstance(future.exception(SOON), NotConnected)
        release.set()


def test_a_callback_that_blocks(contexts: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A callback that blocks keeps its own thread only, detached and named in the log; no other is called after it."""
    inside, release = threading.Event(), threading.Event()
    called: list[int] = []

    def block(_message: Message, connection: Connection) -> None:
        called.append(1)
        inside.set()
        assert release.wait(SOON)
        with pytest.raises(EvtwsError):
            connection.send("x")

    with Server(echo, ssl=contexts[0]) as server, nothing_left():
        with nothing_left("evtws-callbacks"):
            connection = Connection(ssl=contexts[1], on_message=block)
            connection.dial(server.url)
            connection.send("1")
            connection.send("2")
            assert inside.wait(SOON)
            close_in_time(connection)
        assert "block" in caplog.text
        release.set()
        assert until(lambda: not ours() or "evtws-callbacks" not in ours())
        assert called == [1]


def test_a_prepare_that_blocks(contexts: tuple[Any, Any]) -> None:
    """A `prepare` that blocks keeps its own thread only, detached, which ends when it returns."""
    inside, release = threading.Event(), threading.Event()

    def block(_: Connection) -> None:
        inside.set()
        assert release.wait(SOON)

    with Server(echo, ssl=contexts[0]) as server, nothing_left():
        with nothing_left("evtws-prepare"):
            connection = Connection(ssl=contexts[1], prepare=block, connect_timeout=None)
            future = dialling(connection, server.url)
            assert inside.wait(SOON)
            close_in_time(connection)
            assert isinstance(future.exception(SOON), NotConnected)
        release.set()


def test_a_hundred_lives(contexts: tuple[Any, Any]) -> None:
    """A hundred dials, losses and closes leave nothing behind."""
    with Server(echo, ssl=contexts[0]) as server, nothing_left():
        ear = Ear()
        connection = Connection(**ear.options, ssl=contexts[1], reconnect=ReconnectPolicy(wait=lambda _: 0.0))
        for number in range(20):
            connection.dial(server.url)
            for loss in range(4):
                server.drop_all()
                ear.wait_for(lambda: ear.connected == number * 5 + loss + 2)  # noqa: B023
            assert connection.request(ask(number), SOON).params == {"id": number}
            close_in_time(connection)
        assert until(lambda: not server.connections)
