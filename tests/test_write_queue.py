"""The write queue: what goes out next, what was written of each message, and whose sender waits."""

from __future__ import annotations

import time

import pytest

from evtws.errors import ConnectionLost
from evtws.write_queue import JOINED_SIZE, MAX_PONGS, WRITTEN, Ticket, WriteQueue

from .timing import MS


def queued(queue: WriteQueue, *bodies: bytes) -> list[Ticket]:
    """Tickets of these messages, in the queue; their senders wait where there is no room."""
    tickets = [Ticket(body) for body in bodies]
    for ticket in tickets:
        queue.add(ticket)
        queue.wait_if_full(ticket)
    return tickets


def waits(ticket: Ticket) -> bool:
    """Whether the ticket's sender waits."""
    return ticket.room is not None and not ticket.room.is_set()


def take(queue: WriteQueue, size: int = 1 << 30) -> bytes:
    """Write at most so much of the next chunk."""
    data = bytes(queue.chunk[:size])
    queue.written(len(data))
    return data


def take_all(queue: WriteQueue) -> bytes:
    """Write everything."""
    data = b""
    while queue:
        data += take(queue)
    return data


def test_empty() -> None:
    """An empty queue has nothing to write."""
    queue = WriteQueue(10)
    assert not queue
    assert (queue.backlog, bytes(queue.chunk)) == (0, b"")


def test_what_was_written_at_once() -> None:
    """The ticket of what was written at once says so, and nobody waits for it."""
    assert (WRITTEN.written, WRITTEN.has_room) == ("yes", True)
    queue = WriteQueue(0)
    queue.wait_if_full(WRITTEN)
    assert WRITTEN.room is None


def test_small_messages_are_joined() -> None:
    """Small messages go out together, up to a size, in their order."""
    queue = WriteQueue(1 << 30)
    queued(queue, b"a" * (JOINED_SIZE - 1), b"b", b"c")
    assert bytes(queue.chunk) == b"a" * (JOINED_SIZE - 1) + b"b"
    assert take(queue)[-1:] == b"b"
    assert (queue.backlog, take(queue)) == (1, b"c")


def test_how_much_was_written() -> None:
    """A message is written "no", "maybe" or "yes", as none, some or all of its bytes were taken."""
    queue = WriteQueue(100)
    first, second = queued(queue, b"aa", b"bb")
    assert [first.written, second.written] == ["no", "no"]
    assert take(queue, 1) == b"a"
    assert [first.written, second.written] == ["maybe", "no"]
    assert take(queue, 2) == b"ab"
    assert [first.written, second.written] == ["yes", "maybe"]
    assert take(queue) == b"b"
    assert second.written == "yes"
    assert not queue


def test_nobody_knows_what_was_written() -> None:
    """Where a write failed without a count, what it was given is written "maybe", and the rest "no"."""
    queue = WriteQueue(100)
    tried, behind = queued(queue, b"a" * JOINED_SIZE, b"b")
    assert queue.chunk
    queue.tried()
    assert [tried.written, behind.written] == ["maybe", "no"]


def test_control_frames_come_first() -> None:
    """A control frame goes out before all messages, but not inside the one that is begun."""
    queue = WriteQueue(1 << 30)
    queued(queue, b"a" * JOINED_SIZE, b"b")
    take(queue, 1)
    queue.add_control(Ticket(b"PING"))
    assert take(queue) == b"a" * (JOINED_SIZE - 1)
    assert take_all(queue) == b"PINGb"


def test_the_newest_pongs_are_kept() -> None:
    """Of many pongs the newest are kept, and those dropped count for nothing; a ping or a close is never dropped."""
    queue = WriteQueue(100)
    queue.add_control(Ticket(b"\x89ping"))
    for number in range(MAX_PONGS + 5):
        queue.add_control(Ticket(b"\x8a%03d" % number))
    assert queue.backlog == 5 + 4 * MAX_PONGS
    kept = b"".join(b"\x8a%03d" % number for number in range(5, MAX_PONGS + 5))
    assert take_all(queue) == b"\x89ping" + kept


def test_who_waits() -> None:
    """A sender waits from when its message ends beyond the limit until it ends within it."""
    queue = WriteQueue(4)
    fits, first, second = queued(queue, b"aaaa", b"bb", b"cc")
    assert (fits.room, fits.has_room) == (None, True)
    assert waits(first)
    assert take(queue, 1) == b"a"
    assert waits(first)
    assert take(queue, 1) == b"a"
    assert not waits(first)
    assert first.has_room
    assert waits(second)
    assert take_all(queue) == b"aabbcc"
    assert second.has_room


def test_a_message_whose_sender_waits_is_not_joined() -> None:
    """A message whose sender waits goes out by itself, for it may yet be withdrawn."""
    queue = WriteQueue(2)
    queued(queue, b"aa", b"bb", b"cc")
    assert [take(queue), take(queue), take(queue)] == [b"aa", b"bb", b"cc"]


def test_control_frames_that_overtake_a_waiting_sender() -> None:
    """A sender waits for room among the messages, however many control frames overtake its own or are dropped."""
    queue = WriteQueue(4)
    _, waiting = queued(queue, b"aaaa", b"bbbb")
    for _ in range(3 * MAX_PONGS):
        queue.add_control(Ticket(b"\x8a"))
    assert queue.backlog == MAX_PONGS + 8
    assert take(queue) == b"\x8a" * MAX_PONGS
    assert waits(waiting)
    assert take(queue) == b"aaaa"
    assert waiting.has_room
    assert take_all(queue) == b"bbbb"


def test_withdrawing() -> None:
    """A message of which not a byte was written can be taken back, at the head of the queue or inside it."""
    queue = WriteQueue(0)
    head, middle, last = queued(queue, b"a", b"bb", b"ccc")
    assert queue.withdraw(middle)
    assert queue.backlog == 4
    assert bytes(queue.chunk) == b"a"
    assert queue.withdraw(head)
    assert (queue.backlog, take_all(queue)) == (3, b"ccc")
    assert last.has_room


def test_withdrawing_makes_room() -> None:
    """Who waits behind a message that is withdrawn has its room."""
    queue = WriteQueue(4)
    _, large, small = queued(queue, b"aa", b"b" * 100, b"cc")
    assert not small.has_room
    assert queue.withdraw(large)
    assert not waits(small)
    assert take_all(queue) == b"aacc"


def test_too_late_to_withdraw() -> None:
    """A message that is begun, that was written, or whose sender need not wait is not taken back."""
    queue = WriteQueue(1)
    fits, begun, behind = queued(queue, b"a", b"bb", b"c")
    assert not queue.withdraw(fits)
    take(queue)
    take(queue, 1)
    assert not queue.withdraw(begun)
    assert take_all(queue) == b"bc"
    assert not queue.withdraw(behind)


def test_every_wait_ends_by_an_error() -> None:
    """When writing becomes impossible each waiting sender is told how much was written, and why."""
    queue = WriteQueue(0)
    begun, behind = queued(queue, b"aa", b"bb")
    take(queue, 1)
    cause = OSError("broken pipe")
    error = ConnectionLost("writing failed")
    error.__cause__ = cause
    queue.release(error)
    for ticket, written in ((begun, "maybe"), (behind, "no")):
        assert isinstance(ticket.error, ConnectionLost)
        assert (str(ticket.error), ticket.error.written, ticket.error.__cause__) == ("writing failed", written, cause)
        assert not waits(ticket)
        assert not ticket.has_room
    assert take_all(queue) == b"a"


def test_messages_are_dropped() -> None:
    """Messages that are not begun can be dropped; what is begun and the control frames still go out."""
    queue = WriteQueue(1 << 30)
    begun = queued(queue, b"a" * JOINED_SIZE)[0]
    take(queue, JOINED_SIZE - 1)
    dropped = queued(queue, b"b", b"c")
    queue.add_control(Ticket(b"PING"))
    queue.drop_messages()
    assert take_all(queue) == b"aPING"
    assert [begun.written, *(ticket.written for ticket in dropped)] == ["yes", "no", "no"]


def test_messages_that_were_joined_are_dropped() -> None:
    """Of messages that go out by one write, those that are not begun are dropped; after a try of TLS's, none is."""
    queue = WriteQueue(1 << 30)
    tickets = queued(queue, b"aa", b"b", b"c")
    take(queue, 1)
    queue.drop_messages()
    assert take_all(queue) == b"a"
    assert [ticket.written for ticket in tickets] == ["yes", "no", "no"]
    queued(queue, b"dd", b"e")
    take(queue, 1)
    queue.tried()
    queue.drop_messages()
    assert take_all(queue) == b"de"
    queued(queue, b"f")
    assert queue.chunk
    queue.drop_messages()
    assert not queue
    assert not queue.chunk


def test_many_messages_are_dropped() -> None:
    """Dropping takes a time in proportion to what is dropped."""
    queue = WriteQueue(1 << 30)
    for _ in range(50_000):
        queue.add(Ticket(b"abc"))
    before = time.monotonic()
    queue.drop_messages()
    assert time.monotonic() - before < 500 * MS
    assert not queue


@pytest.mark.parametrize("limit", [0, 1, 7, 1000])
def test_everything_goes_out_once(limit: int) -> None:
    """Whatever the limit and however little is taken at a time, every byte goes out once, and nobody waits then."""
    queue = WriteQueue(limit)
    tickets = queued(queue, *(b"%d," % number for number in range(200)))
    data = b""
    while queue:
        data += take(queue, 3)
        assert queue.backlog == sum(ticket.left for ticket in tickets)
    assert data == b"".join(b"%d," % number for number in range(200))
    assert all(ticket.has_room and ticket.written == "yes" for ticket in tickets)
