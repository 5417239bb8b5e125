"""The HTTP upgrade without blocking, both roles: bytes in, bytes out (RFC 6455 section 4).

Nothing here reads or waits. What was received is fed in, in any pieces; what has to be sent is returned; what
followed the header is in `rest`. An extension is neither offered nor accepted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Event, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from .errors import HandshakeError

#: The most bytes of an HTTP header that are taken, and of a refusal's body that are kept.
HEADER_LIMIT = 65536
BODY_LIMIT = 4096

Headers = Iterable[tuple[str, str]]

_BLANK_LINE = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[\x21-\x22\x24-\x7e]*")
_HOST = re.compile(r"[^\x00-\x20\x7f/?#@\\]+")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[ \r\n]")
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9]{2}[ \r\n]")

# What each role's header says of its own accord, so that a caller's cannot contradict it.
_BODY = {"content-length", "transfer-encoding"}
_UPGRADE = {"connection", "upgrade", "sec-websocket-accept", "sec-websocket-protocol"}
_ACCEPT_OWN = frozenset(_BODY | _UPGRADE)
_REJECT_OWN = frozenset(_BODY | {"connection"})
_REQUEST_OWN = frozenset(
    _BODY | _UPGRADE | {"host", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"}
)


@dataclass(frozen=True)
class UpgradeRequest:
    """What a client asked for.

    `target` is the path with its query, `host` the Host header, `headers` all headers with lower-case
    names, and `subprotocols` what was offered, the client's favourite first.
    """

    target: str = field(repr=False)
    host: str
    headers: list[tuple[str, str]] = field(repr=False)
    subprotocols: tuple[str, ...]


@dataclass(frozen=True)
class UpgradeResponse:
    """What a server answered: the subprotocol that it chose, or None, and its headers with lower-case names.

    The headers that make up the upgrade itself (Connection, Upgrade, Sec-WebSocket-*) were checked, and are
    left out.
    """

    subprotocol: str | None
    headers: list[tuple[str, str]] = field(repr=False)


class _Head:
    """Collects bytes up to the blank line that ends an HTTP header: bounded, and each byte searched once."""

    def __init__(self, start: bytes, limit: int, *, serving: bool) -> None:
        self._serving = serving
        self._start = start
        self._left = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Add what was received; b"" is the end of the connection.

        Raises HandshakeError if it cannot be HTTP.
        """
        if not data:
            raise HandshakeError("the connection ended within the HTTP header")
        self._buffer += data
        if not self._start.startswith(self._buffer[: len(self._start)]):
            raise HandshakeError("what came is no HTTP upgrade", 400 if self._serving else None)

    def next(self) -> bytes | None:
        """The next header with its blank line, or None while it is incomplete.

        Raises HandshakeError above the limit.
        """
        end = _BLANK_LINE.search(self._buffer, max(0, self._searched - 2))
        self._searched = len(self._buffer)
        size = end.end() if end else len(self._buffer)
        if size > self._left:
            raise HandshakeError("the HTTP header is too long", 431 if self._serving else None)
        if end is None:
            return None
        head = self.rest[:size]
        del self._buffer[:size]
        self._left -= size
        self._searched = 0
        return head

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)


class ServerHandshake:
    """The server's side: feed it the request, then `accept` or `reject` it; a malformed one too.

    `supported_subprotocols` are what `accept` chooses from, the favourite first. `header_limit` is in bytes.
    """

    def __init__(self, *, supported_subprotocols: Sequence[str] = (), header_limit: int = HEADER_LIMIT) -> None:
        self._supported = tuple(supported_subprotocols)
        self._head = _Head(b"GET ", header_limit, serving=True)
        self._http = H11Handshake(ConnectionType.SERVER)
        self._request: UpgradeRequest | None = None
        self._answered = False

    @property
    def rest(self) -> bytes:
        """What followed the header: the first frames."""
        return self._head.rest

    def feed(self, data: bytes) -> UpgradeRequest | None:
        """Take what was received (b"": the connection ended); the request, or None while it is incomplete.

        Raises HandshakeError, whose `status` and `headers` are what `reject` should answer (None: nobody is
        there to be answered).
        """
        self._head.feed(data)
        head = self._head.next()
        if head is None:
            return None
        self._request = _read_request(self._http, head)
        return self._request

    def accept(self, *, subprotocol: str | None = None, headers: Headers = ()) -> bytes:
        """The 101 response. `subprotocol` None chooses the first supported one that was offered, if any.

        Raises ValueError for a subprotocol that was not offered, or a header that cannot be sent.
        """
        request = self._request
        if request is None or self._answered:
            raise RuntimeError("there is no request to accept")
        if subprotocol is None:
            subprotocol = next((name for name in self._supported if name in request.subprotocols), None)
        elif subprotocol not in request.subprotocols:
            raise ValueError(f"the client did not offer the subprotocol {subprotocol!r}")
        extra = _encode_headers(headers, _ACCEPT_OWN)
        self._answered = True
        return self._http.send(AcceptConnection(subprotocol=subprotocol, extra_headers=extra))

    def reject(self, status: int, headers: Headers = (), body: bytes = b"") -> bytes:
        """A whole response that refuses the request; the connection is to be closed after it.

        Raises ValueError for a status outside 200 to 599, a body that the status cannot have, or a header
        that cannot be sent.
        """
        if self._answered:
            raise RuntimeError("the request is answered already")
        if not 200 <= status <= 599 or (body and status in (204, 304)):
            raise ValueError(f"{status} is no status to refuse with here")
        extra = _encode_headers(headers, _REJECT_OWN)
        extra += [(b"Content-Length", b"%d" % len(body)), (b"Connection", b"close")]
        self._answered = True
        head = self._http.send(RejectConnection(status_code=status, headers=extra, has_body=True))
        return head + self._http.send(RejectData(data=body))


class ClientHandshake:
    """The client's side: send what `request` returns, then feed it the response.

    `host` is the Host header (`name` or `name:port`), `target` the path with its query, `subprotocols` what
    is offered, the favourite first. `header_limit` is in bytes and covers interim responses too.
    Raises ValueError for what cannot be sent; the text names the header, never its value.
    """

    def __init__(
        self,
        *,
        host: str,
        target: str,
        headers: Headers = (),
        subprotocols: Sequence[str] = (),
        header_limit: int = HEADER_LIMIT,
    ) -> None:
        if not _HOST.fullmatch(host):
            raise ValueError("host is no host name with an optional port")
        if not _TARGET.fullmatch(target):
            raise ValueError("target must begin with a slash and hold only printable ASCII characters, and no '#'")
        for name in subprotocols:
            if not _TOKEN.fullmatch(name) or list(subprotocols).count(name) > 1:
                raise ValueError(f"{name!r} is no subprotocol, or is offered twice")
        extra = _encode_headers(headers, _REQUEST_OWN)
        request = Request(host, target, subprotocols=list(subprotocols), extra_headers=extra)
        self._http = H11Handshake(ConnectionType.CLIENT)
        self._request = self._http.send(request)
        self._head = _Head(b"HTTP/1.", header_limit, serving=False)
        self._refusal: HandshakeError | None = None

    @property
    def rest(self) -> bytes:
        """What followed the header: the first frames."""
        return self._head.rest

    @property
    def is_refused(self) -> bool:
        """Whether the server has refused, and only the body of its answer is waited for."""
        return self._refusal is not None

    def request(self) -> bytes:
        """The request to send."""
        return self._request

    def feed(self, data: bytes) -> UpgradeResponse | None:
        """Take what was received (b"": nothing more will come); the response, or None while it is incomplete.

        Raises HandshakeError with `status`, `headers` and `body` for a response that is no upgrade. It waits
        for the body, or for its first 4 KiB: who has no time left feeds b"" and gets what there is.
        """
        if self._refusal is not None:
            self._feed_body(data, ended=not data)
            return None
        self._head.feed(data)
        head = self._head.next()
        while head is not None and _INTERIM.match(head):
            head = self._head.next()
        return None if head is None else self._read(head)

    def _read(self, head: bytes) -> UpgradeResponse | None:
        line = _STATUS_LINE.match(head)
        status = int(line[1]) if line else None
        if not head.startswith(b"HTTP/1.1 "):
            raise HandshakeError("the response is not HTTP/1.1", status)
        _check_once(head, status, b"sec-websocket-accept", b"sec-websocket-protocol")
        event = _receive(self._http, head, status)
        if isinstance(event, AcceptConnection):
            return UpgradeResponse(event.subprotocol, _decode_headers(event.extra_headers))
        assert isinstance(event, RejectConnection)
        headers = dict(_decode_headers(event.headers))
        self._refusal = HandshakeError(f"the server answered {status} to the upgrade", status, headers)
        self._feed_body(self._head.rest, ended=False)
        return None

    def _feed_body(self, data: bytes, *, ended: bool) -> None:
        """Raise the refusal once its body is complete, long enough, broken or cut off."""
        assert self._refusal is not None
        try:
            if data or ended:
                self._http.receive_data(data)
        except RemoteProtocolError:
            ended = True
        for event in self._http.events():
            assert isinstance(event, RejectData)
            self._refusal.body += event.data
            ended = ended or event.body_finished
        if ended or len(self._refusal.body) >= BODY_LIMIT:
            self._refusal.body = self._refusal.body[:BODY_LIMIT]
            raise self._refusal


def _read_request(http: H11Handshake, head: bytes) -> UpgradeRequest:
    if not head.split(b"\n", 1)[0].rstrip(b"\r").endswith(b" HTTP/1.1"):
        raise HandshakeError("the request is not HTTP/1.1", 400)
    _check_once(head, 400, b"sec-websocket-key", b"sec-websocket-version")
    event = _receive(http, head, 400)
    assert isinstance(event, Request)
    headers = _decode_headers(event.extra_headers)
    _check_request(dict(headers))
    offered = tuple(name for name in event.subprotocols if name)
    extensions = ", ".join(str(each) for each in event.extensions)
    parts = [
        ("host", event.host),
        ("sec-websocket-protocol", ", ".join(offered)),
        ("sec-websocket-extensions", extensions),
    ]
    return UpgradeRequest(event.target, event.host, headers + [part for part in parts if part[1]], offered)


def _check_request(headers: dict[str, str]) -> None:
    """Raise HandshakeError for what wsproto lets pass: a key that is not 16 bytes, a body."""
    try:
        key = base64.b64decode(headers["sec-websocket-key"], validate=True)
    except ValueError as exc:
        raise HandshakeError("the Sec-WebSocket-Key is not base64", 400) from exc
    if len(key) != 16:
        raise HandshakeError("the Sec-WebSocket-Key is not 16 bytes", 400)
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise HandshakeError("an upgrade request has no body", 400)


def _check_once(head: bytes, status: int | None, *names: bytes) -> None:
    lines = [line.split(b":", 1)[0].strip().lower() for line in head.split(b"\n")]
    for name in names:
        if lines.count(name) > 1:
            raise HandshakeError(f"the header {name.decode()} came twice", status)


def _receive(http: H11Handshake, head: bytes, status: int | None) -> Event:
    """The first event that a whole header makes; what wsproto refuses is a HandshakeError."""
    try:
        http.receive_data(head)
        return next(http.events())
    except UnicodeError as exc:
        raise HandshakeError("an HTTP header holds characters that it cannot", status) from exc
    except RemoteProtocolError as exc:
        hint, headers = exc.event_hint, {}
        if isinstance(hint, RejectConnection) and hint.headers:
            status, headers = hint.status_code, dict(_decode_headers(hint.headers))
        raise HandshakeError(f"the upgrade is malformed: {exc}", status, headers) from exc


def _encode_headers(headers: Headers, own: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """Headers for the wire.

    Raises ValueError, whose text never shows a value, for one that cannot be sent or is made by the upgrade.
    """
    encoded = []
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        if name.lower() in own:
            raise ValueError(f"the header {name} is made by the upgrade itself")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name} holds a line break or another character that it cannot")
        encoded.append((name.encode("ascii"), value.strip(" \t").encode("latin-1")))
    return encoded


def _decode_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
