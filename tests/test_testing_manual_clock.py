"""The clock that moves only when it is told to."""

import doctest
import math
import threading

import pytest

from evtws import ConnectionLost, ReconnectPolicy
from evtws.reconnect import Reconnect
from evtws.testing import ManualClock, manual_clock


def test_it_stands_still() -> None:
    """The clock shows the same time, called or read, until it is told to advance."""
    clock = ManualClock(5)
    assert clock() == clock.now == clock() == 5.0
    assert clock.advance(2.5) == 7.5
    assert clock() == clock.now == 7.5


def test_sleep_is_an_advance() -> None:
    """A sleep takes no time but the clock's."""
    clock = ManualClock()
    sleep = clock.sleep
    sleep(3600)
    assert clock.now == 3600


@pytest.mark.parametrize("seconds", [-0.001, math.nan, math.inf])
def test_it_does_not_go_back(seconds: float) -> None:
    """Going back, or nowhere, is a ValueError that names the number, and changes nothing."""
    clock = ManualClock()
    with pytest.raises(ValueError, match=str(seconds)):
        clock.advance(seconds)
    with pytest.raises(ValueError, match=str(seconds)):
        clock.sleep(seconds)
    assert clock.now == 0


def test_it_begins_somewhere() -> None:
    """A start that is no time is a ValueError."""
    with pytest.raises(ValueError, match="nan"):
        ManualClock(math.nan)


def test_any_thread_may_advance() -> None:
    """No advance is lost when several threads advance at once."""
    clock = ManualClock()
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now == 8000


def test_it_drives_a_policy() -> None:
    """A policy counts its attempts anew once a connection has lived `stable_after` seconds by this clock."""
    clock = ManualClock()
    reconnect = Reconnect(ReconnectPolicy(wait=lambda state: float(state.attempt_number)), refreshable=False)
    for expected, lived in ((1.0, 1), (2.0, 9.5), (1.0, 10)):
        reconnect.opened(clock.now)
        clock.advance(lived)
        delay = reconnect.failed(ConnectionLost("cut"), clock.now)
        assert delay == expected
        clock.sleep(delay)
    assert clock.now == 24.5


def test_example_is_true() -> None:
    """The example in the docstring does what it says."""
    assert doctest.testmod(manual_clock) == (0, 8)
