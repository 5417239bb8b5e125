"""Session: the decisions of one connection, from dial to CLOSED.

Pure: no socket, no thread, no clock. What happened is told by a method and the monotonic time; what is to be done
about it is what the method returns. The connection's driver calls it under one lock and carries the answers out
after letting go of it, but for the writing of messages, whose order the lock keeps.

Every call that was accepted leaves by exactly one door: answered (`claim`), or in the `failed` or `expired` of what a
method returned, or by `cancel`, which is the sender's own wish.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import ConnectionClosed, ConnectionLost, EvtwsError, NotConnected, PrepareError, StaleConnection
from .keepalive import Keepalive
from .message import Message
from .outbox import Outbox
from .pending import Call, PendingQueue
from .reconnect import Reconnect
from .state import Signal, State, transition
from .timers import Timers


class Failed(NamedTuple):
    """A call that ended without its reply, and why."""

    call: Call
    error: EvtwsError


@dataclass(frozen=True)
class Loss:
    """A connection or an attempt to open one ended.

    `retry_at` is when the next attempt is due (monotonic seconds), None: there will be none. `pings` are the waiters
    of pings that nobody will answer.
    """

    retry_at: float | None
    failed: list[Failed]
    pings: list[Any]


@dataclass
class Due:
    """What the time asks for."""

    expired: list[Call] = field(default_factory=list)
    writes: list[Call] = field(default_factory=list)
    dial: bool = False
    abort: bool = False
    ping: bool = False
    lost: EvtwsError | None = None


class Session:
    """The state of one connection, its pending calls, its outbox and its timers.

    `reconnect` is None where a lost connection is not dialled again.
    """

    def __init__(
        self, pending: PendingQueue, keepalive: Keepalive, reconnect: Reconnect | None, outbox: Outbox
    ) -> None:
        self.state = State.CLOSED
        self.pending = pending
        self.keepalive = keepalive
        self.outbox = outbox
        self.timers = Timers()
        self.draining = False
        #: True from the upgrade on until `prepare` has returned: only its own messages go out.
        self.preparing = False
        #: True when something may fall due before all that was known: whoever waits must look at `next_at` again.
        self.sooner = False
        self.prepare_by: float | None = None
        self.retry_at: float | None = None
        self.close_by: float | None = None
        self.opened_at: float | None = None
        self.openings = 0
        #: What ended the last connection or attempt, or None.
        self.last_error: EvtwsError | None = None
        self._reconnect = reconnect
        self._dial_at_once = False

    def _signal(self, signal: Signal) -> None:
        self.state = transition(self.state, signal)

    # -- the connection's life

    def dial(self, now: float) -> None:
        """The user wishes for a connection: the first attempt is due. Raises IllegalTransition unless CLOSED."""
        self._signal(Signal.DIAL)
        self.retry_at = now

    def upgraded(self, prepare_by: float | None) -> None:
        """The server accepted; from here until `opened`, only what is `direct` goes out.

        `prepare_by` is when that must have happened (monotonic seconds; None: whenever).
        """
        self.preparing = True
        self.prepare_by = prepare_by

    def opened(self, now: float) -> list[Call]:
        """The connection is ready: returns what waited, to be written in this order."""
        self._signal(Signal.OPENED)
        self.preparing = False
        self.last_error = None
        self.opened_at = now
        self.openings += 1
        self.keepalive.started(now)
        if self._reconnect is not None:
            self._reconnect.opened(now)
        return self.unblocked(now)

    def lost(self, error: EvtwsError, now: float, *, may_retry: bool = True) -> Loss:
        """The connection, or an attempt to open it, ended by `error`: CONNECTING again, or CLOSED for good."""
        retry_at = self._retry_at(error, now) if may_retry else None
        self._signal(Signal.ENDED if retry_at is None else Signal.RETRY)
        self.last_error = error
        self.preparing = False
        self.opened_at = None
        self.retry_at = retry_at
        failed = self._fail_all(error, now) if retry_at is None else self._fail_in_flight(error, now)
        self.pending.reset()
        return Loss(retry_at, failed, self.keepalive.lost())

    def _retry_at(self, error: EvtwsError, now: float) -> float | None:
        if self._dial_at_once:
            self._dial_at_once = False
            return now
        if self._reconnect is None:
            return None
        delay = self._reconnect.failed(error, now)
        return None if delay is None else now + delay

    def close(self, error: ConnectionClosed, now: float, close_by: float | None) -> list[Failed]:
        """The user wishes for no connection; returns the calls that will not be answered any more.

        `close_by` is when to stop being polite. Changes nothing when CLOSING or CLOSED.
        """
        if self.state in (State.CLOSING, State.CLOSED):
            return []
        self._signal(Signal.CLOSE)
        self.close_by = close_by
        self.retry_at = None
        return self._fail_all(error, now)

    def ended(self, now: float) -> Loss:
        """The connection that the user closed has ended."""
        self._signal(Signal.ENDED)
        self.preparing = False
        self.opened_at = None
        return Loss(None, self._fail_all(ConnectionLost("the connection was closed"), now), self.keepalive.lost())

    def crash(self, error: ConnectionLost, now: float) -> list[Failed]:
        """The driver failed: CLOSED, whatever the state is; returns the calls that nobody will answer."""
        self.state = State.CLOSED
        self.preparing = False
        self.opened_at = None
        self.last_error = error
        return self._fail_all(error, now)

    def reconnect_now(self, now: float) -> None:
        """The user wishes for a new connection: ends a backoff; one that is there is dialled anew when it is lost next.

        Raises NotConnected when CLOSING or CLOSED.
        """
        if self.state in (State.CLOSING, State.CLOSED):
            raise NotConnected(f"the connection is {self.state.name}; dial it")
        if self.retry_at is not None:
            self.retry_at = now
        elif self.state is State.OPEN or self.preparing:
            self._dial_at_once = True

    # -- calls

    def find(self, message: Message) -> Call | None:
        """The call of this very message, pending or in the outbox, or None."""
        return self.pending.find(message) or self.outbox.find(message)

    def submit(self, call: Call, now: float, *, direct: bool = False) -> bool:
        """Accept a call; True if it is to be written now, False if it waits.

        `direct` is for what `prepare` sends. Raises NotConnected, OutboxFull, PendingFull or ValueError, and then
        nothing is kept of it.
        """
        direct = direct and self.preparing
        if (self.draining and not direct) or self.state in (State.CLOSING, State.CLOSED):
            raise NotConnected(f"the connection is {'draining' if self.draining else self.state.name}")
        if call.wants_reply:
            self.pending.add(call)
        elif call.message in self.pending:
            raise ValueError("this Message is pending; make another one to send it meanwhile")
        write = direct or (self.state is State.OPEN and not self.outbox and not self.pending.blocked)
        if write:
            self._write(call, now)
        else:
            self._queue(call, now)
        if call.needs_timer and call.deadline is not None and (call.wants_reply or not write) and self.timers.add(call):
            self.sooner = True
        return write

    def _write(self, call: Call, now: float) -> None:
        call.sent_at = now
        if call.wants_reply:
            self.pending.expect(call)

    def _queue(self, call: Call, now: float) -> None:
        if self.state is State.OPEN:
            self.outbox.hold(call)
            return
        try:
            self.outbox.add(call)
        except EvtwsError:
            self.pending.remove(call, now)
            raise

    def _written(self, calls: list[Call], now: float) -> list[Call]:
        for call in calls:
            self._write(call, now)
        return calls

    def cancel(self, call: Call, now: float) -> bool:
        """Take a call out, wherever it waits; False if it ended already."""
        if call.ended_at is not None:
            return False
        waited = self.outbox.remove(call)
        if not (call.wants_reply or waited or call.sent_at is None):
            return False  # it was written, and that is all that it was for
        self.pending.remove(call, now)
        self._note_blocked()
        return True

    def mend(self) -> None:
        """Put right what a Ctrl-C in one of these methods has left half done."""
        self.pending.mend()
        self.outbox.mend()
        self.timers.compact()

    def unblocked(self, now: float) -> list[Call]:
        """What an `in_order` line held back, once nothing heads it that has ended; to be written in this order."""
        self.pending.clear_line(now)
        self._note_blocked()
        if self.state is not State.OPEN or self.pending.blocked:
            return []
        return self._written(self.outbox.take_all(), now)

    def _note_blocked(self) -> None:
        # Whoever waits may know nothing yet of when this line has to be looked at.
        self.sooner = self.sooner or self.pending.blocked

    # -- time

    @property
    def next_at(self) -> float | None:
        """When `tick` has something to do (monotonic seconds), or None."""
        at = self.timers.next_at
        for other in (self.retry_at, self._state_at, self._line_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    @property
    def _state_at(self) -> float | None:
        """The deadline that belongs to the present state."""
        if self.state is State.OPEN:
            return self.keepalive.due_at
        if self.state is State.CLOSING:
            return self.close_by
        return self.prepare_by if self.preparing else None

    @property
    def _line_at(self) -> float | None:
        """When an `in_order` line that is blocked has to be looked at; only while OPEN can anything be done for it."""
        if self.state is not State.OPEN:
            return None
        return 0.0 if self.pending.reply_is_overdue_for_ever else self.pending.unblocks_at

    def expired(self, now: float) -> list[Call]:
        """Take out the calls whose deadline has come."""
        return [call for call in self.timers.due(now) if self.cancel(call, now)]

    def tick(self, now: float, *, judge: bool = True) -> Due:
        """What is due. `judge=False`: bytes wait to be read, so a missing pong means nothing yet."""
        due = Due(expired=self.expired(now))
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None
            due.dial = True
        due.abort = self.state is State.CLOSING and self.close_by is not None and self.close_by <= now
        if self.preparing and self.prepare_by is not None and self.prepare_by <= now:
            due.lost = PrepareError("prepare() did not return within connect_timeout")
        if self.state is State.OPEN:
            self._tick_open(due, now, judge)
        return due

    def _tick_open(self, due: Due, now: float, judge: bool) -> None:
        if self.pending.reply_is_overdue_for_ever:
            due.lost = ConnectionLost("a reply did not come in time, and the protocol's replies come in order only")
            return
        due.writes = self.unblocked(now)
        if not self.keepalive.is_due(now):
            return
        if judge and self.keepalive.is_stale:
            due.lost = StaleConnection(self.keepalive.unanswered)
        else:
            due.ping = True

    # -- endings

    def _fail_all(self, error: EvtwsError, now: float) -> list[Failed]:
        unsent = [call for call in self.outbox.take_all() if not call.wants_reply and call.ended_at is None]
        for call in unsent:
            call.ended_at = now
        calls = unsent + [call for call in self.pending.snapshot() if self.pending.remove(call, now)]
        return [Failed(call, _about(error, call)) for call in calls]

    def _fail_in_flight(self, error: EvtwsError, now: float) -> list[Failed]:
        in_flight = [call for call in self.pending.snapshot() if call.sent_at is not None]
        failed = [
            Failed(call, _about(error, call))
            for call in in_flight
            if call.in_flight == "fail" and self.pending.remove(call, now)
        ]
        # A request to be kept of which not a byte was written can have no reply on its way.
        again = [
            call
            for call in in_flight
            if call.in_flight == "resend" or (call.in_flight == "keep" and call.written == "no")
        ]
        for call in again:
            call.rewind()
        self.outbox.put_first(again)
        return failed


def _about(error: EvtwsError, call: Call) -> EvtwsError:
    """`error` as the sender of that call is told it."""
    if isinstance(error, ConnectionLost):
        return error.about_request(call.message, call.written)
    lost = ConnectionLost(f"the connection was given up: {error}").about_request(call.message, call.written)
    lost.__cause__ = error
    return lost
