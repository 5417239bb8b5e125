"""PendingQueue: the requests that await a reply, oldest first, removable; each ends once.

Whoever takes a call out of the queue, by `claim` or `remove`, is the one who tells it how it ended; nobody else can,
because it is gone. What ended leaves a tombstone, so that a reply that comes after is known for what it is.

The queue has no lock of its own: its owner calls it under one lock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Literal, Protocol

from .correlation import Correlation
from .errors import EvtwsError, PendingFull, Written
from .message import InFlight, Message
from .task import Task
from .tombstones import Tombstones, Verdict

DuplicateKeys = Literal["queue", "refuse"]


class Progress(Protocol):
    """How much of a message's bytes was given to the operating system."""

    @property
    def written(self) -> Written: ...


class Call:
    """One message on its way, and how its sender is told what became of it.

    `deadline`, `asked_at` and `sent_at` are monotonic seconds; a `deadline` of None is no limit, a `sent_at` of None
    is "not yet". Subclasses say how the sender is told; the rules here never call `answer` or `fail`.
    """

    __slots__ = ("_was_written", "asked_at", "deadline", "ended_at", "in_flight", "key", "message", "sent_at", "ticket")

    #: False for a message that nobody awaits a reply to: it is queued for writing only.
    wants_reply: ClassVar[bool] = True
    #: True where several replies answer one request; the queue then keeps it until it is removed.
    streaming: ClassVar[bool] = False
    #: False where the waiter watches the deadline itself, and no timer need do it.
    needs_timer: ClassVar[bool] = True

    def __init__(self, message: Message, asked_at: float, timeout: float | None, in_flight: InFlight = "fail") -> None:
        self.message = message
        self.asked_at = asked_at
        self.deadline = None if timeout is None else asked_at + timeout
        self.in_flight = message.in_flight or in_flight
        self.key: Hashable | None = None
        self.sent_at: float | None = None
        self.ended_at: float | None = None
        self.ticket: Progress | None = None
        self._was_written: Written = "no"

    @property
    def written(self) -> Written:
        """Whether the bytes were given to the operating system, on this connection or on one before."""
        written: Written = "no" if self.ticket is None else self.ticket.written
        return written if written == "yes" or self._was_written == "no" else self._was_written

    def rewind(self) -> None:
        """The connection that it was written to is gone; it is to be sent again."""
        self._was_written = self.written
        self.ticket = self.sent_at = None

    def is_due(self, now: float) -> bool:
        """Whether the deadline has come."""
        return self.deadline is not None and self.deadline <= now

    def answer(self, reply: Message) -> Sequence[Task]:
        """Tell the sender of its reply; returns what is left to do on the callbacks thread."""
        raise NotImplementedError

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        """Tell the sender that no reply will come; returns what is left to do on the callbacks thread."""
        raise NotImplementedError


class PendingQueue:
    """The calls that await a reply, found by key, by order or by asking `match_msg`.

    `max_pending` bounds them (None: no bound). `duplicate_keys` says what a second request with a key that is
    pending does: "queue" (a reply goes to the oldest) or "refuse" (ValueError). `late_after` is for `in_order` only:
    the seconds for which a request that ended without its reply keeps its place in the line; None: for ever.
    """

    def __init__(
        self,
        correlation: Correlation,
        *,
        max_pending: int | None = None,
        duplicate_keys: DuplicateKeys = "queue",
        late_after: float | None = 5.0,
    ) -> None:
        self._correlation = correlation
        self._max_pending = max_pending
        self._refuse_duplicates = duplicate_keys == "refuse"
        self._late_after = late_after
        self._keyed = correlation.has_key
        # Whatever is pending, oldest first; an OrderedDict, because taking the first of a dict again and again is
        # quadratic. The identity of the message is the key: removal is never by match.
        self._calls: OrderedDict[int, Call] = OrderedDict()
        self._by_key: dict[Hashable, deque[Call]] = {}
        self._line: deque[Call] = deque()
        self.tombstones = Tombstones()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __contains__(self, message: Message) -> bool:
        return id(message) in self._calls

    def find(self, message: Message) -> Call | None:
        """The pending call of this very message, or None."""
        return self._calls.get(id(message))

    def add(self, call: Call) -> None:
        """Register a call. Raises ValueError if its message is pending already or its key refused, PendingFull."""
        if self._max_pending is not None and len(self._calls) >= self._max_pending:
            raise PendingFull(f"{len(self._calls)} requests are pending, as many as max_pending allows")
        identity = id(call.message)
        if identity in self._calls:
            raise ValueError("this Message is pending already; make another one to ask twice")
        if self._keyed:
            self._index(call)
        self._calls[identity] = call

    def _index(self, call: Call) -> None:
        same = self._by_key.get(call.key)
        if same is None:
            self._by_key[call.key] = deque((call,))
        elif self._refuse_duplicates:
            raise ValueError(f"a request with the key {call.key!r} is pending already")
        else:
            same.append(call)

    def expect(self, call: Call) -> None:
        """The call's bytes go out now: from here on a reply is due, after those that were due before."""
        if self._correlation.in_order:
            self._line.append(call)

    # -- a reply comes

    def oldest(self, key: Hashable) -> Call | None:
        """The oldest pending call with that key that was written, left in its place; None if there is none."""
        for call in self._by_key.get(key, ()):
            if call.sent_at is not None and call.ended_at is None:
                return call
        return None

    def with_key(self, key: Hashable) -> list[Call]:
        """All pending calls with that key, oldest first: a snapshot, to be narrowed by `match_msg`."""
        return list(self._by_key.get(key, ()))

    def snapshot(self) -> list[Call]:
        """All pending calls, oldest first: to be asked by `match_msg` outside the lock."""
        return list(self._calls.values())

    def claim(self, call: Call, now: float) -> bool:
        """Take a call that is answered out of the queue; False if it ended meanwhile."""
        if call.ended_at is not None:
            return False
        if call.streaming:
            return True
        self._bury(call, now, Verdict.DUPLICATE)
        return True

    def next_in_line(self, now: float) -> Call | Verdict:
        """Whoever the next reply of an `in_order` protocol is due to, or what the reply is if nobody awaits it."""
        self.clear_line(now)
        if not self._line:
            return Verdict.UNKNOWN
        if self.blocked:
            self._line.popleft()
            return Verdict.LATE
        return self._line[0]

    # -- a call ends without a reply, or a stream for good

    def remove(self, call: Call, now: float, *, answered: bool = False) -> bool:
        """Take a call out of the queue; False if it ended already. `answered` is for a stream that came to its end."""
        if call.ended_at is not None:
            return False
        self._bury(call, now, Verdict.DUPLICATE if answered else Verdict.LATE)
        return True

    def _bury(self, call: Call, now: float, verdict: Verdict) -> None:
        call.ended_at = now
        if self._calls.get(id(call.message)) is not call:
            return  # nobody awaits its reply; another call of the same message may be pending
        del self._calls[id(call.message)]
        if self._keyed:
            self._unindex(call)
        if self._correlation.in_order:
            if verdict is Verdict.DUPLICATE or call.sent_at is None:
                self._leave_line(call)
            # else it keeps its place in the line, as the tombstone
        elif call.sent_at is not None:
            self.tombstones.bury(call.key, call.message, verdict, now)

    def _unindex(self, call: Call) -> None:
        same = self._by_key[call.key]
        if len(same) == 1:
            del self._by_key[call.key]
        else:
            same.remove(call)

    def _leave_line(self, call: Call) -> None:
        if self._line and self._line[0] is call:
            self._line.popleft()
        elif call in self._line:
            self._line.remove(call)

    # -- the line of an `in_order` protocol

    @property
    def blocked(self) -> bool:
        """Whether a request that ended without its reply heads the line, so that later ones wait to be written."""
        return bool(self._line) and self._line[0].ended_at is not None

    @property
    def unblocks_at(self) -> float | None:
        """When the tombstone at the head of the line gives up its place (monotonic seconds); None: not by time."""
        if not self._line or self._late_after is None:
            return None
        ended_at = self._line[0].ended_at
        return None if ended_at is None else ended_at + self._late_after

    @property
    def reply_is_overdue_for_ever(self) -> bool:
        """With `late_after=None`: the line is blocked, and no time will ever clear it."""
        return self.blocked and self._late_after is None

    def clear_line(self, now: float) -> None:
        """Let go of the tombstones at the head of the line whose time has passed."""
        while (until := self.unblocks_at) is not None and until <= now:
            self._line.popleft()

    def mend(self) -> None:
        """Put right what an interrupted method has left half done: what is pending is what has not ended."""
        calls = [call for call in self._calls.values() if call.ended_at is None]
        self._calls = OrderedDict((id(call.message), call) for call in calls)
        self._by_key = {}
        if self._keyed:
            for call in calls:
                self._by_key.setdefault(call.key, deque()).append(call)

    # -- the connection is lost

    def reset(self) -> None:
        """The connection that replies were due on is gone: no tombstone of it means anything on the next one."""
        self.tombstones.clear()
        kept = [call for call in self._line if call.ended_at is None and call.in_flight == "keep"]
        self._line = deque(call for call in kept if call.sent_at is not None)
