"""Interrupts at any moment: what Ctrl-C does, without ending the tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from .timing import MS

#: Seconds until it rings again.
AGAIN = 100 * MS

# What traces a test takes locks of its own at each line, and would be left with one by an interrupt.
needs_alarm = pytest.mark.skipif(
    not hasattr(signal, "setitimer") or sys.gettrace() is not None, reason="there is no such alarm, or a tracer"
)


class Interrupt(BaseException):
    """What the alarm raises, as Ctrl-C raises KeyboardInterrupt: between any two steps of the main thread."""


@contextmanager
def interrupts() -> Iterator[Callable[[float], object]]:
    """What sets the alarm, to ring in so many seconds, and later again; 0 stops it.

    Again, because what is raised in the destructor of some garbage is lost, as any Ctrl-C there is.
    """

    def ring(_signal: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
