"""Pipe: one way through one proxied connection: what was read and is not passed on yet, and when it may be."""

from __future__ import annotations

import socket
import sys
import time
from collections import deque
from typing import NamedTuple

from .direction import Direction, How

#: Bytes that are held, above which the source is not read until the sink takes some.
CAPACITY = 1 << 20

_READ_SIZE = 65536
_SENDS_PER_TURN = 64  # a pipe with much to send must not keep the others waiting
_TICK = 0.01  # seconds of a limited bandwidth that one send takes
_CATCH_UP = 0.05  # seconds of it that a late timer may make good
_NEVER = sys.maxsize
# With it Linux joins no two sends into one segment, even while they wait; other systems may refuse it.
_ALONE = socket.MSG_EOR if sys.platform == "linux" else 0


class _Piece(NamedTuple):
    due_at: float
    data: memoryview
    end: How | None  # the source ended here, and there are no data


class Pipe:
    """Reads a source, keeps what is read until it is due, and writes it to a sink. Of one thread alone.

    Both sockets are non-blocking. `broken` is to be set when a write to the source failed: what ends it then is no FIN.
    """

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        #: Whether the source has ended, by whatever.
        self.ended = False
        self.broken = False
        self._direction = direction
        self._source = source
        self._sink = sink
        self._silent = False
        self._queue: deque[_Piece] = deque()
        self._held = 0
        self._passed = 0
        self._cut_at = _NEVER
        self._free_at = 0.0
        direction.pipes.add(self)

    # What the relay asks

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more."""
        return self.ended and not self._queue

    @property
    def wants_read(self) -> bool:
        """Whether the source is to be read when there is something."""
        if self.ended or self._silent:
            return not self.ended
        return self._held < CAPACITY and not self._direction.stalled

    @property
    def due_at(self) -> float | None:
        """When the next piece may be written; None: there is none."""
        return max(self._queue[0].due_at, self._free_at) if self._queue else None

    # What happens to it

    def read(self) -> None:
        """Read what the source has now, a bounded amount."""
        try:
            data = self._source.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.source_ended("RST")
            return
        if data:
            self._take(data)
        else:
            self.source_ended("RST" if self.broken else "FIN")

    def _take(self, data: bytes) -> None:
        if self._silent or self._direction.swallow:
            self._direction.bytes_swallowed += len(data)
            return
        now = time.monotonic()
        if not self._queue:
            self._free_at = max(self._free_at, now)  # an idle line saves up no bandwidth
        self._queue.append(_Piece(now + self._direction.delay(), memoryview(data), None))
        self._held += len(data)

    def source_ended(self, how: How) -> None:
        """Nothing more comes from the source; the sink learns of it after what came before."""
        self.ended = True
        if not self._silent and not self._direction.swallow:
            self._queue.append(_Piece(time.monotonic() + self._direction.delay(), memoryview(b""), how))

    def pump(self) -> How | None:
        """Write what is due, a bounded amount; returns how the whole connection is to end now, None: it goes on.

        Raises OSError when the sink is broken.
        """
        for _ in range(_SENDS_PER_TURN):
            due_at, now = self.due_at, time.monotonic()
            if due_at is None or due_at > now or self._left() <= 0:
                break
            if self._queue[0].end == "RST":
                return "RST"
            if not self._pass_on(now):
                break
        return self._direction.cut_by if self._left() <= 0 else None

    def _pass_on(self, now: float) -> bool:
        """Write one segment, or the FIN; whether the sink took it."""
        piece = self._queue[0]
        if piece.end is not None:
            self._sink.shutdown(socket.SHUT_WR)
            self._queue.popleft()
            return True
        try:
            flags = 0 if self._direction.slice_size is None else _ALONE
            sent = self._sink.send(piece.data[: self._segment()], flags)
        except BlockingIOError:
            return False
        self._passed += sent
        self._held -= sent
        self._direction.bytes_passed += sent
        if self._direction.bandwidth is not None:
            self._free_at = max(self._free_at, now - _CATCH_UP) + sent / self._direction.bandwidth
        if sent == len(piece.data):
            self._queue.popleft()
        else:
            self._queue[0] = piece._replace(data=piece.data[sent:])
        return True

    def _segment(self) -> int:
        """Bytes that the next send takes at most."""
        direction = self._direction
        size = self._left()
        if direction.slice_size is not None:
            return min(size, direction.slice_size)
        if direction.bandwidth is not None:
            return min(size, max(1, int(direction.bandwidth * _TICK)))
        return size

    def _left(self) -> int:
        """Bytes until the cut."""
        if self._silent:
            return _NEVER
        cut_after = self._direction.cut_after
        cut_at = self._cut_at if cut_after is None else min(self._cut_at, cut_after)
        return cut_at - self._passed

    def cut_in(self, count: int) -> None:
        """Cut the connection after `count` bytes more."""
        self._cut_at = self._passed + count

    def silence(self) -> None:
        """Pass nothing on any more, and throw away what comes."""
        self._silent = True
        self._queue.clear()
        self._direction.bytes_swallowed += self._held
        self._held = 0

    def forget(self) -> None:
        """The connection is gone."""
        self.silence()
        self.ended = True
        self._direction.pipes.discard(self)
