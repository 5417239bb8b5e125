"""The specification of evtws/timers.py."""

import gc
import time
import weakref

from evtws.message import Message
from evtws.pending import Call
from evtws.timers import Timers


class Watched(Call):
    __slots__ = ("__weakref__",)


def make(deadline: float) -> Call:
    return Watched(Message("x"), 0, deadline)


def test_nothing_is_due() -> None:
    """Without calls there is nothing to look at."""
    timers = Timers()
    assert timers.next_at is None
    assert timers.due(1e9) == []


def test_due_calls_come_earliest_first() -> None:
    """The calls whose deadline has come are taken out once, the earliest first, the older first of two at once."""
    timers = Timers()
    late, first, second, early = make(30), make(20), make(20), make(10)
    for call in (late, first, second, early):
        timers.add(call)
    assert timers.due(9.9) == []
    assert timers.due(20) == [early, first, second]
    assert timers.due(20) == []
    assert timers.next_at == 30
    assert timers.due(30) == [late]


def test_add_tells_of_the_first() -> None:
    """Adding a call says whether it is now the first that falls due."""
    timers = Timers()
    assert timers.add(make(20))
    assert not timers.add(make(20))
    assert not timers.add(make(30))
    assert timers.add(make(10))
    assert timers.next_at == 10


def test_ended_calls_are_never_due() -> None:
    """A call that ended before its deadline is dropped when that comes."""
    timers = Timers()
    call = make(10)
    timers.add(call)
    call.ended_at = 5
    assert timers.due(10) == []
    assert len(timers) == 0


def test_ended_call_at_the_top_stays() -> None:
    """The end of the first call does not change when to look: nobody need be woken for the next."""
    timers = Timers()
    call = make(10)
    timers.add(call)
    call.ended_at = 5
    assert timers.next_at == 10
    assert not timers.add(make(11))


def test_ended_calls_are_not_kept_alive() -> None:
    """Of ten thousand calls that ended long before their deadline only a few are still held."""
    timers = Timers()
    references = []
    for number in range(10_000):
        call = make(1000 + number)
        timers.add(call)
        call.ended_at = 1
        references.append(weakref.ref(call))
        del call
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 65
    assert len(timers) <= 65


def test_living_calls_survive_the_ended_ones() -> None:
    """Forgetting the ended calls forgets no other, nor their order."""
    timers = Timers()
    living = []
    for number in range(1000):
        call = make(1000 - number)
        timers.add(call)
        if number % 10:
            call.ended_at = 1
        else:
            living.append(call)
    assert timers.due(1000) == living[::-1]


def test_many_living_calls_cost_little() -> None:
    """Adding a hundred thousand calls does not look through all of them each time."""

    def cost(size: int) -> float:
        timers = Timers()
        calls = [make(number) for number in range(size)]
        gc.disable()  # its cost grows with all that other tests have left
        try:
            before = time.thread_time()
            for call in calls:
                timers.add(call)
            assert len(timers.due(size)) == size
            return time.thread_time() - before
        finally:
            gc.enable()

    for size in (10_000, 100_000):  # the smaller first: what is quadratic fails before it takes minutes
        assert cost(size) < 40 * max(cost(size // 10), cost(size // 10), 0.001)
