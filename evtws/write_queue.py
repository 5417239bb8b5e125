"""WriteQueue: what was accepted and is not written yet, in its order, and who waits for room in it.

No socket and no lock: the transport calls it under its own.
"""

from __future__ import annotations

import threading
from collections import deque

from .errors import ConnectionLost, Written
from .frames import Opcode

#: Small messages are joined up to so many bytes.
JOINED_SIZE = 65536
#: So many pongs wait at most: a peer that pings and does not read must not fill the memory.
MAX_PONGS = 100


class Ticket:
    """One message's bytes on their way to the operating system.

    `end` is where they end in all that was ever queued; `room` is set when their sender need not wait any longer,
    `error` is what ended the wait if that was no success.
    """

    __slots__ = ("_tried", "data", "end", "error", "left", "room")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = len(data)
        self.end = 0
        self.room: threading.Event | None = None
        self.error: ConnectionLost | None = None
        self._tried = False

    def tried(self) -> None:
        """From now on nobody knows whether they go out, not even that none of them does."""
        self._tried = True

    @property
    def has_room(self) -> bool:
        """Whether its sender need not wait, or not any longer."""
        return self.room is None or (self.room.is_set() and self.error is None)

    @property
    def written(self) -> Written:
        """Whether the operating system has the bytes: all, some, none."""
        if not self.left:
            return "yes"
        return "maybe" if self._tried or self.left < len(self.data) else "no"


#: The ticket of every message that was written at once.
WRITTEN = Ticket(b"")


class WriteQueue:
    """Tickets in the order in which they are written; `limit` bytes may be queued before a sender has to wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[Ticket] = deque()
        self._controls: deque[Ticket] = deque()
        # What is being written, whole tickets: with TLS a write that was tried must be tried again unchanged.
        self._chunk = memoryview(b"")
        self._in_chunk: deque[Ticket] = deque()
        self._waiting: deque[Ticket] = deque()
        self._control_bytes = 0
        self._queued_total = 0
        self._written_total = 0

    @property
    def backlog(self) -> int:
        """Bytes that are queued."""
        return self._queued_total - self._written_total + self._control_bytes

    def __bool__(self) -> bool:
        return self._queued_total > self._written_total or self._control_bytes > 0

    def add(self, ticket: Ticket) -> None:
        """Queue a message behind all others."""
        self._queued_total += ticket.left
        ticket.end = self._queued_total
        self._messages.append(ticket)

    def add_control(self, ticket: Ticket) -> None:
        """Queue a control frame before all messages that are not begun; of the pongs the newest are kept."""
        self._controls.append(ticket)
        self._control_bytes += ticket.left
        if len(self._controls) > MAX_PONGS:
            pongs = [waiting for waiting in self._controls if waiting.data[0] & 0x0F == Opcode.PONG]
            for dropped in pongs[:-MAX_PONGS]:
                self._controls.remove(dropped)
                self._control_bytes -= dropped.left

    # -- writing

    @property
    def chunk(self) -> memoryview:
        """What is to be written next; empty if there is nothing. Unchanged until some of it was written."""
        if not self._in_chunk and (self._controls or self._messages):
            self._start_chunk()
        return self._chunk

    def _start_chunk(self) -> None:
        """Small messages are joined, but not those whose sender waits, which may yet withdraw."""
        queue = self._controls or self._messages
        first = queue.popleft()
        self._in_chunk.append(first)
        size = first.left
        while queue and first.room is None and queue[0].room is None and size + queue[0].left <= JOINED_SIZE:
            size += queue[0].left
            self._in_chunk.append(queue.popleft())
        alone = len(self._in_chunk) == 1
        self._chunk = memoryview(first.data if alone else b"".join([ticket.data for ticket in self._in_chunk]))

    def tried(self) -> None:
        """It is not known how many bytes of the chunk were taken, if any: TLS may have sent some records of them."""
        for ticket in self._in_chunk:
            ticket.tried()

    def written(self, count: int) -> None:
        """So many bytes of the chunk were taken."""
        if self._in_chunk[0].end:
            self._written_total += count
        else:
            self._control_bytes -= count  # a control frame has no place among the messages
        self._chunk = self._chunk[count:]
        while self._in_chunk and count >= self._in_chunk[0].left:
            ticket = self._in_chunk.popleft()
            count -= ticket.left
            ticket.left = 0
        if self._in_chunk:
            self._in_chunk[0].left -= count
        self._let_go_who_fits()

    def _let_go_who_fits(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            _let_go(self._waiting.popleft(), None)

    def _fits(self, ticket: Ticket) -> bool:
        return ticket.end - self._written_total <= self._limit

    # -- senders that wait for room

    def wait_if_full(self, ticket: Ticket) -> None:
        """Give the ticket a `room` to wait for, if it does not fit."""
        if ticket.left and not self._fits(ticket):
            ticket.room = threading.Event()
            self._waiting.append(ticket)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take back a message whose sender waits and of which not a byte was written; False if it is too late."""
        if ticket.written != "no" or ticket not in self._waiting:
            return False
        self._waiting.remove(ticket)
        self._drop(ticket)
        self._let_go_who_fits()
        return True

    def release(self, error: ConnectionLost) -> None:
        """End every sender's wait by that error; what is not begun is dropped."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if ticket.written == "no":
                self._drop(ticket)
            _let_go(ticket, error)

    def drop_messages(self) -> None:
        """Drop the messages that are not begun, those that were joined to one that is among them."""
        dropped = list(self._messages)
        self._messages.clear()
        if self._in_chunk and self._in_chunk[0].end:
            dropped += [ticket for ticket in self._in_chunk if ticket.written == "no"]
            self._in_chunk = deque(ticket for ticket in self._in_chunk if ticket.written != "no")
            self._chunk = self._chunk[: sum(ticket.left for ticket in self._in_chunk)]
        self._queued_total -= sum(ticket.left for ticket in dropped)

    def keep_messages(self) -> None:
        """The connection closes, and the messages that are not begun may or may not go out in the time left."""
        for ticket in (*self._in_chunk, *self._messages):
            ticket.tried()

    def _drop(self, ticket: Ticket) -> None:
        """Drop a ticket of which nothing was written."""
        if self._in_chunk and self._in_chunk[0] is ticket:
            self._in_chunk.clear()
            self._chunk = memoryview(b"")
        else:
            self._messages.remove(ticket)
        for other in self._messages:
            if other.end > ticket.end:
                other.end -= ticket.left
        self._queued_total -= ticket.left


def _let_go(ticket: Ticket, error: ConnectionLost | None) -> None:
    assert ticket.room is not None
    if error is not None:
        ticket.error = ConnectionLost(str(error))
        ticket.error.written = ticket.written
        ticket.error.__cause__ = error.__cause__
    ticket.room.set()
