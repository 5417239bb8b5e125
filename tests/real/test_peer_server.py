"""A WebSocketPeer that accepts streams: a page in Chromium, websockets and websocket-client visit an echo server."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import websocket
import websockets.sync.client

from evtws import ConnectionLost, MessageTooBig, ProtocolError
from evtws.testing.certificates import tls_contexts
from tests.faults.support import until
from tests.timing import SOON

from .polled import EchoServer, End, echo_server
from .visitors import Visit, Visitor, visit_by_page, visit_by_websocket_client, visit_by_websockets

#: 122 bytes of UTF-8.
LONG_REASON = "é" * 61


@pytest.fixture(autouse=True)
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection ends because its TCP ends, not because a second has passed."""
    monkeypatch.setattr("evtws.polled_websocket.FAREWELL", 10 * SOON)


@pytest.fixture(params=["chromium", "chromium tls", "websocket-client", "websocket-client tls", "websockets"])
def visitor(request: pytest.FixtureRequest) -> Visitor:
    """Each client. websockets is not asked for TLS: its two threads share one SSLSocket, which may fail by itself."""
    name, _, tls = request.param.partition(" ")
    server, client = tls_contexts() if tls else (None, None)
    if name == "chromium":
        return Visitor(functools.partial(visit_by_page, devtools=request.getfixturevalue("devtools")), server)
    if name == "websocket-client":
        visit = functools.partial(visit_by_websocket_client, context=client)
        return Visitor(visit, server, echoes_codes=False)
    return Visitor(visit_by_websockets)


def end_of(server: EchoServer) -> End:
    """How the first connection ended that was open. Chromium gives one up before it accepts the certificate."""
    while not (end := server.ends.get(timeout=SOON)).url:
        pass
    return end


def test_messages_are_echoed_as_they_came(visitor: Visitor) -> None:
    """Text and binary of every size come as such and go as such."""
    says: list[str | bytes] = [
        "text",
        b"\0\xff",
        "",
        b"",
        "ä€𝄞",
        bytes(range(256)) * 256,
        "x" * 125,
        "x" * 126,
        "é" * 500_000,
    ]
    with echo_server(visitor.context) as server:
        assert visitor.visit(server.url, Visit(says)).heard == says
        assert end_of(server).error is None


def test_the_server_knows_the_url(visitor: Visitor) -> None:
    """The URL that the client asked for is the peer's, path and query included."""
    with echo_server(visitor.context) as server:
        url = f"{server.url}/path?query=1&x=%20"
        visitor.visit(url, Visit())
        assert end_of(server).url == url


@pytest.mark.parametrize(("offers", "chosen"), [(["a", "b"], "b"), (["c", "a"], "a"), ([], "")])
def test_the_servers_favourite_subprotocol_is_chosen(visitor: Visitor, offers: list[str], chosen: str) -> None:
    """Of the subprotocols that the client offers, that is chosen which the server names first."""
    with echo_server(visitor.context, supported_protocols=["b", "a"]) as server:
        assert visitor.visit(server.url, Visit(offers=offers)).protocol == chosen
        assert end_of(server).protocol == chosen


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3001, "x"), (4999, LONG_REASON)])
def test_the_client_closes(visitor: Visitor, code: int, reason: str) -> None:
    """The client's code and reason are the peer's, and its answer to them."""
    with echo_server(visitor.context) as server:
        seen = visitor.visit(server.url, Visit(["last"], code=code, reason=reason))
        end = end_of(server)
    assert (seen.code, seen.reason) == (end.code, end.reason) == (code, reason)
    assert end.error is None


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3002, "bye"), (4000, LONG_REASON)])
def test_the_server_closes(visitor: Visitor, code: int, reason: str) -> None:
    """The client has the peer's code and reason; the peer has those of the client's answer, a clean end."""
    with echo_server(visitor.context) as server:
        seen = visitor.visit(server.url, Visit(code=code, reason=reason, by_server=True))
        end = end_of(server)
    assert (seen.code, seen.reason) == (code, reason)
    assert (end.code, end.reason) == ((code, reason) if visitor.echoes_codes else (1000, ""))
    assert end.error is None


def test_one_loop_serves_many() -> None:
    """Many connections, which one thread polls, are served side by side."""
    with echo_server() as server, ExitStack() as stack:
        connections = [stack.enter_context(websockets.sync.client.connect(server.url)) for _ in range(20)]
        for round_ in range(10):
            for number, connection in enumerate(connections):
                connection.send(f"{round_}/{number}")
            echoes = [connection.recv(SOON) for connection in connections]
            assert echoes == [f"{round_}/{number}" for number in range(20)]


def test_a_ping_is_answered() -> None:
    """websockets' pings are answered by polling alone, each by its own payload."""
    with echo_server() as server, websockets.sync.client.connect(server.url) as connection:
        for _ in range(3):
            assert connection.ping().wait(SOON)


@contextmanager
def opened(server: EchoServer, **options: Any) -> Iterator[Any]:
    """A websocket-client connection; in the end its TCP ends, without a close frame."""
    connection: Any = websocket.create_connection(server.url, SOON, **options)
    try:
        yield connection
    finally:
        connection.shutdown()


def test_what_has_no_room_waits() -> None:
    """A client that sends and does not read fills the outbox, then the inbox; when it reads it has every echo."""
    count, body = 300, bytes(range(256)) * 256
    room: dict[str, Any] = {"outbound_buffer_size": 2 * len(body), "inbound_buffer_size": 2 * len(body)}
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)]
    with echo_server(**room) as server, opened(server, sockopt=small) as connection:
        writer = threading.Thread(target=lambda: [connection.send_binary(body) for _ in range(count)])
        writer.start()
        assert until(lambda: server.refusals)
        assert all(connection.recv() == body for _ in range(count))
        writer.join(SOON)
        assert not writer.is_alive()


CLOSE = bytes.fromhex("88 82 00000000 0bb9")
RESERVED = bytes.fromhex("f1 80 00000000")


@pytest.mark.parametrize(("last", "code"), [(CLOSE, 3001), (RESERVED, 1002)], ids=["close", "fault"])
def test_what_came_before_the_end_is_answered(last: bytes, code: int) -> None:
    """A packet that came together with a close frame, or with a fault, is echoed before that is answered."""
    with echo_server() as server:
        with opened(server) as connection:
            frame = websocket.ABNF.create_frame("before", websocket.ABNF.OPCODE_TEXT)
            connection.sock.sendall(frame.format() + last)
            assert connection.recv() == "before"
            assert connection.recv_data() == (websocket.ABNF.OPCODE_CLOSE, code.to_bytes(2, "big"))
        end = end_of(server)
    assert (end.code, type(end.error)) == ((3001, type(None)) if last is CLOSE else (-1, ProtocolError))


def test_a_client_that_vanishes() -> None:
    """A client that ends TCP without a close frame is a loss: no code, and an error."""
    with echo_server() as server:
        with opened(server):
            pass
        end = end_of(server)
    assert (end.code, type(end.error)) == (-1, ConnectionLost)


def test_a_message_that_is_too_large() -> None:
    """A message above `inbound_buffer_size` is refused with 1009; one of that very size is echoed."""
    with echo_server(inbound_buffer_size=1000) as server, websockets.sync.client.connect(server.url) as connection:
        connection.send(bytes(1000))
        assert connection.recv(SOON) == bytes(1000)
        connection.send(bytes(1001))
        with pytest.raises(websockets.ConnectionClosedError):
            connection.recv(SOON)
        assert connection.close_code == 1009
        end = end_of(server)
    assert (end.code, type(end.error)) == (-1, MessageTooBig)
