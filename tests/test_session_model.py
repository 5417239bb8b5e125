"""Session and PendingQueue against a model: every call ends once, nothing is lost, what is said of its bytes is true.

The model keeps plain lists, and decides all on its own what must happen; the session is asked for it only through
what it returns. Each rule does one thing to both, and the invariants compare them afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evtws.correlation import Correlation, in_order
from evtws.errors import (
    ConnectionClosed,
    ConnectionLost,
    DialError,
    EvtwsError,
    NotConnected,
    OutboxFull,
    PendingFull,
    Written,
)
from evtws.keepalive import Keepalive
from evtws.message import InFlight, Message
from evtws.outbox import Outbox
from evtws.pending import Call, PendingQueue
from evtws.reconnect import Reconnect, ReconnectPolicy
from evtws.session import Due, Failed, Loss, Session
from evtws.state import State
from evtws.tombstones import Verdict

MATCHING = ("keys", "order")
#: What the operating system takes of a message's bytes; None: the write is refused.
TAKEN = st.sampled_from(("yes", "yes", "maybe", "no", None))
REFUSALS = {
    "closed": NotConnected,
    "no outbox": NotConnected,
    "full": OutboxFull,
    "many": PendingFull,
    "twice": ValueError,
}


class SendOnly(Call):
    """A call that awaits no reply."""

    wants_reply = False


class Streamed(Call):
    """A call that several replies answer."""

    streaming = True


@dataclass
class Ticket:
    """What the model's operating system took of a message."""

    written: Written


@dataclass(eq=False)
class Entry:
    """What the model knows of one accepted call."""

    call: Call
    key: int
    deadline: float | None
    in_flight: InFlight
    wants_reply: bool
    streaming: bool
    #: Most of its bytes that ever went out on any connection.
    truth: Written = "no"
    in_air: bool = False
    #: How it ended, in the order in which the session said so: one entry at most.
    endings: list[str] = field(default_factory=list)
    ended_at: float | None = None


_RANK: tuple[Written, ...] = ("no", "maybe", "yes")


#: Calls to be made: key, timeout, in_flight, kind, direct, and what is taken of its bytes.
CALLS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from((None, 1.0, 3.0, 8.0)),
        st.sampled_from(("fail", "resend", "keep")),
        st.sampled_from((Call, Call, Call, Streamed, SendOnly)),
        st.booleans(),
        TAKEN,
    ),
    min_size=1,
    max_size=5,
)


class Model(RuleBasedStateMachine):
    """A connection as a user would tell of it."""

    without_prepare = True

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.ids = count()
        self.entries: list[Entry] = []
        self.waiting: list[Entry] = []  # the outbox
        self.line: list[Entry] = []  # in_order: whom the next replies are due to, the ended ones included
        self.tombs: dict[int, tuple[Verdict, float]] = {}
        self.state = State.CLOSED
        self.preparing = self.draining = False
        self.retry_at: float | None = None  # when the next dial is due, while CONNECTING
        self.at_once = False  # dial anew upon the next loss: reconnect_now() was called
        self.accepted = 0  # since the last dial

    @initialize(
        matching=st.sampled_from(MATCHING),
        max_pending=st.sampled_from((None, None, 5)),
        duplicate_keys=st.sampled_from(("queue", "refuse")),
        late_after=st.sampled_from((None, 2.0, 6.0)),
        outbox=st.sampled_from((0, 3, 9, 9)),
        reconnect=st.sampled_from((True, True, True, False)),
        start=st.sampled_from(("open", "preparing", "connecting")),
    )
    def begin(
        self,
        matching: str,
        max_pending: int | None,
        duplicate_keys: Any,
        late_after: float | None,
        outbox: int,
        reconnect: bool,
        start: str,
    ) -> None:
        self.configure(matching, max_pending, duplicate_keys, late_after, outbox, reconnect)
        if start != "connecting":
            self.upgraded()
        if start == "open":
            self.opened("yes")

    def configure(
        self,
        matching: str,
        max_pending: int | None,
        duplicate_keys: Any,
        late_after: float | None,
        outbox: int,
        reconnect: bool,
    ) -> None:
        self.in_order = matching == "order"
        self.max_pending, self.refuse, self.late_after = max_pending, duplicate_keys == "refuse", late_after
        self.limit, self.reconnect = outbox, reconnect
        self.duplicate_keys = duplicate_keys
        self.dial()

    # -- the model's own view

    @property
    def pending(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.wants_reply and not entry.endings]

    @property
    def blocked(self) -> bool:
        return bool(self.line) and bool(self.line[0].endings)

    def entry_of(self, call: Call) -> Entry:
        return next(entry for entry in self.entries if entry.call is call)

    def clear_line(self) -> None:
        while self.blocked and self.late_after is not None:
            ended_at = self.line[0].ended_at
            assert ended_at is not None
            if ended_at + self.late_after > self.now:
                return
            self.line.pop(0)

    def end(self, entry: Entry, how: str) -> None:
        """It has ended: where a reply to it could still come, the model remembers."""
        entry.endings.append(how)
        entry.ended_at = self.now
        if entry in self.waiting:
            self.waiting.remove(entry)
        if not entry.wants_reply or not entry.in_air:
            return
        if not self.in_order:
            verdict = Verdict.DUPLICATE if how == "answered" else Verdict.LATE
            self.tombs[entry.key] = (verdict, self.now + 60)
        elif how == "answered":
            self.line.remove(entry)

    def write(self, entry: Entry, taken: Written | None) -> None:
        """Its bytes go out; `taken` is what the system takes of them, None: the write is refused."""
        entry.in_air = True
        if self.in_order and entry.wants_reply:
            self.line.append(entry)
        if taken is not None:
            entry.call.ticket = Ticket(taken)
            entry.truth = max(entry.truth, taken, key=_RANK.index)
            if not entry.wants_reply:
                entry.endings.append("written")  # all that it was for
                assert not self.session.cancel(entry.call, self.now)

    def carry_out(self, calls: list[Call], taken: Written | None) -> None:
        """The session wants these written: it must be what the model has waiting, in that order, all of it."""
        expected = self.waiting if self.state is State.OPEN and not self.blocked else []
        assert calls == [entry.call for entry in expected]
        self.waiting = [entry for entry in self.waiting if entry not in expected]
        for entry in expected:
            self.write(entry, taken)
            if taken is None and not entry.wants_reply:
                # As the driver does: nobody would hear of it, so it goes out on the next connection.
                entry.in_air = False
                entry.call.sent_at = None
                self.session.outbox.hold(entry.call)
                self.waiting.append(entry)

    def check_failed(self, failed: list[Failed], expected: list[Entry], error: EvtwsError) -> None:
        """Exactly these have failed, by that error, with the truth about their bytes."""
        assert sorted(id(call) for call, _ in failed) == sorted(id(entry.call) for entry in expected)
        requests = [call for call, _ in failed if call.wants_reply]
        assert requests == [entry.call for entry in expected if entry.wants_reply], "the oldest first"
        for call, told in failed:
            entry = self.entry_of(call)
            assert isinstance(told, ConnectionLost)
            assert told.message is call.message
            assert told.written == entry.truth
            assert type(told) is type(error) or told.__cause__ is error
            self.end(entry, "failed")

    # -- the connection's life

    @precondition(lambda self: self.state is State.CLOSED)
    @rule()
    def dial(self) -> None:
        # As the driver does: each life has a session of its own.
        correlation = Correlation(in_order) if self.in_order else Correlation(match_key=lambda message: None)
        pending = PendingQueue(
            correlation, max_pending=self.max_pending, duplicate_keys=self.duplicate_keys, late_after=self.late_after
        )
        policy = Reconnect(ReconnectPolicy(wait=lambda state: 1.0), False) if self.reconnect else None
        self.session = Session(pending, Keepalive(None), policy, Outbox(self.limit))
        self.session.dial(self.now)
        self.state, self.retry_at = State.CONNECTING, self.now
        self.line, self.tombs, self.accepted = [], {}, 0
        self.draining = self.at_once = False

    @precondition(lambda self: self.state is State.CONNECTING and not self.preparing)
    @rule()
    def upgraded(self) -> None:
        if self.retry_at is not None:
            self.tick(max(0.0, self.retry_at - self.now), None)
        self.session.upgraded(None)
        self.preparing = True

    @precondition(lambda self: self.state is State.CONNECTING and self.preparing)
    @rule(taken=TAKEN)
    def opened(self, taken: Written | None) -> None:
        self.state, self.preparing = State.OPEN, False
        self.clear_line()
        self.carry_out(self.session.opened(self.now), taken)

    @precondition(lambda self: self.state is State.CONNECTING and not self.preparing and self.without_prepare)
    @rule(taken=TAKEN)
    def dialled(self, taken: Written | None) -> None:
        self.upgraded()
        self.opened(taken)

    @precondition(lambda self: self.accepted > 4)
    @rule(what=st.sampled_from(("reconnect_now", "close", "drain", "crash")))
    def seldom(self, what: str) -> None:
        if what != "close" or self.state in (State.CONNECTING, State.OPEN):
            getattr(self, what)()

    def reconnect_now(self) -> None:
        if self.state in (State.CLOSING, State.CLOSED):
            with pytest.raises(NotConnected):
                self.session.reconnect_now(self.now)
            return
        self.session.reconnect_now(self.now)
        if self.retry_at is not None:
            self.retry_at = self.now
        self.at_once = self.at_once or self.state is State.OPEN or self.preparing

    @precondition(lambda self: self.state in (State.CONNECTING, State.OPEN) and self.accepted > 2)
    @rule(may_retry=st.sampled_from((True, True, True, False)), kind=st.sampled_from((ConnectionLost, DialError)))
    def lost(self, may_retry: bool, kind: Any) -> None:
        self.lose(kind("cut"), may_retry)

    def lose(self, error: EvtwsError, may_retry: bool = True) -> None:
        delay = None if not may_retry else 0.0 if self.at_once else 1.0 if self.reconnect else None
        again = delay is not None
        self.at_once = self.at_once and not may_retry
        loss = self.session.lost(error, self.now, may_retry=may_retry)
        self.retry_at = None if delay is None else self.now + delay
        assert loss.retry_at == self.retry_at
        self.check_loss(loss, error, again)

    def check_loss(self, loss: Loss, error: EvtwsError, again: bool) -> None:
        flying = [entry for entry in self.pending if entry.in_air]
        if again:
            expected = [entry for entry in flying if entry.in_flight == "fail"]
        else:
            expected = [*(entry for entry in self.waiting if not entry.wants_reply), *self.pending]
        self.check_failed(loss.failed, expected, error)
        flying = [entry for entry in flying if not entry.endings]
        unwritten = [entry for entry in flying if entry.in_flight == "keep" and entry.truth == "no"]
        resent = [entry for entry in flying if entry.in_flight == "resend" or entry in unwritten]
        for entry in resent:
            entry.in_air = False
        self.waiting = resent + self.waiting
        kept = [entry for entry in self.line if not entry.endings and entry.in_flight == "keep"]
        self.line = [entry for entry in kept if entry not in unwritten]
        self.tombs = {}
        self.state, self.preparing = State.CONNECTING if again else State.CLOSED, False

    def close(self) -> None:
        error = ConnectionClosed(1000, by_peer=False)
        expected = [*(entry for entry in self.waiting if not entry.wants_reply), *self.pending]
        self.check_failed(self.session.close(error, self.now, self.now + 5), expected, error)
        assert self.session.close(error, self.now, None) == []
        self.retry_at = None
        self.state = State.CLOSING

    @precondition(lambda self: self.state is State.CLOSING)
    @rule()
    def ended(self) -> None:
        assert self.session.ended(self.now).failed == []
        self.state, self.preparing = State.CLOSED, False

    def crash(self) -> None:
        error = ConnectionLost("a defect")
        expected = [*(entry for entry in self.waiting if not entry.wants_reply), *self.pending]
        self.check_failed(self.session.crash(error, self.now), expected, error)
        self.state, self.preparing = State.CLOSED, False

    # -- calls

    def refusal(self, entry: Entry, direct: bool) -> str | None:
        """Why the session must not accept it; None: it must."""
        if self.state in (State.CLOSING, State.CLOSED) or (self.draining and not direct):
            return "closed"
        if entry.wants_reply:
            if self.max_pending is not None and len(self.pending) >= self.max_pending:
                return "many"
            if self.refuse and not self.in_order and any(other.key == entry.key for other in self.pending):
                return "twice"
        if self.state is State.CONNECTING and not direct:
            if self.limit == 0:
                return "no outbox"
            if len(self.waiting) >= self.limit:
                return "full"
        return None

    @precondition(lambda self: self.state is not State.CLOSED)
    @rule(
        calls=CALLS,
        again=st.sampled_from((None, Call, SendOnly)),
    )
    def submit_some(self, calls: Any, again: Any) -> None:
        for call in calls:
            self.submit(*call)
        if again is not None and self.pending:
            self.submit_the_same_again(self.pending[-1], again)

    def submit(
        self,
        key: int,
        timeout: float | None,
        in_flight: InFlight,
        kind: Any,
        direct: bool,
        taken: Written | None,
        message: Message | None = None,
    ) -> None:
        call = kind(message or Message("x", next(self.ids)), self.now, timeout, in_flight)
        call.key = None if self.in_order else key
        deadline = None if timeout is None else self.now + timeout
        entry = Entry(call, key, deadline, in_flight, call.wants_reply, call.streaming)
        direct_now = direct and self.preparing
        refusal = self.refusal(entry, direct_now)
        if refusal is not None:
            with pytest.raises(REFUSALS[refusal]):
                self.session.submit(call, self.now, direct=direct)
            assert self.session.find(call.message) is not call
            return
        written = self.session.submit(call, self.now, direct=direct)
        self.accepted += 1
        assert written == (direct_now or (self.state is State.OPEN and not self.waiting and not self.blocked))
        self.entries.append(entry)
        if not written:
            self.waiting.append(entry)
        elif entry.wants_reply or taken is not None:
            self.write(entry, taken)
        else:
            entry.endings.append("raised")  # its sender is told there and then

    def submit_the_same_again(self, entry: Entry, kind: Any) -> None:
        again = kind(entry.call.message, self.now, None)
        again.key = 99
        full = self.max_pending is not None and len(self.pending) >= self.max_pending
        refused = self.state in (State.CLOSING, State.CLOSED) or self.draining
        with pytest.raises(NotConnected if refused else PendingFull if full and again.wants_reply else ValueError):
            self.session.submit(again, self.now)

    @precondition(lambda self: any(not entry.wants_reply for entry in self.waiting))
    @rule()
    def ask_by_what_waits_as_a_plain_send(self) -> None:
        plain = next(entry for entry in self.waiting if not entry.wants_reply)
        if plain.call.message not in [entry.call.message for entry in self.pending]:
            self.submit(9, None, "resend", Call, False, "yes", plain.call.message)

    @precondition(lambda self: self.pending or self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([entry for entry in self.entries if not entry.endings]))
        assert self.session.cancel(entry.call, self.now)
        self.end(entry, "cancelled")
        assert not self.session.cancel(entry.call, self.now)

    def drain(self) -> None:
        self.session.draining = self.draining = True

    # -- replies

    @precondition(lambda self: self.entries and (self.state is State.OPEN or self.preparing))
    @rule(keys=st.lists(st.integers(0, 3), min_size=1, max_size=4), last=st.booleans(), taken=TAKEN)
    def replies(self, keys: list[int], last: bool, taken: Written | None) -> None:
        for key in keys:
            if self.in_order:
                self.reply_in_order(last, taken)
            else:
                self.reply_by_key(key, last)

    def reply_by_key(self, key: int, last: bool) -> None:
        due = [entry for entry in self.pending if entry.key == key and entry.in_air]
        assert self.session.pending.oldest(key) is (due[0].call if due else None)
        if due:
            self.answer(due[0], last)
            return
        verdict, until = self.tombs.get(key, (Verdict.UNKNOWN, self.now))
        expected = verdict if until >= self.now else Verdict.UNKNOWN
        assert self.session.pending.tombstones.by_key(key, self.now) is expected

    def reply_in_order(self, last: bool, taken: Written | None) -> None:
        found = self.session.pending.next_in_line(self.now)
        self.clear_line()
        if not self.line:
            assert found is Verdict.UNKNOWN
        elif self.blocked:
            assert found is Verdict.LATE
            self.line.pop(0)
        else:
            assert found is self.line[0].call
            self.answer(self.line[0], last)
        self.carry_out(self.session.unblocked(self.now), taken)

    def answer(self, entry: Entry, last: bool) -> None:
        pending = self.session.pending
        assert pending.claim(entry.call, self.now)
        if entry.streaming:
            if not last:
                return
            assert pending.remove(entry.call, self.now, answered=True)
        self.end(entry, "answered")
        assert not pending.claim(entry.call, self.now)
        assert not pending.remove(entry.call, self.now)

    # -- time

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 2.0, 7.0, 61.0)), taken=TAKEN)
    def tick(self, seconds: float, taken: Written | None) -> None:
        self.now += seconds
        due = self.session.tick(self.now)
        over = [entry for entry in self.entries if entry.deadline is not None and entry.deadline <= self.now]
        expected = [entry for entry in over if not entry.endings]
        assert [call.deadline for call in due.expired] == sorted(entry.deadline or 0 for entry in expected)
        assert {id(call) for call in due.expired} == {id(entry.call) for entry in expected}
        for entry in expected:
            self.end(entry, "expired")
        assert due.dial == (self.retry_at is not None and self.retry_at <= self.now)
        if due.dial:
            self.retry_at = None
        self.follow(due, taken)
        if due.abort:
            self.ended()
        if due.lost is None:
            at = self.session.next_at
            assert at is None or at > self.now, "what is done is not due any more: whoever waits would spin"

    def follow(self, due: Due, taken: Written | None) -> None:
        """Do as the session asks, once that is what the model asks for."""
        if self.state is not State.OPEN:
            assert not due.writes
            assert due.lost is None
            return
        self.clear_line()
        if self.blocked and self.late_after is None:
            assert isinstance(due.lost, ConnectionLost)
            assert not due.writes
            self.lose(due.lost)
        else:
            assert due.lost is None
            self.carry_out(due.writes, taken)

    # -- what holds after every step

    @invariant()
    def every_call_ends_once_and_none_is_lost(self) -> None:
        for entry in self.entries:
            assert len(entry.endings) <= 1
            if entry.wants_reply:
                assert (entry.call.ended_at is None) == (not entry.endings)
        if not self.entries:
            return
        assert [call.message for call in self.session.pending] == [entry.call.message for entry in self.pending]
        for entry in self.entries:
            found = self.session.find(entry.call.message)
            alive = not entry.endings and (entry.wants_reply or entry in self.waiting)
            if alive:
                assert found is not None
                assert found.message is entry.call.message
            else:
                assert found is not entry.call
            assert alive or entry.endings, "neither waiting nor ended"

    @invariant()
    def state_and_sizes_agree(self) -> None:
        if self.entries:
            assert self.session.state is self.state
            assert self.session.preparing or not self.preparing
            assert len(self.session.pending) == len(self.pending)
            assert len(self.session.outbox) == len(self.waiting)
        if self.entries and self.state is State.CLOSED:
            assert not self.pending
            assert not self.waiting

    @invariant()
    def what_is_said_of_the_bytes_is_true(self) -> None:
        for entry in self.entries:
            if not entry.endings:
                assert entry.call.written == entry.truth

    @invariant()
    def a_blocked_line_holds_all_later_messages(self) -> None:
        if self.entries and self.in_order:
            self.clear_line()
            self.session.pending.clear_line(self.now)
            assert self.session.pending.blocked == self.blocked

    @invariant()
    def whoever_waits_looks_again_in_time(self) -> None:
        if not self.entries:
            return
        at = self.session.next_at
        for entry in self.entries:
            if not entry.endings and entry.deadline is not None:
                assert at is not None
                assert at <= entry.deadline

    def teardown(self) -> None:
        """In the end everybody has been told."""
        if not hasattr(self, "session"):
            return
        if self.state in (State.CONNECTING, State.OPEN):
            self.close()
        assert all(len(entry.endings) == 1 for entry in self.entries)
        self.now += 1000
        assert self.session.tick(self.now).expired == []
        assert len(self.session.timers) == 0


class ModelWithLogin(Model):
    """The same with a login on each connection, an outbox and a policy: much happens before it is OPEN."""

    without_prepare = False

    @initialize(
        matching=st.sampled_from(MATCHING), late_after=st.sampled_from((None, 2.0)), waiting=CALLS, logins=CALLS
    )
    def begin(self, matching: str, late_after: float | None, waiting: Any, logins: Any) -> None:
        self.configure(matching, None, "queue", late_after, 9, True)
        self.submit_some(waiting, None)
        self.upgraded()
        self.log_in(logins)

    @precondition(lambda self: self.preparing and self.state is State.CONNECTING)
    @rule(calls=CALLS)
    def log_in(self, calls: Any) -> None:
        for key, timeout, in_flight, kind, _, taken in calls:
            self.submit(key, timeout, in_flight, kind, True, taken)


SETTINGS = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    # Without shrinking, which takes minutes: a failure is told at once. Add Phase.shrink to have it small.
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
TestModel = Model.TestCase
TestModelWithLogin = ModelWithLogin.TestCase
TestModel.settings = TestModelWithLogin.settings = SETTINGS
