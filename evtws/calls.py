"""The ways in which a sender is told what became of its call: a wait, a Future, a callback, an iterator.

`answer` and `fail` are called once, by whoever took the call out of the queue, and never under a lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .callbacks import Task
from .errors import EvtwsError, RequestCancelled, SlowConsumer
from .message import InFlight, Message
from .pending import Call

if TYPE_CHECKING:
    from .connection import Connection

#: Where a lock's wait cannot be interrupted by Ctrl-C it is taken in slices of this many seconds.
_SLICE = 0.5 if os.name == "nt" else threading.TIMEOUT_MAX


class SendOnly(Call):
    """A message that nobody awaits a reply to."""

    __slots__ = ("_report",)
    wants_reply = False

    def __init__(
        self, message: Message, asked_at: float, timeout: float | None, report: Callable[[EvtwsError], object]
    ) -> None:
        super().__init__(message, asked_at, timeout)
        self._report = report

    def fail(self, error: EvtwsError) -> None:
        self._report(error)


class Waiting(Call):
    """A thread that waits in `request()`.

    `wake` is what ends the wait of a thread that does the reading meanwhile, None while it does not.
    """

    __slots__ = ("_done", "error", "reply", "wake")
    needs_timer = False

    def __init__(
        self, message: Message, asked_at: float, timeout: float | None, in_flight: InFlight
    ) -> None:
        super().__init__(message, asked_at, timeout, in_flight)
        # A lock, taken now and let go of once: the cheapest thing that one thread can wait for.
        self._done = threading.Lock()
        self._done.acquire()
        self.reply: Message | None = None
        self.error: EvtwsError | None = None
        self.wake: Callable[[], object] | None = None

    def answer(self, reply: Message) -> None:
        self.reply = reply
        self._end()

    def fail(self, error: EvtwsError) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        self._done.release()
        if self.wake is not None:
            self.wake()

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return not self._done.locked()

    def wait(self) -> bool:
        """Block until the call has ended or its deadline has come; whether it has ended."""
        while True:
            left = _SLICE if self.deadline is None else self.deadline - time.monotonic()
            if self._done.acquire(timeout=max(0.0, min(left, _SLICE))):
                self._done.release()
                return True
            if left <= 0:
                return False


class Reply(Future["Message"]):
    """A Future for the reply to one request.

    `cancel()` removes the request from the queue. Done-callbacks run on the callbacks thread.
    """

    # Guards the making of a Future's condition, and an ending that needs none; held for a few steps only.
    _making = threading.Lock()

    def __init__(self, cancel: Callable[[], bool], later: Callable[[Iterable[Task]], object]) -> None:
        # Not Future.__init__: the Condition that it makes is most of a Future's 1.7 KB and of its cost, and a
        # Future that is asked for its result after it is done never needs it.
        self._made: threading.Condition | None = None
        self._state = "PENDING"
        self._result: Message | None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._cancel_request = cancel
        self._later = later

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        with self._making:
            if self._made is None:
                self._made = threading.Condition()
            return self._made

    def _finish_quietly(self, result: Message | None, exception: BaseException | None) -> bool:
        """Finish, if nobody has made the condition yet and so nobody waits."""
        with self._making:
            if self._made is not None:
                return False
            self._result, self._exception = result, exception
            self._state = "FINISHED"
            return True

    def answer(self, reply: Message) -> None:
        """Finish with a result."""
        if not self._finish_quietly(reply, None):
            self.set_result(reply)

    def fail(self, error: EvtwsError) -> None:
        """Finish with an exception; a request that was removed is a cancelled Future."""
        if isinstance(error, RequestCancelled):
            self._become_cancelled()
        elif not self._finish_quietly(None, error):
            self.set_exception(error)

    def cancel(self) -> bool:
        """Remove the request from the queue; False if it has ended already, unless it was cancelled."""
        if self._cancel_request():
            self._become_cancelled()
        return self.cancelled()

    def _become_cancelled(self) -> None:
        super().cancel()
        # So that `wait` and `as_completed` of concurrent.futures end.
        self.set_running_or_notify_cancel()

    def add_done_callback(self, fn: Callable[[Future[Message]], object]) -> None:
        """Call `fn(future)` on the callbacks thread once the Future is done, at once if it is done already."""
        super().add_done_callback(lambda future: self._later([Task(fn, (future,))]))


class InFuture(Call):
    """A request whose reply goes into a Future."""

    __slots__ = ("future",)

    future: Reply

    def answer(self, reply: Message) -> None:
        self.future.answer(reply)

    def fail(self, error: EvtwsError) -> None:
        self.future.fail(error)


class Calling(Call):
    """A request whose reply goes to its message's callback."""

    __slots__ = ("_connection", "_later", "_report")

    def __init__(
        self,
        message: Message,
        asked_at: float,
        timeout: float | None,
        in_flight: InFlight,
        *,
        connection: Connection,
        later: Callable[[Iterable[Task]], object],
        report: Callable[[EvtwsError], object],
    ) -> None:
        super().__init__(message, asked_at, timeout, in_flight)
        self._connection = connection
        self._later = later
        self._report = report

    def answer(self, reply: Message) -> None:
        callback = self.message.callback
        assert callback is not None
        self._later([Task(callback, (reply, self._connection))])

    def fail(self, error: EvtwsError) -> None:
        if isinstance(error, RequestCancelled):
            return  # removal is silent: it was asked for
        on_failure = self.message.on_failure
        if on_failure is None:
            self._report(error)
        else:
            self._later([Task(on_failure, (error, self._connection))])


class Streaming(Call):
    """A request with several replies, taken one by one by an iterator.

    At most `maxsize` replies wait to be taken; one more ends the stream with SlowConsumer.
    """

    __slots__ = ("_changed", "_error", "_maxsize", "_replies", "ended", "until")
    needs_timer = False
    streaming = True

    def __init__(
        self,
        message: Message,
        asked_at: float,
        in_flight: InFlight,
        until: Callable[[Message], bool],
        maxsize: int,
    ) -> None:
        super().__init__(message, asked_at, None, in_flight)
        self.until = until
        self.ended = False
        self._maxsize = maxsize
        self._replies: deque[Message] = deque()
        self._error: EvtwsError | None = None
        # Guards what is above; notified when a reply or the end comes.
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another reply."""
        return len(self._replies) >= self._maxsize

    def overflow(self) -> SlowConsumer:
        """What ends a stream that is not taken fast enough."""
        return SlowConsumer(f"{self._maxsize} replies of a stream wait to be taken already", 1)

    def answer(self, reply: Message) -> None:
        with self._changed:
            self._replies.append(reply)
            self._changed.notify()

    def fail(self, error: EvtwsError) -> None:
        with self._changed:
            self._error = error
        self.end()

    def end(self) -> None:
        """No reply comes any more; those that wait can still be taken."""
        with self._changed:
            self.ended = True
            self._changed.notify()

    def take(self, timeout: float | None) -> Message | None:
        """The next reply; None at the end. Raises what ended the stream early, TimeoutError when none comes in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._replies or self.ended, timeout):
                raise TimeoutError
            if self._replies:
                return self._replies.popleft()
            if self._error is not None:
                raise self._error
            return None
