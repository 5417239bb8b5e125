"""What can go wrong until a websocket is open: each fault is one clear error, soon, and leaks nothing."""

from __future__ import annotations

import os
import socket
import ssl
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest
import trustme

from evtws.dial import CookieJar, Target, Upgraded, dial
from evtws.errors import (
    CertificateError,
    DialError,
    DialTimeout,
    HandshakeError,
    ProxyError,
    ResolveError,
    TLSError,
)
from evtws.testing import RawConnection, RawServer

from ..raw import Script, closed_port, descriptors, refusing, upgrading
from ..timing import MS, SOON


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing leaks, and the next dial works."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    before = descriptors()
    yield
    monkeypatch.undo()
    with RawServer(upgrading()) as server:
        assert opened(server.url).status == 101
    assert descriptors() == before


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA, name: str = "127.0.0.1", not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, not_after=not_after).configure_cert(context)
    return context


def opened(
    url: str,
    *,
    within: float = SOON,
    context: ssl.SSLContext | None = None,
    subprotocols: tuple[str, ...] = (),
    proxy: str | None = None,
    redirects: int = 0,
) -> Upgraded:
    """Dial with secrets in the request, and close the socket."""
    target = Target(
        url + "?secret",
        headers={"Authorization": "secret"},
        ssl_context=context,
        subprotocols=subprotocols,
        proxy=proxy,
        redirects=redirects,
    )
    upgraded = dial(target, jar=CookieJar(), deadline=time.monotonic() + within)
    upgraded.sock.close()
    return upgraded


def refusal(script: Script, *, within: float = SOON, redirects: int = 0) -> HandshakeError:
    """The HandshakeError that a dial to such a server ends in."""
    with RawServer(script) as server, pytest.raises(HandshakeError) as caught:
        opened(server.url, within=within, redirects=redirects)
    assert "secret" not in str(caught.value)
    return caught.value


def test_a1_nobody_listens() -> None:
    """A1: a refused connection is a DialError that names address and reason."""
    with pytest.raises(DialError, match=r"127\.0\.0\.1:\d+: Connection refused"):
        opened(f"ws://127.0.0.1:{closed_port()}/")


def test_a2_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: a name without an address is a ResolveError."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ResolveError, match=r"a\.example: Name or service not known"):
        opened("ws://a.example/")


def test_a2_names_are_resolved_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: each dial asks for the addresses again."""
    with RawServer(upgrading()) as one, RawServer(upgrading()) as two:
        ports = [one.port, two.port]

        def moving(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", ports.pop(0)))]

        monkeypatch.setattr(socket, "getaddrinfo", moving)
        opened("ws://a.example/")
        opened("ws://a.example/")
        assert (len(one.connections), len(two.connections)) == (1, 1)


def test_a3_the_first_address_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: where the first family fails the other is taken."""
    with RawServer(upgrading()) as server:

        def both(*_: object, **__: object) -> list[tuple[object, ...]]:
            six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", closed_port(), 0, 0))
            return [six, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        assert opened("ws://a.example/").status == 101


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda peer: (peer.read_request(), peer.reset()), "Connection reset"),
        (lambda peer: peer.read_request(), "closed the connection without its answer"),
        (lambda peer: (peer.read_request(), peer.send(b"HTTP/1.1 101")), "in the middle of its answer"),
    ],
    ids=["reset", "closed", "half"],
)
def test_a4_the_connection_breaks(script: Script, why: str) -> None:
    """A4: a connection that ends before the answer is a HandshakeError that says how, without a status."""
    error = refusal(script)
    assert why in str(error)
    assert error.status is None


def test_a10_a_header_that_drips() -> None:
    """A10: an answer that comes byte by byte does not prolong the deadline."""

    def drip(peer: RawConnection) -> None:
        peer.read_request()
        for byte in peer.response("X: " + "x" * 9999):
            peer.send(bytes([byte]))
            time.sleep(5 * MS)

    begun = time.monotonic()
    with RawServer(drip) as server, pytest.raises(DialTimeout, match="waiting for the answer"):
        opened(server.url, within=200 * MS)
    assert time.monotonic() - begun < 2000 * MS


def test_b1_a_certificate_that_expired(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """B1: an expired certificate is a CertificateError that says so."""
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    context = server_context(authority, not_after=yesterday)
    with RawServer(upgrading(), context=context) as server, pytest.raises(CertificateError, match="expired"):
        opened(server.url, context=trusting)


def test_b1_a_certificate_of_an_unknown_authority(authority: trustme.CA) -> None:
    """B1: by default only the system's authorities are trusted."""
    untrusted = pytest.raises(CertificateError, match=r"issuer|self.signed")
    with RawServer(upgrading(), context=server_context(authority)) as server, untrusted:
        opened(server.url)


def test_b1_a_certificate_for_another_host(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """B1: a certificate for another host is a CertificateError that says so."""
    context = server_context(authority, "b.example")
    mismatch = pytest.raises(CertificateError, match=r"IP address mismatch|Hostname mismatch")
    with RawServer(upgrading(), context=context) as server, mismatch:
        opened(server.url, context=trusting)


def test_b2_a_client_certificate_is_wanted(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """B2: a missing client certificate is a TLSError that says so, though the handshake seemed to succeed."""
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with RawServer(upgrading(), context=context) as server, pytest.raises(TLSError, match="CERTIFICATE_REQUIRED"):
        opened(server.url, context=trusting)


def test_b6_a_plain_server_on_wss() -> None:
    """B6: a server that answers TLS in plain text is a TLSError that says so."""

    def plain(peer: RawConnection) -> None:
        peer.sock.recv(1)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.hold()

    with RawServer(plain) as server, pytest.raises(TLSError, match="does not speak TLS"):
        opened(server.url.replace("ws:", "wss:"))


def test_b6_a_tls_server_on_ws() -> None:
    """B6: a server that answers in TLS is a HandshakeError that says so."""

    def alert(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(b"\x15\x03\x01\x00\x02\x02\x46")
        peer.hold()

    assert "begin with wss:" in str(refusal(alert))


@pytest.mark.parametrize("status", [401, 403, 404, 407, 410, 426, 408, 425, 429, 500, 502, 503, 504, 200, 204, 600])
def test_c1_c2_refusals(status: int) -> None:
    """C1, C2: a refusal is a HandshakeError with the status, the headers that a retry needs, and the body."""
    date = "Sat, 21 Nov 2026 02:38:28 GMT"
    lines = (f"HTTP/1.1 {status} Whatever", "Retry-After: 7", f"Date: {date}", "Content-Length: 5")
    error = refusal(refusing(*lines, body=b"sorry"))
    assert error.status == status
    assert str(status) in str(error)
    assert (error.headers["retry-after"], error.headers["date"]) == ("7", date)
    assert error.body == b"sorry"


@pytest.mark.parametrize(
    "location", ["/", "ws://b.example/secret", "http://127.0.0.1:1/", "wss://127.0.0.1/", "x", None]
)
@pytest.mark.parametrize("redirects", [0, 2])
def test_c3_redirects(location: str | None, redirects: int) -> None:
    """C3: a redirect that is not allowed, leaves the origin, loops or leads nowhere is a HandshakeError."""
    lines = ["HTTP/1.1 302 Found", "Content-Length: 0"] + ([f"Location: {location}"] if location else [])
    error = refusal(lambda peer: peer.answer(*lines), redirects=redirects)
    assert error.status == 302
    assert error.headers.get("location") == location


def answering(change: Callable[[bytes], bytes]) -> Script:
    """A server whose answer is a right one, changed."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(change(peer.response()))
        peer.hold()

    return script


def without(name: bytes) -> Callable[[bytes], bytes]:
    return lambda right: b"\r\n".join(line for line in right.split(b"\r\n") if not line.startswith(name))


@pytest.mark.parametrize(
    ("change", "why", "status"),
    [
        (without(b"Upgrade"), "Upgrade is missing", 101),
        (without(b"Connection"), "Connection is missing", 101),
        (without(b"Sec-WebSocket-Accept"), "Accept is missing", 101),
        (lambda right: right.replace(b"websocket", b"websocket, h2c"), "Upgrade is missing or wrong", 101),
        (lambda right: right.replace(b"Connection: Upgrade", b"Connection: Upgraded"), "Connection", 101),
        (lambda right: right.replace(b"Accept: ", b"Accept: A"), "Accept is missing or wrong", 101),
        (lambda right: _swapped_case(right), "Accept is missing or wrong", 101),
        (lambda right: right.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: x\r\n\r\n"), "Accept", 101),
        (lambda right: right.replace(b"HTTP/1.1", b"HTTP/1.0"), "HTTP/1.0", 101),
        (lambda right: right.replace(b"101", b"200"), "200 OK", 200),
        (lambda right: right.replace(b"101", b"1O1"), "malformed status line", None),
        (lambda right: right.replace(b"\r\n\r\n", b"\r\nx\r\n\r\n"), "malformed header", 101),
        (lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "200 OK", 200),
        (lambda _: b"\x00\x01\x02", "does not speak HTTP", None),
        (lambda _: b"GET / HTTP/1.1\r\n\r\n", "does not speak HTTP", None),
    ],
)
def test_c4_what_is_no_upgrade(change: Callable[[bytes], bytes], why: str, status: int | None) -> None:
    """C4: an answer that breaks a rule of RFC 6455 section 4.1 is a HandshakeError that names the rule."""
    error = refusal(answering(change))
    assert why in str(error)
    assert error.status == status


def _swapped_case(right: bytes) -> bytes:
    head, _, tail = right.partition(b"Accept: ")
    return head + b"Accept: " + tail.swapcase()


@pytest.mark.parametrize(
    "change",
    [
        lambda right: right.replace(b"Upgrade: websocket", b"uPGRADE:WebSocket"),
        lambda right: right.replace(b"Connection: Upgrade", b"Connection: keep-alive, UPGRADE"),
        lambda right: right.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\nX: \xff\r\n\r\n"),
        lambda right: right.replace(b" Switching Protocols", b""),
        lambda right: right.replace(b"\r\n", b"\n"),
        lambda right: b"HTTP/1.1 100 Continue\r\n\r\n" + right,
    ],
)
def test_c4_what_is_an_upgrade_all_the_same(change: Callable[[bytes], bytes]) -> None:
    """C4: what RFC 6455 and HTTP leave free is accepted."""
    with RawServer(answering(change)) as server:
        assert opened(server.url).status == 101


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("Sec-WebSocket-Extensions: permessage-deflate", "extension that was not asked for: 'permessage-deflate'"),
        ("Sec-WebSocket-Protocol: b", "subprotocol that was not offered: 'b'"),
        ("Sec-WebSocket-Protocol: A", "subprotocol that was not offered: 'A'"),
        ("Sec-WebSocket-Protocol: a, c", "subprotocol that was not offered: 'a, c'"),
    ],
)
def test_c5_what_was_not_asked_for(header: str, why: str) -> None:
    """C5: an extension or a subprotocol that was not offered, letter by letter, is a HandshakeError."""
    with RawServer(upgrading(header)) as server, pytest.raises(HandshakeError, match=why):
        opened(server.url, subprotocols=("a", "c"))


def test_c5_no_subprotocol() -> None:
    """C5: a server that chooses none of the subprotocols is accepted."""
    with RawServer(upgrading()) as server:
        assert opened(server.url, subprotocols=("a",)).subprotocol is None


def flood(*parts: bytes, times: int) -> Script:
    """A server that sends the first part, and then the second many times."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(parts[0])
        for _ in range(times):
            peer.send(parts[1] * 1000)

    return script


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (flood(b"HTTP/1.1 101 Yes\r\n", b"X: y\r\n", times=1000), "over 65536 bytes"),
        (flood(b"HTTP/1.1 101 Yes\r\nX: ", b"x" * 1000, times=100), "over 65536 bytes"),
        (flood(b"HTTP/1.1 ", b"1" * 1000, times=100), "over 65536 bytes"),
        (flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n", times=100), "over 65536 bytes"),
        (flood(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 1000, times=100), "500"),
        (flood(b"HTTP/1.1 500 No\r\nContent-Length: 1000000000000\r\n\r\n", b"x" * 1000, times=100), "500"),
        (flood(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", times=100), "500"),
    ],
    ids=["headers", "line", "status", "interim", "body", "length", "chunks"],
)
def test_c6_floods(script: Script, why: str) -> None:
    """C6: headers and bodies without end cost bounded memory and time."""
    tracemalloc.start()
    begun = time.monotonic()
    try:
        error = refusal(script)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert why in str(error)
    assert len(error.body) <= 4096
    assert peak < 2 << 20
    assert time.monotonic() - begun < 3000 * MS


def test_c6_a_body_that_never_comes() -> None:
    """C6: a refusal whose body is missing is reported soon, with its status."""
    lines = ("HTTP/1.1 503 No", "Content-Length: 9")
    begun = time.monotonic()
    error = refusal(refusing(*lines, body=b"abc"))
    assert (error.status, error.body) == (503, b"abc")
    assert time.monotonic() - begun < 3000 * MS


def test_c7_closed_right_after_the_upgrade() -> None:
    """C7: a server that closes after its 101 has upgraded; what it sent before is not lost."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response() + b"\x88\x00")

    with RawServer(script) as server:
        assert opened(server.url).initial == b"\x88\x00"


def test_c7_the_first_frame_over_tls(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """C7: a frame in the same TLS record as the 101 is not lost."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response() + b"\x81\x01x")
        peer.hold()

    with RawServer(script, context=server_context(authority)) as server:
        assert opened(server.url, context=trusting).initial == b"\x81\x01x"


def test_c8_cookies_belong_to_a_jar() -> None:
    """C8: a cookie is sent on the next dial with the same jar, refreshed, and by nobody else."""
    cookies = iter(["Set-Cookie: id=1", "Set-Cookie: id=2", "X: y", "X: y"])

    def script(peer: RawConnection) -> None:
        peer.upgrade(next(cookies))
        peer.hold()

    with RawServer(script) as server:
        jar = CookieJar()
        for one in (jar, jar, jar, CookieJar()):
            dial(Target(server.url), jar=one, deadline=time.monotonic() + SOON).sock.close()
        assert [peer.header("Cookie") for peer in server.connections] == [None, "id=1", "id=2", None]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (lambda peer: peer.answer("HTTP/1.1 407 Auth", "Proxy-Authenticate: Basic"), 407),
        (lambda peer: peer.answer("HTTP/1.1 502 Bad Gateway"), 502),
        (lambda peer: peer.read_request(), None),
        (lambda peer: (peer.read_request(), peer.reset()), None),
    ],
    ids=["407", "502", "closed", "reset"],
)
def test_c9_proxies(script: Script, status: int | None) -> None:
    """C9: a proxy that refuses or breaks off is a ProxyError with its status, if it sent one."""
    with RawServer(script) as proxy, pytest.raises(ProxyError) as caught:
        opened("ws://a.example/", proxy=f"http://u:secret@127.0.0.1:{proxy.port}")
    assert caught.value.status == status
    assert "secret" not in str(caught.value)


def test_c9_a_proxy_that_closes_after_connect() -> None:
    """C9: a tunnel that ends at once is a server that closed without an answer."""
    ended = pytest.raises(HandshakeError, match=r"closed|reset")
    with RawServer(lambda peer: peer.answer("HTTP/1.1 200 OK")) as proxy, ended:
        opened("ws://a.example/", proxy=f"127.0.0.1:{proxy.port}")


def test_c9_a_slow_proxy() -> None:
    """C9: a proxy that does not answer costs the dial's deadline."""
    with RawServer(lambda peer: peer.hold()) as proxy, pytest.raises(DialTimeout, match="proxy"):
        opened("ws://a.example/", proxy=f"127.0.0.1:{proxy.port}", within=100 * MS)
