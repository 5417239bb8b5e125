"""The specification of evtws/pending.py."""

import time
from collections.abc import Callable

import pytest

from evtws.correlation import Correlation, in_order
from evtws.errors import EvtwsError, PendingFull, Written
from evtws.message import InFlight, Message
from evtws.pending import Call, PendingQueue
from evtws.tombstones import Verdict


class Ticket:
    def __init__(self, written: Written) -> None:
        self.written = written


class Stream(Call):
    streaming = True


BY_FUNCTION = Correlation(lambda request, response: request.params == response.params)
BY_KEY = Correlation(match_key=lambda message: message.params)
IN_ORDER = Correlation(in_order)


def make(key: int | None = None, kind: type[Call] = Call, in_flight: InFlight = "fail") -> Call:
    call = kind(Message("x", key), 100.0, 30.0, in_flight)
    call.key = key
    return call


def written(queue: PendingQueue, key: int | None = None, kind: type[Call] = Call, in_flight: InFlight = "fail") -> Call:
    """A call that was added, and whose bytes went out."""
    call = make(key, kind, in_flight)
    queue.add(call)
    call.sent_at = 100.0
    queue.expect(call)
    return call


# -- a call


def test_call_has_its_deadline() -> None:
    """A call's deadline is its timeout after it was asked, and it is due from then on."""
    call = Call(Message("x"), 100, 2.5)
    assert call.deadline == 102.5
    assert not call.is_due(102.4)
    assert call.is_due(102.5)


def test_call_without_a_timeout_is_never_due() -> None:
    """A timeout of None is no deadline."""
    call = Call(Message("x"), 100, None)
    assert call.deadline is None
    assert not call.is_due(1e9)


def test_message_overrides_in_flight() -> None:
    """A message's own in_flight goes before the connection's."""
    assert Call(Message("x"), 0, None, "keep").in_flight == "keep"
    assert Call(Message("x", in_flight="resend"), 0, None, "keep").in_flight == "resend"


def test_written_asks_the_ticket() -> None:
    """What was written is what the ticket says, and "no" without one."""
    call = make()
    seen = [call.written]
    ticket = call.ticket = Ticket("maybe")
    seen.append(call.written)
    ticket.written = "yes"
    seen.append(call.written)
    assert seen == ["no", "maybe", "yes"]


@pytest.mark.parametrize(
    ("before", "again", "expected"),
    [
        ("no", None, "no"),
        ("maybe", None, "maybe"),
        ("yes", None, "yes"),
        ("no", "maybe", "maybe"),
        ("yes", "no", "yes"),
        ("yes", "maybe", "yes"),
        ("maybe", "no", "maybe"),
        ("maybe", "yes", "yes"),
    ],
)
def test_written_remembers_earlier_connections(before: Written, again: Written | None, expected: Written) -> None:
    """A call that is sent again is as much written as it ever was on any connection."""
    call = make()
    call.sent_at, call.ticket = 100.0, Ticket(before)
    call.rewind()
    assert [call.sent_at, call.ticket] == [None, None]
    if again is not None:
        call.ticket = Ticket(again)
    assert call.written == expected


def test_call_leaves_the_telling_to_subclasses() -> None:
    """A bare Call cannot tell its sender anything."""
    with pytest.raises(NotImplementedError):
        make().answer(Message("y"))
    with pytest.raises(NotImplementedError):
        make().fail(EvtwsError("no"))


# -- the queue


def test_queue_keeps_the_order() -> None:
    """The queue holds its calls oldest first, and knows them by the identity of their message."""
    queue = PendingQueue(BY_FUNCTION)
    first, second = written(queue, 1), written(queue, 1)
    assert list(queue) == queue.snapshot() == [first, second]
    assert len(queue) == 2
    assert second.message in queue
    assert queue.find(second.message) is second
    assert Message("x", 1) not in queue
    assert queue.find(Message("x", 1)) is None


def test_pending_message_cannot_be_added_again() -> None:
    """Adding a Message that is pending is a ValueError, and changes nothing."""
    queue = PendingQueue(BY_KEY)
    call = written(queue, 1)
    again = Call(call.message, 101, None)
    again.key = 2
    with pytest.raises(ValueError, match="pending already"):
        queue.add(again)
    assert list(queue) == [call]
    assert queue.with_key(2) == []


def test_ended_message_can_be_added_again() -> None:
    """A Message whose call has ended may be asked once more."""
    queue = PendingQueue(BY_FUNCTION)
    call = written(queue)
    queue.claim(call, 101)
    again = Call(call.message, 102, None)
    queue.add(again)
    assert not queue.remove(call, 103), "the earlier call is not mistaken for the later one"
    assert list(queue) == [again]


def test_ending_a_call_that_was_never_added() -> None:
    """The end of a call that awaits no reply leaves another call of the same message alone."""
    queue = PendingQueue(BY_KEY)
    call = written(queue, 1)
    other = Call(call.message, 101, None)
    assert queue.remove(other, 102)
    assert list(queue) == [call]
    assert queue.oldest(1) is call


def test_max_pending() -> None:
    """With as many calls as max_pending allows, one more is PendingFull until one ends."""
    queue = PendingQueue(BY_FUNCTION, max_pending=2)
    first, _ = written(queue), written(queue)
    with pytest.raises(PendingFull, match="2 requests"):
        queue.add(make())
    queue.remove(first, 101)
    queue.add(make())


def test_claim_takes_a_call_once() -> None:
    """A call is claimed once, and cannot be removed afterwards."""
    queue = PendingQueue(BY_FUNCTION)
    call = written(queue)
    assert queue.claim(call, 101)
    assert call.ended_at == 101
    assert not queue.claim(call, 102)
    assert not queue.remove(call, 102)
    assert len(queue) == 0


def test_removed_call_is_not_claimed() -> None:
    """A call that was removed can neither be claimed nor removed again."""
    queue = PendingQueue(BY_FUNCTION)
    call = written(queue)
    assert queue.remove(call, 101)
    assert not queue.claim(call, 102)
    assert not queue.remove(call, 102)
    assert call.ended_at == 101


def test_stream_stays_until_it_is_removed() -> None:
    """A call with several replies is claimed by each of them, and ends when it is removed."""
    queue = PendingQueue(BY_KEY)
    call = written(queue, 1, Stream)
    assert queue.claim(call, 101)
    assert queue.claim(call, 102)
    assert queue.oldest(1) is call
    assert queue.remove(call, 103, answered=True)
    assert not queue.claim(call, 104)
    assert queue.tombstones.by_key(1, 104) is Verdict.DUPLICATE


# -- keys


def test_key_finds_the_oldest() -> None:
    """Of several calls with a key the oldest is found, and the next one once that has ended."""
    queue = PendingQueue(BY_KEY)
    first, second = written(queue, 1), written(queue, 1)
    written(queue, 2)
    assert queue.with_key(1) == [first, second]
    assert queue.oldest(1) is first
    queue.claim(first, 101)
    assert queue.oldest(1) is second
    queue.claim(second, 102)
    assert queue.oldest(1) is None
    assert queue.with_key(1) == []


def test_removal_within_a_key_keeps_the_order() -> None:
    """Removing a later call of a key leaves the earlier and the later ones."""
    queue = PendingQueue(BY_KEY)
    calls = [written(queue, 1) for _ in range(4)]
    queue.remove(calls[2], 101)
    assert queue.with_key(1) == [calls[0], calls[1], calls[3]]


def test_unwritten_call_takes_no_reply() -> None:
    """A call that was not written is no one's reply's; the next one of its key that was written is."""
    queue = PendingQueue(BY_KEY)
    waiting = make(1)
    queue.add(waiting)
    assert queue.oldest(1) is None
    direct = written(queue, 1)
    assert queue.oldest(1) is direct


def test_duplicate_key_is_refused() -> None:
    """With duplicate_keys="refuse" a second call with a pending key is a ValueError, until the first has ended."""
    queue = PendingQueue(BY_KEY, duplicate_keys="refuse")
    first = written(queue, 1)
    with pytest.raises(ValueError, match="key 1 is pending"):
        queue.add(make(1))
    assert list(queue) == [first]
    queue.claim(first, 101)
    queue.add(make(1))


# -- what is left behind


@pytest.mark.parametrize(("end", "verdict"), [("claim", Verdict.DUPLICATE), ("remove", Verdict.LATE)])
def test_ended_call_leaves_a_tombstone(end: str, verdict: Verdict) -> None:
    """A second reply to an answered call is a duplicate, a reply to a removed one is late."""
    queue = PendingQueue(BY_KEY)
    call = written(queue, 1)
    getattr(queue, end)(call, 101)
    assert queue.tombstones.by_key(1, 102) is verdict
    assert queue.tombstones.by_key(2, 102) is Verdict.UNKNOWN


def test_tombstone_without_a_key_keeps_the_message() -> None:
    """Without keys a tombstone can be asked by its message."""
    queue = PendingQueue(BY_FUNCTION)
    call = written(queue)
    queue.remove(call, 101)
    assert [tomb.message for tomb in queue.tombstones.snapshot(102)] == [call.message]


def test_unwritten_call_leaves_no_tombstone() -> None:
    """A call that was never written leaves nothing: no reply to it can come."""
    queue = PendingQueue(BY_KEY)
    call = make(1)
    queue.add(call)
    queue.remove(call, 101)
    assert queue.tombstones.by_key(1, 102) is Verdict.UNKNOWN


def test_tombstones_mean_nothing_on_a_new_connection() -> None:
    """Once the connection is lost, a reply to what ended before is unknown."""
    queue = PendingQueue(BY_KEY)
    queue.remove(written(queue, 1), 101)
    queue.reset()
    assert queue.tombstones.by_key(1, 102) is Verdict.UNKNOWN


# -- in order


def is_blocked(queue: PendingQueue) -> bool:
    return queue.blocked


def is_overdue(queue: PendingQueue) -> bool:
    return queue.reply_is_overdue_for_ever


def test_replies_answer_in_order() -> None:
    """In an in_order protocol each reply is due to the oldest call that was written."""
    queue = PendingQueue(IN_ORDER)
    queue.add(make())
    first, second = written(queue), written(queue)
    assert queue.next_in_line(101) is first
    queue.claim(first, 101)
    assert queue.next_in_line(102) is second
    queue.claim(second, 102)
    assert queue.next_in_line(103) is Verdict.UNKNOWN


def test_ended_call_keeps_its_place() -> None:
    """A call that ended without its reply takes the one that is due to it, as late, and blocks the line until then."""
    queue = PendingQueue(IN_ORDER)
    first, second = written(queue), written(queue)
    queue.remove(first, 101)
    assert is_blocked(queue)
    assert queue.next_in_line(102) is Verdict.LATE
    assert not is_blocked(queue)
    assert queue.next_in_line(103) is second


def test_ended_call_behind_others_does_not_block() -> None:
    """A call that ended further back in the line blocks it only once it heads it."""
    queue = PendingQueue(IN_ORDER)
    first, second = written(queue), written(queue)
    queue.remove(second, 101)
    assert not is_blocked(queue)
    assert queue.unblocks_at is None
    queue.claim(first, 102)
    assert is_blocked(queue)
    assert queue.unblocks_at == 106


def test_line_clears_after_late_after() -> None:
    """Tombstones give up their places late_after seconds after each of them ended, and no sooner."""
    queue = PendingQueue(IN_ORDER, late_after=2)
    first, second, third = written(queue), written(queue), written(queue)
    queue.remove(first, 101)
    queue.remove(second, 102)
    assert queue.unblocks_at == 103
    queue.clear_line(102.9)
    assert is_blocked(queue)
    queue.clear_line(103)
    assert queue.unblocks_at == 104
    assert queue.next_in_line(104) is third


def test_late_after_none_blocks_for_ever() -> None:
    """With late_after=None a tombstone at the head is overdue for ever, and no time clears it."""
    queue = PendingQueue(IN_ORDER, late_after=None)
    call = written(queue)
    assert not is_overdue(queue)
    queue.remove(call, 101)
    queue.clear_line(1e9)
    assert is_overdue(queue)
    assert queue.unblocks_at is None


def test_overdue_for_ever_is_for_none_alone() -> None:
    """With a late_after in seconds nothing is overdue for ever."""
    queue = PendingQueue(IN_ORDER, late_after=2)
    queue.remove(written(queue), 101)
    assert is_blocked(queue)
    assert not is_overdue(queue)


def test_unwritten_call_leaves_the_line() -> None:
    """A call of which nothing was written in the end holds no place in the line, wherever it stood."""
    queue = PendingQueue(IN_ORDER)
    first, second, third = written(queue), written(queue), written(queue)
    for call in (second, first):
        call.sent_at = None
        queue.remove(call, 101)
    assert not is_blocked(queue)
    assert queue.next_in_line(101) is third
    waiting = make()
    queue.add(waiting)
    queue.remove(waiting, 101)
    assert queue.next_in_line(101) is third


def test_kept_calls_keep_the_line() -> None:
    """After a loss the line holds those alone that stay in flight."""
    queue = PendingQueue(IN_ORDER)
    ended, kept, resent = written(queue), written(queue, in_flight="keep"), written(queue, in_flight="resend")
    queue.remove(ended, 101)
    queue.reset()
    assert queue.next_in_line(102) is kept
    queue.claim(kept, 102)
    assert queue.next_in_line(103) is Verdict.UNKNOWN
    assert resent.message in queue


# -- cost


def by_key(queue: PendingQueue, calls: list[Call]) -> None:
    for call in calls:
        found = queue.oldest(call.key)
        assert found is call
        queue.claim(found, 101)


def by_order(queue: PendingQueue, calls: list[Call]) -> None:
    for call in calls:
        assert queue.next_in_line(101) is call
        queue.claim(call, 101)


def by_removal(queue: PendingQueue, calls: list[Call]) -> None:
    for call in calls:
        assert queue.remove(call, 101)


def newest_first(queue: PendingQueue, calls: list[Call]) -> None:
    by_removal(queue, calls[::-1])


@pytest.mark.parametrize(
    ("take", "correlation", "one_key", "size"),
    [
        (by_key, BY_KEY, False, 100_000),
        (by_key, BY_KEY, True, 100_000),
        (by_order, IN_ORDER, False, 100_000),
        (by_removal, BY_KEY, False, 100_000),
        (by_removal, BY_FUNCTION, False, 30_000),
        (by_removal, IN_ORDER, False, 30_000),
        (newest_first, BY_KEY, False, 30_000),
    ],
)
def test_cost_is_linear(
    take: Callable[[PendingQueue, list[Call]], None], correlation: Correlation, one_key: bool, size: int
) -> None:
    """Ten times as many pending calls cost about ten times as much to take out, not a hundred times."""

    def cost(size: int) -> float:
        queue = PendingQueue(correlation)
        calls = [written(queue, 1 if one_key else number) for number in range(size)]
        before = time.thread_time()
        take(queue, calls)
        assert len(queue) == 0
        return time.thread_time() - before

    for larger in (size // 10, size):  # the smaller first: what is quadratic fails before it takes minutes
        assert cost(larger) < 40 * max(cost(larger // 10), cost(larger // 10), 0.001)


# -- after an interrupt


@pytest.mark.parametrize("correlation", [BY_KEY, BY_FUNCTION, IN_ORDER])
def test_mend(correlation: Correlation) -> None:
    """Whatever was interrupted half way: what has ended is not pending any more, all else is, in its order."""
    queue = PendingQueue(correlation)
    calls = [written(queue, number % 2) for number in range(4)]
    calls[0].ended_at = 1.0  # and no further
    queue._by_key.clear()
    queue.mend()
    assert list(queue) == calls[1:]
    if correlation is BY_KEY:
        assert [queue.oldest(key) for key in (0, 1, 2)] == [calls[2], calls[1], None]


def test_a_call_that_has_ended_is_no_candidate() -> None:
    """A call that has ended takes no reply, though its removal was interrupted."""
    queue = PendingQueue(BY_KEY)
    first, second = written(queue, 1), written(queue, 1)
    first.ended_at = 1.0
    assert queue.oldest(1) is second
