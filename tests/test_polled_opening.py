"""From a URL, or from an accepted stream, to a websocket: step by step, without ever blocking."""

from __future__ import annotations

import errno
import itertools
import math
import os
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from evtws import polled_opening as room
from evtws import resolve
from evtws.errors import CertificateError, DialError, HandshakeError, ResolveError, TLSError
from evtws.handshake import HEADER_LIMIT
from evtws.nonblocking import NonBlockingSocket
from evtws.polled_opening import Headers, Opened, Opening, Want, client_context, open_client, open_server, peer_of
from evtws.target import parse_url
from evtws.testing import RawConnection, RawServer

from .faults.support import until
from .live import nothing_leaks as nothing_leaks
from .raw import Script, closed_port, descriptors, refusing, upgrading
from .timing import MS, SOON

BLOCKED = 1000 * MS  # a step that took so long has waited for something
BIG = 16 << 20  # bytes that no socket buffer holds
FRAME = b"\x81\x02hi"

REQUEST = """GET /chat?a=b HTTP/1.1
Host: a.example:81
Upgrade: websocket
Connection: Upgrade
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Version: 13

""".replace("\n", "\r\n")


# -- what drives an opening


def step(opening: Opening) -> Want | Opened:
    """One step, which does not block, and waits for a descriptor that is open, or for a time."""
    begun = time.monotonic()
    try:
        want = next(opening)
    except StopIteration as done:
        opened: Opened = done.value
        return opened
    finally:
        assert time.monotonic() - begun < BLOCKED
    if want.fd != -1:
        os.fstat(want.fd)
        assert want.read or want.write
    else:
        assert want.at < math.inf
    return want


def idle(opening: Opening) -> Want:
    """What an opening waits for while nothing comes, however often it is resumed."""
    wants = [step(opening) for _ in range(30)]
    assert isinstance(wants[-1], Want)
    return wants[-1]


def run(*openings: Opening, steps: float = math.inf, stop: Callable[[Want], bool] | None = None) -> list[Opened]:
    """Take openings to their end, each resumed when what it waits for has come, and not before.

    Or so many steps far, or until one wants what `stop` says. What an opened one has to write is written.
    """
    wants = {opening: Want(at=0.0) for opening in openings}
    opened: dict[Opening, Opened] = {}
    deadline = time.monotonic() + SOON
    while wants and steps > 0 and not (stop and any(map(stop, wants.values()))):
        assert time.monotonic() < deadline, wants
        for opening in due(wants, deadline):
            steps -= 1
            got = step(opening)
            if isinstance(got, Want):
                wants[opening] = got
            else:
                got.sock.flush()
                opened[opening] = got
                del wants[opening]
    return [opened[opening] for opening in openings if opening in opened]


def due(wants: dict[Opening, Want], deadline: float) -> list[Opening]:
    """Wait as a program with a selector does; the first opening of which something has come."""
    with selectors.DefaultSelector() as selector:
        for opening, want in wants.items():
            if want.fd != -1:
                events = want.read * selectors.EVENT_READ | want.write * selectors.EVENT_WRITE
                selector.register(want.fd, events, opening)
        at = min(deadline, *(want.at for want in wants.values()))
        ready = [key.data for key, _ in selector.select(max(0.0, at - time.monotonic()))]
    return (ready + [opening for opening, want in wants.items() if want.at <= time.monotonic()])[:1]


def opened(*openings: Opening) -> list[Opened]:
    """Take openings to their end, and close their sockets."""
    found = run(*openings)
    for each in found:
        each.sock.close()
    return found


def client(
    url: str, context: ssl.SSLContext | None = None, headers: Headers = (), subprotocols: tuple[str, ...] = ()
) -> Opening:
    return open_client(url, parse_url(url), context, headers, subprotocols)


class Place:
    """Where a server listens while this is entered, and the two openings that meet there."""

    def __init__(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None) -> None:
        self.contexts = contexts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def url(self, host: str = "127.0.0.1", path: str = "/") -> str:
        return f"{'wss' if self.contexts else 'ws'}://{host}:{self.address[1]}{path}"

    def asking(self, url: str, **options: Any) -> Opening:
        return client(url, self.contexts and self.contexts[0], **options)

    def client(self, host: str = "127.0.0.1", path: str = "/", **options: Any) -> Opening:
        return self.asking(self.url(host, path), **options)

    def raw(self, script: Script) -> RawServer:
        """A server of bare bytes, elsewhere, for a client."""
        return RawServer(script, context=self.contexts and self.contexts[1])

    def server(self, headers: Headers = (), subprotocols: tuple[str, ...] = ()) -> Opening:
        """Accepts, and opens."""
        yield Want(self.listener.fileno(), read=True)
        return (yield from open_server(self.accept(), headers, subprotocols))

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        if self.contexts is None:
            return sock
        return self.contexts[1].wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def dialled(self) -> socket.socket:
        """A client of bare bytes, for a server that runs at the same time."""
        raw = socket.create_connection(self.address, SOON)
        return raw if self.contexts is None else self.contexts[0].wrap_socket(raw, server_hostname="127.0.0.1")

    def tell(self, data: bytes) -> bytes:
        """Send this to the server, and read to the end."""
        with self.dialled() as sock:
            sock.sendall(data)
            answer = b""
            while more := sock.recv(65536):
                answer += more
        return answer


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's, and the server's."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("127.0.0.1", "a.example").configure_cert(server)
    return client, server


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(params=["ws", "wss"])
def place(request: pytest.FixtureRequest, contexts: Contexts) -> Iterator[Place]:
    with Place(contexts if request.param == "wss" else None) as place:
        yield place


@pytest.fixture
def plain() -> Iterator[Place]:
    with Place(None) as place:
        yield place


@pytest.fixture
def secure(contexts: Contexts) -> Iterator[Place]:
    with Place(contexts) as place:
        yield place


@contextmanager
def stalled() -> Iterator[socket.socket]:
    """A listener whose clients' SYNs go unanswered, since its backlog is full; `listen` makes room."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener
        for filler in fillers:
            filler.close()


def names(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def resolvers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "evtws-resolve"]


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- opening


def test_both_sides_open(place: Place) -> None:
    """A client and a server open with each other, and know what was asked for, what was chosen and who it is."""
    url = place.url(path="/chat?a=b")
    a, b = run(place.client(path="/chat?a=b", subprotocols=("x",)), place.server(subprotocols=("x",)))
    assert (a.url, a.subprotocol, a.rest, a.peer) == (url, "x", b"", place.address)
    assert (b.url, b.subprotocol, b.rest, b.peer) == (url, "x", b"", a.sock.sock.getsockname())
    for here, there in ((a.sock, b.sock), (b.sock, a.sock)):
        here.unsent += FRAME
        here.flush()
        assert until(lambda there=there: there.read()) == FRAME  # type: ignore[misc]
        assert isinstance(here.sock, ssl.SSLSocket) == (place.contexts is not None)
    a.sock.close()
    b.sock.close()


@pytest.mark.parametrize(
    ("offered", "supported", "chosen"),
    [
        ((), (), None),
        (("a", "b"), ("b", "a"), "b"),
        (("a",), ("b",), None),
        (("a",), (), None),
        ((), ("a",), None),
    ],
)
def test_the_subprotocol(
    offered: tuple[str, ...], supported: tuple[str, ...], chosen: str | None, plain: Place
) -> None:
    """Both know which subprotocol was chosen: the server's favourite of those that the client offers, or none."""
    ends = opened(plain.client(subprotocols=offered), plain.server(subprotocols=supported))
    assert [end.subprotocol for end in ends] == [chosen, chosen]


def test_the_clients_request(place: Place) -> None:
    """The request is for the URL's resource on the URL's host, with the headers that were given."""
    with place.raw(upgrading()) as server:
        opened(place.asking(server.url + "a;b?c=d", headers=[("X-A", "é"), ("X-A", "2")]))
        request = server.connections[0].request.split("\r\n")
    assert request[0] == "GET /a;b?c=d HTTP/1.1"
    assert {f"Host: 127.0.0.1:{server.port}", "X-A: é", "X-A: 2"} <= set(request)


@pytest.mark.parametrize(
    ("userinfo", "given", "sent"),
    [
        ("", [], None),
        ("u:p%40@", [], "Basic dTpwQA=="),
        ("u:p@", [("AUTHORIZATION", "Bearer x")], "Bearer x"),
    ],
)
def test_credentials_in_the_url(userinfo: str, given: list[tuple[str, str]], sent: str | None) -> None:
    """User and password of the URL become an Authorization header, unless one was given."""
    with RawServer(upgrading()) as server:
        opened(client(server.url.replace("//", f"//{userinfo}"), headers=given))
        assert server.connections[0].header("Authorization") == sent
        assert server.connections[0].request.lower().count("authorization:") == (sent is not None)


def test_the_servers_headers(place: Place) -> None:
    """The server's answer has the headers that were given."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.tell, REQUEST.encode())
        opened(place.server(headers=[("X-A", "é")]))
        lines = answer.result(SOON).decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 101 ")
    assert "X-A: é" in lines


def test_the_servers_url(place: Place) -> None:
    """The server makes the URL that was asked for of its scheme, the Host header and the request line."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.tell, REQUEST.encode())
        (end,) = opened(place.server())
        answer.result(SOON)
    assert end.url == f"{'wss' if place.contexts else 'ws'}://a.example:81/chat?a=b"


def test_frames_behind_the_answer(place: Place) -> None:
    """Frames that come with the server's answer are the client's `rest`."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response() + FRAME)
        peer.hold()

    with place.raw(script) as server:
        (end,) = opened(place.asking(server.url))
    assert end.rest == FRAME


def test_frames_behind_the_request(place: Place) -> None:
    """Frames that come with the client's request are the server's `rest`."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.tell, REQUEST.encode() + FRAME)
        (end,) = opened(place.server())
        answer.result(SOON)
    assert end.rest == FRAME


def test_an_answer_in_pieces(place: Place) -> None:
    """An answer that comes byte by byte is the same answer."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in peer.response("Sec-WebSocket-Protocol: x"):
            peer.send(bytes([byte]))
        peer.hold()

    with place.raw(script) as server:
        (end,) = opened(place.asking(server.url, subprotocols=("x",)))
    assert (end.subprotocol, end.rest) == ("x", b"")


def test_a_stream_through_its_tls_handshake(secure: Place) -> None:
    """A server may be given a stream that is through its TLS handshake."""

    def accepted() -> Opening:
        yield Want(secure.listener.fileno(), read=True)
        sock = secure.accept()
        assert isinstance(sock, ssl.SSLSocket)
        sock.setblocking(False)
        while True:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                yield Want(sock.fileno(), read=True)
            else:
                return (yield from open_server(sock, (), ()))

    assert len(opened(secure.client(), accepted())) == 2


# -- what is waited for


def test_waiting_for_the_name(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved by one thread, which ends with the answer; what tells of that can be read then."""
    may_answer = threading.Event()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", plain.address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: may_answer.wait(SOON) and found)
    opening = plain.client("a.example")
    assert not resolvers()
    want = idle(opening)
    assert want == Want(want.fd, read=True)
    assert len(resolvers()) == 1
    may_answer.set()
    ends = opened(opening, plain.server())
    assert ends[0].url == ends[1].url == plain.url("a.example")
    assert until(lambda: not resolvers())


def test_an_address_starts_no_thread(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a literal address, without TLS or with a context that was given, no thread is started."""
    monkeypatch.setattr(threading.Thread, "start", None)
    assert len(opened(place.client(), place.server())) == 2


def test_the_default_context_is_loaded_aside(secure: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a context a thread loads the default one, even for a literal address, and it is the one used."""
    may_load, loaders = threading.Event(), []

    def load() -> ssl.SSLContext:
        loaders.append(threading.current_thread().name)
        assert may_load.wait(SOON)
        assert secure.contexts is not None
        return secure.contexts[0]

    monkeypatch.setattr(room, "default_context", load)
    opening = client(secure.url())
    want = idle(opening)
    assert want == Want(want.fd, read=True)
    may_load.set()
    assert len(opened(opening, secure.server())) == 2
    assert loaders == ["evtws-resolve"]


def test_the_default_context_is_not_trusting(secure: Place) -> None:
    """Without a context a certificate of an authority that the system does not know is refused."""
    server = secure.server()
    with pytest.raises(CertificateError):
        run(client(secure.url()), server)


def test_no_default_context(secure: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default context that cannot be made is a TLSError that says why."""

    def load() -> ssl.SSLContext:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(room, "default_context", load)
    with pytest.raises(TLSError, match=r"could not be made: .*Permission denied"):
        run(client(secure.url()))


def test_plain_needs_no_context(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS no context is loaded, though a name is resolved aside."""
    names(monkeypatch, plain.address)
    monkeypatch.setattr(room, "default_context", None)
    assert len(opened(plain.client("a.example"), plain.server())) == 2


def test_waiting_for_the_connection() -> None:
    """While the address does not answer, its socket is waited for, to be writable."""
    with stalled() as listener:
        opening = client(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
        want = idle(opening)
        assert want == Want(want.fd, write=True)
        opening.close()


def test_waiting_for_the_answer(plain: Place) -> None:
    """While the server says nothing, the client waits to read."""
    opening = plain.client()
    run(opening, stop=lambda want: want.read)
    want = idle(opening)
    assert want == Want(want.fd, read=True)
    opening.close()


def test_a_request_that_finds_no_room(plain: Place) -> None:
    """While its request finds no room the client waits to write too, and to read what comes before that."""
    opening = plain.client(headers=[("X-A", "x" * BIG)])
    run(opening, stop=lambda want: want.read)
    with plain.accept() as sock:
        sock.settimeout(SOON)
        want = idle(opening)
        assert want == Want(want.fd, read=True, write=True)
        assert until(lambda: sock.recv(1 << 20) and next(opening) == Want(want.fd, read=True))
    opening.close()


@pytest.mark.parametrize("side", ["client", "server"])
def test_waiting_for_tls(side: str, secure: Place) -> None:
    """While the other end says nothing in the TLS handshake, either side waits to read."""
    opening = secure.client()
    run(opening, stop=lambda want: want.read)
    far = secure.listener.accept()[0]
    if side == "server":
        opening.close()
        far.close()
        far = socket.create_connection(secure.address, SOON)
        opening = open_server(secure.accept(), (), ())
    want = idle(opening)
    assert want == Want(want.fd, read=True)
    opening.close()
    far.close()


def test_a_tls_handshake_that_finds_no_room(secure: Place, authority: trustme.CA) -> None:
    """While a certificate finds no room, the server waits to write."""
    assert secure.contexts is not None
    large = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", *(f"{'x' * 50}{n}.example" for n in range(1000))).configure_cert(large)
    secure.contexts = secure.contexts[0], large
    secure.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far = socket.socket()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    far.connect(secure.address)
    far.setblocking(False)
    opening = open_server(secure.accept(), (), ())
    tls = secure.contexts[0].wrap_socket(far, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    run(opening, stop=lambda want: want.write)
    want = idle(opening)
    assert want == Want(want.fd, write=True)
    opening.close()
    tls.close()


def test_waiting_for_the_request(plain: Place) -> None:
    """While the client says nothing, the server waits to read."""
    with socket.create_connection(plain.address):
        opening = open_server(plain.accept(), (), ())
        want = idle(opening)
        assert want == Want(want.fd, read=True)
        opening.close()


# -- several addresses


def test_the_first_address_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first address refuses, the second is tried at once."""
    monkeypatch.setattr(resolve, "CONNECT_DELAY", 2 * SOON)
    names(monkeypatch, ("127.0.0.1", closed_port()), place.address)
    ends = opened(place.client("a.example"), place.server())
    assert ends[0].peer == place.address


def test_the_first_address_stalls(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first address does not answer, the second is tried once its time has come."""
    with stalled() as listener:
        names(monkeypatch, listener.getsockname(), place.address)
        opening = place.client("a.example")
        (want,) = waits(opening, lambda want: want.write)
        assert time.monotonic() < want.at <= time.monotonic() + resolve.CONNECT_DELAY
        assert opened(opening, place.server())[0].peer == place.address


def waits(opening: Opening, what: Callable[[Want], bool]) -> list[Want]:
    """Take an opening to where it waits for that."""
    found: list[Want] = []

    def stop(want: Want) -> bool:
        found[:] = [want]
        return what(want)

    run(opening, stop=stop)
    return found


def test_an_older_attempt_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that connects while a newer one hangs is noticed soon, though only the newer one is waited for."""
    monkeypatch.setattr(resolve, "CONNECT_DELAY", 0.0)
    with stalled() as first, stalled() as second:
        names(monkeypatch, first.getsockname(), second.getsockname())
        opening = client("ws://a.example/")
        run(opening, stop=lambda want: want.write)
        first.listen(100)
        run(opening, stop=lambda want: want.read and want.at == math.inf)
        opening.close()


# -- what goes wrong at the client


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be resolved is a ResolveError."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ResolveError, match=r"a\.example: Name or service not known"):
        run(client("ws://a.example/"))


def test_no_thread_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started for a name, that is a ResolveError."""

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResolveError, match="can't start new thread"):
        run(client("ws://a.example/"))


def test_all_addresses_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every address refuses, the DialError names each."""
    ports = [closed_port(), closed_port()]
    names(monkeypatch, *(("127.0.0.1", port) for port in ports))
    with pytest.raises(DialError) as caught:
        run(client("ws://a.example/"))
    for port in ports:
        assert f"127.0.0.1:{port}: Connection refused" in str(caught.value)


@pytest.mark.parametrize("kind", ["authority", "name"])
def test_certificate_error(kind: str, secure: Place, contexts: Contexts) -> None:
    """A certificate of an unknown authority, or for another name, is a CertificateError; the server's a TLSError."""
    opening = {
        "authority": lambda: client(secure.url(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        "name": lambda: client(secure.url("localhost"), contexts[0]),
    }[kind]()
    server = secure.server()
    with pytest.raises(CertificateError, match="refused in the TLS handshake with"):
        run(opening, server)
    with pytest.raises(TLSError, match="in the TLS handshake with a client"):
        run(server)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak TLS"),
        (lambda peer: peer.receive(1), "connection"),
        (lambda peer: peer.receive(1) and peer.reset(), "connection"),
    ],
)
def test_tls_error(script: Callable[[RawConnection], object], why: str, contexts: Contexts) -> None:
    """A peer that speaks no TLS, or breaks off in its handshake, is a TLSError."""
    with RawServer(script) as server, pytest.raises(TLSError, match=why) as caught:
        run(client(server.url.replace("ws:", "wss:"), contexts[0]))
    assert not isinstance(caught.value, CertificateError)
    assert "in the TLS handshake with 127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 5"], b"who? and more"),
        (["Transfer-Encoding: chunked"], b"5\r\nwho? \r\n0\r\n\r\n"),
    ],
)
def test_a_refusal(place: Place, lines: list[str], body: bytes) -> None:
    """A refusal is a HandshakeError with status, headers and body."""
    script = refusing("HTTP/1.1 404 Not Found", "X-A: é", *lines, body=body)
    with place.raw(script) as server, pytest.raises(HandshakeError) as caught:
        run(place.asking(server.url))
    assert caught.value.status == 404
    assert caught.value.headers["x-a"] == "é"
    assert caught.value.body == b"who? "[: len(caught.value.body)]
    assert len(caught.value.body) == 5


def test_a_refusal_until_the_end(place: Place) -> None:
    """A refusal without a length has the body that came until the end of the connection."""

    def script(peer: RawConnection) -> None:
        peer.answer("HTTP/1.1 503 Busy", body=b"later")

    with place.raw(script) as server, pytest.raises(HandshakeError) as caught:
        run(place.asking(server.url))
    assert (caught.value.status, caught.value.body) == (503, b"later")


def test_a_refusal_whose_body_never_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal whose body does not end is told after a moment, with what came of the body."""
    monkeypatch.setattr("evtws.polled_opening.BODY_WAIT", 20 * MS)

    def script(peer: RawConnection) -> None:
        peer.answer("HTTP/1.1 401 Unauthorized", body=b"who?")
        peer.hold()

    with place.raw(script) as server, pytest.raises(HandshakeError) as caught:
        run(place.asking(server.url))
    assert (caught.value.status, caught.value.body) == (401, b"who?")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP upgrade"),
        (b"", "ended within the HTTP header"),
        (b"HTTP/1.1 101 Switching", "ended within the HTTP header"),
        (b"HTTP/1.1 101 X\r\nX: " + b"x" * HEADER_LIMIT, "too long"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "malformed"),
    ],
)
def test_an_answer_that_is_none(place: Place, answer: bytes, why: str) -> None:
    """Garbage, an end within the header, one that is too long and one that is no upgrade are HandshakeErrors."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(answer)

    with place.raw(script) as server, pytest.raises(HandshakeError, match=why):
        run(place.asking(server.url))


def test_a_server_that_resets() -> None:
    """A server that resets the connection is a HandshakeError."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.reset()

    with RawServer(script) as server, pytest.raises(HandshakeError, match="ended within the HTTP header"):
        run(client(server.url))


def test_an_answer_before_the_request() -> None:
    """A server that answers and hangs up before it has read the request has said why, and that is the error."""

    def script(peer: RawConnection) -> None:
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server, pytest.raises(HandshakeError, match="413"):
        run(client(server.url, headers=[("X-A", "x" * BIG)]))


def test_a_server_that_is_gone_at_once(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks as soon as it is there is a DialError."""

    def gone(_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(room, "peer_of", gone)
    with pytest.raises(DialError, match=r"broke before it could be used: .* not connected"):
        run(plain.client())


@pytest.mark.parametrize("options", [{"headers": [("X-A", "a\nb")]}, {"subprotocols": ("a", "a")}])
def test_what_a_client_cannot_send(options: dict[str, Any]) -> None:
    """What cannot be sent is a ValueError at once."""
    with pytest.raises(ValueError, match=r"X-A|subprotocol"):
        client("ws://127.0.0.1/", **options)


# -- what goes wrong at the server


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("GET ", "POST ", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("Host: a.example:81\r\n", "", 400),
        ("Upgrade: websocket", "Upgrade: h2c", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400),
        ("Host:", "Content-Length: 3\r\nHost:", 400),
        ("Version: 13", "Version: 8", 426),
        ("\r\n\r\n", "\r\nX: " + "x" * HEADER_LIMIT, 431),
        (REQUEST, "\x16\x03\x01\x02", 400),
    ],
)
def test_a_malformed_request(place: Place, old: str, new: str, status: int) -> None:
    """A malformed request is answered with the status that says so, then the server hangs up: a HandshakeError."""
    assert old in REQUEST
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.tell, REQUEST.replace(old, new).encode())
        with pytest.raises(HandshakeError) as caught:
            run(place.server())
        lines = answer.result(SOON).decode().lower().split("\r\n")
    assert caught.value.status == status
    assert lines[0].startswith(f"http/1.1 {status} ")
    assert {"connection: close", "content-length: 0"} <= set(lines)
    assert ("sec-websocket-version: 13" in lines) == (status == 426)


def test_a_request_that_breaks_off(place: Place) -> None:
    """A client that hangs up within its request is a HandshakeError without a status."""
    with ThreadPoolExecutor(1) as pool:

        def hang_up() -> None:
            with place.dialled() as sock:
                sock.sendall(REQUEST.encode()[:-2])

        hung_up = pool.submit(hang_up)
        with pytest.raises(HandshakeError, match="ended within the HTTP header") as caught:
            run(place.server())
        hung_up.result(SOON)
    assert caught.value.status is None


def test_an_answer_that_nobody_waits_for(plain: Place) -> None:
    """A malformed request of a client that is gone is the same HandshakeError."""
    far = socket.create_connection(plain.address, SOON)
    near = plain.accept()
    opening = open_server(near, (), ())
    assert isinstance(step(opening), Want)
    far.sendall(REQUEST.replace("GET", "PUT").encode())
    reset(far)
    assert until(lambda: near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    with pytest.raises(HandshakeError) as caught:
        run(opening)
    assert caught.value.status == 400


def test_an_answer_that_finds_no_room(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its refusal finds no room the server waits to write, and hangs up when it is written."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(plain.tell, REQUEST.replace("GET", "PUT").encode())
        opening = plain.server()
        with monkeypatch.context() as full:
            full.setattr(NonBlockingSocket, "flush", lambda _: None)
            run(opening, stop=lambda want: want.write)
            want = idle(opening)
        assert want == Want(want.fd, write=True)
        with pytest.raises(HandshakeError):
            run(opening)
        assert answer.result(SOON).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01\x02\x00"])
def test_a_client_without_tls(secure: Place, data: bytes) -> None:
    """A client that speaks no TLS, or breaks off in its handshake, is a TLSError."""
    with socket.create_connection(secure.address) as far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(TLSError, match="in the TLS handshake with a client"):
            run(secure.server())


def test_a_client_that_is_gone_at_once(plain: Place) -> None:
    """A client that is gone before its stream was looked at is a DialError."""
    far = socket.create_connection(plain.address)
    near = plain.accept()
    opening = open_server(near, (), ())
    reset(far)
    assert until(lambda: _is_gone(near))
    with pytest.raises(DialError, match="broke before it could be used"):
        run(opening)
    assert near.fileno() == -1


def _is_gone(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def test_what_a_server_cannot_send(plain: Place) -> None:
    """A header that the server cannot send is a ValueError, and the client is hung up on."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(plain.tell, REQUEST.encode())
        with pytest.raises(ValueError, match="X-A"):
            run(plain.server(headers=[("X-A", "a\nb")]))
        assert answer.result(SOON) == b""


# -- closing


@pytest.mark.parametrize("order", ["client first", "server first"])
def test_closing_gives_back_everything(place: Place, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing an opening after any number of steps, none among them, gives back its descriptors and thread."""
    before = descriptors()
    for steps in itertools.count():
        with Place(place.contexts) as fresh:
            names(monkeypatch, ("127.0.0.1", closed_port()), fresh.address)
            openings = [fresh.client("a.example"), fresh.server()]
            found = run(*openings, steps=steps)
            for opening in openings if order == "client first" else openings[::-1]:
                opening.close()
            for each in found:
                each.sock.close()
        assert until(lambda: descriptors() == before and not resolvers())
        if len(found) == 2:
            break
    assert steps > 3


def test_closing_a_server_before_its_first_step(plain: Place) -> None:
    """A server's opening holds its stream from the beginning: closed before its first step, it closes it."""
    with socket.create_connection(plain.address, SOON) as far:
        open_server(plain.accept(), (), ()).close()
        assert far.recv(1) == b""


def test_closing_while_two_attempts_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing gives back the sockets of all attempts to connect."""
    monkeypatch.setattr(resolve, "CONNECT_DELAY", 0.0)
    with stalled() as first, stalled() as second:
        before = descriptors()
        names(monkeypatch, first.getsockname(), second.getsockname())
        opening = client("ws://a.example/")
        run(opening, stop=lambda want: want.write and want.at < math.inf)
        opening.close()
        assert descriptors() == before


# -- contexts, and who it is


def test_a_context_that_trusts_one_authority(secure: Place, authority: trustme.CA, tmp_path: Path) -> None:
    """A certificate to trust is PEM text, DER bytes, or a path as text or Path; and no other authority is trusted."""
    pem = authority.cert_pem.bytes()
    path = tmp_path / "authority.pem"
    path.write_bytes(pem)
    for trusted in (pem.decode(), ssl.PEM_cert_to_DER_cert(pem.decode()), path, str(path)):
        context = client_context(True, trusted)
        assert len(context.get_ca_certs()) == 1
        assert len(opened(client(secure.url(), context), secure.server())) == 2
    other = trustme.CA().cert_pem.bytes().decode()
    server = secure.server()
    with pytest.raises(CertificateError):
        run(client(secure.url(), client_context(True, other)), server)


def test_a_context_that_trusts_everybody(secure: Place) -> None:
    """Without verification any certificate will do, for any name."""
    context = client_context(False, None)
    assert len(opened(client(secure.url("localhost"), context), secure.server())) == 2


@pytest.mark.parametrize("trusted", ["no/such/file.pem", "-----BEGIN CERTIFICATE-----\nx", b"x"])
def test_a_certificate_that_cannot_be_read(trusted: str | bytes) -> None:
    """A certificate that cannot be read is an OSError, or an SSLError, which is one."""
    with pytest.raises(OSError, match=r"No such file|does not contain a certificate|PEM|ASN1"):
        client_context(True, trusted)


def test_peer_of(plain: Place) -> None:
    """peer_of is the other end's address and port."""
    with socket.create_connection(plain.address) as far, plain.accept() as near:
        assert peer_of(far) == plain.address
        assert peer_of(near) == far.getsockname()


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_peer_of_ipv6() -> None:
    """Of an IPv6 peer it is no more than that."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as far:
            assert peer_of(far) == address


def test_peer_of_nobody() -> None:
    """A socket that is not connected has no peer: an OSError."""
    with socket.socket() as sock, pytest.raises(OSError, match=r"connected|argument"):
        peer_of(sock)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no such sockets")
def test_peer_of_a_socket_without_a_port() -> None:
    """The other end of a socket of AF_UNIX has no port."""
    here, there = socket.socketpair()
    with here, there:
        assert peer_of(here)[1] == 0
