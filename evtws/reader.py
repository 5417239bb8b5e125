"""Reader: bytes in, messages routed; by the I/O thread, or by a caller while it awaits its own reply."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from .errors import ConnectionClosed, ConnectionLost, EvtwsError, WouldDeadlock
from .frames import Close, Opcode, Ping, Pong, Received
from .life import Life
from .poller import ReadWait
from .pulse import Pulse
from .router import Router
from .transport import Transport


class Waiter(Protocol):
    """Somebody who waits for one call to end; `wake` is called when it does, while it is not None."""

    wake: Callable[[], object] | None

    @property
    def has_ended(self) -> bool:
        """Whether the call has ended."""
        ...

    def wait_until(self, deadline: float | None) -> bool:
        """Block until the call has ended or the deadline (monotonic) has come; whether it has ended."""
        ...


#: Seconds for which the reading is left to a caller that reads again and again.
LINGER = 0.001
#: Seconds between two attempts to take the reading away from a caller.
_PATIENCE = 0.02
#: Seconds that `look_again` waits for somebody else who reads.
_MOMENT = 0.001
#: How often it reads at most: a mebibyte.
_READS = 16


class Reader:
    """Whoever holds `life.reading` reads and routes; nobody else does."""

    def __init__(self, life: Life, pulse: Pulse, router: Router) -> None:
        self._life = life
        self._pulse = pulse
        self._router = router
        #: True while a callback itself waits for a reply: reading goes on although the queue is full.
        self._callback_waits = False
        #: True while nothing is read because the callback queue is full.
        self.held = False
        # Who waits; a set, whose changes need no lock.
        self._waiting: set[Waiter] = set()
        # When a caller last stopped reading, and whether the I/O thread leaves the reading to the next one.
        self._left_at = 0.0
        self._lingering = False
        # Where a caller that reads waits; made when first needed, for one transport. Guarded by `life.reading`.
        self._wait: ReadWait | None = None

    # -- on the I/O thread

    def round(self, transport: Transport, ready: bool) -> bool:
        """Read once, if there is something and nobody else does the reading; whether there is more at hand."""
        if not (ready or self.held or transport.has_more) or not self.may_read():
            return False
        if not self._life.reading.acquire(blocking=False):
            return False
        try:
            self._read(transport)
            return transport.has_more
        finally:
            self._life.reading.release()

    def resumes_at(self, now: float) -> float | None:
        """When the I/O thread has to look whether it must read again (monotonic); None: it does, or another reads.

        A caller that has read and is about to ask again finds the reading left to it: switching it back and forth
        costs more than reading. A message that comes in between waits for `LINGER` seconds at most.
        """
        if self._lingering and now - self._left_at >= LINGER:
            self._lingering = False
            # Looked at after that was said: who stops reading now gives the interest back, or says so again.
            if self._life.reading.acquire(blocking=False):
                self._life.reading.release()
                self._life.poller.want_read(True)
        return now + LINGER if self._lingering else None

    def may_read(self) -> bool:
        """Whether the callback queue has room for what is read, where `overflow="block"` asks that."""
        if self._life.options.overflow == "drop":
            return True
        if self.held or not self._life.callbacks.room:
            self._hold_or_resume()
        # A callback that begins to wait says so before it looks whether reading is held, and this is the other way.
        reads = not self.held or self._callback_waits
        self._life.poller.want_read(reads)
        return reads

    def _hold_or_resume(self) -> None:
        life, was_held = self._life, self.held
        life.callbacks.note_full()
        # Looked at after the note: half of it may have emptied just before.
        self.held = life.callbacks.room < max(1, life.callbacks.limit // 2)
        if was_held and not self.held:
            with life.lock:
                # The pongs may have been there unread.
                life.session.keepalive.postpone(time.monotonic())

    def let_callers_go(self) -> None:
        """Take the reading away from a caller; the socket may be closed afterwards."""
        reading = self._life.reading
        while not reading.acquire(timeout=_PATIENCE):
            if (wait := self._wait) is not None:
                wait.wake()
        try:
            if self._wait is not None:
                self._wait.close()
                self._wait = None
        finally:
            reading.release()

    # -- on a caller's thread

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        """Wait until this waiter is done or the deadline (monotonic seconds) has come; whether it is done.

        The caller does the reading meanwhile if nobody else waits: that saves two changes of thread for each request.
        Where several wait, the I/O thread serves them better.
        """
        life = self._life
        self.check_may_wait()
        if life.callbacks.is_current_thread:
            with self.reading_on():
                return waiter.wait_until(deadline)
        self._waiting.add(waiter)
        try:
            if len(self._waiting) == 1 and life.poller.can_share and not self._is_full:
                self._try_reading(waiter, deadline)
            if waiter.has_ended:
                return True
            self._stop_lingering()
            return waiter.wait_until(deadline)
        except BaseException:
            life.after_interrupt()
            raise
        finally:
            self._waiting.discard(waiter)

    @property
    def _is_full(self) -> bool:
        """Whether nothing may be read, but for a callback that waits."""
        return self._life.options.overflow == "block" and (self.held or not self._life.callbacks.room)

    def _stop_lingering(self) -> None:
        if self._lingering:
            self._lingering = False
            self._life.poller.want_read(True)

    @contextlib.contextmanager
    def reading_on(self) -> Iterator[None]:
        """While the caller waits for what the peer sends, outside of `wait`.

        Where that is the callbacks thread, it does not empty its queue, and reading must go on all the same.
        """
        if not self._life.callbacks.is_current_thread:
            yield
            return
        self._callback_waits = True
        if self.held:
            self._life.poller.wake()
        try:
            yield
        finally:
            self._callback_waits = False

    def check_may_wait(self) -> None:
        """Raise WouldDeadlock where messages are read: nothing more is read until that function returns.

        Raises ForkedError in a forked child, where nobody reads.
        """
        self._life.check_process()
        if self.is_current_thread:
            raise WouldDeadlock("a function that runs where messages are read cannot wait for one; use a callback")

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is a function of the user's that runs where messages are read."""
        return self._life.routing_thread == threading.get_ident()

    def _try_reading(self, waiter: Waiter, deadline: float | None) -> None:
        life = self._life
        soon = False
        transport: Transport | None = None
        try:
            # Inside the `try`: after it any step may be interrupted.
            if not life.reading.acquire(blocking=False):
                return
            soon = time.monotonic() - self._left_at < LINGER
            transport = life.transport
            if transport is not None:
                life.poller.want_read(False)
                self._read_until(transport, waiter, deadline)
        finally:
            try:
                life.reading.release()  # first, by a step that cannot be interrupted before it is done
            except RuntimeError:
                pass  # another has it
            else:
                self._left_at = time.monotonic()
                self._hand_back(soon)
        if transport is not None and (transport.has_more or life.session.draining):
            life.poller.wake()  # no selector tells of these bytes

    def _hand_back(self, soon: bool) -> None:
        """Leave the reading to the I/O thread; for a moment to nobody, if this caller read just before, too."""
        if not soon or len(self._waiting) > 1:
            self._life.poller.want_read(True)
        elif not self._lingering:
            self._lingering = True
            self._life.poller.wake()

    def _read_until(self, transport: Transport, waiter: Waiter, deadline: float | None) -> None:
        """Read and route until the waiter is done, or the deadline or the end of the connection has come."""
        life = self._life
        wait = self._wait = self._wait or ReadWait(transport)
        while life.transport is transport and life.fault is None:
            if not transport.has_more:
                # Whoever ends this call on another thread must wake this one, but only while it waits.
                waiter.wake = wait.wake
                if not waiter.has_ended:
                    wait.wait(deadline)
                waiter.wake = None
            self._read(transport)
            if waiter.has_ended or self._is_full or (deadline is not None and time.monotonic() >= deadline):
                return

    def look_again(self) -> None:
        """Read what is there, within a bound, before somebody is told that his time is up.

        After the whole process was held up, a reply or a pong may lie unread in the kernel; it is not late.
        """
        transport = self._life.transport
        if transport is None or self.held:
            return
        try:
            if not self._life.reading.acquire(timeout=_MOMENT):
                return
            for _ in range(_READS):
                before = transport.bytes_received
                self._read(transport)
                if transport.bytes_received == before and not transport.has_more:
                    break
        finally:
            try:
                self._life.reading.release()
            except RuntimeError:
                pass  # another has it

    # -- whoever it is

    def _read(self, transport: Transport) -> None:
        """Read and route a bounded amount; requires `life.reading`."""
        try:
            items = transport.receive()
            if items:
                self._handle(transport, items)
        except EvtwsError as error:
            self._life.lose(transport, error)
        except BaseException:
            # A Ctrl-C in here: bytes may be missing, so this stream is never resumed.
            self._life.lose(transport, ConnectionLost("reading was interrupted"))
            raise

    def _handle(self, transport: Transport, items: list[Received]) -> None:
        bodies: list[str | bytes] = []
        for item in items:
            if isinstance(item, (str, bytes)):
                bodies.append(item)
            else:
                if bodies:
                    self._router.route(bodies)
                    bodies = []
                self._control(transport, item)
        if bodies:
            self._router.route(bodies)
        if self._life.correlation.in_order:
            with self._life.lock:
                self._life.write_all(self._life.session.unblocked(time.monotonic()))
                sooner = self._life.session.sooner
            if sooner:
                self._life.poller.wake()

    def _control(self, transport: Transport, item: Ping | Pong | Close) -> None:
        if isinstance(item, Ping):
            transport.send_control(Opcode.PONG, item.payload)
        elif isinstance(item, Pong):
            self._pulse.pong(item.payload)
        else:
            self._life.lose(transport, ConnectionClosed(item.code, item.reason, by_peer=True))
