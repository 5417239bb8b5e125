"""Engine: the I/O thread of one life of a connection; it carries out what the session decides.

The thread connects, waits, reads, flushes, routes, and serves one heap of timers. While it waits it holds the engine
weakly, so that a Connection that is dropped without close() is collected, and the thread ends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .ending import FAREWELL, Ending
from .errors import ConnectionClosed, ConnectionLost, EvtwsError
from .frames import encode_close
from .life import Life
from .opening import Opening
from .options import URL, Options
from .poller import Poller
from .pulse import Pulse
from .reader import Reader
from .router import Router
from .sender import Sender
from .session import Due
from .state import State
from .stats import Stats
from .tombstones import Verdict

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("evtws")

#: Seconds beyond its timeout that close() waits for the threads, which have nothing left to wait for then.
GRACE = 0.2


class Engine:
    """What a Connection is made of while it is not CLOSED; `first_must_open` as for Ending, `after` as for Life."""

    def __init__(
        self,
        connection: Connection,
        options: Options,
        url: URL,
        *,
        first_must_open: bool,
        after: threading.Thread | None = None,
    ) -> None:
        refreshable = callable(url) or callable(options.headers)
        self.life = Life(weakref.ref(connection), options, refreshable=refreshable, after=after)
        self.pulse = Pulse(self.life)
        self.router = Router(self.life, self.pulse.pong_received)
        self.reader = Reader(self.life, self.pulse, self.router)
        self.sender = Sender(self.life, self.reader)
        self._opening = Opening(self.life, url)
        self._ending = Ending(self.life, self.reader, first_must_open=first_must_open)
        self._drained = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(weakref.ref(self), self.life.poller), name="evtws-io", daemon=True
        )

    def start(self) -> None:
        """Begin the first attempt. Raises RuntimeError if no thread can be started."""
        self.life.session.dial(time.monotonic())
        try:
            self._thread.start()
        except RuntimeError:
            self._ending.crash()
            self.life.poller.close()
            raise

    # -- the I/O thread's rounds

    @property
    def over(self) -> bool:
        """Whether this life has ended."""
        return self.life.session.state is State.CLOSED and self.life.transport is None

    def step(self, ready: bool) -> float | None:
        """Do what can be done without waiting; returns the seconds until the next round (None: no limit)."""
        life = self.life
        if life.connection() is None:
            self._ending.abandon()
            return 0.0
        more = False
        transport = life.transport
        if transport is not None:
            if transport.wants_write:
                transport.flush()
            more = self.reader.round(transport, ready)
        if life.fault is not None:
            self._ending.end(life.fault)
        if life.session.state is State.CLOSING and life.transport is None:
            # close() came during a backoff: there is nothing to wait for.
            self._ending.end(ConnectionLost("the connection was closed"))
        now = time.monotonic()
        at = life.next_at()
        if at is not None and at <= now:
            self.reader.look_again()
            self._tick(now, judge=not more and not self.reader.held)
            at = life.next_at()
        if life.session.draining:
            self._check_drained()
        if more:
            return 0.0
        resumes_at = self.reader.resumes_at(now)
        if resumes_at is not None:
            at = resumes_at if at is None else min(at, resumes_at)
        return None if at is None else max(0.0, at - time.monotonic())

    def _tick(self, now: float, *, judge: bool) -> None:
        life = self.life
        with life.lock:
            due = life.session.tick(now, judge=judge)
            life.write_all(due.writes)
        life.expire(due.expired, now)
        if due.ping:
            self.pulse.beat(now)
        self._change(due)

    def _change(self, due: Due) -> None:
        if due.abort:
            self._ending.end(ConnectionLost("the peer did not answer the close frame in time"))
        elif due.lost is not None:
            self._ending.end(due.lost)
        elif due.dial:
            try:
                self._opening.attempt()
            except EvtwsError as error:
                self._ending.end(error)

    def _check_drained(self) -> None:
        life = self.life
        with life.lock:
            transport, session = life.transport, life.session
            waiting = len(session.pending) or len(session.outbox) or (transport is not None and transport.backlog)
        if not waiting and life.callbacks.idle:
            self._drained.set()

    def finish(self) -> None:
        """The last thing that the I/O thread does."""
        self.life.callbacks.stop()
        self._drained.set()

    def crash(self) -> None:
        """The I/O thread failed by a defect."""
        logger.exception("the I/O thread failed; the connection is closed")
        self._ending.crash()

    # -- wishes, from any thread

    def drain(self, timeout: float | None) -> bool:
        """Accept no more, and wait until everything accepted has ended; False if that takes longer than `timeout`."""
        life = self.life
        with life.lock:
            life.session.draining = True
        life.callbacks.on_idle = life.poller.wake
        life.poller.wake()
        return self._drained.wait(timeout)

    def reconnect(self) -> None:
        """Dial anew at once: ends a backoff, or closes the present connection."""
        life = self.life
        with life.lock:
            life.session.reconnect_now(time.monotonic())
            transport = life.transport
        if transport is not None:
            life.lose(transport, ConnectionClosed(1000, "reconnect_now()", by_peer=False))
        life.poller.wake()

    def close(self, code: int, reason: str, timeout: float | None) -> None:
        """End this life, within `timeout` seconds and a little."""
        encode_close(code, reason, masked=True)  # refuses what may not be sent
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.begin_close(code, reason, deadline)
        if not self._is_own_thread():
            self.join(deadline)

    def begin_close(self, code: int, reason: str, deadline: float) -> None:
        """Tell everybody that it ends, and have the I/O thread end it before the deadline (monotonic)."""
        life = self.life
        with life.lock:
            error = ConnectionClosed(code, reason, by_peer=False)
            close_by = None if math.isinf(deadline) else deadline
            transport = life.transport
            if transport is not None:
                transport.seal()
            failed = life.session.close(error, time.monotonic(), close_by)
            if life.parting is not None:
                life.session.close_by = close_by  # the farewell of a lost connection is to end by then, too
            pings: list[Any] = life.session.keepalive.lost()
            life.state_changed()
        life.fail(failed)
        for waiter in pings:
            waiter.fail(error)
        if transport is not None:
            transport.send_close(code, reason)
        life.poller.wake()

    def forget_in_child(self) -> None:
        """This process is a forked child: give its copies of the descriptors back, without a word to the peer."""
        self.life.forked = True
        self.life.poller.forget()
        if (transport := self.life.transport) is not None:
            transport.forget()

    def _is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread or self.reader.is_current_thread

    def wait_for_end(self) -> threading.Thread | None:
        """Of a life that is CLOSED: wait until the peer was told goodbye; the thread that may still run callbacks."""
        _join(self._thread, time.monotonic() + FAREWELL, GRACE)
        return self.life.callbacks.thread

    def join(self, deadline: float, grace: float = GRACE) -> None:
        """Wait for the threads until the deadline (monotonic) and a little; one in user code then is detached."""
        life = self.life
        if not _join(self._thread, deadline, grace):
            logger.warning("the I/O thread sits in a function of the user's or in the resolver; it is detached")
            if (transport := life.transport) is not None:
                transport.abort()
        if not _join(life.preparer, deadline, grace):
            logger.warning("prepare() does not return; its thread is detached")
        life.callbacks.stop()
        life.callbacks.join(_left(deadline, grace))

    # -- numbers

    def stats(self) -> Stats:
        """A snapshot of everything that is counted."""
        life, router = self.life, self.router
        life.check_process()
        with life.lock:
            session, transport, keepalive = life.session, life.transport or life.parting, life.session.keepalive
            since = session.opened_at
            return Stats(
                state=session.state,
                uptime=None if since is None else time.monotonic() - since,
                reconnects=max(0, session.openings - 1),
                messages_sent=life.messages_sent + (transport.messages_sent if transport else 0),
                messages_received=router.received,
                bytes_sent=life.bytes_sent + (transport.bytes_sent if transport else 0),
                bytes_received=life.bytes_received + (transport.bytes_received if transport else 0),
                pending=len(session.pending),
                outbox=len(session.outbox),
                late=router.verdicts[Verdict.LATE],
                duplicate=router.verdicts[Verdict.DUPLICATE],
                unmatched=router.verdicts[Verdict.UNKNOWN],
                callbacks_queued=len(life.callbacks),
                callbacks_dropped=router.dropped,
                callbacks_failed=life.callbacks.failed,
                rtt_last=keepalive.rtt_last,
                rtt_min=keepalive.rtt_min,
                rtt_mean=keepalive.rtt_mean,
                pings_unanswered=keepalive.unanswered,
            )


def _run(reference: weakref.ref[Engine], poller: Poller) -> None:
    """The I/O thread: rounds of the engine, which it does not keep alive while it waits."""
    ready, transport = False, None
    try:
        while (engine := reference()) is not None:
            try:
                timeout = engine.step(ready)
            except BaseException:
                engine.crash()
            transport = engine.life.transport
            if engine.over:
                engine.finish()
                return
            del engine
            ready = poller.wait(timeout)
        if transport is not None:  # the engine was collected, its socket was not
            poller.unwatch()
            transport.abort()
            transport.close()
    finally:
        poller.close()


def _left(deadline: float, grace: float) -> float | None:
    return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()) + grace


def _join(thread: threading.Thread | None, deadline: float, grace: float) -> bool:
    if thread is None or thread is threading.current_thread() or not thread.is_alive():
        return True
    thread.join(_left(deadline, grace))
    return not thread.is_alive()
