"""One connection that never blocks, plain and under TLS."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import trustme

from evtws.nonblocking import NonBlockingSocket
from evtws.testing import tls_contexts

from .faults.support import until
from .live import nothing_leaks as nothing_leaks
from .timing import SOON

BIG = 16 << 20  # bytes that no socket buffer holds
FLUSH = 1 << 20  # bytes that one flush writes at most
RECORDS = 16  # TLS records that one read takes at most


class Ends(NamedTuple):
    """What is specified here, and the other end: a blocking socket, an SSLSocket if `near` is one."""

    near: NonBlockingSocket
    far: socket.socket


@pytest.fixture
def server_context() -> ssl.SSLContext:
    return tls_contexts()[0]


@pytest.fixture
def client_context() -> ssl.SSLContext:
    return tls_contexts()[1]


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection; the buffers of the way from the first to the second are small."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.settimeout(SOON)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with near, far:
        yield near, far


@pytest.fixture
def plain() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), SOON)
        near, _ = listener.accept()
    ends = Ends(NonBlockingSocket(near), far)
    yield ends
    ends.near.close()
    far.close()


@pytest.fixture
def secured(plain: Ends, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Iterator[Ends]:
    near = NonBlockingSocket(plain.near.sock, server_context)
    far = secure(near, plain.far, client_context)
    yield Ends(near, far)
    near.close()
    far.close()


@pytest.fixture(params=["plain", "secured"])
def ends(request: pytest.FixtureRequest) -> Ends:
    found: Ends = request.getfixturevalue(request.param)
    return found


def secure(near: NonBlockingSocket, far: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The other end as a TLS client, once both are through the handshake."""
    far.setblocking(False)
    tls = context.wrap_socket(far, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    there = NonBlockingSocket(tls)
    assert until(lambda: all([near.secured(), there.secured()]))
    tls.settimeout(SOON)
    return tls


def read(stream: NonBlockingSocket) -> bytes:
    """What comes next; b"" at the end."""
    while (data := stream.read()) is None:
        assert select.select([stream.sock], [], [], SOON)[0], "nothing came"
    return data


def read_all(stream: NonBlockingSocket, size: int) -> bytes:
    """The next `size` bytes."""
    data = b""
    while len(data) < size:
        more = read(stream)
        assert more, "the connection ended"
        data += more
    return data


def read_to_the_end(sock: socket.socket) -> bytes:
    """All that comes, as it is on the wire."""
    data = b""
    while more := socket.socket.recv(sock, 65536):
        data += more
    return data


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def make_writing_fail(ends: Ends) -> None:
    """Let the other end reset the connection, and wait until that is known here."""
    reset(ends.far)
    assert read(ends.near) == b""


# -- making it


def test_the_socket_is_prepared(plain: Ends) -> None:
    """The socket does not block and has TCP_NODELAY, and where there is no TLS it needs no handshake."""
    assert plain.near.sock.gettimeout() == 0
    assert plain.near.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert plain.near.secure


def test_a_context_makes_a_tls_server(secured: Ends) -> None:
    """With a server's context the socket is wrapped, without blocking, and what goes over the wire is TLS."""
    assert isinstance(secured.near.sock, ssl.SSLSocket)
    assert secured.near.sock.server_side
    assert secured.near.sock.gettimeout() == 0
    secured.near.unsent += b"secret"
    secured.near.flush()
    secured.near.end_writing()
    wire = read_to_the_end(secured.far)
    assert wire
    assert b"secret" not in wire


def test_an_ssl_socket_through_its_handshake(secured: Ends) -> None:
    """An SSLSocket that is through its handshake may be given too: the handshake is then complete at once."""
    stream = NonBlockingSocket(secured.far)
    assert not stream.secure
    assert stream.secured()
    secured.near.unsent += b"hello"
    secured.near.flush()
    assert read(stream) == b"hello"


def test_a_peer_that_is_gone_before_tls(
    tcp: tuple[socket.socket, socket.socket], server_context: ssl.SSLContext
) -> None:
    """A peer that is gone before TLS could begin is an OSError, and the socket is still the caller's to close."""
    near, far = tcp
    reset(far)
    assert select.select([near], [], [], SOON)[0]
    with pytest.raises(OSError, match=r"connected|argument"):
        NonBlockingSocket(near, server_context)
    assert near.fileno() >= 0


# -- the TLS handshake


def test_the_handshake_goes_as_far_as_it_can(
    plain: Ends, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """While the peer is silent the handshake is not complete and wants to read; it goes on when something came."""
    near = NonBlockingSocket(plain.near.sock, server_context)
    assert near.wants == selectors.EVENT_READ
    assert not near.secured()
    assert near.wants == selectors.EVENT_READ
    far = secure(near, plain.far, client_context)
    assert near.secured()
    near.close()
    far.close()


def test_the_handshake_wants_to_write(tcp: tuple[socket.socket, socket.socket]) -> None:
    """A handshake whose bytes find no room wants to write, and goes on when the peer has read."""
    near, far = tcp
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1", *(f"{'x' * 50}{n}.example" for n in range(1000))).configure_cert(server)
    authority.configure_trust(client)
    stream = NonBlockingSocket(near, server)
    far.setblocking(False)
    tls = client.wrap_socket(far, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert until(lambda: not stream.secured() and stream.wants == selectors.EVENT_WRITE)
    other = NonBlockingSocket(tls)
    assert until(lambda: all([other.secured(), stream.secured()]))
    stream.close()
    tls.close()


def test_a_handshake_that_fails(plain: Ends, server_context: ssl.SSLContext) -> None:
    """A handshake with a peer that speaks no TLS raises OSError."""
    near = NonBlockingSocket(plain.near.sock, server_context)
    plain.far.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(OSError, match="HTTP_REQUEST"):
        until(near.secured)
    near.close()


# -- reading


def test_read(ends: Ends) -> None:
    """Reading gives None while there is nothing, then what came, and b"" at the end, each time."""
    assert ends.near.read() is None
    ends.far.sendall(b"hello")
    assert read(ends.near) == b"hello"
    assert ends.near.read() is None
    ends.far.close()
    assert read(ends.near) == b""
    assert read(ends.near) == b""


def test_what_came_before_the_end(ends: Ends) -> None:
    """What came before the end of the connection is read, and then the end."""
    ends.far.sendall(b"last words")
    ends.far.close()
    assert read_all(ends.near, 10) == b"last words"
    assert read(ends.near) == b""


def test_a_reset_reads_as_the_end(ends: Ends) -> None:
    """A connection that the peer resets reads as its end."""
    reset(ends.far)
    assert read(ends.near) == b""


def test_what_is_no_tls_reads_as_the_end(secured: Ends) -> None:
    """A record that is none reads as the end, behind those that came before it."""
    secured.far.sendall(b"hello")
    socket.socket.sendall(secured.far, b"this is no record of TLS")
    assert read(secured.near) == b"hello"
    assert read(secured.near) == b""


def test_a_read_takes_several_records(secured: Ends) -> None:
    """One read takes many small TLS records, but a bounded number of them."""
    for n in range(RECORDS + 4):
        secured.far.sendall(b"%02d" % n)
    size = (RECORDS + 4) * 24  # of a record with two bytes in it (TLS 1.3)
    assert until(lambda: len(socket.socket.recv(secured.near.sock, 2 * size, socket.MSG_PEEK)) >= size)
    assert read(secured.near) == b"".join(b"%02d" % n for n in range(RECORDS))
    assert read(secured.near) == b"".join(b"%02d" % n for n in range(RECORDS, RECORDS + 4))


def test_pending(ends: Ends) -> None:
    """What TLS has decrypted and nobody has read is pending; a plain connection keeps nothing back."""
    ends.far.sendall(b"hello")
    assert select.select([ends.near.sock], [], [], SOON)[0]
    assert until(lambda: _peeked(ends.near.sock))
    assert ends.near.pending == (4 if isinstance(ends.near.sock, ssl.SSLSocket) else 0)
    assert read(ends.near) == b"ello"
    assert ends.near.pending == 0


def _peeked(sock: socket.socket) -> bytes:
    with contextlib.suppress(ssl.SSLWantReadError):
        return sock.recv(1)
    return b""


def test_a_large_read_leaves_nothing_pending(secured: Ends) -> None:
    """However much has come, after a read nothing waits that the descriptor would not tell of."""
    for _ in range(10):
        secured.far.sendall(b"x" * 10_000)
    left = 100_000
    while left:
        left -= len(read(secured.near))
        assert secured.near.pending == 0


# -- writing


def test_flush(ends: Ends) -> None:
    """Flushing writes what is unsent, and nothing when there is nothing."""
    ends.near.flush()
    ends.near.unsent += b"hello"
    ends.near.flush()
    assert not ends.near.unsent
    assert ends.far.recv(100) == b"hello"


def test_flush_is_bounded(ends: Ends) -> None:
    """One flush writes a bounded amount; what the kernel has no room for stays, and goes out in its order later."""
    body = b"".join(b"%07d\n" % n for n in range(BIG // 8))
    ends.near.unsent += body
    ends.near.flush()
    assert BIG - FLUSH <= len(ends.near.unsent) < BIG
    assert until(lambda: _is_stuck(ends.near))
    far, got = NonBlockingSocket(ends.far), bytearray()

    def pump() -> bool:
        ends.near.flush()
        got.extend(far.read() or b"")
        return len(got) >= BIG

    assert until(pump)
    assert got == body
    assert not ends.near.unsent


def _is_stuck(stream: NonBlockingSocket) -> bool:
    before = len(stream.unsent)
    stream.flush()
    return 0 < len(stream.unsent) == before


def test_flush_of_a_broken_connection(ends: Ends) -> None:
    """Flushing a broken connection raises OSError, and `unsent` may be changed while that is handled."""
    make_writing_fail(ends)
    ends.near.unsent += b"hello"
    with pytest.raises(OSError, match=r"pipe|reset|EOF"):
        _flush_or_clear(ends.near)
    assert not ends.near.unsent


def _flush_or_clear(stream: NonBlockingSocket) -> None:
    try:
        stream.flush()
    except OSError:
        stream.unsent.clear()
        raise


# -- the end


def test_goodbye(secured: Ends) -> None:
    """A goodbye ends TLS in order, so that the peer can tell it from a connection that was cut."""
    secured.far.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    secured.near.say_goodbye()
    assert secured.far.recv(100) == b""


def test_no_goodbye(secured: Ends) -> None:
    """Without a goodbye the peer sees TLS cut off."""
    secured.far.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    secured.near.end_writing()
    with pytest.raises(ssl.SSLEOFError):
        secured.far.recv(100)


def test_a_goodbye_to_both(secured: Ends) -> None:
    """A goodbye may answer the peer's own."""
    far = NonBlockingSocket(secured.far)
    far.say_goodbye()
    assert read(secured.near) == b""
    secured.near.say_goodbye()
    assert read(far) == b""


def test_reading_goes_on_after_writing_ended(ends: Ends) -> None:
    """After the goodbye and the FIN the peer sees the end, and what it still has to say is read."""
    ends.near.say_goodbye()
    ends.near.end_writing()
    assert ends.far.recv(100) == b""
    ends.far.sendall(b"last words")
    assert read(ends.near) == b"last words"


def test_ending_what_has_not_begun_or_is_over(ends: Ends, server_context: ssl.SSLContext) -> None:
    """Ending a connection in the TLS handshake, that is broken, or that is closed, raises nothing."""
    if ends.near.secure:
        ends = Ends(NonBlockingSocket(ends.near.sock, server_context), ends.far)
        ends.near.say_goodbye()
    make_writing_fail(ends)
    for _ in range(2):
        ends.near.say_goodbye()
        ends.near.end_writing()
        ends.near.close(reset=True)


def test_close(ends: Ends) -> None:
    """Closing ends the connection by a FIN."""
    ends.near.close()
    assert ends.near.sock.fileno() == -1
    assert ends.far.recv(100) == b""


def test_close_with_a_reset(ends: Ends) -> None:
    """Closing with `reset` is an RST, which the peer sees as such."""
    ends.near.close(reset=True)
    assert ends.near.sock.fileno() == -1
    with pytest.raises(ConnectionResetError):
        read_to_the_end(ends.far)
