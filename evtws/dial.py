"""Dial: from a URL to a socket on which websocket frames may flow, by one deadline.

Resolving, connecting, the proxy, TLS and the upgrade are this package's own, so that all of them keep the
deadline and can be aborted. websocket-client makes the upgrade's request and judges its answer; it is shown
neither URL nor headers of the user, nor cookies: its jar and its trace belong to the whole process.
"""

from __future__ import annotations

import base64
import email.message
import hashlib
import http
import io
import re
import ssl
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar
from socket import socket
from typing import Any, cast
from urllib.parse import urldefrag, urljoin

import websocket

from .errors import DialAborted, DialError, DialTimeout, HandshakeError, InvalidURL, ProxyError
from .proxy import Proxy, choose, open_tunnel
from .resolve import Attempt, HasFileno, Wait, blocking_wait, connect, resolve
from .target import URL, Request, Target, check_headers, check_subprotocols, parse_url
from .wire import Head, Wire, default_context

__all__ = [
    "CookieJar",
    "HasFileno",
    "Target",
    "Upgraded",
    "Wait",
    "blocking_wait",
    "check_headers",
    "check_subprotocols",
    "default_context",
    "dial",
    "parse_url",
]

#: Cookies that a jar keeps; a server that sets more has all forgotten (RFC 6265 section 6.1: at least 50).
COOKIE_LIMIT = 50

_REDIRECTS = (301, 302, 303, 307, 308)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_HOST_LINE = re.compile(rb"^Host: .*\r\n", re.MULTILINE)  # 1.8 and 1.9.0 cannot be told to leave it out
_KEY = re.compile(rb"Sec-WebSocket-Key: (\S+)")
_JUDGED = ("upgrade", "connection", "sec-websocket-accept")


@dataclass(frozen=True)
class Upgraded:
    """An opened websocket: its non-blocking socket, with TCP_NODELAY, and the server's answer.

    `initial` is what followed the answer's header: the first frames, maybe. `subprotocol` is None where the
    server chose none. `headers` have lower-case names, and no Set-Cookie: that is in the jar.
    """

    sock: socket | ssl.SSLSocket
    initial: bytes = field(repr=False)
    subprotocol: str | None
    status: int
    headers: dict[str, str] = field(repr=False)


def dial(target: Target, *, jar: CookieJar, deadline: float, wait: Wait = blocking_wait) -> Upgraded:
    """Open one websocket before `deadline` (`time.monotonic()`; infinite for none).

    Cookies are taken from `jar` and put there. Every pause is a call of `wait`, and what that raises ends
    the dial. After a failure nothing stays open. Raises InvalidURL or ValueError for a bad target, else a
    DialError.
    """
    attempt = Attempt(deadline, wait)
    check_subprotocols(target.subprotocols)
    request = Request(parse_url(target.url), check_headers(target.headers), tuple(target.subprotocols))
    for _ in range(target.redirects):
        try:
            return _open(request, target, jar, attempt)
        except HandshakeError as error:
            request = replace(request, url=_redirected(request.url, error))
    return _open(request, target, jar, attempt)


def _redirected(url: URL, error: HandshakeError) -> URL:
    """Where the redirect `error` leads; raises it where it is none, and another if that leaves the origin."""
    if error.status not in _REDIRECTS:
        raise error
    location = error.headers.get("location")
    try:
        if not location:
            raise InvalidURL("there is no Location")
        there = urldefrag(urljoin(url.http, location)).url
        new = parse_url(re.sub("^http", "ws", there))
    except ValueError as exc:
        raise _refused_redirect(error, "to nowhere") from exc
    if new.authorization is not None or (new.host, new.port, new.secure) != (url.host, url.port, url.secure):
        raise _refused_redirect(error, "to another origin") from None
    return new._replace(authorization=url.authorization)


def _refused_redirect(error: HandshakeError, where: str) -> HandshakeError:
    return HandshakeError(f"the server redirects {where}: {error.status}", error.status, error.headers, error.body)


def _open(request: Request, target: Target, jar: CookieJar, attempt: Attempt) -> Upgraded:
    url = request.url
    proxy = choose(target.proxy, url.host, url.port, secure=url.secure)
    wire = Wire(_reach(url, proxy, attempt), attempt)
    try:
        if proxy is not None:
            open_tunnel(wire, proxy, url.host, url.port)
        if url.secure:
            hostname = target.server_hostname or url.host.partition("%")[0]
            wire.start_tls(target.ssl_context or default_context(), hostname)
        return _upgrade(wire, request, jar)
    except BaseException:
        wire.close()
        raise


def _reach(url: URL, proxy: Proxy | None, attempt: Attempt) -> socket:
    if proxy is None:
        return connect(resolve(url.host, url.port, attempt), attempt)
    try:
        return connect(resolve(proxy.host, proxy.port, attempt), attempt)
    except (DialTimeout, DialAborted):
        raise
    except DialError as exc:
        raise ProxyError(f"the proxy could not be reached: {exc}") from exc


def _upgrade(wire: Wire, request: Request, jar: CookieJar) -> Upgraded:
    exchange = _Exchange(wire, request, jar)
    opener: Any = websocket.WebSocket(enable_multithread=False)
    refused: Exception | None = None
    try:
        opener.connect("ws://dial.invalid/", socket=exchange, redirect_limit=0, suppress_origin=True)
    except websocket.WebSocketException as exc:
        if isinstance(exc.__context__, DialError):  # it hides what looks like a timeout
            raise exc.__context__ from exc.__context__.__cause__
        refused = exc
    head = exchange.head
    fault = _fault(head, exchange.key, request.subprotocols) or (refused and "websocket-client refuses it")
    if fault:
        text = f"the server's answer is no upgrade: {fault}"
        raise HandshakeError(text, head.status, head.fields) from refused
    chosen = head.fields.get("sec-websocket-protocol")
    return Upgraded(wire.sock, bytes(wire.buffer), chosen, head.status, head.fields)


def _fault(head: Head, key: bytes, offered: Sequence[str]) -> str | None:
    """What in the header of a 101 RFC 6455 section 4.1 forbids; None if nothing."""
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
    fields = head.fields
    if head.version != "1.1":
        return f"it is HTTP/{head.version}"
    if fields.get("upgrade", "").lower() != "websocket":
        return "Upgrade is missing or wrong"
    if "upgrade" not in [option.strip().lower() for option in fields.get("connection", "").split(",")]:
        return "Connection is missing or wrong"
    if fields.get("sec-websocket-accept") != accept:
        return "Sec-WebSocket-Accept is missing or wrong"
    if "sec-websocket-extensions" in fields:
        return f"an extension that was not asked for: {fields['sec-websocket-extensions']!r:.80}"
    chosen = fields.get("sec-websocket-protocol")
    if chosen is not None and chosen not in offered:
        return f"a subprotocol that was not offered: {chosen!r:.80}"
    return None


class _Exchange:
    """The socket that websocket-client sees: one request, one answer.

    The request is completed by what websocket-client need not know; of the answer it sees what it must judge.
    """

    def __init__(self, wire: Wire, request: Request, jar: CookieJar) -> None:
        self.key = b""
        self.head = Head("", 0, {}, [])
        self._wire = wire
        self._request = request
        self._jar = jar
        self._shown: io.BytesIO | None = None

    def gettimeout(self) -> float:
        """0: websocket-client then leaves the waiting to `recv` and `send`."""
        return 0.0

    def close(self) -> None:
        """Nothing: whoever made the wire closes it."""

    def send(self, data: bytes) -> int:
        """Complete the request and send all of it."""
        lines = _HOST_LINE.sub(b"", data.partition(b"\r\n")[2].removesuffix(b"\r\n"))
        self.key = _KEY.search(lines)[1]  # type: ignore[index]
        own = self._request.lines(_cookies_for(self._jar, self._request.url))
        self._wire.doing = f"waiting for the answer of {self._request.url.authority}"
        self._wire.write(self._request.first_line() + lines + own + b"\r\n")
        return len(data)

    def recv(self, size: int) -> bytes:
        """The next of the answer's bytes that are to be judged."""
        if self._shown is None:
            self._shown = io.BytesIO(self._read_answer())
        return self._shown.read(size)

    def _read_answer(self) -> bytes:
        head = self.head = self._wire.read_head()
        _keep_cookies(self._jar, self._request.url, head.cookies)
        if head.status != 101:
            raise HandshakeError(_refusal(head.status), head.status, head.fields, self._wire.read_body(head))
        judged = [f"{name}: {head.fields[name]}\r\n" for name in _JUDGED if name in head.fields]
        return f"HTTP/1.1 101\r\n{''.join(judged)}\r\n".encode()


def _refusal(status: int) -> str:
    phrases = {known.value: known.phrase for known in http.HTTPStatus}
    return f"the server refused the upgrade: {status} {phrases.get(status, '')}".rstrip()


def _cookies_for(jar: CookieJar, url: URL) -> list[str]:
    request = urllib.request.Request(url.http)
    jar.add_cookie_header(request)
    header = request.get_header("Cookie")
    return [header] if header else []


def _keep_cookies(jar: CookieJar, url: URL, values: Sequence[str]) -> None:
    response = _SetCookies(values)
    jar.extract_cookies(cast(Any, response), urllib.request.Request(url.http))
    if len(jar) > COOKIE_LIMIT:
        jar.clear()


class _SetCookies:
    """As much of a response as a CookieJar wants."""

    def __init__(self, values: Sequence[str]) -> None:
        self._fields = email.message.Message()
        for value in values:
            self._fields["Set-Cookie"] = value

    def info(self) -> email.message.Message:
        return self._fields
