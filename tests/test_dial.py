"""The dial: from a URL to an upgraded socket."""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trustme
import websocket

from evtws import dial as room
from evtws.dial import CookieJar, Target, Upgraded, blocking_wait, default_context, dial, parse_url
from evtws.errors import DialAborted, DialError, DialTimeout, HandshakeError, InvalidURL, ProxyError
from evtws.resolve import HasFileno
from evtws.testing import RawConnection, RawServer

from .raw import Script, closed_port, descriptors, upgrading
from .timing import MS, SOON


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "b.example").configure_cert(context)
    return context


def opened(target: Target, jar: CookieJar | None = None) -> Upgraded:
    """Dial, and close the socket."""
    upgraded = dial(target, jar=CookieJar() if jar is None else jar, deadline=time.monotonic() + SOON)
    upgraded.sock.close()
    return upgraded


upgrade = upgrading()


def test_upgraded() -> None:
    """A dialled socket does not block, has TCP_NODELAY, and comes with the answer and what followed it."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response("Date: now", "Sec-WebSocket-Protocol: b") + b"\x81\x02hi")
        peer.hold()

    with RawServer(script) as server:
        target = Target(server.url, subprotocols=["a", "b"])
        upgraded = dial(target, jar=CookieJar(), deadline=math.inf, wait=blocking_wait)
        with upgraded.sock:
            assert upgraded.sock.gettimeout() == 0
            assert upgraded.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert (upgraded.status, upgraded.subprotocol, upgraded.initial) == (101, "b", b"\x81\x02hi")
    assert upgraded.headers["date"] == "now"


def test_the_request() -> None:
    """The request is an upgrade of the URL's resource with the given headers, and without an Origin."""
    with RawServer(upgrade) as server:
        opened(Target(server.url + "a;b?c=d", headers=[("X-A", "é"), ("X-A", "2")]))
        first_line, *lines = server.connections[0].request.split("\r\n")
    assert first_line == "GET /a;b?c=d HTTP/1.1"
    assert sorted(line for line in lines if not line.startswith("Sec-WebSocket-Key: ")) == [
        "",
        "",
        "Connection: Upgrade",
        f"Host: 127.0.0.1:{server.port}",
        "Sec-WebSocket-Version: 13",
        "Upgrade: websocket",
        "X-A: 2",
        "X-A: é",
    ]


def test_tls(authority: trustme.CA) -> None:
    """A wss URL is dialled over TLS, by the context given, for the name given."""
    with RawServer(upgrade, context=server_context(authority)) as server:
        for name in (None, "b.example"):
            target = Target(server.url, ssl_context=client_context(authority), server_hostname=name)
            assert isinstance(opened(target).sock, ssl.SSLSocket)


@pytest.mark.parametrize(
    "target",
    [
        Target("http://a/"),
        Target("ws://a/", headers={"Upgrade": "x"}),
        Target("ws://a/", subprotocols=["a", "a"]),
        Target("ws://a/", proxy="ftp://p"),
    ],
)
def test_a_bad_target_sends_nothing(target: Target) -> None:
    """A target that cannot be dialled is a ValueError before anything is waited for."""
    with pytest.raises(ValueError, match=r"URL|header|subprotocols"):
        dial(target, jar=CookieJar(), deadline=math.inf, wait=_unready)


def _unready(*_: object) -> list[HasFileno]:
    raise AssertionError("nothing is to be waited for")


def test_credentials_in_the_url() -> None:
    """User and password of the URL become an Authorization header."""
    with RawServer(upgrade) as server:
        opened(Target(server.url.replace("//", "//u:p@")))
        assert server.connections[0].header("Authorization") == "Basic dTpw"


def test_cookies_come_back() -> None:
    """A cookie goes back to its host by the same jar, beside the user's own, and by no other."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response("Set-Cookie: a=1", "Set-Cookie: b=2; Path=/x", "Set-Cookie: c=3; Secure"))
        peer.hold()

    jar = CookieJar()
    with RawServer(script) as server:
        assert "set-cookie" not in opened(Target(server.url), jar).headers
        opened(Target(server.url + "x", headers={"Cookie": "own=0"}), jar)
        opened(Target(server.url), jar)
        opened(Target(server.url))
        sent = [peer.header("Cookie") for peer in server.connections]
    assert sent == [None, "own=0; b=2; a=1", "a=1", None]


def test_a_refusal_sets_cookies_too() -> None:
    """A cookie that comes with a refusal is kept."""
    jar = CookieJar()
    lines = ("HTTP/1.1 401 No", "Set-Cookie: a=1", "Content-Length: 0")
    with RawServer(lambda peer: peer.answer(*lines)) as server:
        for _ in range(2):
            with pytest.raises(HandshakeError):
                opened(Target(server.url), jar)
        assert [peer.header("Cookie") for peer in server.connections] == [None, "a=1"]


def test_cookies_are_bounded() -> None:
    """A server that sets too many cookies has them all forgotten."""
    cookies = [f"Set-Cookie: a{n}=1" for n in range(room.COOKIE_LIMIT + 1)]
    jar = CookieJar()
    with RawServer(upgrading(*cookies)) as server:
        opened(Target(server.url), jar)
    assert len(jar) == 0


def test_the_jar_of_the_process_is_left_alone() -> None:
    """websocket-client's jar, which all of a process shares, is neither read nor written."""
    from websocket import _handshake

    with RawServer(upgrading("Set-Cookie: a=1; Domain=127.0.0.1")) as server:
        _handshake.CookieJar.add("x=1; Domain=127.0.0.1")
        try:
            before = str(_handshake.CookieJar.jar)
            opened(Target(server.url))
            assert str(_handshake.CookieJar.jar) == before
            assert server.connections[0].header("Cookie") is None
        finally:
            _handshake.CookieJar.jar.clear()


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Though an application traces websocket-client, neither query nor headers nor cookies are in its log."""
    caplog.set_level(logging.DEBUG)
    websocket.enableTrace(True, handler=logging.NullHandler())
    try:
        with RawServer(upgrading("X-B: secret")) as server:
            opened(Target(server.url + "?secret", headers={"X-A": "secret", "Cookie": "secret"}))
    finally:
        websocket.enableTrace(False)
    assert "Upgrade: websocket" in caplog.text
    assert "secret" not in caplog.text


def routed(routes: dict[str, Script]) -> Script:
    """A script that answers each resource as `routes` says."""

    def script(peer: RawConnection) -> None:
        routes[peer.read_request().split(" ")[1]](peer)

    return script


def redirect(location: str | None, status: int = 302) -> Script:
    lines = [f"HTTP/1.1 {status} Found", "Content-Length: 0"] + ([f"Location: {location}"] if location else [])
    return lambda peer: peer.send("\r\n".join([*lines, "", ""]).encode())


def accepted(peer: RawConnection) -> None:
    peer.send(peer.response())
    peer.hold()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_the_origin(status: int) -> None:
    """Redirects are followed as far as allowed, relative or absolute, with the same headers."""
    routes = {"/": redirect("/a?b#c", status), "/a?b": redirect("d", status), "/d": accepted}
    with RawServer(routed(routes)) as server:
        routes["/d"] = redirect(f"http://127.0.0.1:{server.port}/e", status)
        routes["/e"] = accepted
        url = server.url.replace("//", "//u:p@")
        assert opened(Target(url, redirects=3)).status == 101
        assert [peer.header("Authorization") for peer in server.connections] == ["Basic dTpw"] * 4


@pytest.mark.parametrize("allowed", [0, 2])
def test_redirects_are_bounded(allowed: int) -> None:
    """One redirect more than allowed is the HandshakeError that a redirect is."""
    with RawServer(routed({"/": redirect("/")})) as server:
        with pytest.raises(HandshakeError) as caught:
            opened(Target(server.url, redirects=allowed))
        assert len(server.connections) == allowed + 1
    assert caught.value.status == 302
    assert caught.value.headers["location"] == "/"


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("ws://127.0.0.1:1/secret", "another origin"),
        ("//b.example/secret", "another origin"),
        ("wss://127.0.0.1:{port}/secret", "another origin"),
        ("http://x:y@127.0.0.1:{port}/secret", "another origin"),
        ("ftp://127.0.0.1/secret", "nowhere"),
        ("http://[/secret", "nowhere"),
        (None, "nowhere"),
    ],
)
def test_redirects_elsewhere(location: str | None, where: str) -> None:
    """A redirect that leaves the origin, or leads nowhere, is not followed; the error does not quote it."""
    routes: dict[str, Script] = {}
    with RawServer(routed(routes)) as server:
        routes["/"] = redirect(location and location.format(port=server.port))
        with pytest.raises(HandshakeError, match=f"redirects to {where}: 302") as caught:
            opened(Target(server.url, redirects=9, headers={"Authorization": "secret"}))
        assert len(server.connections) == 1
    assert caught.value.status == 302
    assert "secret" not in str(caught.value)


def test_no_redirect() -> None:
    """Another refusal is no redirect."""
    with RawServer(routed({"/": lambda peer: peer.send(b"HTTP/1.1 403 No\r\n\r\n")})) as server:
        with pytest.raises(HandshakeError, match="403 Forbidden"):
            opened(Target(server.url, redirects=1))
        assert len(server.connections) == 1


def test_an_http_proxy(authority: trustme.CA) -> None:
    """Through an HTTP proxy the tunnel comes first, then TLS and the upgrade with the target's own name."""

    def script(peer: RawConnection) -> None:
        assert peer.read_request().startswith("CONNECT b.example:443 ")
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.start_tls(server_context(authority))
        upgrade(peer)

    with RawServer(script) as server:
        context = client_context(authority)
        upgraded = opened(Target("wss://b.example/", ssl_context=context, proxy=f"127.0.0.1:{server.port}"))
        assert upgraded.status == 101
        assert server.connections[0].header("Host") == "b.example"


def test_a_proxy_that_is_not_there() -> None:
    """A proxy that cannot be reached is a ProxyError that says why."""
    with pytest.raises(ProxyError, match=r"could not be reached: .*Connection refused"):
        opened(Target("ws://a.example/", proxy=f"127.0.0.1:{closed_port()}"))


def test_a_proxy_whose_name_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy whose name is not resolved in time is a DialTimeout."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(SOON) and [])
    with pytest.raises(DialTimeout, match="resolving p"):
        dial(Target("ws://a/", proxy="http://p"), jar=CookieJar(), deadline=time.monotonic() + 20 * MS)
    _end_resolvers(release)


def _end_resolvers(release: threading.Event) -> None:
    release.set()
    for thread in threading.enumerate():
        if thread.name == "evtws-resolve":
            thread.join(SOON)


class Closing:
    """A wait that aborts the dial at its nth call for readers."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        self.left -= bool(readers)
        if self.left < 0:
            raise DialAborted("closing")
        return blocking_wait(readers, writers, deadline)


def silent_at(stage: str, authority: trustme.CA) -> Script:
    """A server that goes as far as `stage` and is silent then."""

    def script(peer: RawConnection) -> None:
        if stage != "proxy":
            peer.read_request()
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        if stage in ("answer", "header", "body"):
            peer.start_tls(server_context(authority))
            peer.read_request()
            peer.send({"answer": b"", "header": b"HTTP/1.1 4", "body": b"HTTP/1.1 400 No\r\n\r\n"}[stage])
        peer.hold()

    return script


@pytest.mark.parametrize("stage", ["proxy", "tls", "answer", "header", "body"])
def test_the_deadline_and_the_abort_hold_at_each_stage(stage: str, authority: trustme.CA) -> None:
    """A server that is silent at any stage costs the deadline, or the time until `wait` raises."""
    with RawServer(silent_at(stage, authority)) as server:
        proxy = f"127.0.0.1:{server.port}"
        target = Target("wss://b.example/", ssl_context=client_context(authority), proxy=proxy)
        begun = time.monotonic()
        with pytest.raises(HandshakeError if stage == "body" else DialTimeout):
            dial(target, jar=CookieJar(), deadline=time.monotonic() + 300 * MS)
        assert time.monotonic() - begun < 2000 * MS
        _abort_everywhere(target)


def _abort_everywhere(target: Target) -> None:
    for nth in range(20):
        try:
            dial(target, jar=CookieJar(), deadline=time.monotonic() + 200 * MS, wait=Closing(nth))
        except DialAborted:
            continue
        except DialError:
            assert nth > 0
            return
    raise AssertionError("the wait is called too often")


def test_a_name_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not resolved costs the deadline, or the time until `wait` raises."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(SOON) and [])
    target = Target("ws://a.example/")
    with pytest.raises(DialTimeout, match=r"resolving a\.example"):
        dial(target, jar=CookieJar(), deadline=time.monotonic() + 20 * MS)
    with pytest.raises(DialAborted):
        dial(target, jar=CookieJar(), deadline=math.inf, wait=Closing(0))
    _end_resolvers(release)


def test_ctrl_c() -> None:
    """A KeyboardInterrupt within the dial closes the socket and goes on."""

    def interrupt(readers: Sequence[HasFileno], *rest: Any) -> list[HasFileno]:
        if readers:
            raise KeyboardInterrupt
        return blocking_wait(readers, *rest)

    with RawServer(lambda peer: peer.hold()) as server, pytest.raises(KeyboardInterrupt):
        dial(Target(server.url), jar=CookieJar(), deadline=math.inf, wait=interrupt)


def test_what_websocket_client_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that websocket-client refuses is refused, though nothing is found wrong with it here."""
    real: Any = websocket.WebSocket.connect

    def refuse(self: Any, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        raise websocket.WebSocketException("no")

    monkeypatch.setattr(websocket.WebSocket, "connect", refuse)
    with RawServer(upgrade) as server, pytest.raises(HandshakeError, match="websocket-client refuses it"):
        opened(Target(server.url))


def test_dials_at_once() -> None:
    """Threads that dial at the same time get each its own answer and cookies."""

    def script(peer: RawConnection) -> None:
        name = peer.read_request().split(" ")[1][1:]
        peer.send(peer.response(f"X-Name: {name}", f"Set-Cookie: name={name}"))
        peer.hold()

    with RawServer(script) as server:
        jars = [CookieJar() for _ in range(8)]
        names: dict[int, str] = {}

        def run(n: int) -> None:
            for _ in range(5):
                names[n] = opened(Target(server.url + str(n)), jars[n]).headers["x-name"]

        threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    assert names == {n: str(n) for n in range(8)}
    assert [[cookie.value for cookie in jar] for jar in jars] == [[str(n)] for n in range(8)]


def test_the_errors_of_parse_url_are_the_dials() -> None:
    """dial and parse_url agree on what is no URL."""
    for call in (parse_url, lambda url: opened(Target(url))):
        with pytest.raises(InvalidURL):
            call("ws://")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("HTTP/1.1", "HTTP/1.0", "it is HTTP/1.0"),
        ("Upgrade: websocket", "Upgrade: h2c", "Upgrade is"),
        ("Connection: Upgrade", "Connection: close", "Connection is"),
        ("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x", "Accept is"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: zip\r\n\r\n", "extension that was not asked for: 'zip'"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: A\r\n\r\n", "subprotocol that was not offered: 'A'"),
    ],
)
def test_an_answer_that_is_no_upgrade(old: str, new: str, why: str) -> None:
    """A 101 that breaks a rule is a HandshakeError that names the header."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response().replace(old.encode(), new.encode()))

    with RawServer(script) as server, pytest.raises(HandshakeError, match=why) as caught:
        opened(Target(server.url, subprotocols=["a"]))
    assert caught.value.status == 101
