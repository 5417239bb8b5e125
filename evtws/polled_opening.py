"""From a URL, or from a stream that was accepted, to a websocket: one step each time somebody polls.

Each way is a generator: it yields what it waits for, is resumed when that may have come, and returns the opened
websocket. Nothing here blocks. Closing the generator gives back all that it holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from .errors import DialError, HandshakeError, TLSError
from .handshake import ClientHandshake, ServerHandshake
from .nonblocking import NonBlockingSocket
from .resolve import Lookup, Race, blocking_wait
from .target import URL
from .wire import BODY_WAIT, default_context, dial_error, wrap

_T = TypeVar("_T")

#: A deadline that has passed: `blocking_wait` only looks.
_NOW = 0.0
#: Seconds between two looks at what no descriptor tells of.
_SOON = 0.05


class Want(NamedTuple):
    """What an opening waits for: a descriptor (-1: none), to read or to write; or that time has come (monotonic)."""

    fd: int = -1
    read: bool = False
    write: bool = False
    at: float = math.inf


class Opened(NamedTuple):
    """An opened websocket, of which the last of the opening may still be unsent.

    `rest` is what followed the upgrade: the first frames, maybe. `url` is what was asked for, `subprotocol` None where
    none was chosen, `peer` the other end's address and port.
    """

    sock: NonBlockingSocket
    rest: bytes
    url: str
    subprotocol: str | None
    peer: tuple[str, int]


Opening = Generator[Want, None, Opened]
Headers = Iterable[tuple[str, str]]


def open_client(
    text: str, url: URL, context: ssl.SSLContext | None, headers: Headers, subprotocols: Sequence[str]
) -> Opening:
    """The client's way to the websocket at `url`, which was written as `text`.

    `context` None is the default one, which is loaded aside: that takes long. Raises a DialError, and ValueError for
    what cannot be sent.
    """
    given = list(headers)
    if url.authorization is not None and "authorization" not in {name.lower() for name, _ in given}:
        given.append(("Authorization", url.authorization))
    handshake = ClientHandshake(host=url.authority, target=url.resource, headers=given, subprotocols=subprotocols)
    return _open_client(text, url, context, handshake)


def _open_client(text: str, url: URL, context: ssl.SSLContext | None, handshake: ClientHandshake) -> Opening:
    sock = yield from _connect(url, context)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        stream, peer = _begun(sock)
        yield from _secure(stream, f"in the TLS handshake with {url.host}")
        stream.unsent += handshake.request()
        until = math.inf
        while (response := (yield from _fed(stream, handshake.feed, until))) is None:
            if handshake.is_refused and math.isinf(until):
                until = time.monotonic() + BODY_WAIT
        undo.pop_all()
    return Opened(stream, handshake.rest, text, response.subprotocol, peer)


def _connect(url: URL, context: ssl.SSLContext | None) -> Generator[Want, None, socket.socket]:
    """A connected socket, with TLS around it where the URL says so, its handshake still to be done."""
    contexts = [] if context is None else [context]
    aside = partial(_load, contexts) if url.secure and context is None else None
    with Lookup(url.host, url.port, aside) as lookup:
        while not lookup.done:
            yield Want(lookup.fileno(), read=True)
            if blocking_wait([lookup], [], _NOW):
                lookup.look()
    with Race(lookup.addresses()) as race:
        while True:
            race.start_next()
            race.look(blocking_wait([], race.running, _NOW))
            if race.winner is not None:
                break
            if race.running:
                yield _any_of(race)
    if not url.secure:
        return race.winner
    return wrap(race.winner, contexts[0], url.host, f"in the TLS handshake with {url.host}")


def _load(contexts: list[ssl.SSLContext]) -> None:
    try:
        contexts.append(default_context())
    except OSError as exc:  # of SSLKEYLOGFILE, for one
        raise TLSError(f"the default TLS context could not be made: {exc}") from exc


def _any_of(race: Race) -> Want:
    """That the newest attempt ends; an older one is looked at soon, since a Want is of one descriptor."""
    soon = time.monotonic() + _SOON if len(race.running) > 1 else math.inf
    return Want(race.running[-1].fileno(), write=True, at=min(race.next_start, soon))


def open_server(sock: socket.socket, headers: Headers, subprotocols: Sequence[str]) -> Opening:
    """The server's way from a stream that was accepted. Raises a DialError, and ValueError for a bad header."""
    opening = _open_server(sock, headers, subprotocols)
    next(opening)  # from here on closing it closes the socket
    return opening


def _open_server(sock: socket.socket, headers: Headers, subprotocols: Sequence[str]) -> Opening:
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        yield Want(at=_NOW)
        stream, peer = _begun(sock)
        yield from _secure(stream, "in the TLS handshake with a client")
        handshake = ServerHandshake(supported_subprotocols=subprotocols)
        try:
            while (request := (yield from _fed(stream, handshake.feed))) is None:
                pass
        except HandshakeError as error:
            if error.status is not None:
                stream.unsent += handshake.reject(error.status, error.headers.items())
                yield from _flushed(stream)
            raise
        stream.unsent += handshake.accept(headers=headers)
        undo.pop_all()
    scheme = "ws" if stream.secure else "wss"
    chosen = next((name for name in subprotocols if name in request.subprotocols), None)
    return Opened(stream, handshake.rest, f"{scheme}://{request.host}{request.target}", chosen, peer)


def _begun(sock: socket.socket) -> tuple[NonBlockingSocket, tuple[str, int]]:
    try:
        return NonBlockingSocket(sock), peer_of(sock)
    except OSError as exc:
        raise dial_error(exc, "before it could be used", DialError) from exc


def _secure(stream: NonBlockingSocket, doing: str) -> Generator[Want, None, None]:
    """The TLS handshake, where there is TLS."""
    try:
        while not stream.secure and not stream.secured():
            writes = stream.wants == selectors.EVENT_WRITE
            yield Want(stream.sock.fileno(), read=not writes, write=writes)
    except OSError as exc:
        raise dial_error(exc, doing, TLSError) from exc


def _fed(
    stream: NonBlockingSocket, feed: Callable[[bytes], _T | None], until: float = math.inf
) -> Generator[Want, None, _T | None]:
    """Write what is to be written, and feed a handshake what has come; b"" if that is nothing `until` then."""
    _flush(stream)
    data = stream.read()
    while data is None:
        yield Want(stream.sock.fileno(), read=True, write=bool(stream.unsent), at=until)
        _flush(stream)
        data = stream.read()
        if data is None and time.monotonic() >= until:
            data = b""
    return feed(data)


def _flushed(stream: NonBlockingSocket) -> Generator[Want, None, None]:
    """Write all that is to be written."""
    _flush(stream)
    while stream.unsent:
        yield Want(stream.sock.fileno(), write=True)
        _flush(stream)


def _flush(stream: NonBlockingSocket) -> None:
    try:
        stream.flush()
    except OSError:
        stream.unsent.clear()  # a peer that has hung up is noticed by reading: it may have said why


def peer_of(sock: socket.socket) -> tuple[str, int]:
    """Address and port of the other end. Raises OSError for a socket that is not connected."""
    name = sock.getpeername()
    return (name[0], name[1]) if isinstance(name, tuple) else (str(name), 0)  # a socket of AF_UNIX has no port


def client_context(verify: bool, trusted: str | bytes | os.PathLike[str] | None) -> ssl.SSLContext:
    """A context that trusts this authority alone, a path, PEM text or DER bytes; or, without `verify`, everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif isinstance(trusted, bytes) or (isinstance(trusted, str) and "-----BEGIN" in trusted):
        context.load_verify_locations(cadata=trusted)
    else:
        context.load_verify_locations(cafile=trusted)
    return context
