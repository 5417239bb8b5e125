"""Choosing a proxy, and the tunnel through it."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from evtws import proxy as room
from evtws.errors import DialAborted, DialTimeout, InvalidURL, ProxyError, ResolveError
from evtws.proxy import Proxy, choose, open_tunnel, parse_proxy
from evtws.resolve import Address, Attempt, HasFileno, blocking_wait, connect
from evtws.testing import RawConnection, RawServer
from evtws.wire import Wire

from .raw import descriptors
from .timing import MS, SOON


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture(autouse=True)
def _no_proxy_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def tunnel(
    script: Callable[[RawConnection], object],
    proxy: Proxy,
    host: str = "a.example",
    port: int = 81,
    attempt: Attempt | None = None,
) -> Wire:
    """Open a tunnel through a proxy that follows `script`; the wire is closed again."""
    attempt = attempt or Attempt(time.monotonic() + SOON, blocking_wait)
    with RawServer(script) as server:
        wire = Wire(connect([Address(socket.AF_INET, ("127.0.0.1", server.port))], attempt), attempt)
        try:
            open_tunnel(wire, proxy, host, port)
        finally:
            wire.close()
    return wire


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://p:3128", Proxy("http", "p", 3128)),
        ("p:3128", Proxy("http", "p", 3128)),
        ("p", Proxy("http", "p", 80)),
        ("HTTP://[::1]/", Proxy("http", "::1", 80)),
        ("http://u:p%40ss@p:1", Proxy("http", "p", 1, "u", "p@ss")),
        ("socks5h://u@p", Proxy("socks5h", "p", 1080, "u")),
        ("socks4://p", Proxy("socks4", "p", 1080)),
    ],
)
def test_a_proxy_url(url: str, proxy: Proxy) -> None:
    """A proxy is given by a URL, whose scheme and port have defaults."""
    assert parse_proxy(url) == proxy
    assert "p@ss" not in repr(proxy)


@pytest.mark.parametrize("url", ["https://u:secret@p", "ftp://u:secret@p", "p:secret", "http://", "p:0"])
def test_an_invalid_proxy_url(url: str) -> None:
    """A proxy's URL that cannot be used is an InvalidURL, which does not quote it."""
    with pytest.raises(InvalidURL, match="proxy's URL") as caught:
        parse_proxy(url)
    assert "secret" not in str(caught.value)


def test_the_setting_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is the proxy, and None is none, whatever the environment says."""
    monkeypatch.setenv("http_proxy", "http://env:1")
    monkeypatch.setenv("no_proxy", "*")
    assert choose(None, "a", 80, secure=False) is None
    assert choose("p:2", "a", 80, secure=False) == Proxy("http", "p", 2)


@pytest.mark.parametrize(
    ("environment", "secure", "port"),
    [
        ({}, False, None),
        ({"http_proxy": "p:1", "https_proxy": "p:2"}, False, 1),
        ({"HTTP_PROXY": "p:1", "HTTPS_PROXY": "p:2"}, True, 2),
        ({"http_proxy": "p:1"}, True, None),
        ({"all_proxy": "socks5://p:3"}, True, 3),
        ({"all_proxy": "p:3", "http_proxy": "p:1"}, False, 1),
        ({"all_proxy": "p:3", "no_proxy": "b.example,example"}, False, None),
        ({"all_proxy": "p:3", "no_proxy": "b.example"}, False, 3),
        ({"all_proxy": "p:3", "no_proxy": "a.example:80"}, False, None),
        ({"all_proxy": "p:3", "no_proxy": "*"}, False, None),
    ],
)
def test_the_environment_chooses(
    environment: dict[str, str], secure: bool, port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True takes http_proxy for ws, https_proxy for wss, else all_proxy, but for what no_proxy lists."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = choose(True, "a.example", 80, secure=secure)
    assert (chosen and chosen.port) == port


@pytest.mark.parametrize(
    ("proxy", "host", "request_text"),
    [
        (Proxy("http", "p", 1), "a.example", "CONNECT a.example:81 HTTP/1.1\r\nHost: a.example:81\r\n\r\n"),
        (Proxy("http", "p", 1), "::1", "CONNECT [::1]:81 HTTP/1.1\r\nHost: [::1]:81\r\n\r\n"),
        (
            Proxy("http", "p", 1, "u", "é"),
            "a",
            "CONNECT a:81 HTTP/1.1\r\nHost: a:81\r\nProxy-Authorization: Basic dTrDqQ==\r\n\r\n",
        ),
    ],
)
def test_http_connect(proxy: Proxy, host: str, request_text: str) -> None:
    """An HTTP proxy is asked by CONNECT, with Basic credentials where there are some."""
    requests = []

    def script(peer: RawConnection) -> None:
        requests.append(peer.read_request())
        peer.send(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
        peer.hold()

    tunnel(script, proxy, host)
    assert requests == [request_text]


@pytest.mark.parametrize("status", [407, 502, 302])
def test_http_refusal(status: int) -> None:
    """A proxy that refuses is a ProxyError with its status."""
    with pytest.raises(ProxyError, match=str(status)) as caught:
        tunnel(lambda peer: peer.answer(f"HTTP/1.1 {status} No"), Proxy("http", "p", 1))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda peer: peer.read_request(), "closed the connection without its answer"),
        (lambda peer: (peer.read_request(), peer.reset()), "Connection reset"),
        (lambda peer: (peer.answer("\x05\x00"), peer.hold()), "does not speak HTTP"),
        (lambda peer: (peer.answer("HTTP/1.1 200 OK", body=b"x"), peer.hold()), "before"),
    ],
)
def test_a_proxy_that_breaks_off(script: Callable[[RawConnection], object], why: str) -> None:
    """A proxy that goes away or talks nonsense is a ProxyError without a status."""
    with pytest.raises(ProxyError, match=why) as caught:
        tunnel(script, Proxy("http", "p", 1))
    assert caught.value.status is None


def test_a_slow_proxy() -> None:
    """A proxy that does not answer costs the dial's deadline."""
    attempt = Attempt(time.monotonic() + 100 * MS, blocking_wait)
    with pytest.raises(DialTimeout, match="timed out waiting for the proxy p:1"):
        tunnel(lambda peer: peer.hold(), Proxy("http", "p", 1), attempt=attempt)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_tunnel_is_aborted(scheme: str) -> None:
    """What the wait raises ends the wait for a proxy."""

    def closing(readers: list[HasFileno], *rest: object) -> list[HasFileno]:
        if readers:
            raise DialAborted("closing")
        return blocking_wait(readers, *rest)  # type: ignore[arg-type]

    attempt = Attempt(math.inf, closing)  # type: ignore[arg-type]
    with pytest.raises(DialAborted):
        tunnel(lambda peer: peer.hold(), Proxy(scheme, "p", 1), attempt=attempt)


class Socks:
    """A SOCKS server that expects some bytes, piece by piece, and answers each."""

    def __init__(self, *exchanges: tuple[bytes, bytes]) -> None:
        self._exchanges = exchanges
        self.done = False

    def __call__(self, peer: RawConnection) -> None:
        for expected, reply in self._exchanges:
            received = b""
            while len(received) < len(expected):
                received += peer.receive(1)
            assert received == expected
            for byte in reply:
                peer.send(bytes([byte]))
        self.done = True
        peer.hold()


FOUR_OK = b"\x00\x5a\x00\x00\x00\x00\x00\x00"
FIVE_OK = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
FIVE_HELLO = (b"\x05\x01\x00", b"\x05\x00")


@pytest.mark.parametrize(
    ("proxy", "host", "exchanges"),
    [
        (Proxy("socks4", "p", 1), "192.0.2.1", [(b"\x04\x01\x00\x51\xc0\x00\x02\x01\x00", FOUR_OK)]),
        (Proxy("socks4", "p", 1, "me"), "name", [(b"\x04\x01\x00\x51\x7f\x00\x00\x09me\x00", FOUR_OK)]),
        (Proxy("socks4a", "p", 1), "name", [(b"\x04\x01\x00\x51\x00\x00\x00\x01\x00name\x00", FOUR_OK)]),
        (
            Proxy("socks5h", "p", 1),
            "name",
            [FIVE_HELLO, (b"\x05\x01\x00\x03\x04name\x00\x51", FIVE_OK)],
        ),
        (
            Proxy("socks5", "p", 1),
            "name",
            [FIVE_HELLO, (b"\x05\x01\x00\x04" + bytes(15) + b"\x09\x00\x51", FIVE_OK)],
        ),
        (
            Proxy("socks5h", "p", 1, "u", "pw"),
            "name",
            [
                (b"\x05\x02\x00\x02", b"\x05\x02"),
                (b"\x01\x01u\x02pw", b"\x01\x00"),
                (b"\x05\x01\x00\x03\x04name\x00\x51", b"\x05\x00\x00\x03\x02ab\x00\x00"),
            ],
        ),
    ],
)
def test_socks(proxy: Proxy, host: str, exchanges: list[tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKS proxies are asked in their version; socks4 and socks5 get an address, the others the name."""

    def found(host: str, port: int, attempt: Attempt) -> list[Address]:
        return [Address(socket.AF_INET6, ("::9", port)), Address(socket.AF_INET, ("127.0.0.9", port))]

    monkeypatch.setattr(room, "resolve", found)
    socks = Socks(*exchanges)
    assert not tunnel(socks, proxy, host).buffer
    assert socks.done


@pytest.mark.parametrize(
    ("scheme", "exchanges", "why"),
    [
        ("socks4a", [(b"\x04", b"\x00\x5b\x00\x00\x00\x00\x00\x00")], "rejected"),
        ("socks5h", [(b"\x05", b"\x05\xff")], "authentication"),
        ("socks5h", [FIVE_HELLO, (b"\x05", b"\x05\x05\x00\x01" + bytes(6))], "refused by destination"),
        ("socks5h", [(b"\x05", b"HTTP/1.1 400 No\r\n\r\n")], "version"),
    ],
)
def test_socks_refusal(scheme: str, exchanges: list[tuple[bytes, bytes]], why: str) -> None:
    """A SOCKS proxy that refuses is a ProxyError that says why."""
    with pytest.raises(ProxyError, match=why):
        tunnel(Socks(*exchanges), Proxy(scheme, "p", 1))


def test_socks_breaks_off() -> None:
    """A SOCKS proxy that goes away is a ProxyError."""
    with pytest.raises(ProxyError, match="closed the connection waiting for the proxy p:1"):
        tunnel(lambda peer: peer.sock.recv(3), Proxy("socks5h", "p", 1))


def test_socks_and_a_name_that_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the proxy must be given an address for, and that has none of its kind, is a ProxyError."""

    def six_only(host: str, port: int, attempt: Attempt) -> list[Address]:
        return [Address(socket.AF_INET6, ("::9", port))]

    monkeypatch.setattr(room, "resolve", six_only)
    with pytest.raises(ProxyError, match="no address"):
        tunnel(lambda peer: peer.hold(), Proxy("socks4", "p", 1))


def test_socks_and_a_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be resolved for the proxy is that ResolveError's ProxyError."""

    def fail(host: str, port: int, attempt: Attempt) -> list[Address]:
        raise ResolveError("no such name")

    monkeypatch.setattr(room, "resolve", fail)
    with pytest.raises(ProxyError, match="no such name"):
        tunnel(lambda peer: peer.hold(), Proxy("socks4", "p", 1))


@pytest.mark.parametrize("username", ["secrét", "secret" * 99])
def test_socks_credentials_that_do_not_fit(username: str) -> None:
    """Credentials that SOCKS cannot carry are a ProxyError that does not quote them."""
    with pytest.raises(ProxyError, match="do not fit") as caught:
        tunnel(Socks((b"\x05\x02\x00\x02", b"\x05\x02")), Proxy("socks5h", "p", 1, username, "x"))
    assert username not in str(caught.value)


def test_socks_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without python-socks a SOCKS proxy is a ProxyError that names the extra."""
    monkeypatch.setattr(room, "create_connector", None)
    with pytest.raises(ProxyError, match=r"evtws\[proxy\]"):
        tunnel(lambda peer: peer.hold(), Proxy("socks5", "p", 1))
