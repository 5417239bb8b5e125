"""The testing server, driven by the clients of others."""

import gc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from evtws import HandshakeError, State, WebSocketPeer
from evtws.frames import Opcode, encode, encode_message
from evtws.handshake import UpgradeRequest
from evtws.nonblocking import NonBlockingSocket
from evtws.testing import ClientConnection, Reply, Server, tls_contexts

from .faults.support import until
from .timing import MS, SOON

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def server_context() -> ssl.SSLContext:
    """A server's context for 127.0.0.1."""
    return tls_contexts()[0]


@pytest.fixture
def client_context() -> ssl.SSLContext:
    """A client's context that trusts it."""
    return tls_contexts()[1]


@pytest.fixture(params=["ws", "wss"])
def context(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    """The server's context: none for ws, one for wss."""
    return request.getfixturevalue("server_context") if request.param == "wss" else None


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert until(lambda: threading.active_count() == threads)
    assert until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


@pytest.fixture
def dial() -> Any:
    """Opens a connection of websockets to a server, compressed unless told otherwise; not over TLS, see `polled`."""

    def dial(server: Server, **options: Any) -> Any:
        return connect(server.url + "/x?y=1", open_timeout=SOON, close_timeout=SOON, max_size=None, **options)

    return dial


def poll_until(what: Callable[[], object], peer: WebSocketPeer) -> None:
    """Poll until that is true."""
    deadline = time.monotonic() + SOON
    while not what():
        assert time.monotonic() < deadline
        peer.poll()
        time.sleep(MS / 10)


def polled(server: Server, context: ssl.SSLContext) -> WebSocketPeer:
    """An open connection of one thread, which TLS needs; the sync client of websockets has two."""
    peer = WebSocketPeer()
    peer.connect_to_url(server.url, ssl=context)
    poll_until(lambda: peer.ready_state is State.OPEN, peer)
    return peer


def raw(server: Server, first: bytes = UPGRADE) -> socket.socket:
    """A TCP connection on which this was said, and the end of the server's header read."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    sock.sendall(first)
    data = b""
    while first and not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """What comes until the end of the connection; which is then closed."""
    data = b""
    with sock:
        while chunk := sock.recv(65536):
            data += chunk
    return data


def only(server: Server) -> ClientConnection:
    """The one client of the server."""
    clients: list[ClientConnection] = server.wait_for(lambda: server.connections, SOON)
    assert len(clients) == 1
    return clients[0]


# Opening


def test_echo_to_websockets(dial: Any) -> None:
    """Text and binary messages of any size come and go; over wss websockets' two threads share one SSLSocket."""
    with Server(lambda client, body: client.send(body)) as server, dial(server) as peer:
        for body in ("", "ä", b"\x00\xff", "x" * 70_000, b"y" * 3_000_000):
            peer.send(body)
            assert peer.recv(SOON) == body
        assert server.received == only(server).received
        assert len(server.received) == server.received_count == 5


def test_echo_to_websocket_client(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """websocket-client talks to it, and closes politely, over ws and wss."""
    with Server(lambda client, body: client.send(body), ssl=context) as server:
        peer = websocket.create_connection(server.url, timeout=SOON, sslopt={"context": client_context})
        client = only(server)
        peer.send("hello")
        assert peer.recv() == "hello"
        peer.close(1000)
        assert server.wait_for(lambda: not client.is_open, SOON)
        assert client.close_code == 1000


def test_many_clients_at_once(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """Each of many connections has its own client; the snapshot keeps their order."""
    with Server(lambda client, body: client.send(body), ssl=context) as server, ExitStack() as stack:
        peers = []
        for _ in range(20):
            peer = websocket.create_connection(server.url, timeout=SOON, sslopt={"context": client_context})
            stack.callback(peer.shutdown)
            peers.append(peer)
        for number, peer in enumerate(peers):
            peer.send(str(number))
        assert [peer.recv() for peer in peers] == [str(number) for number in range(20)]
        assert [client.received for client in server.connections] == [[str(number)] for number in range(20)]
        assert server.dials == 20
        stack.close()
        assert server.wait_for(lambda: not server.connections, SOON)


def test_on_connect_may_push(dial: Any) -> None:
    """What on_connect sends comes first, and the request is there."""

    def greet(client: ClientConnection) -> None:
        client.send(client.request.target)

    with Server(on_connect=greet) as server, dial(server) as peer:
        assert peer.recv(SOON) == "/x?y=1"


def test_subprotocols_are_chosen(dial: Any) -> None:
    """The server's favourite among the offered subprotocols is chosen."""
    with Server(subprotocols=["b", "a"]) as server, dial(server, subprotocols=["a", "b"]) as peer:
        assert peer.subprotocol == "b"
        assert only(server).request.subprotocols == ("a", "b")


def test_on_handshake_accepts_with_headers(dial: Any) -> None:
    """A Reply of 101 adds headers to the acceptance and chooses the subprotocol."""
    reply = Reply(headers=[("X-Served-By", "a")], subprotocol="a")
    with (
        Server(on_handshake=lambda request: reply, subprotocols=["b"]) as server,
        dial(server, subprotocols=["b", "a"]) as peer,
    ):
        assert peer.subprotocol == "a"
        assert peer.response is not None
        assert peer.response.headers["X-Served-By"] == "a"


def test_on_handshake_refuses(dial: Any) -> None:
    """Another Reply refuses the upgrade with its status, headers and body, and None accepts."""

    def judge(request: UpgradeRequest) -> Reply | None:
        if server.dials == 1:
            return Reply(503, [("Retry-After", "7")], b"x" * 100_000)
        return None

    with Server(on_handshake=judge) as server:
        with pytest.raises(InvalidStatus) as caught, dial(server):
            pass
        response = caught.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
        assert response.body == b"x" * 100_000
        assert server.connections == []
        with dial(server):
            assert only(server).is_open


def test_on_handshake_refuses_over_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """The upgrade is refused over TLS as without it."""
    with Server(on_handshake=lambda _: Reply(503, [("Retry-After", "7")], b"busy"), ssl=server_context) as server:
        peer = WebSocketPeer()
        peer.connect_to_url(server.url, ssl=client_context)
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
    assert isinstance(peer.error, HandshakeError)
    assert (peer.error.status, peer.error.headers["retry-after"], peer.error.body) == (503, "7", b"busy")


@pytest.mark.parametrize("status", [101, 403])
def test_on_handshake_answers_late(dial: Any, status: int) -> None:
    """A Reply with a delay is the answer after so many seconds."""
    with Server(on_handshake=lambda _: Reply(status, delay=30 * MS)) as server:
        began = time.monotonic()
        if status == 101:
            with dial(server) as peer:
                peer.send("x")
                assert server.wait_for(1, SOON)
        else:
            with pytest.raises(InvalidStatus), dial(server):
                pass
        assert time.monotonic() - began >= 30 * MS


def test_a_late_answer_that_cannot_be_given(dial: Any) -> None:
    """A late Reply that cannot be given ends that client, and is raised at the end."""
    server = Server(on_handshake=lambda _: Reply(subprotocol="not offered", delay=MS))
    with pytest.raises(Exception, match=r"."), dial(server):
        pass
    with pytest.raises(ValueError, match="not offered"):
        server.__exit__(None, None, None)


def test_a_late_answer_of_a_server_that_was_closed() -> None:
    """A server that is closed before a late answer gives none."""
    asked = threading.Event()

    def judge(_: UpgradeRequest) -> Reply:
        asked.set()
        return Reply(delay=10 * MS)

    with Server(on_handshake=judge) as server:
        peer = WebSocketPeer()
        peer.connect_to_url(server.url)
        deadline = time.monotonic() + SOON
        while not asked.is_set():
            assert time.monotonic() < deadline
            peer.poll()
        server.loop.call(next(iter(server._clients)).end)
        server.wait_for(lambda: False, 30 * MS)
        assert server.errors == []
        peer.close(-1)


def test_on_handshake_that_raises_is_a_500(dial: Any) -> None:
    """A raising on_handshake answers 500, and is raised at the end."""

    def judge(request: UpgradeRequest) -> Reply:
        raise LookupError("script")

    server = Server(on_handshake=judge)
    with pytest.raises(InvalidStatus) as caught, dial(server):
        pass
    assert caught.value.response.status_code == 500
    with pytest.raises(LookupError, match="script"):
        server.__exit__(None, None, None)


def test_malformed_request_is_answered() -> None:
    """What is no upgrade is answered with the status that says so, whatever follows it."""
    with Server() as server:
        answer = read_all(raw(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nmore"))
        assert answer == b""  # nothing behind the header that `raw` has read
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
        sock.sendall(UPGRADE.replace(b": 13", b": 8"))
        assert read_all(sock).startswith(b"HTTP/1.1 426 ")


def test_request_may_come_in_pieces_and_with_frames() -> None:
    """A request cut in two, with the first message behind it, loses nothing."""
    with Server(lambda client, body: client.send(body)) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
        sock.sendall(UPGRADE[:20])
        raw(server).close()  # meanwhile the first piece is read
        sock.sendall(UPGRADE[20:] + encode_message("first", masked=True) + encode(8, b"", masked=True))
        assert read_all(sock).endswith(b"\r\n\r\n\x81\x05first\x88\x00")


def test_broken_tls_is_the_end(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A client that speaks no TLS, or leaves within the handshake, is dropped and disturbs nobody."""
    with Server(ssl=server_context) as server:
        with raw(server, b"") as sock:
            sock.sendall(UPGRADE)
            with suppress(ConnectionResetError):
                assert b"HTTP" not in read_all(sock)
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
        peer = polled(server, client_context)
        assert only(server).is_open
        peer.close(-1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_certificate_of_its_own(host: str) -> None:
    """With `ssl=True` the server makes its certificate, which `client_ssl` trusts by both names."""
    with Server(lambda client, body: client.send(body), ssl=True) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}"
        peer = WebSocketPeer()
        peer.connect_to_url(f"wss://{host}:{server.port}", ssl=server.client_ssl)
        poll_until(lambda: peer.ready_state is State.OPEN, peer)
        peer.send_text("hello")
        poll_until(peer.get_available_packet_count, peer)
        assert peer.get_packet() == b"hello"
        peer.close(-1)


def test_no_certificate_of_its_own(server_context: ssl.SSLContext) -> None:
    """There is no `client_ssl` for ws, nor for a context that was given."""
    for choice, scheme in ((None, "ws"), (False, "ws"), (server_context, "wss")):
        with Server(ssl=choice) as server:
            assert server.client_ssl is None
            assert server.url.startswith(f"{scheme}://")


def test_script_may_be_set_at_any_time(dial: Any) -> None:
    """The script functions are attributes: what is set counts from the next event on, and None is none."""
    with Server() as server:
        server.on_handshake = lambda request: Reply(403)
        with pytest.raises(InvalidStatus), dial(server):
            pass
        server.on_handshake = None
        server.on_connect = lambda client: client.send("welcome")
        with dial(server) as peer:
            assert peer.recv(SOON) == "welcome"
            peer.send("unheard")
            assert server.wait_for(1, SOON)
            server.on_message = lambda client, body: client.send(body)
            peer.send("heard")
            assert peer.recv(SOON) == "heard"


# Messages and control frames


def test_burst_is_served_in_order(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """Thousands of messages in a burst are answered in their order."""
    # One thread and one direction at a time: over TLS the clients at hand do not survive both at once.
    with Server(lambda client, body: client.send(body), ssl=context) as server:
        peer = websocket.create_connection(server.url, timeout=SOON, sslopt={"context": client_context})
        for number in range(3000):
            peer.send(str(number))
        assert server.wait_for(3000, SOON) is True
        assert [peer.recv() for _ in range(3000)] == [str(number) for number in range(3000)]
        peer.close()


def test_any_thread_may_send(dial: Any) -> None:
    """Messages of one thread keep their order when several threads send."""
    with Server() as server, dial(server, compression=None) as peer:
        client = only(server)

        def push(name: str) -> None:
            for number in range(300):
                client.send(f"{name}{number}")

        threads = [threading.Thread(target=push, args=(name,), daemon=True) for name in "abc"]
        for thread in threads:
            thread.start()
        bodies = [peer.recv(SOON) for _ in range(900)]
        for thread in threads:
            thread.join(SOON)
        assert [body for body in bodies if body[0] == "b"] == [f"b{number}" for number in range(300)]


def test_send_later(dial: Any) -> None:
    """Delayed messages come in the order of their times, not before them."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send_later(60 * MS, "late")
        client.send_later(30 * MS, "soon")
        client.send("now")

    with Server(script) as server, dial(server) as peer:
        began = time.monotonic()
        peer.send("go")
        assert [peer.recv(SOON) for _ in range(3)] == ["now", "soon", "late"]
        assert time.monotonic() - began >= 60 * MS


def test_send_later_to_nobody(dial: Any) -> None:
    """A delayed message to a client that has gone is forgotten."""
    with Server() as server:
        with dial(server):
            client = only(server)
        client.send_later(0, "late")
        client.send("too")
        with dial(server) as peer:
            only(server).send("here")
            assert peer.recv(SOON) == "here"


def test_recording_may_be_off(dial: Any) -> None:
    """Without recording messages are counted but not kept, nor are pings and pongs."""
    with Server(record=False) as server, dial(server) as peer:
        assert peer.ping().wait(SOON)
        peer.pong(b"x")
        peer.send("x")
        assert server.wait_for(1, SOON)
        client = only(server)
        assert server.received == client.received == client.pings == client.pongs == []


def test_pings_are_answered_and_recorded(dial: Any) -> None:
    """A ping is answered with its payload, unless `pongs` is off."""
    with Server() as server, dial(server) as peer:
        assert peer.ping(b"one").wait(SOON)
        server.pongs = False
        silent = peer.ping(b"two")
        client = only(server)
        assert server.wait_for(lambda: client.pings == [b"one", b"two"], SOON)
        peer.send("mark")
        assert server.wait_for(1, SOON)
        assert not silent.is_set()


def test_the_server_pings(dial: Any) -> None:
    """A ping of the server is answered by the client, and the pong recorded."""
    with Server() as server, dial(server):
        client = only(server)
        client.ping(b"abc")
        assert server.wait_for(lambda: client.pongs == [b"abc"], SOON)


def test_a_pong_out_of_the_blue() -> None:
    """The server can send a pong, and bytes as they are."""
    with Server() as server, raw(server) as sock:
        client = only(server)
        client.pong(b"p")
        client.send_raw(b"\x83\x00\xff")
        assert sock.recv(3, socket.MSG_WAITALL) == b"\x8a\x01p"
        assert sock.recv(3, socket.MSG_WAITALL) == b"\x83\x00\xff"


# Ending


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4001, "so it is")])
def test_client_closes(context: ssl.SSLContext | None, client_context: ssl.SSLContext, code: int, reason: str) -> None:
    """A client's close frame is echoed, and its code and reason are recorded."""
    with Server(ssl=context) as server:
        peer = polled(server, client_context)
        client = only(server)
        peer.close(code, reason)
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
        assert (peer.get_close_code(), peer.get_close_reason()) == (code, reason)
        assert server.wait_for(lambda: not client.is_open, SOON)
        assert (client.close_code, client.close_reason) == (code, reason)
        assert client.error is None


def test_a_close_frame_without_a_code() -> None:
    """A close frame without a code is recorded as 1005 and echoed without one; then comes a FIN."""
    with Server() as server:
        sock = raw(server)
        client = only(server)
        sock.sendall(encode(Opcode.CLOSE, b"", masked=True))
        assert read_all(sock) == b"\x88\x00"
        assert client.close_code == 1005


def test_close_frames_may_stay_unanswered(dial: Any) -> None:
    """Without echo_close a close frame is recorded and the connection stays as it is."""
    with Server(echo_close=False) as server, raw(server) as sock:
        client = only(server)
        sock.sendall(encode(Opcode.CLOSE, b"\x03\xe8", masked=True))
        assert server.wait_for(lambda: client.close_code == 1000, SOON)
        assert client.is_open


def test_server_closes(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """The server's close frame has its code and reason, and nothing follows it."""
    with Server(ssl=context) as server:
        peer = polled(server, client_context)
        client = only(server)
        client.send("last")
        client.close(4000, "enough")
        client.send("lost")
        client.close(4001)
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
        assert [peer.get_packet() for _ in range(peer.get_available_packet_count())] == [b"last"]
        assert (peer.get_close_code(), peer.get_close_reason()) == (4000, "enough")
        assert server.wait_for(lambda: not client.is_open, SOON)
        assert client.close_code == 4000


def test_what_was_sent_arrives_before_the_close() -> None:
    """A close frame does not outrun megabytes before it, however slowly they are read."""

    def script(client: ClientConnection) -> None:
        client.send(b"x" * 20_000_000)
        client.close()

    with Server(on_connect=script) as server:
        sock = raw(server)
        sock.sendall(encode(Opcode.CLOSE, b"\x03\xe8", masked=True))
        data = read_all(sock)
        assert len(data) == 20_000_010 + 4
        assert data.endswith(b"\x88\x02\x03\xe8")


def test_broken_frames_end_the_connection() -> None:
    """A client that breaks the protocol is closed with the code that says so, after its good messages."""
    with Server() as server:
        sock = raw(server)
        client = only(server)
        sock.sendall(encode_message("good", masked=True) + encode_message("unmasked", masked=False))
        assert read_all(sock) == b"\x88\x02\x03\xea"
        assert client.error is not None
        assert client.error.code == 1002
        assert client.received == ["good"]


def test_max_size() -> None:
    """A message over `max_size` is refused with 1009."""
    with Server(max_size=10) as server:
        sock = raw(server)
        sock.sendall(encode_message("x" * 10, masked=True) + encode_message("x" * 11, masked=True))
        assert read_all(sock) == b"\x88\x02\x03\xf1"
        assert server.received == ["x" * 10]


def test_drop_is_a_fin(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """A dropped client gets what was sent, then the end without a close frame."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send(body)
        client.drop()

    with Server(script, ssl=context) as server:
        peer = polled(server, client_context)
        client = only(server)
        peer.send_text("bye")
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
        assert (peer.get_packet(), peer.get_close_code()) == (b"bye", -1)
        assert not client.is_open
        assert server.connections == []
        client.drop()
        client.send("nothing")


def test_drop_can_reset() -> None:
    """A reset reaches the client as one."""
    with Server() as server, raw(server) as sock:
        only(server).drop(reset=True)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_client_that_ignores_the_end_is_not_waited_for() -> None:
    """A client that keeps its side open after a FIN is let go within seconds."""
    with Server() as server, raw(server) as sock:
        client = only(server)
        client.drop()
        assert sock.recv(1) == b""
        client.drop(reset=True)
        assert server.wait_for(lambda: client not in server._clients, SOON)


def test_the_lingering_ends() -> None:
    """After a FIN the server's socket goes away by itself, though the client says nothing."""
    with Server() as server, raw(server) as sock:
        client = only(server)
        client.drop()
        assert sock.recv(1) == b""
        assert server.wait_for(lambda: client not in server._clients, SOON)


def test_drop_all(dial: Any) -> None:
    """All open connections can be dropped together, and new ones come."""
    with Server() as server:
        peers = [raw(server) for _ in range(3)]
        assert server.wait_for(lambda: len(server.connections) == 3, SOON)
        server.drop_all()
        assert [read_all(peer) for peer in peers] == [b""] * 3
        with dial(server):
            assert only(server).is_open


def test_client_resets() -> None:
    """A client that resets its connection while it is written to is gone, and that is all."""
    with Server() as server:
        sock = raw(server)
        client = only(server)
        client.send(b"x" * 10_000_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        assert server.wait_for(lambda: not client.is_open, SOON)


# Reading and writing under pressure


def test_paused_reading_fills_the_window(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """While reading is paused the client's writes find no room; after it everything arrives."""
    total = 64
    with Server(ssl=context, record=False) as server:
        peer = websocket.create_connection(server.url, timeout=SOON, sslopt={"context": client_context})
        client = only(server)
        client.pause_reading()
        body = bytes(1_000_000)
        sender = threading.Thread(target=lambda: [peer.send_binary(body) for _ in range(total)], daemon=True)
        sender.start()
        sender.join(300 * MS)
        assert sender.is_alive()
        client.resume_reading()
        assert server.wait_for(total, SOON)
        sender.join(SOON)
        peer.close()


def test_pause_keeps_what_was_read(dial: Any) -> None:
    """Messages that were read already wait for the end of the pause, in their order."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        if body == "0":
            client.pause_reading()
            client.send("paused")

    with Server(script) as server, raw(server) as sock:
        sock.sendall(b"".join(encode_message(str(number), masked=True) for number in range(1000)))
        assert sock.recv(8, socket.MSG_WAITALL) == b"\x81\x06paused"
        assert server.received == ["0"]
        only(server).resume_reading()
        assert server.wait_for(1000, SOON)
        assert server.received == [str(number) for number in range(1000)]


def test_a_script_may_pause_and_resume_at_once() -> None:
    """Resuming within on_message does not call it again before it has returned."""
    inside: list[str | bytes] = []

    def script(client: ClientConnection, body: str | bytes) -> None:
        assert not inside
        inside.append(body)
        client.pause_reading()
        client.resume_reading()
        client.resume_reading()
        inside.clear()

    with Server(script) as server, raw(server) as sock:
        sock.sendall(b"".join(encode_message(str(number), masked=True) for number in range(1000)))
        assert server.wait_for(1000, SOON)
        assert server.received == [str(number) for number in range(1000)]


def test_a_client_that_does_not_read_is_not_read() -> None:
    """The echoes to a client that never reads are bounded: the server stops reading it, and serves others."""
    message = encode_message(b"x" * 100_000, masked=True)

    def flood(sock: socket.socket) -> None:
        for _ in range(1000):
            sock.sendall(message)

    with Server(lambda client, body: client.send(body), record=False) as server, raw(server) as sock:
        sock.settimeout(300 * MS)
        with pytest.raises(TimeoutError):
            flood(sock)
        assert server.received_count < 500
        with raw(server) as other:
            other.sendall(encode_message("hello", masked=True))
            assert other.recv(7, socket.MSG_WAITALL) == b"\x81\x05hello"


def test_a_dropped_client_discards() -> None:
    """What a client sends after the drop reaches no script."""
    with Server() as server, raw(server) as sock:
        client = only(server)
        client.drop()
        assert sock.recv(1) == b""
        sock.sendall(encode_message("late", masked=True))
        sock.shutdown(socket.SHUT_WR)
        assert server.wait_for(lambda: client not in server._clients, SOON)
        assert server.received == []


# The server itself


def test_wait_for_gives_up() -> None:
    """wait_for returns what was not true when its time is over."""
    with Server() as server:
        assert server.wait_for(1, 10 * MS) is False
        assert server.wait_for(lambda: server.connections, 10 * MS) == []


def test_wait_for_returns_at_once() -> None:
    """wait_for returns as soon as what it waits for is true."""
    with Server() as server, raw(server) as sock:
        later = threading.Timer(30 * MS, sock.sendall, [encode_message("x", masked=True)])
        later.start()
        began = time.monotonic()
        assert server.wait_for(1, SOON)
        assert time.monotonic() - began < SOON / 2
        later.join()


def test_a_script_error_is_raised_at_the_end(dial: Any) -> None:
    """What a script function raises closes its client with 1011 and is raised when the block ends."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        raise LookupError(str(body))

    server = Server(script)
    with dial(server) as peer:
        peer.send("boom")
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv(SOON)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1011
    with pytest.raises(LookupError, match="boom"):
        server.__exit__(None, None, None)


def test_a_script_error_is_the_context_of_a_failure(dial: Any) -> None:
    """A failure of the block itself is what is raised, with the script's error as its context."""

    def script(client: ClientConnection) -> None:
        raise LookupError("script")

    server = Server(on_connect=script)
    raw(server).close()
    assert server.wait_for(lambda: server.errors, SOON)
    failure = ValueError("test")
    server.__exit__(ValueError, failure, None)
    assert isinstance(failure.__context__, LookupError)


def test_close_is_bounded_and_final(context: ssl.SSLContext | None, client_context: ssl.SSLContext) -> None:
    """Closing ends open, silent and unread connections within two seconds, and nothing listens after it."""
    server = Server(ssl=context)
    with raw(server, b"") as silent:
        peer = polled(server, client_context)
        only(server).pause_reading()
        only(server).send(b"x" * 20_000_000)
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 2000 * MS
        with pytest.raises(ConnectionRefusedError):
            raw(server)
        assert silent.recv(1) == b""
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)


def test_close_from_a_script(dial: Any) -> None:
    """A script function may close the server, even twice; the thread ends after it."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        server.close()
        server.close()

    with Server(script) as server, dial(server) as peer:
        peer.send("close")
        with pytest.raises(ConnectionClosed):
            peer.recv(SOON)


def test_a_blocked_script_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script function that blocks does not hold up close(), which says so."""
    monkeypatch.setattr("evtws.testing.server._CLOSE_TIMEOUT", 50 * MS)
    entered, release = threading.Event(), threading.Event()

    def script(client: ClientConnection, body: str | bytes) -> None:
        entered.set()
        release.wait(SOON)

    server = Server(script)
    with raw(server) as sock:
        sock.sendall(encode_message("block", masked=True))
        assert entered.wait(SOON)
        server.close()
        assert isinstance(server.errors[0], TimeoutError)
        release.set()
        assert sock.recv(1) == b""
    monkeypatch.undo()
    server.close()


def test_a_reply_that_cannot_be_sent_is_raised() -> None:
    """A Reply with a header that HTTP cannot carry ends that connection, and is raised at the end."""
    reply = Reply(headers=[("X-A", "line\nbreak")])
    server = Server(on_handshake=lambda request: reply)
    sock = raw(server, b"")
    sock.sendall(UPGRADE)
    assert read_all(sock) == b""
    with pytest.raises(ValueError, match="X-A"):
        server.__exit__(None, None, None)


def test_a_connection_that_is_gone_before_it_is_taken(monkeypatch: pytest.MonkeyPatch, dial: Any) -> None:
    """A connection that fails as it is accepted is forgotten, and the next one is served."""

    class Broken(NonBlockingSocket):
        def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
            monkeypatch.undo()
            raise OSError("reset")

    with Server() as server:
        server.loop.call(server._accept, 1)
        monkeypatch.setattr("evtws.testing.server.NonBlockingSocket", Broken)
        assert read_all(raw(server, b"")) == b""
        assert server.errors == []
        with dial(server):
            assert only(server).is_open
