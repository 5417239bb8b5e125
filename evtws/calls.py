"""The ways in which a sender is told what became of its call: a wait, a Future, a callback, an iterator.

`answer` and `fail` are called once, by whoever took the call out of the queue, and never under a lock; they wake who
waits at once, and return what is left for the callbacks thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from .errors import EvtwsError, RequestCancelled, SlowConsumer
from .message import InFlight, Message
from .pending import Call
from .task import Task

if TYPE_CHECKING:
    from .connection import Connection

#: Where a lock's wait cannot be interrupted by Ctrl-C it is taken in slices of this many seconds.
_SLICE = 0.5 if os.name == "nt" else threading.TIMEOUT_MAX


class SendOnly(Call):
    """A message that nobody awaits a reply to."""

    __slots__ = ("_report",)
    wants_reply = False

    def __init__(
        self,
        message: Message,
        asked_at: float,
        timeout: float | None,
        report: Callable[[EvtwsError], Sequence[Task]],
    ) -> None:
        super().__init__(message, asked_at, timeout)
        self._report = report

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        return () if isinstance(error, RequestCancelled) else self._report(error)


class Waiting(Call):
    """A thread that waits in `request()`.

    `wake` is what ends the wait of a thread that does the reading meanwhile, None while it does not.
    """

    __slots__ = ("_done", "error", "reply", "wake")
    needs_timer = False

    def __init__(self, message: Message, asked_at: float, timeout: float | None, in_flight: InFlight) -> None:
        super().__init__(message, asked_at, timeout, in_flight)
        # A lock, taken now and let go of once: the cheapest thing that one thread can wait for.
        self._done = threading.Lock()
        self._done.acquire()
        self.reply: Message | None = None
        self.error: EvtwsError | None = None
        self.wake: Callable[[], object] | None = None

    def answer(self, reply: Message) -> Sequence[Task]:
        self.reply = reply
        if not self.has_ended:  # else a Ctrl-C came right after it
            self._end()
        return ()

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        self.error = error
        self._end()
        return ()

    def _end(self) -> None:
        self._done.release()
        if (wake := self.wake) is not None:
            wake()

    @property
    def has_ended(self) -> bool:
        """Whether the call has ended."""
        return not self._done.locked()

    def wait_until(self, deadline: float | None) -> bool:
        """Block until the call has ended or the deadline (monotonic) has come; whether it has ended."""
        while True:
            left = _SLICE if deadline is None else deadline - time.monotonic()
            if self._done.acquire(timeout=max(0.0, min(left, _SLICE))):
                self._done.release()  # `has_ended` reads it again
                return True
            if left <= 0:
                return False

    def wait_on(self) -> None:
        """Block until the call has ended, for when somebody is about to end it."""
        with self._done:
            pass


class Reply(Future["Message"]):
    """A Future for the reply to one request.

    `cancel()` removes the request from the queue. Done-callbacks run on the callbacks thread. A thread that waits in
    `result` or `exception` may do the reading meanwhile, by `wait(reply, deadline)`.
    """

    # Guards the making of a Future's condition, an ending that needs none, and the list of callbacks; one for all
    # Futures, since it is held for a few steps only.
    _guard = threading.Lock()

    # What a Future begins with, said once for all of them.
    _made: threading.Condition | None = None
    _state = "PENDING"
    _result: Message | None = None
    _exception: BaseException | None = None
    _waiters: list[Any]
    _done_callbacks: Sequence[Any] = ()  # stays empty: they are `_tasks`
    _tasks: list[Task] | None = None
    _told: tuple[SimpleQueue[None], ...] = ()  # of threads that wait
    _ended = False
    #: What ends the wait of a thread that does the reading, None while it does not wait.
    wake: Callable[[], object] | None = None

    def __init__(
        self,
        remove: Callable[[], bool],
        later: Callable[[Sequence[Task]], object],
        wait: Callable[[Any, float | None], bool],
    ) -> None:
        # Not Future.__init__: the Condition that it makes is most of a Future's 1.7 KB and of its cost, and a
        # Future that is asked for its result after it is done never needs it.
        self._remove = remove
        self._later = later
        self._wait = wait

    def result(self, timeout: float | None = None) -> Message:
        """The reply. Raises what the request ended by, CancelledError, or TimeoutError after `timeout` seconds.

        On Python 3.10 that is concurrent.futures.TimeoutError, which is not yet the builtin one.
        """
        if self._is_finished(timeout) and self._result is not None:
            return self._result
        try:
            return super().result(0)
        finally:
            del self  # else the exception, by its traceback, and this Future keep each other alive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the request ended by, None if that was a reply. Raises as `result` does."""
        return self._exception if self._is_finished(timeout) else super().exception(0)

    def _is_finished(self, timeout: float | None) -> bool:
        """Wait until there is a result or an exception; False if there is none in time, or it was cancelled."""
        if self._state != "FINISHED":
            self._wait(self, None if timeout is None else time.monotonic() + timeout)
        return self._state == "FINISHED"

    @property
    def has_ended(self) -> bool:
        """Whether the call has ended."""
        return self._state != "PENDING"

    def wait_until(self, deadline: float | None) -> bool:
        """Block until the call has ended or the deadline (monotonic) has come; whether it has ended."""
        # Not by the condition: a Ctrl-C could leave it taken, and with it whoever ends this for ever.
        told: SimpleQueue[None] = SimpleQueue()
        with self._guard:
            if self._ended:
                return True
            self._told = (*self._told, told)
        try:
            told.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            return self.has_ended
        return True

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        with self._guard:
            if self._made is None:
                self._waiters = []
                self._made = threading.Condition()
            return self._made

    def answer(self, reply: Message) -> Sequence[Task]:
        """Finish with a result."""
        if not self.has_ended and not self._finish_quietly(reply, None):
            self.set_result(reply)
        return self._take_tasks()

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        """Finish with an exception; a request that was removed is a cancelled Future."""
        if isinstance(error, RequestCancelled):
            super().cancel()
            # So that `wait` and `as_completed` of concurrent.futures end.
            self.set_running_or_notify_cancel()
        elif not self._finish_quietly(None, error):
            self.set_exception(error)
        return self._take_tasks()

    def _finish_quietly(self, result: Message | None, exception: BaseException | None) -> bool:
        """Finish, if nobody has made the condition yet and so nobody waits."""
        with self._guard:
            if self._made is not None:
                return False
            self._result, self._exception = result, exception
            self._state = "FINISHED"
            return True

    def _take_tasks(self) -> Sequence[Task]:
        with self._guard:
            self._ended = True
            tasks, self._tasks = self._tasks, None
            waiting, self._told = self._told, ()
            self._remove = bool  # False, as it is gone: the call and its Future keep each other alive no longer
        for told in waiting:
            told.put(None)
        if (wake := self.wake) is not None:
            wake()
        return tasks or ()

    def cancel(self) -> bool:
        """Remove the request from the queue; False if it ended otherwise before."""
        if self._remove():
            self._later(self.fail(RequestCancelled("the Future was cancelled")))
        return self.cancelled()

    def add_done_callback(self, fn: Callable[[Future[Message]], object]) -> None:
        """Call `fn(future)` on the callbacks thread once the Future is done, at once if it is done already."""
        task = Task(fn, (self,))
        with self._guard:
            if not self._ended:
                self._tasks = [*(self._tasks or ()), task]
                return
        self._later([task])


class InFuture(Call):
    """A request whose reply goes into a Future."""

    __slots__ = ("future",)

    future: Reply

    def answer(self, reply: Message) -> Sequence[Task]:
        return self.future.answer(reply)

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        return self.future.fail(error)


class Calling(Call):
    """A request whose reply goes to its message's callback."""

    __slots__ = ("_connection", "_report")

    def __init__(
        self,
        message: Message,
        asked_at: float,
        timeout: float | None,
        in_flight: InFlight,
        *,
        connection: Connection,
        report: Callable[[EvtwsError], Sequence[Task]],
    ) -> None:
        super().__init__(message, asked_at, timeout, in_flight)
        self._connection = connection
        self._report = report

    def answer(self, reply: Message) -> Sequence[Task]:
        callback = self.message.callback
        assert callback is not None
        return (Task(callback, (reply, self._connection)),)

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        if isinstance(error, RequestCancelled):
            return ()  # removal is silent: it was asked for
        on_failure = self.message.on_failure
        return self._report(error) if on_failure is None else (Task(on_failure, (error, self._connection)),)


class Streaming(Call):
    """A request with several replies, taken one by one by an iterator.

    At most `maxsize` replies wait to be taken; one more ends the stream with SlowConsumer.
    """

    __slots__ = ("_error", "_maxsize", "_replies", "ended", "overflowed", "until")
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
        #: The peer goes on sending replies that nobody took in time.
        self.overflowed = False
        self._maxsize = maxsize
        # None behind the last reply. No Ctrl-C can leave it locked, as it can a Condition.
        self._replies: SimpleQueue[Message | None] = SimpleQueue()
        self._error: EvtwsError | None = None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another reply."""
        return self._replies.qsize() >= self._maxsize

    def overflow(self) -> SlowConsumer:
        """What ends a stream that is not taken fast enough."""
        self.overflowed = True
        return SlowConsumer(f"{self._maxsize} replies of a stream wait to be taken already", 1)

    def answer(self, reply: Message) -> Sequence[Task]:
        self._replies.put(reply)
        return ()

    def fail(self, error: EvtwsError) -> Sequence[Task]:
        self._error = error
        self.end()
        return ()

    def end(self) -> None:
        """No reply comes any more; those that wait can still be taken."""
        self.ended = True
        self._replies.put(None)

    def take(self, timeout: float | None) -> Message | None:
        """The next reply; None at the end. Raises what ended the stream early, TimeoutError when none comes in time."""
        reply = self._next(timeout)
        if reply is None and self._error is not None:
            raise self._error
        return reply

    def _next(self, timeout: float | None) -> Message | None:
        while True:
            ended = self.ended  # looked at first: what comes before the end is in the queue then
            try:
                reply = self._replies.get(not ended, timeout)
            except Empty:
                if ended:
                    return None  # another thread looks at the end just now
                if self.ended:
                    continue  # it came just when the time was up
                raise TimeoutError from None
            if reply is not None:
                return reply
            last = self._replies.empty()  # False if `until` itself removed the request: its reply comes after that
            self._replies.put(None)  # for whoever asks again
            if last:
                return None
