"""Life: what all parts of a connection share from dial() to CLOSED, and the one lock that guards it."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .callbacks import CallbackQueue, logger, name_of
from .correlation import Correlation
from .diagnosis import reply_timeout
from .dial import HasFileno, Upgraded
from .errors import ConnectionLost, EvtwsError, ForkedError, UserCodeError
from .frames import encode_message
from .keepalive import Keepalive
from .options import Options
from .outbox import Outbox
from .pending import Call, PendingQueue
from .poller import make_poller
from .reconnect import Reconnect, as_policy
from .session import Failed, Session
from .state import State
from .task import Task
from .transport import Transport

if TYPE_CHECKING:
    from .connection import Connection


class Life:
    """One connection from dial() to CLOSED, however often it is dialled again in between.

    `connection` is a weak reference. `refreshable`: url or headers is a function, which a rejected login asks again.
    `after` is the thread that may still run callbacks of the last life: those of this one come after them.
    """

    def __init__(
        self,
        connection: weakref.ref[Connection],
        options: Options,
        *,
        refreshable: bool,
        after: threading.Thread | None = None,
    ) -> None:
        self.connection = connection
        self.options = options
        self.correlation = Correlation(options.match_msg, options.match_key)
        # Guards `session`, `transport` and `fault`. Never held while anything waits or user code runs.
        self.lock = threading.Lock()
        #: Notified when the state has changed.
        self.changed = threading.Condition(self.lock)
        #: Set when nobody has to close it any more.
        self.ended = threading.Event()
        #: Held by whoever reads and routes: the I/O thread, or a caller that awaits its reply. Nobody takes it twice;
        #: it knows its owner, so that a caller whom a Ctrl-C interrupts can let go of it whether he had it or not.
        self.reading = threading.RLock()
        self.session = _make_session(options, self.correlation, refreshable)
        self.transport: Transport | None = None
        self.upgraded: Upgraded | None = None
        #: What ended the present connection or attempt, until the I/O thread has seen to it.
        self.fault: EvtwsError | None = None
        self.poller = make_poller()
        self.callbacks = CallbackQueue(
            options.callback_queue, on_error=_weakly(self._callback_raised), on_room=self.poller.wake, after=after
        )
        #: The thread in which prepare() runs, whose messages go straight out, or None.
        self.preparer: threading.Thread | None = None
        #: The thread that runs a user's function where messages are read, or None.
        self.routing_thread: int | None = None
        #: In a forked child: nothing of this life may be touched.
        self.forked = False
        #: The connection that has ended and to whose peer goodbye is said, or None.
        self.parting: Transport | None = None
        #: Of the connections that have ended for good.
        self.messages_sent = self.bytes_sent = self.bytes_received = 0

    def state_changed(self) -> None:
        """Wake who waits for a state; requires the lock."""
        self.changed.notify_all()
        # Not where the Connection is gone already: whoever hears of that has to say that it was dropped.
        if self.session.state in (State.CLOSING, State.CLOSED) and self.connection() is not None:
            self.ended.set()

    def check_process(self) -> None:
        """Raise ForkedError in a forked child, where a lock of this life may be held for ever."""
        if self.forked:
            raise ForkedError("this connection belongs to the parent process; dial a new one")

    # -- the end of the present connection

    def lose(self, transport: Transport | None, error: EvtwsError) -> None:
        """That connection has ended, unless this was noticed already; the I/O thread sees to it. From any thread."""
        with self.lock:
            if self.transport is transport and self.fault is None:
                self.fault = error
        self.poller.wake()

    def after_interrupt(self) -> None:
        """Put right what a Ctrl-C may have left half done; by the thread that it interrupted."""
        with self.lock:
            self.session.mend()
            transport = self.transport
        self.callbacks.extend(())
        self.poller.resume_reading()
        if transport is not None:
            transport.flush()
            if transport.error is not None:
                self.lose(transport, transport.error)

    # -- writing

    def write_all(self, calls: Sequence[Call]) -> None:
        """Write what waited, in its order; requires the lock.

        When writing is impossible a request stays in flight, unwritten: the end of the connection decides about it. A
        message that nobody awaits a reply to goes out on the next connection.
        """
        assert self.lock.locked()
        for call in calls:
            assert self.transport is not None
            try:
                self.transport.send(encode_message(call.message.body, masked=True), (call,))
            except ConnectionLost:
                if not call.wants_reply:
                    call.sent_at = None
                    self.session.outbox.hold(call)

    # -- telling the user

    def report(self, error: EvtwsError) -> Sequence[Task]:
        """What tells the user of an error, to be queued with `tell`."""
        if self.options.on_error is not None:
            return (Task(self.options.on_error, (error,)),)
        logger.warning("%s", error)
        return ()

    def tell(self, tasks: Sequence[Task]) -> None:
        """Queue what is to be told on the callbacks thread."""
        self.callbacks.extend(tasks)

    def fail(self, failed: Sequence[Failed]) -> None:
        """Tell calls of their end; not under the lock."""
        for call, error in failed:
            self.tell(call.fail(error))

    def expire(self, calls: Sequence[Call], now: float) -> None:
        """Tell calls that their time is up; by whoever took them out of the queue."""
        for call in calls:
            self.tell(call.fail(self.timeout_of(call, now)))

    def timeout_of(self, call: Call, now: float) -> EvtwsError:
        """The ReplyTimeout of that call."""
        transport = self.transport
        heard_at = None if transport is None else transport.heard_at
        return reply_timeout(call, now, self.session.state, heard_at, self.callbacks.busy)

    def _callback_raised(self, task: Task, exc: BaseException) -> None:
        if task.function is not self.options.on_error:
            self.tell(self.report(UserCodeError(name_of(task.function), exc)))

    # -- waiting, on the I/O thread

    def next_at(self) -> float | None:
        """When the session's next timer falls due (monotonic seconds), None: there is none."""
        with self.lock:
            self.session.sooner = False
            return self.session.next_at

    def wait_for(self, readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        """Wait for sockets, a wake-up or the deadline (monotonic, maybe infinite); calls that expire are told."""
        timer = self.next_at()
        until = deadline if timer is None else min(deadline, timer)
        timeout = None if math.isinf(until) else max(0.0, until - time.monotonic())
        ready = self.poller.wait_for(readers, writers, timeout)
        now = time.monotonic()
        with self.lock:
            expired = self.session.expired(now)
        self.expire(expired, now)
        return ready


def _make_session(options: Options, correlation: Correlation, refreshable: bool) -> Session:
    pending = PendingQueue(
        correlation,
        max_pending=options.max_pending,
        duplicate_keys=options.duplicate_keys,
        late_after=options.late_after,
    )
    keepalive = Keepalive(options.ping_interval, options.unreceived_ping_threshold, options.count_pongs)
    policy = as_policy(options.reconnect)
    reconnect = None if policy is None else Reconnect(policy, refreshable)
    outbox = Outbox(*options.outbox) if isinstance(options.outbox, tuple) else Outbox(options.outbox)
    return Session(pending, keepalive, reconnect, outbox)


def _weakly(method: Callable[..., object]) -> Callable[..., object]:
    """The same method, not keeping its object alive; does nothing once that is gone."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> object:
        bound = reference()
        return None if bound is None else bound(*arguments)

    return call
