"""ClientConnection: one client of a test server, as a script sees it."""

from __future__ import annotations

import enum
import selectors
from collections import deque
from typing import TYPE_CHECKING

from ..errors import HandshakeError, ProtocolError
from ..frames import Close, Decoder, Opcode, Ping, Pong, Received, encode, encode_close, encode_message
from ..handshake import ServerHandshake, UpgradeRequest
from ..nonblocking import NonBlockingSocket

if TYPE_CHECKING:
    from .server import Reply, Server

_HIGH_WATER = 8 << 20  # bytes unsent above which a client that does not read is not read either
_LINGER = 1.0  # seconds that a client has to close its side after our FIN
_BATCH = 256


class _Phase(enum.Enum):
    TLS = enum.auto()
    HTTP = enum.auto()
    ANSWERING = enum.auto()  # a script lets the client wait
    OPEN = enum.auto()
    ENDING = enum.auto()  # nothing counts any more: what is unsent goes out, a FIN, and we await the client's
    GONE = enum.auto()


class ClientConnection:
    """One client of a `Server`.

    The methods may be called from any thread, and from the script functions; they take effect in order, in
    the server's thread, and never block. On a connection that has ended they do nothing.
    """

    def __init__(self, server: Server, wire: NonBlockingSocket) -> None:
        #: The client's upgrade request.
        self.request: UpgradeRequest
        #: The code of the close frame that the client sent (1005: it gave none); None: no close frame came.
        self.close_code: int | None = None
        #: The reason of that close frame.
        self.close_reason = ""
        #: The fault for which this client's connection was failed, or None.
        self.error: ProtocolError | None = None
        self._server = server
        self._loop = server.loop
        self._wire = wire
        self._phase = _Phase.HTTP if wire.secure else _Phase.TLS
        self._handshake = ServerHandshake(supported_subprotocols=server.subprotocols)
        self._decoder = Decoder(expect_masked=True, max_size=server.max_size)
        self._inbox: deque[Received] = deque()
        self._paused = False
        self._close_sent = False
        self._delivery_due = False
        self._fin_sent = False
        self._watched = 0
        self._received: list[str | bytes] = []
        self._pings: list[bytes] = []
        self._pongs: list[bytes] = []
        self._watch()

    @property
    def is_open(self) -> bool:
        """Whether the upgrade is done and the connection has not been ended, by whatever."""
        return self._phase is _Phase.OPEN

    @property
    def received(self) -> list[str | bytes]:
        """The messages that this client sent, if the server records; a snapshot."""
        return list(self._received)

    @property
    def pings(self) -> list[bytes]:
        """The payloads of the pings that this client sent, if the server records; a snapshot."""
        return list(self._pings)

    @property
    def pongs(self) -> list[bytes]:
        """The payloads of the pongs that this client sent, if the server records; a snapshot."""
        return list(self._pongs)

    # What scripts call, from any thread

    def send(self, body: str | bytes) -> None:
        """Send a message; nothing after a close frame."""
        self._loop.call(self._send_frame, encode_message(body, masked=False))

    def send_later(self, delay: float, body: str | bytes) -> None:
        """Send a message after `delay` seconds, if the connection is open then."""
        frame = encode_message(body, masked=False)
        self._loop.call(self._loop.later, delay, lambda: self._send_frame(frame))

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping of at most 125 bytes."""
        self._loop.call(self._send_frame, encode(Opcode.PING, payload, masked=False))

    def pong(self, payload: bytes = b"") -> None:
        """Send a pong of at most 125 bytes that answers nothing by itself."""
        self._loop.call(self._send_frame, encode(Opcode.PONG, payload, masked=False))

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are: broken frames, halves of frames."""
        self._loop.call(self._write, data)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame; the connection ends when the client's comes, however long that takes."""
        self._loop.call(self._send_close, encode_close(code, reason, masked=False))

    def drop(self, *, reset: bool = False) -> None:
        """End the TCP connection without a close frame: by a FIN, or with `reset` by an RST.

        TLS's close_notify is left out too. What was sent before goes out first, as far as the kernel takes it
        at once; an RST may overtake it.
        """
        self._loop.call(self._drop, reset)

    def pause_reading(self) -> None:
        """Read nothing more, so that the client's writes soon find no room."""
        self._loop.call(self._set_paused, True)

    def resume_reading(self) -> None:
        """Read again after `pause_reading`."""
        self._loop.call(self._set_paused, False)

    # From here on everything runs in the server's thread

    def _ready(self, events: int) -> None:
        try:
            if self._phase is _Phase.TLS and self._wire.secured():
                self._phase = _Phase.HTTP
            if self._phase is not _Phase.TLS:
                if events & selectors.EVENT_WRITE:
                    self.flush()
                if events & selectors.EVENT_READ:
                    self._read()
        except OSError:
            self.end()
        except Exception:
            self.end()
            raise
        self._watch()

    def _watch(self) -> None:
        wanted = self._wanted()
        if wanted != self._watched:
            self._watched = wanted
            self._loop.watch(self._wire.sock, wanted, self._ready)

    def _wanted(self) -> int:
        if self._phase is _Phase.TLS:
            return self._wire.wants
        if self._phase in (_Phase.ANSWERING, _Phase.GONE):
            return 0
        writing = selectors.EVENT_WRITE if self._wire.unsent else 0
        if self._phase is _Phase.OPEN and (self._paused or self._delivery_due or len(self._wire.unsent) > _HIGH_WATER):
            return writing
        return writing | selectors.EVENT_READ

    def _read(self) -> None:
        data = self._wire.read()
        if data is None:
            return
        if not data:
            self.end()
        elif self._phase is _Phase.HTTP:
            self._read_request(data)
        elif self._phase is _Phase.OPEN:
            self._decoder.feed(data)
            self._deliver()

    def _read_request(self, data: bytes) -> None:
        try:
            request = self._handshake.feed(data)
        except HandshakeError as exc:
            self._refuse(self._handshake.reject(exc.status or 400, exc.headers.items()))
            return
        if request is None:
            return
        self.request = request
        reply = self._server.answer(request)
        if reply.delay > 0:
            self._phase = _Phase.ANSWERING
            self._loop.later(reply.delay, lambda: self._answer_late(reply))
        else:
            self._answer(reply)

    def _answer_late(self, reply: Reply) -> None:
        if self._phase is not _Phase.ANSWERING:
            return  # the server was closed meanwhile
        self._phase = _Phase.HTTP
        try:
            self._answer(reply)
        except Exception:
            self.end()
            raise

    def _answer(self, reply: Reply) -> None:
        if reply.status != 101:
            self._refuse(self._handshake.reject(reply.status, reply.headers, reply.body))
            return
        self._write(self._handshake.accept(subprotocol=reply.subprotocol, headers=reply.headers))
        self._phase = _Phase.OPEN
        self._decoder.feed(self._handshake.rest)
        self._server.opened(self)
        self._deliver()

    def _refuse(self, response: bytes) -> None:
        self._write(response)
        self._finish()

    def _deliver(self) -> None:
        """Handle a bounded number of messages, and come back in the next turn if there are more."""
        self._delivery_due = False
        try:
            self._deliver_batch()
        except ProtocolError as exc:
            self.error = exc
            self._send_close(encode_close(exc.code, "", masked=False))
            self._finish()
        if self._is_listening() and (self._inbox or self._decoder.has_more):
            self._deliver_soon()
        self._watch()

    def _deliver_batch(self) -> None:
        if self._is_listening() and not self._inbox:
            self._inbox.extend(self._decoder.take(_BATCH))
        while self._inbox and self._is_listening():
            self._handle(self._inbox.popleft())

    def _is_listening(self) -> bool:
        return self._phase is _Phase.OPEN and not self._paused

    def _deliver_soon(self) -> None:
        # Not at once: resume_reading() may come from a script function that is being given a message.
        self._delivery_due = True
        self._loop.soon(self._deliver)

    def _handle(self, item: Received) -> None:
        if isinstance(item, (str, bytes)):
            if self._server.record:
                self._received.append(item)
            self._server.message(self, item)
        elif isinstance(item, Ping):
            if self._server.record:
                self._pings.append(item.payload)
            if self._server.pongs:
                self._send_frame(encode(Opcode.PONG, item.payload, masked=False))
        elif isinstance(item, Pong):
            if self._server.record:
                self._pongs.append(item.payload)
        else:
            self._handle_close(item)

    def _handle_close(self, close: Close) -> None:
        self.close_code, self.close_reason = close.code, close.reason
        if self._server.echo_close:
            code = None if close.code == 1005 else close.code
            self._send_close(encode_close(code, close.reason, masked=False))
        if self._close_sent:
            self._finish()

    def _send_frame(self, frame: bytes) -> None:
        if not self._close_sent:
            self._write(frame)

    def _send_close(self, frame: bytes) -> None:
        self._send_frame(frame)
        self._close_sent = True

    def _write(self, data: bytes) -> None:
        if self._phase in (_Phase.HTTP, _Phase.OPEN):
            self._wire.unsent += data
            self._server.unflushed.add(self)

    def flush(self) -> None:
        """Write what can be written now; the server calls it once per turn. Server's thread only."""
        if self._phase is _Phase.GONE:
            return
        try:
            self._wire.flush()
        except OSError:
            self.end()
        if self._phase is _Phase.ENDING and not self._wire.unsent and not self._fin_sent:
            self._wire.say_goodbye()
            self._send_fin()
        self._watch()

    def _finish(self) -> None:
        """Send what is unsent, then a FIN, and leave the client a moment to do the same.

        Closing at once, with bytes unread, would send an RST that takes our last bytes away from the client.
        """
        if self._phase is not _Phase.GONE:
            self._phase = _Phase.ENDING
            self._server.unflushed.add(self)

    def _send_fin(self) -> None:
        self._fin_sent = True
        self._wire.end_writing()
        self._loop.later(_LINGER, self.end)

    def _drop(self, reset: bool) -> None:
        if self._phase is _Phase.GONE:
            return
        self.flush()
        if reset:
            self.end(reset=True)
        else:
            self._wire.unsent.clear()
            self._finish()
            self._send_fin()

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        if not paused and not self._delivery_due:
            self._deliver_soon()
        self._watch()

    def end(self, *, reset: bool = False) -> None:
        """Close the socket, at once. Server's thread only."""
        if self._phase is not _Phase.GONE:
            self._phase = _Phase.GONE
            self._watch()
            self._wire.close(reset=reset)
            self._server.ended(self)
