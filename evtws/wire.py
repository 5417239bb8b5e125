"""Wire: a non-blocking socket that is read and written under the deadline of one dial; TLS on top of it."""

from __future__ import annotations

import re
import socket
import ssl
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from .errors import CertificateError, DialError, DialTimeout, HandshakeError, TLSError
from .resolve import Attempt

#: Bytes of a response's header, of all interim responses together, that are read at most.
HEADER_LIMIT = 64 * 1024

#: Bytes of a refusal's body that are kept, and the seconds that it may take to arrive.
BODY_LIMIT = 4096
BODY_WAIT = 1.0

_CHUNK = 16 * 1024
_BLANK_LINE = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/(\d\.\d) (\d{3})(?: [^\r\n]*)?\r?")

# What OpenSSL's versions call a record that is none.
_NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
}

_T = TypeVar("_T")


def default_context() -> ssl.SSLContext:
    """A context that checks certificate and host name against the system's authorities; takes about 30 ms."""
    return ssl.create_default_context()


class Head(NamedTuple):
    """The header of an HTTP response: each field's name in lower case, repeated ones joined by ", ".

    `cookies` has the values of Set-Cookie, which must not be joined and are not in `fields`.
    """

    version: str
    status: int
    fields: dict[str, str]
    cookies: list[str]


class Wire:
    """A connected socket in the course of one dial.

    Whatever goes wrong is an error of ours: DialTimeout, what `wait` raises, TLSError, or HandshakeError for
    a peer that broke off. `doing` ("waiting for …", "in …") is what the error says was under way.
    """

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        self.sock = sock
        self.attempt = attempt
        self.doing = "opening the connection"
        self._broke_off: type[TLSError | HandshakeError] = HandshakeError
        self.buffer = bytearray()

    def close(self) -> None:
        """Close the socket at once, without a word to the peer."""
        self.sock.close()

    def start_tls(self, context: ssl.SSLContext, hostname: str) -> None:
        """Do the TLS handshake; raises CertificateError or TLSError."""
        self.doing = f"in the TLS handshake with {hostname}"
        self._broke_off = TLSError
        tls = self.sock = wrap(self.sock, context, hostname, self.doing)
        self._patiently(tls.do_handshake)
        self._broke_off = HandshakeError

    def write(self, data: bytes) -> None:
        """Write all of `data`; a peer that has hung up is noticed by reading, since it may have said why."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._patiently(partial(self._send, rest), writing=True) :]

    def _send(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            return len(data)

    def fill(self) -> bool:
        """Read something into `buffer`; False at the end of the stream."""
        data = self._patiently(lambda: self.sock.recv(_CHUNK))
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        """Remove the first `size` bytes from `buffer`."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self.buffer) < size:
            if not self.fill():
                raise HandshakeError(f"the peer closed the connection {self.doing}")
        return self.take(size)

    def read_head(self) -> Head:
        """The header of the final HTTP response; what follows it stays in `buffer`. Raises HandshakeError."""
        room = HEADER_LIMIT
        while True:
            raw = self.take(self._head_size(room))
            room -= len(raw)
            head = _parse_head(raw)
            if head.status == 101 or head.status >= 200:
                return head

    def read_body(self, head: Head) -> bytes:
        """The first bytes of a refusal's body, as far as they come soon.

        A body that breaks off is no second failure; what `wait` raises is.
        """
        chunked = head.fields.get("transfer-encoding", "").lower() == "chunked"
        length = head.fields.get("content-length", "")
        known = not chunked and re.fullmatch("[0-9]{1,18}", length)
        wanted = min(BODY_LIMIT, int(length)) if known else BODY_LIMIT
        soon = time.monotonic() + BODY_WAIT
        self.attempt = Attempt(min(soon, self.attempt.deadline), self.attempt.wait)
        try:
            while len(self.buffer) < wanted and not (chunked and self.buffer.endswith(b"0\r\n\r\n")):
                if not self.fill():
                    break
        except (DialTimeout, HandshakeError, TLSError):
            pass
        return _unchunked(bytes(self.buffer))[:BODY_LIMIT] if chunked else self.take(wanted)

    def _head_size(self, room: int) -> int:
        seen = 0
        while True:
            if not b"HTTP/".startswith(self.buffer[:5]):
                raise HandshakeError(_not_http(self.buffer))
            end = _BLANK_LINE.search(self.buffer, max(0, seen - 2))
            seen = end.end() if end else len(self.buffer)
            if seen > room:
                raise HandshakeError(f"the response's header is over {HEADER_LIMIT} bytes")
            if end:
                return seen
            if not self.fill():
                partly = "in the middle of" if self.buffer else "without"
                raise HandshakeError(f"the peer closed the connection {partly} its answer")

    def _patiently(self, operation: Callable[[], _T], *, writing: bool = False) -> _T:
        while True:
            # TLS may need to read in order to write, and the other way round.
            try:
                return operation()
            except ssl.SSLWantReadError:
                blocked_writing = False
            except ssl.SSLWantWriteError:
                blocked_writing = True
            except BlockingIOError:
                blocked_writing = writing
            except OSError as exc:
                raise dial_error(exc, self.doing, self._broke_off) from exc
            both = ([], [self.sock]) if blocked_writing else ([self.sock], [])
            while not self.attempt.until(*both, self.doing):
                pass


def dial_error(error: OSError, doing: str, broke_off: type[DialError] = HandshakeError) -> DialError:
    """What went wrong on a socket while `doing` this, as an error of ours; `broke_off` if the peer did."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateError(f"the certificate was refused {doing}: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return TLSError(f"error {doing}: {_reason(error)}")
    return broke_off(f"the connection broke {doing}: {_reason(error)}")


def wrap(sock: socket.socket, context: ssl.SSLContext, hostname: str, doing: str) -> ssl.SSLSocket:
    """A client's TLS on that socket, which it takes over; the handshake is still to be done. Raises TLSError."""
    try:
        return context.wrap_socket(sock, server_hostname=hostname, do_handshake_on_connect=False)
    except (OSError, ValueError) as exc:
        _close_lost(exc)
        raise TLSError(f"error {doing}: {_reason(exc)}") from exc


def _close_lost(error: Exception) -> None:
    # Over a name that it cannot use, or a peer that is gone, wrap_socket fails without closing the socket that it
    # has already taken over (seen on 3.10 to 3.13); nothing but the traceback still knows it.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        lost = frame.f_locals.get("self")
        if isinstance(lost, ssl.SSLSocket):
            lost.close()


def _parse_head(raw: bytes) -> Head:
    status_line, *lines = raw.rstrip(b"\r\n").split(b"\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None:
        raise HandshakeError("the peer answered with a malformed status line")
    head = Head(match[1].decode(), int(match[2]), {}, [])
    for line in lines:
        name, colon, value = line.removesuffix(b"\r").decode("latin-1").partition(":")
        if not colon or not name or name[0] in " \t" or "\r" in value or "\0" in value:
            raise HandshakeError("the peer answered with a malformed header", head.status, head.fields)
        _add_field(head, name.lower(), value.strip(" \t"))
    return head


def _add_field(head: Head, name: str, value: str) -> None:
    if name == "set-cookie":
        head.cookies.append(value)
    elif name in head.fields:
        head.fields[name] += f", {value}"
    else:
        head.fields[name] = value


def _unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        try:
            length = max(0, int(size.partition(b";")[0], 16))
        except ValueError:
            break
        body += raw[:length]
        raw = raw[length + 2 :]
    return body


def _not_http(data: bytes | bytearray) -> str:
    if data[:1] in (b"\x15", b"\x16"):  # a TLS record: an alert, a handshake
        return "the peer speaks TLS: the URL should begin with wss:"
    return "the peer does not speak HTTP"


def _reason(error: Exception) -> str:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "the peer closed the connection"
    if isinstance(error, ssl.SSLError):
        name = error.reason or type(error).__name__
        return f"the peer does not speak TLS ({name})" if name in _NO_TLS else name
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
