"""The door: a lock, and what is left at it by those who find it taken."""

from __future__ import annotations

import threading

import pytest

from evtws.door import Door

from .interrupts import Interrupt, interrupts, needs_alarm
from .timing import SOON


class Hall:
    """A door and what was let in, one at a time."""

    def __init__(self) -> None:
        self.door: Door[int] = Door(self._let_in)
        self.inside: list[int] = []
        self.threads: set[int] = set()

    def _let_in(self) -> None:
        assert self.door.is_taken()
        self.threads.add(threading.get_ident())
        self.inside.append(self.door.left.popleft())


def test_nobody_holds_it() -> None:
    """What is left at a free door is let in at once, by who leaves it."""
    hall = Hall()
    hall.door.leave(1)
    assert (hall.inside, hall.threads) == ([1], {threading.get_ident()})
    assert not hall.door.is_taken()


def test_somebody_holds_it() -> None:
    """What is left at a taken door is let in by who lets go of it, all of it, in its order."""
    hall = Hall()

    def stay() -> None:
        others = [threading.Thread(target=hall.door.leave, args=(number,)) for number in range(3)]
        for other in others:
            other.start()
            other.join(SOON)
            assert not other.is_alive()
        assert hall.inside == []

    hall.door.go_through(stay)
    assert (hall.inside, hall.threads) == ([0, 1, 2], {threading.get_ident()})
    assert not hall.door.is_taken()


def test_going_through() -> None:
    """What goes through holds the lock, is given its arguments, and returns its result."""
    hall = Hall()
    assert hall.door.go_through(lambda *args, **kwargs: (args, kwargs, hall.door.is_taken()), 1, a=2) == (
        (1,),
        {"a": 2},
        True,
    )
    assert (hall.inside, hall.door.is_taken()) == ([], False)


def test_who_goes_through_raises() -> None:
    """What was left meanwhile is let in although who went through raised."""
    hall = Hall()

    def stumble() -> None:
        hall.door.leave(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hall.door.go_through(stumble)
    assert (hall.inside, hall.door.is_taken()) == ([1], False)


def test_somebody_comes_while_others_are_let_in() -> None:
    """What is left while others are let in comes in after them."""
    came: list[int] = []

    def let_in() -> None:
        came.append(door.left.popleft())
        if len(came) == 1:
            door.leave(2)

    door: Door[int] = Door(let_in)
    door.leave(1)
    assert came == [1, 2]


def test_somebody_takes_it_right_after_it_was_let_go() -> None:
    """What is left is none of one's business once somebody else holds the door: who lets go last lets it in."""
    hall = Hall()
    door = hall.door

    class Taken(threading.Thread):
        """Takes the lock when the first holder has let go of it, and looks what is inside then."""

        has_it, may_go = threading.Event(), threading.Event()

        def run(self) -> None:
            door.go_through(self.stay)

        def stay(self) -> None:
            self.has_it.set()
            self.may_go.wait(SOON)

    taker = Taken()
    door.go_through(taker.start)
    assert taker.has_it.wait(SOON)
    door.leave(1)
    other = threading.Thread(target=door.leave, args=(2,))
    other.start()
    other.join(SOON)
    assert hall.inside == []
    taker.may_go.set()
    taker.join(SOON)
    assert (hall.inside, hall.threads) == ([1, 2], {taker.ident})


def test_letting_in_raises() -> None:
    """The door is free again when letting in raises."""

    def let_in() -> None:
        raise KeyboardInterrupt

    door: Door[int] = Door(let_in)
    with pytest.raises(KeyboardInterrupt):
        door.leave(1)
    assert not door.is_taken()


def test_many_threads() -> None:
    """Of many threads, each one's things are let in once and in its order."""
    hall = Hall()

    def bring(first: int) -> None:
        for number in range(first, first + 1000):
            hall.door.leave(number)

    threads = [threading.Thread(target=bring, args=(first,)) for first in range(0, 8000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(hall.inside) == list(range(8000))
    for first in range(0, 8000, 1000):
        mine = [number for number in hall.inside if first <= number < first + 1000]
        assert mine == sorted(mine)
    assert not hall.door.left


@needs_alarm
def test_interrupted_anywhere() -> None:
    """An interrupt leaves the door free, whichever step of the thread it comes before."""
    hall = Hall()
    with interrupts() as ring_in:
        for number in range(2000):
            try:
                ring_in(0.00002 + number % 50 * 0.000002)
                while True:
                    hall.door.go_through(hall.door.leave, number)
            except Interrupt:
                ring_in(0)
            assert not hall.door.is_taken()
    hall.door.look()
    assert not hall.door.left
