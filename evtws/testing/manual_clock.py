"""ManualClock: a clock that moves only when it is told to, for whatever takes `now`."""

from __future__ import annotations

import math
import threading


class ManualClock:
    """A monotonic clock in seconds, for tests that do not want to wait; it may be used from any thread.

    >>> from evtws.keepalive import Keepalive
    >>> clock = ManualClock()
    >>> keepalive = Keepalive(interval=20)
    >>> keepalive.started(clock.now)
    >>> clock.advance(19.5)
    19.5
    >>> keepalive.is_due(clock.now)
    False
    >>> clock.sleep(0.5)  # for code that wants a sleep
    >>> keepalive.is_due(clock())  # for code that wants a time.monotonic
    True

    It begins at `start`. Raises ValueError when it would go back, or to no finite time.
    """

    def __init__(self, start: float = 0.0) -> None:
        if not math.isfinite(start):
            raise ValueError(f"start is a finite number of seconds, not {start!r}")
        self._now = float(start)
        self._lock = threading.Lock()  # guards _now between its reading and its writing

    def __call__(self) -> float:
        return self._now

    @property
    def now(self) -> float:
        """The time in seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move on by so many seconds, and return the new time."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a clock advances by a finite number of seconds of at least 0, not {seconds!r}")
        with self._lock:
            self._now += seconds
            return self._now

    def sleep(self, seconds: float) -> None:
        """Return at once, so many seconds later by this clock."""
        self.advance(seconds)
