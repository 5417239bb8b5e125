"""Transport: one live websocket, from its upgrade to its end: the socket, its one lock, its write queue.

Two threads that read and write one SSLSocket corrupt the TLS stream (cpython#77271, open since 2018). So the socket
is non-blocking, every `send` on it, and with TLS every `recv`, happens behind `_door`, and waiting happens elsewhere:
nothing ever blocks inside the lock. Whoever sends writes at once while nothing is queued; what the operating system
does not take is queued, and the I/O thread flushes it.
"""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from .door import Door
from .errors import ConnectionLost
from .frames import Decoder, Opcode, Received, encode, encode_close
from .pending import Call
from .write_queue import WRITTEN, Ticket, WriteQueue

#: Bytes asked for by one recv.
READ_SIZE = 65536
#: Bytes that one call of `flush` writes at most, so that a fast peer cannot hold the I/O thread.
FLUSH_SIZE = 1 << 20
#: Bytes given to one send.
WRITE_SIZE = 65536

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_RESET = struct.pack("ii", 1, 0)

P = ParamSpec("P")
R = TypeVar("R")


def _behind_door(method: Callable[Concatenate[Transport, P], R]) -> Callable[Concatenate[Transport, P], R]:
    """The same method, which holds the transport's lock."""

    @functools.wraps(method)
    def call(self: Transport, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._door.go_through(method, self, *args, **kwargs)

    return call


class Transport:
    """A websocket over an upgraded, non-blocking socket, in the client's role.

    `initial` is what the server sent behind its upgrade; `max_size` the bytes that one message may have (None: no
    limit); `write_buffer` the bytes that may be queued before a sender has to wait. `want_write(bool)` is called
    when the socket is to be watched for writability, or no longer; it must not block.
    """

    def __init__(
        self,
        sock: socket.socket,
        initial: bytes = b"",
        *,
        max_size: int | None,
        write_buffer: int,
        want_write: Callable[[bool], None],
    ) -> None:
        # Guards the socket, the write queue and the counters: held for a system call, never for a wait.
        self._door: Door[tuple[Ticket, Sequence[Call]]] = Door(self._let_in)
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._decoder = Decoder(expect_masked=False, max_size=max_size)
        self._decoder.feed(initial)
        self._write_buffer = write_buffer
        self._want_write = want_write
        self._queue = WriteQueue(write_buffer)
        self._sealed = False
        self._close_queued = False
        self._closed = False
        #: What made writing impossible, or None. Reading may go on: the peer's close frame may still be there.
        self.error: ConnectionLost | None = None
        #: Monotonic seconds of the last bytes that came.
        self.heard_at: float | None = None
        self.bytes_received = len(initial)
        self.bytes_sent = 0
        self.messages_sent = 0

    def __repr__(self) -> str:
        kind = "wss" if self._tls else "ws"
        return f"<Transport {kind}, {self.backlog} bytes to write{', failed' if self.error else ''}>"

    def fileno(self) -> int:
        """The socket's descriptor, -1 once it is closed."""
        return self._sock.fileno()

    @property
    def backlog(self) -> int:
        """Bytes that were accepted and that the operating system has not taken yet."""
        return self._queue.backlog

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to be writable."""
        return self.error is None and bool(self._queue)

    # -- reading

    @property
    def has_more(self) -> bool:
        """Whether `receive` has something to do although the descriptor is not readable."""
        return self._decoder.has_more or (self._tls is not None and self._buffered_in_tls() > 0)

    def _buffered_in_tls(self) -> int:
        assert self._tls is not None
        # After a partial read OpenSSL can hold thousands of bytes while the selector says idle.
        return self._door.go_through(self._tls.pending)

    def receive(self) -> list[Received]:
        """What has come: a bounded amount of it; [] if there is nothing.

        Only one thread at a time may call this. Raises ConnectionLost at the end of the stream or when the socket
        fails, ProtocolError when the peer breaks the protocol.
        """
        if not self._decoder.has_more:
            data = self._recv()
            if not data:
                return []
            self._decoder.feed(data)
        return self._decoder.take()

    def _recv(self) -> bytes | None:
        try:
            if self._tls is None:
                data = self._sock.recv(READ_SIZE)  # the kernel's own lock is enough
            else:
                data = self._door.go_through(self._sock.recv, READ_SIZE)
        except _WOULD_BLOCK:
            return None
        except OSError as exc:
            raise ConnectionLost(f"the connection broke: {_reason(exc)}") from exc
        if not data:
            raise ConnectionLost("the peer ended the connection without a close frame")
        self.heard_at = time.monotonic()
        self.bytes_received += len(data)
        return data

    # -- writing

    def send(self, data: bytes, calls: Sequence[Call] = ()) -> Ticket:
        """Write the frames of these calls, or queue what cannot be written now; the calls get the ticket.

        Raises ConnectionLost if neither is possible.
        """
        if self._door.is_taken() and self.backlog + len(data) < self._write_buffer // 2:
            return self._leave_at_door(data, calls)
        return self._send(data, calls)

    def _leave_at_door(self, data: bytes, calls: Sequence[Call]) -> Ticket:
        """Somebody else is writing: this goes out with his, or right after."""
        ticket = Ticket(data)
        self._door.leave((ticket, calls))
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def _let_in(self) -> None:
        """Queue what was left at the door, and write it; requires the lock."""
        left = self._door.left
        try:
            while left:
                ticket, calls = left.popleft()
                if self._sealed or self.error is not None:
                    ticket.error = ConnectionLost("the connection is closing")
                else:
                    self._queue.add(ticket)
                    self._accept(calls, ticket)
            self._flush()
        except BaseException:
            self._interrupted()
            raise

    @_behind_door
    def _send(self, data: bytes, calls: Sequence[Call]) -> Ticket:
        try:
            if self._door.left:
                self._let_in()  # it came before, maybe from this very thread
            self._check_writable()
            return self._write_or_queue(data, calls)
        except ConnectionLost:
            raise
        except BaseException:
            self._interrupted()
            raise

    def _write_or_queue(self, data: bytes, calls: Sequence[Call]) -> Ticket:
        """Requires the lock."""
        queue = self._queue
        ticket = WRITTEN
        if queue:
            queue.add(ticket := Ticket(data))
        elif (sent := self._write(data if self._tls is None else data[:WRITE_SIZE])) < len(data):
            queue.add(ticket := Ticket(data))
            assert len(queue.chunk) == len(data)
            queue.written(sent)
            if self._tls is not None:
                queue.tried()
            self._flush()
        self._accept(calls, ticket)
        if ticket.left:
            self._watch(ticket)
        return ticket

    def _accept(self, calls: Sequence[Call], ticket: Ticket) -> None:
        """Requires the lock: whoever has sealed the transport knows the truth about each call."""
        for call in calls:
            call.ticket = ticket
        self.messages_sent += len(calls)

    def _watch(self, ticket: Ticket) -> None:
        """Some of it must wait, and maybe its sender; requires the lock. Raises ConnectionLost if that is in vain."""
        if self.error is not None:
            error = ConnectionLost(str(self.error))
            error.written = ticket.written
            raise error from self.error
        self._queue.wait_if_full(ticket)
        self._want_write(True)

    @_behind_door
    def seal(self, *, drop_queue: bool = False) -> None:
        """Accept no more messages, and end the wait of those who wait for room; control frames may follow.

        What was accepted is still written; with `drop_queue` only what is begun. From here on no message is written
        of which its ticket says "no".
        """
        self._seal(drop_queue)

    def _seal(self, drop_queue: bool) -> None:
        """Requires the lock."""
        self._let_in()
        self._sealed = True
        self._queue.release(ConnectionLost("the connection was closed while the message waited to be written"))
        if drop_queue:
            self._queue.drop_messages()
        else:
            self._queue.keep_messages()

    @_behind_door
    def send_control(self, opcode: Opcode, payload: bytes) -> None:
        """Write a ping or a pong before all that is queued, but never inside a frame.

        Does nothing when writing is impossible: whoever reads finds out why. Of many pongs that the peer does not
        read, the newest are kept (RFC 6455 section 5.5.3 asks for the newest only).
        """
        if self.error is None and not self._close_queued:
            self._queue.add_control(Ticket(encode(opcode, payload, masked=True)))
            self._flush()

    @_behind_door
    def send_close(self, code: int | None, reason: str = "") -> None:
        """Seal, and write a close frame behind all that is queued; nothing can be sent after it."""
        if self.error is None and not self._close_queued:
            self._seal(drop_queue=False)
            self._close_queued = True
            self._queue.add(Ticket(encode_close(code, reason, masked=True)))
            self._flush()

    @_behind_door
    def flush(self) -> None:
        """Write what is queued, as much as the operating system takes, within a bound."""
        self._flush()

    def _check_writable(self) -> None:
        """Requires the lock."""
        if self.error is not None:
            raise ConnectionLost(str(self.error)) from self.error
        if self._sealed:
            raise ConnectionLost("the connection is closing")

    def _flush(self) -> None:
        """Requires the lock; does nothing once writing is impossible."""
        budget = FLUSH_SIZE
        try:
            while budget > 0 and self.error is None and self._queue:
                sent = self._write(self._queue.chunk[:WRITE_SIZE])
                if not sent:
                    break
                budget -= sent
                self._queue.written(sent)
        except BaseException:
            self._interrupted()
            raise
        if self.error is None:
            self._want_write(self.wants_write)

    def _interrupted(self) -> None:
        """A Ctrl-C while writing: nobody knows how many bytes were taken, so this stream is never resumed."""
        self._queue.tried()
        self._fail(ConnectionLost("a write was interrupted"))

    def _write(self, data: bytes | memoryview) -> int:
        """Give bytes to the operating system; requires the lock. Returns how many it took."""
        try:
            sent = self._sock.send(data)
        except _WOULD_BLOCK:
            if self._tls is not None:
                self._queue.tried()
            return 0
        except OSError as exc:
            if self._tls is not None:
                self._queue.tried()
            error = ConnectionLost(f"writing failed: {_reason(exc)}")
            error.__cause__ = exc
            self._fail(error)
            return 0
        self.bytes_sent += sent
        return sent

    # -- a sender waits for room

    def wait_for_room(self, ticket: Ticket, timeout: float | None) -> bool:
        """Block until the message fits in the write buffer; False when the time is up.

        Raises the ConnectionLost that ended the wait.
        """
        if ticket.room is None:
            return True
        in_time = ticket.room.wait(timeout)
        if ticket.error is not None:
            raise ticket.error
        return in_time

    @_behind_door
    def withdraw(self, ticket: Ticket) -> bool:
        """Take back a message of which not a byte was written; False if it is too late for that, or has room now."""
        return self.error is None and self._queue.withdraw(ticket)

    def _fail(self, error: ConnectionLost) -> None:
        """Writing is impossible from now on; requires the lock."""
        if self.error is None:
            self.error = error
            self._queue.release(error)

    # -- the end

    @_behind_door
    def fail(self, error: ConnectionLost) -> None:
        """Give the connection up: nothing more is written, and whoever waits is told."""
        self._fail(error)

    @_behind_door
    def abort(self) -> None:
        """Make the socket useless at once; from any thread. What is queued is lost, and the peer may see a reset."""
        self._fail(ConnectionLost("the connection was aborted"))
        if self._closed:
            return
        try:
            # Never SSLSocket.shutdown(): it drops TLS first, and plaintext was seen on the wire.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was first

    @_behind_door
    def close(self, *, reset: bool = False) -> None:
        """Give the descriptor back; only once nobody watches it. `reset` discards what is queued in the kernel."""
        self._fail(ConnectionLost("the connection was closed"))
        if self._closed:
            return
        self._closed = True
        try:
            if reset:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # it is reset already
        self._sock.close()

    def forget(self) -> None:
        """In a forked child: close this process's copy of the descriptor; takes no lock, it may be held for ever."""
        self._closed = True
        self._sock.close()


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)
