"""The wire: reading and writing under a deadline, HTTP headers and bodies within limits, TLS."""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import trustme

from evtws import wire as room
from evtws.errors import CertificateError, DialAborted, DialTimeout, HandshakeError, TLSError
from evtws.resolve import Address, Attempt, HasFileno, blocking_wait, connect
from evtws.testing import RawConnection, RawServer
from evtws.wire import BODY_LIMIT, HEADER_LIMIT, Head, Wire, default_context

from .raw import descriptors
from .timing import MS, SOON


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the other end of its socket."""
    here, there = socket.socketpair()
    here.setblocking(False)
    wire = Wire(here, Attempt(time.monotonic() + SOON, blocking_wait))
    with there:
        yield wire, there
        wire.close()


Pair = tuple[Wire, socket.socket]


def wire_to(server: RawServer) -> Wire:
    attempt = Attempt(time.monotonic() + SOON, blocking_wait)
    return Wire(connect([Address(socket.AF_INET, ("127.0.0.1", server.port))], attempt), attempt)


def test_a_header_is_parsed(pair: Pair) -> None:
    """Names are lowered, values stripped, repeated fields joined, cookies kept apart, and the rest left."""
    wire, there = pair
    there.send(b"HTTP/1.1 200 OK\r\nA:  1 \r\na: 2\r\nSet-Cookie: x\r\nSET-COOKIE: y\r\nB:\r\n\r\nrest")
    assert wire.read_head() == Head("1.1", 200, {"a": "1, 2", "b": ""}, ["x", "y"])
    assert wire.buffer == b"rest"


def test_a_header_in_single_bytes(pair: Pair) -> None:
    """A header that comes byte by byte, with bare line feeds, is the same header."""
    wire, there = pair

    def drip() -> None:
        for byte in b"HTTP/1.1 101\nA: 1\n\nx":
            there.send(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert wire.read_head() == Head("1.1", 101, {"a": "1"}, [])
    thread.join(SOON)


def test_interim_responses_are_skipped(pair: Pair) -> None:
    """A 1xx that is not 101 announces the answer, and is none."""
    wire, there = pair
    there.send(b"HTTP/1.1 103 Early Hints\r\nA: 1\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 403 No\r\n\r\n")
    assert wire.read_head() == Head("1.1", 403, {}, [])


def test_endless_interim_responses(pair: Pair) -> None:
    """All interim responses together share the limit of one header."""
    wire, there = pair
    thread = threading.Thread(target=_send, args=(there, b"HTTP/1.1 100\r\n\r\n" * HEADER_LIMIT))
    thread.start()
    with pytest.raises(HandshakeError, match="over 65536 bytes"):
        wire.read_head()
    wire.close()
    thread.join(SOON)


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS: the URL should begin with wss:"),
        (b"HTTP/1.1 OK\r\n\r\n", "malformed status line"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "malformed status line"),
        (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\n: nothing\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA: 1\r\n folded: 2\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA: 1\rB: 2\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA: 1\0\r\n\r\n", "malformed header"),
    ],
)
def test_what_is_no_response(sent: bytes, why: str, pair: Pair) -> None:
    """What is no HTTP response is refused as soon as that shows, and the error says what it is instead."""
    wire, there = pair
    there.send(sent)
    with pytest.raises(HandshakeError, match=why):
        wire.read_head()


@pytest.mark.parametrize(("sent", "where"), [(b"", "without"), (b"HTTP/1.1 200 OK\r\nA", "in the middle of")])
def test_the_end_instead_of_a_header(sent: bytes, where: str, pair: Pair) -> None:
    """A peer that closes too early is told apart by how far it came."""
    wire, there = pair
    there.send(sent)
    there.close()
    with pytest.raises(HandshakeError, match=f"closed the connection {where} its answer"):
        wire.read_head()


def test_read_exactly(pair: Pair) -> None:
    """read_exactly reads as much as it was asked for, in as many pieces as it comes, or raises."""
    wire, there = pair
    wire.doing = "waiting for the proxy"
    there.send(b"abc")
    assert wire.read_exactly(2) == b"ab"
    there.send(b"de")
    assert wire.read_exactly(3) == b"cde"
    there.close()
    with pytest.raises(HandshakeError, match="closed the connection waiting for the proxy"):
        wire.read_exactly(1)


def test_reading_times_out(pair: Pair) -> None:
    """A peer that says nothing costs the deadline, and the error says what was waited for."""
    wire, _ = pair
    wire.attempt = Attempt(time.monotonic() + 20 * MS, blocking_wait)
    wire.doing = "waiting for the answer"
    with pytest.raises(DialTimeout, match="timed out waiting for the answer"):
        wire.read_head()


def test_a_reset_while_reading() -> None:
    """A connection that is reset while an answer is awaited is a HandshakeError that says so."""

    def reset(peer: RawConnection) -> None:
        peer.receive(1)
        peer.reset()

    with RawServer(reset) as server:
        wire = wire_to(server)
        wire.doing = "waiting for the answer"
        wire.write(b"x")
        with pytest.raises(HandshakeError, match="broke waiting for the answer: Connection reset"):
            wire.read_head()
        wire.close()


def test_writing_more_than_fits() -> None:
    """A write goes on until all of it is written, however slowly the peer reads."""
    received: list[int] = []

    def slowly(peer: RawConnection) -> None:
        while sum(received) < 8 << 20:
            received.append(len(peer.receive(65536)))
        peer.send(b"x")

    with RawServer(slowly) as server:
        wire = wire_to(server)
        wire.write(bytes(8 << 20))
        assert wire.read_exactly(1) == b"x"
        wire.close()
    assert sum(received) == 8 << 20


def test_a_peer_that_hangs_up_may_have_answered() -> None:
    """What a peer said before it stopped listening is read, though the request could not be written."""

    def refuse(peer: RawConnection) -> None:
        peer.send(b"HTTP/1.1 431 No\r\n\r\n")
        peer.sock.recv(1)

    with RawServer(refuse) as server:
        wire = wire_to(server)
        wire.write(bytes(16 << 20))
        assert wire.read_head().status == 431
        wire.close()


@pytest.mark.parametrize(
    ("fields", "sent", "body"),
    [
        ({"content-length": "3"}, b"abcdef", b"abc"),
        ({"content-length": "0"}, b"", b""),
        ({"content-length": "1000000000000"}, b"x" * 9999, b"x" * BODY_LIMIT),
        ({"content-length": "9" * 99}, b"x" * 9999, b"x" * BODY_LIMIT),
        ({}, b"y" * 9999, b"y" * BODY_LIMIT),
        ({"transfer-encoding": "Chunked"}, b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
        ({"transfer-encoding": "chunked"}, b"1\r\nx\r\n" * 999, b"x" * (BODY_LIMIT // 6 + 1)),
        ({"transfer-encoding": "chunked"}, b"3\r\nabc\r\nbad\r\n0\r\n\r\n", b"abc"),
        ({"transfer-encoding": "chunked"}, b"-3\r\n0\r\n\r\n", b""),
    ],
)
def test_a_body(fields: dict[str, str], sent: bytes, body: bytes, pair: Pair) -> None:
    """As much of a body is read as its header tells and the limit allows, without waiting for more."""
    wire, there = pair
    there.send(sent)
    wire.attempt = Attempt(math.inf, _unready)
    got = wire.read_body(Head("1.1", 400, fields, []))
    assert got[: len(body)] == body
    assert len(got) <= BODY_LIMIT


def _unready(*_: object) -> list[HasFileno]:
    raise AssertionError("it waits for more than it needs")


def test_a_body_that_does_not_come(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stalls is given up after a short time of its own, and what came of it is kept."""
    monkeypatch.setattr(room, "BODY_WAIT", 20 * MS)
    wire, there = pair
    there.send(b"abc")
    assert wire.read_body(Head("1.1", 400, {"content-length": "9"}, [])) == b"abc"


def test_a_body_that_ends_early(pair: Pair) -> None:
    """A body that breaks off is what came of it."""
    wire, there = pair
    there.send(b"abc")
    there.close()
    assert wire.read_body(Head("1.1", 400, {"content-length": "9"}, [])) == b"abc"


def test_a_body_is_aborted(pair: Pair) -> None:
    """What the wait raises ends the reading of a body too."""
    wire, _ = pair

    def closing(*_: object) -> list[HasFileno]:
        raise DialAborted("closing")

    wire.attempt = Attempt(math.inf, closing)
    with pytest.raises(DialAborted):
        wire.read_body(Head("1.1", 400, {}, []))


def test_tls(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    """After the TLS handshake what is written and read is encrypted, in pieces of any size."""
    received: list[int] = []
    blocked = threading.Event()

    def wait(readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        if writers:
            blocked.set()
        return blocking_wait(readers, writers, deadline)

    def read_all(peer: RawConnection) -> None:
        assert blocked.wait(SOON)
        while sum(received) < 8 << 20:
            received.append(len(peer.receive(65536)))
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")

    with RawServer(read_all, context=server_context(authority)) as server:
        wire = wire_to(server)
        wire.attempt = Attempt(math.inf, wait)
        wire.start_tls(client_context, "127.0.0.1")
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.write(bytes(8 << 20))
        assert wire.read_head().status == 200
        assert not wire.fill()
        wire.close()


def test_a_certificate_that_is_not_trusted(authority: trustme.CA) -> None:
    """A certificate of an unknown authority is a CertificateError that says so."""
    with RawServer(lambda peer: peer.hold(), context=server_context(authority)) as server:
        wire = wire_to(server)
        with pytest.raises(CertificateError, match=r"handshake with 127.0.0.1: .*(issuer|self.signed)"):
            wire.start_tls(default_context(), "127.0.0.1")
        wire.close()


def test_a_certificate_for_another_host(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    """A certificate of another host is a CertificateError that says so."""
    context = server_context(authority, "b.example")
    with RawServer(lambda peer: peer.hold(), context=context) as server:
        wire = wire_to(server)
        with pytest.raises(CertificateError, match=r"Hostname mismatch.*a\.example"):
            wire.start_tls(client_context, "a.example")
        wire.close()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda peer: (peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), peer.hold()), "does not speak TLS"),
        (lambda peer: peer.sock.recv(65536), "the peer closed the connection"),
        (lambda peer: (peer.receive(1), peer.reset()), "Connection reset"),
        (lambda peer: (peer.send(b"\x15\x03\x03\x00\x02\x02\x28"), peer.hold()), "HANDSHAKE_FAILURE"),
    ],
)
def test_tls_with_what_is_none(
    script: Callable[[RawConnection], object], why: str, client_context: ssl.SSLContext
) -> None:
    """A peer that speaks no TLS, refuses it or goes away is a TLSError that says which."""
    with RawServer(script) as server:
        wire = wire_to(server)
        with pytest.raises(TLSError, match=why):
            wire.start_tls(client_context, "127.0.0.1")
        wire.close()


def test_tls_with_an_impossible_name(client_context: ssl.SSLContext) -> None:
    """A name that TLS cannot ask for is a TLSError."""
    with RawServer(lambda peer: peer.hold()) as server:
        wire = wire_to(server)
        with pytest.raises(TLSError, match=r"Unicode\w*Error|ValueError"):
            wire.start_tls(client_context, ".example")
        wire.close()


def test_a_client_certificate_that_is_missing(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    """A server that wants a certificate says so only when its answer is read: a TLSError all the same."""
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with RawServer(lambda peer: peer.hold(), context=context) as server:
        wire = wire_to(server)
        wire.start_tls(client_context, "127.0.0.1")
        wire.doing = "waiting for the answer"
        with pytest.raises(TLSError, match=r"waiting for the answer: .*CERTIFICATE_REQUIRED"):
            wire.read_head()
        wire.close()


def test_a_wait_may_return_early(pair: Pair) -> None:
    """A wait that returns nothing before the deadline is called again."""
    wire, there = pair
    calls = []

    def early(readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        calls.append((list(readers), list(writers)))
        if len(calls) == 1:
            return []
        there.send(b"x")
        return blocking_wait(readers, writers, deadline)

    wire.attempt = Attempt(math.inf, early)
    assert wire.read_exactly(1) == b"x"
    assert calls == [([wire.sock], []), ([wire.sock], [])]
