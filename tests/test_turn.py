"""Turn: a lock that a Ctrl-C cannot leave taken."""

from __future__ import annotations

import threading

import pytest

from evtws.turn import Turn

from .timing import SOON


def held_elsewhere(turn: Turn) -> tuple[threading.Event, threading.Thread]:
    """A thread that has taken it until the event is set."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            taken.set()
            done.wait(SOON)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(SOON)
    return done, thread


def test_one_owner() -> None:
    """One thread at a time has it, which alone is its owner."""
    turn = Turn()
    done, thread = held_elsewhere(turn)
    assert (turn.locked(), turn.owned(), turn.acquire(blocking=False)) == (True, False, False)
    done.set()
    thread.join(SOON)
    assert not turn.locked()
    with turn:
        assert (turn.locked(), turn.owned()) == (True, True)
    assert (turn.locked(), turn.owned()) == (False, False)


def test_release_by_another() -> None:
    """Releasing what another thread has does nothing."""
    turn = Turn()
    done, thread = held_elsewhere(turn)
    turn.release()
    assert turn.locked()
    done.set()
    thread.join(SOON)


def test_interrupted_while_entering() -> None:
    """A Ctrl-C that comes just when it was taken leaves it free."""
    turn = Turn()
    acquire = turn.acquire

    def interrupted() -> bool:
        acquire()
        raise KeyboardInterrupt

    turn.acquire = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), turn:
        pass
    turn.acquire = acquire
    assert not turn.locked()
