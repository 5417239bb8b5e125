"""Keepalive: pings due, pings unanswered, round-trip times.

Every time is in seconds of a monotonic clock, and given as `now`.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: At most so many pings that nobody waits for are remembered; a peer that never answers must not fill the
#: memory.
MAX_OUTSTANDING = 1000

#: What somebody waits with for the pong, and the round-trip time in seconds.
Answered = list[tuple[object, float]]


class _Ping(NamedTuple):
    payload: bytes | None
    sent_at: float
    waiter: object | None
    scheduled: bool


class Keepalive:
    """When to ping, and whether the peer still answers.

    `interval` is in seconds between pings; None sends none, but `ping()` of the user works all the same.
    When a ping falls due, `threshold` scheduled ones are unanswered and `count_pongs` is true, the
    connection is stale.

    `rtt_last`, `rtt_min` and `rtt_mean` are in seconds, of the present connection, None before its first
    pong; only pongs of which it is certain to which ping they belong are measured. Raises ValueError when
    the interval is not above 0 or the threshold is below 1.
    """

    def __init__(self, interval: float | None, threshold: int = 2, count_pongs: bool = True) -> None:
        if interval is not None and not interval > 0:
            raise ValueError(f"ping_interval must be above 0 seconds, or None for no pings, not {interval!r}")
        if not threshold >= 1:
            raise ValueError(f"unreceived_ping_threshold must be at least 1, not {threshold!r}")
        self.interval = interval
        self.threshold = threshold
        self.count_pongs = count_pongs
        #: When the next ping is due; None: none is.
        self.due_at: float | None = None
        self._outstanding: deque[_Ping] = deque()
        self._composed = 0
        self._clear_times()

    def _clear_times(self) -> None:
        self.rtt_last: float | None = None
        self.rtt_min: float | None = None
        self._rtt_sum = 0.0
        self._rtt_count = 0

    def started(self, now: float) -> None:
        """A connection was opened: nothing is outstanding, and the first ping is due after one interval."""
        self._outstanding.clear()
        self._composed = 0
        self._clear_times()
        self.postpone(now)

    def postpone(self, now: float) -> None:
        """The next ping is due one interval from now, and nobody is judged before.

        To be called instead of judging while reading is paused, and once more when it resumes: the pongs
        may have been there unread.
        """
        self.due_at = None if self.interval is None else now + self.interval

    def is_due(self, now: float) -> bool:
        """Whether it is time for a ping."""
        return self.due_at is not None and now >= self.due_at

    @property
    def is_stale(self) -> bool:
        """Whether too many pings went unanswered; to be asked when a ping falls due, after all was read.

        Pings that the user asked for do not count: several at once say nothing of how long the peer was
        silent.
        """
        return self.count_pongs and sum(ping.scheduled for ping in self._outstanding) >= self.threshold

    @property
    def unanswered(self) -> int:
        """How many pings have no pong yet, the user's own included."""
        return len(self._outstanding)

    @property
    def rtt_mean(self) -> float | None:
        """The mean round-trip time of this connection in seconds; None before the first pong."""
        return self._rtt_sum / self._rtt_count if self._rtt_count else None

    def compose(self) -> bytes:
        """A payload that no other ping of this connection has: a counter."""
        self._composed += 1
        return b"%d" % self._composed

    def sent(self, payload: bytes | None, now: float, waiter: object | None = None, *, scheduled: bool = True) -> None:
        """A ping was sent; with `scheduled` the next one is due after one interval.

        `payload` is None when no pong will name it (a service's own ping). `waiter` is whatever `pong`
        shall hand back. A ping that the user asked for is not `scheduled`: it leaves the schedule alone.
        """
        self._outstanding.append(_Ping(payload, now, waiter, scheduled))
        if scheduled:
            self.postpone(now)
        if len(self._outstanding) > MAX_OUTSTANDING:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        # A ping that somebody waits for is kept: those are as many as there are callers.
        for index, ping in enumerate(self._outstanding):
            if ping.waiter is None:
                del self._outstanding[index]
                return

    def pong(self, payload: bytes, now: float) -> Answered:
        """A pong came: it answers the newest ping of its payload and all before it (RFC 6455 section 5.5.3).

        Returns the waiters that this answers. A pong that belongs to no ping is ignored, as the RFC asks.
        """
        found = [index for index, ping in enumerate(self._outstanding) if ping.payload == payload]
        if not found:
            return []
        if len(found) == 1:
            self._measure(now - self._outstanding[found[0]].sent_at)
        return self._answer(found[-1] + 1, now)

    def pong_received(self, now: float) -> Answered:
        """A service's own pong came, which names no ping: it answers them all. Returns the waiters."""
        if len(self._outstanding) == 1:
            self._measure(now - self._outstanding[0].sent_at)
        return self._answer(len(self._outstanding), now)

    def _answer(self, count: int, now: float) -> Answered:
        pings = [self._outstanding.popleft() for _ in range(count)]
        return [(ping.waiter, now - ping.sent_at) for ping in pings if ping.waiter is not None]

    def _measure(self, rtt: float) -> None:
        self.rtt_last = rtt
        self.rtt_min = rtt if self.rtt_min is None else min(rtt, self.rtt_min)
        self._rtt_sum += rtt
        self._rtt_count += 1

    def forget(self, waiter: object) -> None:
        """Nobody waits with `waiter` any more (it timed out); its ping stays unanswered."""
        for index, ping in enumerate(self._outstanding):
            if ping.waiter is waiter:
                self._outstanding[index] = ping._replace(waiter=None)

    def lost(self) -> list[object]:
        """The connection ended: no ping is due or outstanding. Returns the waiters, which get no pong."""
        waiters = [ping.waiter for ping in self._outstanding if ping.waiter is not None]
        self._outstanding.clear()
        self.due_at = None
        return waiters
