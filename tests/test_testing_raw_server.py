"""The raw server: a script that speaks in bytes, for each connection in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

import evtws
from evtws.testing import RawConnection, RawServer, raw_server, tls_contexts

from .live import nothing_leaks
from .raw import refusing, upgrading
from .timing import MS, SOON

__all__ = ["nothing_leaks"]


def dial(url: str, **options: object) -> evtws.Connection:
    """An open connection to it."""
    connection = evtws.Connection(on_error=lambda _: None, close_timeout=0, **options)  # type: ignore[arg-type]
    connection.dial(url)
    return connection


def test_an_upgrade() -> None:
    """`upgrade` reads the request and accepts it, with the headers that are given; `header` tells what was asked."""
    asked: list[str | None] = []

    def script(raw: RawConnection) -> None:
        raw.upgrade("X-Served-By: raw")
        asked.extend([raw.header("upgrade"), raw.header("x-missing"), raw.request[:4]])
        raw.send(b"\x81\x02hi")
        raw.hold()

    heard = threading.Event()
    with RawServer(script) as server:
        with dial(server.url, on_message=lambda message, _: heard.set()):
            assert heard.wait(SOON)
        assert asked == ["websocket", None, "GET "]
        assert [type(raw) for raw in server.connections] == [RawConnection]


def test_over_tls() -> None:
    """With a context it is a TLS server; without one a script may start TLS itself."""
    server_context, client_context = tls_contexts()

    def script(raw: RawConnection) -> None:
        raw.start_tls(server_context)
        raw.upgrade()
        raw.hold()

    with RawServer(upgrading(), context=server_context) as server:
        assert server.url.startswith("wss://127.0.0.1:")
        dial(server.url, ssl=client_context).close()
    with RawServer(script) as server:
        dial(server.url.replace("ws:", "wss:"), ssl=client_context).close()


def test_a_wrong_answer() -> None:
    """An answer may be a refusal, or an acceptance with a key that is wrong."""

    def script(raw: RawConnection) -> None:
        raw.read_request()
        raw.send(raw.response(accept="wrong"))
        raw.hold()

    for wrong, status in ((refusing("HTTP/1.1 404 Not Found", "Content-Length: 2", body=b"no"), 404), (script, 101)):
        with RawServer(wrong) as server, pytest.raises(evtws.HandshakeError) as caught:
            dial(server.url)
        assert caught.value.status == status


def test_bytes() -> None:
    """`receive` gives what has come, `send` sends what it is given, and the script's end ends the connection."""

    def script(raw: RawConnection) -> None:
        raw.send(raw.receive(100).upper())

    with RawServer(script) as server, socket.create_connection(("127.0.0.1", server.port), SOON) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"HELLO"
        assert sock.recv(100) == b""


def test_a_reset() -> None:
    """`reset` is an RST."""

    def script(raw: RawConnection) -> None:
        raw.receive(1)
        raw.reset()

    with RawServer(script) as server, socket.create_connection(("127.0.0.1", server.port), SOON) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


@pytest.mark.parametrize("wait", [lambda raw: raw.receive(1), RawConnection.hold], ids=["receive", "hold"])
def test_the_client_goes_away(wait: Callable[[RawConnection], object]) -> None:
    """A script that waits for a client that goes away ends by that, which is no failure."""
    ended = threading.Event()

    def script(raw: RawConnection) -> None:
        try:
            wait(raw)
        finally:
            ended.set()

    with RawServer(script) as server:
        socket.create_connection(("127.0.0.1", server.port), SOON).close()
        assert ended.wait(SOON)


def test_the_client_says_nothing() -> None:
    """A script waits for at most `timeout` seconds at a time."""
    waited: list[float] = []

    def script(raw: RawConnection) -> None:
        began = time.monotonic()
        try:
            raw.receive(1)
        finally:
            waited.append(time.monotonic() - began)

    with (
        RawServer(script, timeout=20 * MS) as server,
        socket.create_connection(("127.0.0.1", server.port), SOON) as sock,
    ):
        assert sock.recv(1) == b""
    assert waited[0] >= 19 * MS


def test_what_a_script_raises() -> None:
    """What a script raises is raised when the server is closed, once."""

    def script(raw: RawConnection) -> None:
        raise LookupError("script")

    server = RawServer(script)
    with socket.create_connection(("127.0.0.1", server.port), SOON) as sock:
        assert sock.recv(1) == b""
    with pytest.raises(LookupError, match="script"):
        server.close()
    server.close()


def test_a_script_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that keeps the server from closing is a TimeoutError."""
    monkeypatch.setattr(raw_server, "_JOIN_TIMEOUT", 10 * MS)
    begun, may_end = threading.Event(), threading.Event()

    def script(raw: RawConnection) -> None:
        begun.set()
        may_end.wait(SOON)

    server = RawServer(script)
    with socket.create_connection(("127.0.0.1", server.port), SOON):
        assert begun.wait(SOON)
        with pytest.raises(TimeoutError, match="script"):
            server.close()
    may_end.set()
    monkeypatch.undo()
    server.close()
