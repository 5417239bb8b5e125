"""WebSocketPeer: each member of Godot's class, as client and as server, over TCP and TLS."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from evtws import (
    CertificateError,
    ConnectionLost,
    DialError,
    DialTimeout,
    HandshakeError,
    IllegalTransition,
    InvalidURL,
    MessageTooBig,
    NotConnected,
    OutboxFull,
    State,
    WebSocketPeer,
)
from evtws.testing import ClientConnection, Server

from .live import nothing_leaks
from .timing import MS, SOON

__all__ = ["nothing_leaks"]

AUTHORITY = trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def poll_until(what: Callable[[], object], *peers: WebSocketPeer) -> None:
    """Poll these peers until that is true."""
    deadline = time.monotonic() + SOON
    while not what():
        assert time.monotonic() < deadline, peers
        for peer in peers:
            peer.poll()
        time.sleep(MS / 10)


class Pair:
    """A peer in the role that is tested, `near`, and one in the other role, `far`; not connected yet."""

    def __init__(self, role: str, secure: bool) -> None:
        self.near, self.far = WebSocketPeer(), WebSocketPeer()
        self.near_is_client = role == "client"
        self.client, self.server = (self.near, self.far) if self.near_is_client else (self.far, self.near)
        self.secure = secure
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"{'wss' if secure else 'ws'}://127.0.0.1:{self.port}/path?query=1"

    def connect(self) -> Pair:
        """Begin in both roles."""
        self.client.connect_to_url(self.url, ssl=client_context() if self.secure else None)
        self.listener.settimeout(SOON)
        self.client.poll()
        sock, _ = self.listener.accept()
        if self.secure:
            sock = server_context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.server.accept_stream(sock)
        return self

    def open(self) -> Pair:
        """Begin, and poll until both are open."""
        self.connect()
        self.poll_until(lambda: self.near.ready_state is State.OPEN and self.far.ready_state is State.OPEN)
        return self

    def poll_until(self, what: Callable[[], object]) -> None:
        poll_until(what, self.near, self.far)

    def close(self) -> None:
        """Close both and wait for the end, as cleanly as it goes."""
        for peer in (self.near, self.far):
            peer.close(-1)
        self.listener.close()


@pytest.fixture(params=["client", "client tls", "server", "server tls"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    role, _, secure = request.param.partition(" ")
    pair = Pair(role, bool(secure))
    yield pair
    pair.close()


# -- opening


def test_a_new_peer_is_closed() -> None:
    """A new peer is CLOSED, has Godot's defaults, and wants nothing."""
    peer = WebSocketPeer()
    assert peer.get_ready_state() == peer.STATE_CLOSED == peer.ready_state
    assert (peer.STATE_CONNECTING, peer.STATE_OPEN, peer.STATE_CLOSING, peer.STATE_CLOSED) == (0, 1, 2, 3)
    assert (peer.WRITE_MODE_TEXT, peer.WRITE_MODE_BINARY) == (0, 1)
    assert (peer.inbound_buffer_size, peer.outbound_buffer_size, peer.max_queued_packets) == (65535, 65535, 2048)
    assert (list(peer.handshake_headers), list(peer.supported_protocols)) == ([], [])
    assert (peer.fileno(), peer.wants_read, peer.wants_write, peer.poll_within) == (-1, False, False, None)
    assert (peer.get_available_packet_count(), peer.get_current_outbound_buffered_amount()) == (0, 0)
    assert (peer.get_close_code(), peer.get_close_reason(), peer.error) == (-1, "", None)
    assert (peer.get_connected_host(), peer.get_connected_port()) == ("", 0)
    assert (peer.get_requested_url(), peer.get_selected_protocol()) == ("", "")
    peer.poll()
    peer.close()
    assert repr(peer) == "<WebSocketPeer CLOSED, 0 packets>"


def test_opening(pair: Pair) -> None:
    """connect_to_url and accept_stream return at once, CONNECTING; polling finds them OPEN."""
    pair.connect()
    assert pair.near.get_ready_state() == pair.near.STATE_CONNECTING
    pair.poll_until(lambda: pair.near.get_ready_state() == pair.near.STATE_OPEN)
    assert pair.near.error is None


def test_who_it_is(pair: Pair) -> None:
    """Each end knows the other's address and port, and the URL that was asked for."""
    pair.open()
    assert pair.near.get_connected_host() == "127.0.0.1"
    assert pair.client.get_connected_port() == pair.port
    assert pair.server.get_connected_port() not in (0, pair.port)
    assert pair.near.get_requested_url() == pair.url


def test_a_peer_that_is_used_already(pair: Pair) -> None:
    """A peer that is not CLOSED takes no other connection."""
    pair.open()
    with pytest.raises(IllegalTransition):
        pair.near.connect_to_url("ws://127.0.0.1:1")
    left, right = socket.socketpair()
    with left, right, pytest.raises(IllegalTransition):
        pair.near.accept_stream(left)


def test_a_peer_is_used_again(pair: Pair) -> None:
    """A peer that is CLOSED takes another connection, and has forgotten the last one."""
    pair.open()
    pair.far.send_text("old")
    pair.poll_until(lambda: pair.near.get_available_packet_count())
    pair.far.close(3000, "old")
    pair.poll_until(lambda: pair.near.ready_state is State.CLOSED and pair.far.ready_state is State.CLOSED)
    pair.open()
    assert pair.near.get_available_packet_count() == 0
    assert (pair.near.get_close_code(), pair.near.get_close_reason()) == (-1, "")


def test_subprotocols(pair: Pair) -> None:
    """Of the subprotocols that the client offers, the server's favourite is selected."""
    pair.client.supported_protocols = ["a", "b", "c"]
    pair.server.supported_protocols = ["x", "c", "b"]
    pair.open()
    assert pair.near.get_selected_protocol() == "c"


def test_no_subprotocol_in_common(pair: Pair) -> None:
    """Where there is none in common, none is selected."""
    pair.client.supported_protocols = ["a"]
    pair.server.supported_protocols = ["b"]
    pair.open()
    assert pair.near.get_selected_protocol() == ""


def test_handshake_headers() -> None:
    """A client's handshake headers are sent with its request."""
    with Server() as server:
        peer = WebSocketPeer()
        peer.handshake_headers = ["X-Token: a:b", "X-Empty:"]
        peer.connect_to_url(server.url)
        poll_until(lambda: peer.ready_state is State.OPEN, peer)
        headers = dict(server.connections[0].request.headers)
        assert (headers["x-token"], headers["x-empty"]) == ("a:b", "")
        peer.close(-1)


def test_handshake_headers_of_a_server(pair: Pair) -> None:
    """A server's handshake headers are sent with its answer."""
    pair.server.handshake_headers = ["X-Server: evtws"]
    here, there = pair.listener, socket.create_connection(("127.0.0.1", pair.port))
    there.settimeout(SOON)
    sock, _ = here.accept()
    pair.server.accept_stream(sock)
    there.sendall(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    poll_until(lambda: pair.server.ready_state is State.OPEN, pair.server)
    pair.server.poll()
    with there:
        assert b"X-Server: evtws\r\n" in there.recv(65536)


BAD_SETTINGS: dict[str, Any] = {
    "handshake_headers": ["no colon"],
    "supported_protocols": ["not a token"],
}


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS.items(), ids=BAD_SETTINGS)
def test_bad_settings(pair: Pair, name: str, value: object) -> None:
    """What cannot be sent is refused where the opening begins, and the peer stays CLOSED."""
    setattr(pair.near, name, value)
    with pytest.raises(ValueError, match=r"colon|subprotocol"):
        pair.near.connect_to_url(pair.url)
    with (
        socket.create_connection(("127.0.0.1", pair.port)) as sock,
        pytest.raises(ValueError, match=r"colon|subprotocol"),
    ):
        pair.near.accept_stream(sock)
    assert pair.near.ready_state is State.CLOSED


@pytest.mark.parametrize("url", ["http://127.0.0.1", "ws://", "ws://a b", "ws://127.0.0.1/#x"])
def test_bad_urls(url: str) -> None:
    """What is no websocket URL is refused at once."""
    peer = WebSocketPeer()
    with pytest.raises(InvalidURL):
        peer.connect_to_url(url)
    assert peer.ready_state is State.CLOSED


def test_a_stream_that_is_not_connected() -> None:
    """A socket that is not connected is refused at once."""
    peer = WebSocketPeer()
    with socket.socket() as sock, pytest.raises(OSError, match=r"."):
        peer.accept_stream(sock)
    assert peer.ready_state is State.CLOSED


def test_tls_that_is_through_its_handshake() -> None:
    """An SSLSocket whose handshake is done already is taken as it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client, server = WebSocketPeer(), WebSocketPeer()
        client.connect_to_url(f"wss://127.0.0.1:{listener.getsockname()[1]}", ssl=client_context())
        client.poll()
        sock, _ = listener.accept()
        secured: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: secured.append(server_context().wrap_socket(sock, server_side=True)))
        thread.start()
        poll_until(lambda: secured, client)
        thread.join(SOON)
        server.accept_stream(secured[0])
        poll_until(lambda: client.ready_state is State.OPEN and server.ready_state is State.OPEN, client, server)
        client.close(-1)
        server.close(-1)


# -- TLS of a client


def end_of(peer: WebSocketPeer) -> object:
    """What the opening comes to: OPEN, or its error."""
    poll_until(lambda: peer.ready_state is not State.CONNECTING, peer)
    outcome = peer.error or peer.ready_state
    peer.close(-1)
    return outcome


def test_certificates(tmp_path: Path) -> None:
    """A certificate is verified unless told otherwise; one authority can be trusted, as PEM, DER or a file."""
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    pem = AUTHORITY.cert_pem.bytes().decode()
    trusted: list[Any] = [pem, ssl.PEM_cert_to_DER_cert(pem), str(tmp_path / "ca.pem"), tmp_path / "ca.pem"]
    with Server(ssl=server_context()) as server:
        peer = WebSocketPeer()
        peer.connect_to_url(server.url)
        assert isinstance(end_of(peer), CertificateError)
        peer.connect_to_url(server.url, verify_tls=False)
        assert end_of(peer) is State.OPEN
        for certificate in trusted:
            peer.connect_to_url(server.url, True, certificate)
            assert end_of(peer) is State.OPEN
        peer.connect_to_url(server.url, True, trustme.CA().cert_pem.bytes().decode())
        assert isinstance(end_of(peer), CertificateError)
        with pytest.raises(OSError, match=r"No such file"):
            peer.connect_to_url(server.url, True, tmp_path / "missing.pem")


# -- what keeps it from opening


def test_nobody_listens() -> None:
    """A peer whose connection is refused is CLOSED, and says why."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    peer = WebSocketPeer()
    peer.connect_to_url(f"ws://127.0.0.1:{port}")
    poll_until(lambda: peer.ready_state is State.CLOSED, peer)
    assert isinstance(peer.error, DialError)
    assert peer.get_close_code() == -1


def test_the_upgrade_is_refused() -> None:
    """A peer whose upgrade is refused is CLOSED, and its error has the status."""
    from evtws.testing.server import Reply

    with Server(on_handshake=lambda _: Reply(403)) as server:
        peer = WebSocketPeer()
        peer.connect_to_url(server.url)
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
    assert isinstance(peer.error, HandshakeError)
    assert peer.error.status == 403


def test_handshake_timeout(pair: Pair) -> None:
    """An opening that takes longer than `handshake_timeout` ends, and the peer says when to be polled for that."""
    pair.near.handshake_timeout = 20 * MS
    with pair.listener if pair.near_is_client else socket.create_connection(("127.0.0.1", pair.port)):
        if pair.near_is_client:
            pair.near.connect_to_url(pair.url, ssl=client_context())
        else:
            sock, _ = pair.listener.accept()
            pair.near.accept_stream(sock)
        pair.near.poll()
        within = pair.near.poll_within
        assert within is not None
        assert within <= 20 * MS
        poll_until(lambda: pair.near.ready_state is State.CLOSED, pair.near)
    assert isinstance(pair.near.error, DialTimeout)


def test_the_system_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system while opening is a DialError."""

    def fail(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    with Server() as server:
        peer = WebSocketPeer()
        peer.connect_to_url(server.url)
        monkeypatch.setattr("evtws.polled_opening.peer_of", fail)
        poll_until(lambda: peer.ready_state is State.CLOSED, peer)
    assert isinstance(peer.error, DialError)
    assert "Invalid argument" in str(peer.error)


# -- packets


def test_packets(pair: Pair) -> None:
    """put_packet, send and send_text send; get_packet gives bytes, was_string_packet tells of the last one got."""
    pair.open()
    pair.far.put_packet(b"\x00\xff")
    pair.far.send_text("é")
    pair.far.send(b"binary")
    pair.far.send(b"text", pair.far.WRITE_MODE_TEXT)
    pair.poll_until(lambda: pair.near.get_available_packet_count() == 4)
    got = [(pair.near.get_packet(), pair.near.was_string_packet()) for _ in range(4)]
    assert got == [(b"\x00\xff", False), ("é".encode(), True), (b"binary", False), (b"text", True)]
    with pytest.raises(IndexError):
        pair.near.get_packet()
    assert pair.near.was_string_packet()


def test_what_is_no_packet(pair: Pair) -> None:
    """Bytes sent as text must be UTF-8; text goes by send_text, bytes by send."""
    pair.open()
    with pytest.raises(ValueError, match="UTF-8"):
        pair.near.send(b"\xff", pair.near.WRITE_MODE_TEXT)
    with pytest.raises(TypeError, match="send_text"):
        pair.near.send("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="send"):
        pair.near.send_text(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2"):
        pair.near.send(b"x", 2)
    pair.near.send(bytearray(b"array"))
    pair.near.send(memoryview(b"view"))
    pair.poll_until(lambda: pair.far.get_available_packet_count() == 2)


def test_sending_while_not_open(pair: Pair) -> None:
    """Sending while not OPEN raises NotConnected, which says what it is."""
    for state in ("CLOSED", "CONNECTING"):
        with pytest.raises(NotConnected, match=state):
            pair.near.send(b"x")
        if state == "CLOSED":
            pair.connect()
    pair.poll_until(lambda: pair.near.ready_state is State.OPEN and pair.far.ready_state is State.OPEN)
    pair.near.close()
    with pytest.raises(NotConnected, match="CLOSING"):
        pair.near.send_text("x")


def test_packets_stay_after_the_end(pair: Pair) -> None:
    """Packets that came before the end can be got after it."""
    pair.open()
    for number in range(3):
        pair.far.send_text(str(number))
    pair.far.close()
    pair.poll_until(lambda: pair.near.ready_state is State.CLOSED)
    assert [pair.near.get_packet() for _ in range(pair.near.get_available_packet_count())] == [b"0", b"1", b"2"]


def test_a_full_inbound_queue(pair: Pair) -> None:
    """At max_queued_packets nothing more is read until some were got; nothing is lost."""
    pair.near.max_queued_packets = 10
    pair.open()
    for number in range(100):
        pair.far.send(b"%d" % number)
    pair.poll_until(lambda: pair.near.get_available_packet_count() == 10)
    pair.near.poll()
    assert (pair.near.get_available_packet_count(), pair.near.wants_read) == (10, False)
    got: list[bytes] = []
    while len(got) < 100:
        pair.poll_until(pair.near.get_available_packet_count)
        got.append(pair.near.get_packet())
        assert pair.near.get_available_packet_count() <= 10
    assert got == [b"%d" % number for number in range(100)]


def send_until_full(peer: WebSocketPeer, size: Callable[[], int]) -> int:
    """Send packets of that size until one is refused; how many were not."""
    for count in range(1 << 20):
        try:
            peer.send(bytes(size()))
        except OutboxFull:
            return count
    raise AssertionError("nothing was ever refused")


def test_a_full_outbound_queue(pair: Pair) -> None:
    """What the outbound buffer has no room for is refused, in bytes and in packets; the rest is not harmed."""
    pair.near.outbound_buffer_size = 1000
    pair.near.max_queued_packets = 5
    pair.far.inbound_buffer_size = 1 << 20
    pair.open()
    with pytest.raises(OutboxFull, match="limit"):
        pair.near.send(bytes(1001))
    count = send_until_full(pair.near, lambda: 1 if pair.near.get_current_outbound_buffered_amount() else 1000)
    assert 0 < pair.near.get_current_outbound_buffered_amount() < 2000
    assert pair.near.wants_write
    received = 0
    while received < count:
        pair.poll_until(pair.far.get_available_packet_count)
        pair.far.get_packet()
        received += 1
    assert pair.near.get_current_outbound_buffered_amount() == 0
    assert not pair.near.wants_write


def test_too_many_packets_wait(pair: Pair) -> None:
    """At max_queued_packets packets that wait to be written, another one is refused."""
    pair.near.max_queued_packets = 5
    pair.near.outbound_buffer_size = 1 << 24
    pair.open()
    send_until_full(pair.near, lambda: 60_000)
    with pytest.raises(OutboxFull, match="5 packets"):
        pair.near.send(b"")


def test_a_message_larger_than_the_inbound_buffer(pair: Pair) -> None:
    """A message larger than the inbound buffer closes with 1009."""
    pair.near.inbound_buffer_size = 100
    pair.open()
    pair.far.send(bytes(101))
    pair.poll_until(lambda: pair.near.ready_state is State.CLOSED and pair.far.ready_state is State.CLOSED)
    assert isinstance(pair.near.error, MessageTooBig)
    assert (pair.far.get_close_code(), pair.near.get_close_code()) == (1009, -1)


# -- closing


def test_we_close(pair: Pair) -> None:
    """close() is CLOSING until the other end has answered; then CLOSED, cleanly, with its code."""
    pair.open()
    pair.near.send_text("before")
    pair.near.close(3001, "bye")
    assert pair.near.get_ready_state() == pair.near.STATE_CLOSING
    pair.near.close(3002)
    pair.poll_until(lambda: pair.near.ready_state is State.CLOSED and pair.far.ready_state is State.CLOSED)
    assert (pair.near.get_close_code(), pair.near.get_close_reason()) == (3001, "bye")
    assert (pair.far.get_close_code(), pair.far.get_close_reason(), pair.far.get_packet()) == (3001, "bye", b"before")
    assert (pair.near.error, pair.near.fileno()) == (None, -1)


def test_the_other_end_closes(pair: Pair) -> None:
    """A close frame of the other end is answered by itself, and its code and reason can be read."""
    pair.open()
    pair.far.close(1001, "going away")
    pair.poll_until(lambda: pair.near.ready_state is State.CLOSED)
    assert (pair.near.get_close_code(), pair.near.get_close_reason()) == (1001, "going away")
    assert pair.near.error is None


def test_closing_at_once(pair: Pair) -> None:
    """A negative code closes at once, without a word: the other end sees a loss."""
    pair.open()
    pair.near.close(-1)
    assert (pair.near.ready_state, pair.near.fileno(), pair.near.get_close_code()) == (State.CLOSED, -1, -1)
    assert isinstance(pair.near.error, ConnectionLost)
    pair.poll_until(lambda: pair.far.ready_state is State.CLOSED)
    assert pair.far.get_close_code() == -1
    assert isinstance(pair.far.error, ConnectionLost)
    pair.near.close(-1)


def test_closing_while_connecting(pair: Pair) -> None:
    """Closing while CONNECTING is CLOSED at once."""
    pair.connect()
    pair.near.close()
    assert (pair.near.ready_state, pair.near.error) == (State.CLOSED, None)
    pair.near.poll()
    assert pair.near.ready_state is State.CLOSED


def test_close_timeout(pair: Pair) -> None:
    """A peer that does not answer the close frame within `close_timeout` is left: not a clean close."""
    pair.near.close_timeout = 20 * MS
    pair.open()
    pair.near.close()
    within = pair.near.poll_within
    assert within is not None
    assert within <= 20 * MS
    poll_until(lambda: pair.near.ready_state is State.CLOSED, pair.near)
    assert pair.near.get_close_code() == -1
    assert isinstance(pair.near.error, ConnectionLost)


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (999, ""), (1000, "é" * 62)])
def test_what_may_not_be_said(pair: Pair, code: int, reason: str) -> None:
    """A code that may not be sent and a reason over 123 bytes of UTF-8 are errors, and nothing happens."""
    pair.open()
    with pytest.raises(ValueError, match="close"):
        pair.near.close(code, reason)
    assert pair.near.ready_state is State.OPEN


# -- a selector of one's own


def wait_and_poll(selector: selectors.BaseSelector, *peers: WebSocketPeer) -> None:
    """One turn of a loop that waits for what these peers want, and polls them."""
    waits = [peer.poll_within for peer in peers]
    for peer in peers:
        events = peer.wants_read * selectors.EVENT_READ | peer.wants_write * selectors.EVENT_WRITE
        if peer.fileno() >= 0 and events:
            selector.register(peer.fileno(), events)
    selector.select(min([SOON, *(wait for wait in waits if wait is not None)]))
    for key in list(selector.get_map().values()):
        selector.unregister(key.fileobj)
    for peer in peers:
        peer.poll()


def has_room(peer: WebSocketPeer) -> bool:
    """Whether it takes more."""
    return peer.ready_state is State.OPEN and peer.get_current_outbound_buffered_amount() < 20_000


def test_a_selector_of_ones_own(pair: Pair) -> None:
    """A loop that polls only when the peers say so misses nothing, from the opening to the end."""
    pair.connect()
    began = time.monotonic()
    sent = received = turns = 0
    with selectors.DefaultSelector() as selector:
        while pair.near.ready_state is not State.CLOSED or pair.far.ready_state is not State.CLOSED:
            assert time.monotonic() - began < SOON
            wait_and_poll(selector, pair.near, pair.far)
            turns += 1
            while sent < 200 and has_room(pair.far):
                pair.far.send(bytes(10_000))
                sent += 1
            while pair.near.get_available_packet_count():
                pair.near.get_packet()
                received += 1
            if received == 200 and pair.near.ready_state is State.OPEN:
                pair.near.close()
    assert (sent, received) == (200, 200)
    assert turns < 5000
    assert time.monotonic() - began < SOON / 2  # no wait was slept through


def test_no_delay(pair: Pair) -> None:
    """set_no_delay sets TCP_NODELAY, which is on from the start; before OPEN there is nothing to set it on."""
    with pytest.raises(NotConnected):
        pair.near.set_no_delay(True)
    pair.open()
    sock = pair.near._sock
    assert sock is not None
    states = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)]
    for enabled in (False, True):
        pair.near.set_no_delay(enabled)
        states.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert [bool(state) for state in states] == [True, False, True]


# -- threads


def test_no_thread_is_started(pair: Pair) -> None:
    """For an address, with ws:// or a context of one's own, no thread is started."""
    before = threading.active_count()
    pair.connect()
    counts = {threading.active_count()}

    def is_open() -> bool:
        counts.add(threading.active_count())
        return pair.near.ready_state is State.OPEN and pair.far.ready_state is State.OPEN

    pair.poll_until(is_open)
    assert counts == {before}


# -- the example of Godot's documentation


def test_the_example_of_godots_documentation() -> None:
    """Connect, send once open, poll and read packets in each frame, and report the close code and if it was clean."""

    def answer(client: ClientConnection, body: str | bytes) -> None:
        client.send(body)
        client.close(1001, "enough")

    with Server(answer) as server:
        said: list[str] = []
        websocket = WebSocketPeer()
        websocket.connect_to_url(server.url)
        sent = False
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            websocket.poll()
            state = websocket.get_ready_state()
            if state == WebSocketPeer.STATE_OPEN:
                if not sent:
                    websocket.send_text("Test packet")
                    sent = True
            elif state == WebSocketPeer.STATE_CLOSED:
                code = websocket.get_close_code()
                said.append(f"closed with code: {code}. Clean: {code != -1}")
                break
            while websocket.get_available_packet_count():
                packet = websocket.get_packet()
                said.append(f"Packet: {packet.decode()} {websocket.was_string_packet()}")
            time.sleep(MS)
        assert said == ["Packet: Test packet True", "closed with code: 1001. Clean: True"]
