"""The callback queue: every user callback, one after another, in order, on one thread."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import NoReturn

import pytest

from evtws.callbacks import CallbackQueue, name_of
from evtws.task import Task

from .timing import MS, SOON


class Queue(CallbackQueue):
    """A queue that keeps what it reports."""

    def __init__(self, limit: int = 10) -> None:
        self.errors: list[BaseException] = []
        self.rooms: list[int] = []
        super().__init__(
            limit,
            on_error=lambda _task, exc: self.errors.append(exc),
            on_room=lambda: self.rooms.append(len(self)),
        )

    def finish(self) -> None:
        """Run what is queued, and end."""
        self.stop()
        assert self.join(SOON)


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue()
    yield queue
    queue.finish()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "evtws-callbacks"]


def test_tasks_run_in_order_on_one_thread(queue: Queue) -> None:
    """Tasks run one after another, in the order in which they were queued, on the thread evtws-callbacks."""
    seen: list[tuple[int, str]] = []
    for start in range(0, 100, 10):
        queue.extend(
            Task(lambda number: seen.append((number, threading.current_thread().name)), (number,))
            for number in range(start, start + 10)
        )
    queue.finish()
    assert seen == [(number, "evtws-callbacks") for number in range(100)]


def test_the_thread_starts_when_it_is_needed(queue: Queue) -> None:
    """There is no thread before the first task, and one daemon thread from then on."""
    assert threads() == []
    queue.extend([])
    assert threads() == []
    assert queue.join(0)
    daemons: list[bool] = []
    done = threading.Event()
    queue.extend([Task(lambda: daemons.append(threading.current_thread().daemon), ())])
    queue.extend([Task(done.set, ())])
    assert done.wait(SOON)
    assert threads() == ["evtws-callbacks"]
    assert daemons == [True]


def raises(error: type[BaseException]) -> NoReturn:
    raise error("on purpose")


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_callback_raises_stops_nothing(
    queue: Queue, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """Whatever a callback raises is counted, logged with its traceback and reported; the next one runs."""
    done = threading.Event()
    queue.extend([Task(raises, (error,)), Task(done.set, ())])
    assert done.wait(SOON)
    assert [type(exc) for exc in queue.errors] == [error]
    assert queue.failed == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert record.exc_info[0] is error


def test_room_is_told_once_half_is_empty(queue: Queue) -> None:
    """After note_full, on_room is called once, when half of the limit or less waits; not without note_full."""
    go, in_it = threading.Event(), threading.Event()
    queue.extend([Task(in_it.set, ()), Task(go.wait, (SOON,))])
    assert in_it.wait(SOON)
    queue.extend([Task(int, ())] * 12)
    assert queue.room == 0
    assert len(queue) >= 12
    queue.note_full()
    go.set()
    queue.finish()
    assert queue.rooms == [5]
    assert queue.room == 10


def test_idle_is_told_when_nothing_is_left(queue: Queue) -> None:
    """on_idle is called when the last task has ended; idle is False while one waits or runs."""
    idle, go, in_it = threading.Event(), threading.Event(), threading.Event()
    queue.on_idle = idle.set
    seen = [queue.idle]
    queue.extend([Task(in_it.set, ()), Task(go.wait, (SOON,))])
    assert in_it.wait(SOON)
    seen.append(queue.idle)
    go.set()
    assert idle.wait(SOON)
    assert [*seen, queue.idle] == [True, False, True]


def test_busy_names_what_runs_and_for_how_long(queue: Queue) -> None:
    """busy says which function runs and for how many seconds, and None when none does."""
    go, in_it = threading.Event(), threading.Event()

    def slow() -> None:
        in_it.set()
        go.wait(SOON)

    assert [queue.busy] == [None]
    queue.extend([Task(slow, ())])
    assert in_it.wait(SOON)
    busy = queue.busy
    assert busy is not None
    assert busy.startswith("0.")
    assert busy.endswith("slow")
    go.set()
    queue.finish()
    assert [queue.busy] == [None]


def test_a_callable_without_a_name_is_shown() -> None:
    """name_of gives the qualified name, or the repr of what has none."""

    class Nameless:
        def __repr__(self) -> str:
            return "<nameless>"

    assert name_of(test_a_callable_without_a_name_is_shown) == "test_a_callable_without_a_name_is_shown"
    assert name_of(Nameless()) == "<nameless>"


def test_a_task_knows_that_it_is_one(queue: Queue) -> None:
    """is_current_thread is True in a task and False elsewhere; a task that joins its own thread does not wait."""
    seen: list[bool] = []
    queue.extend([Task(lambda: seen.extend([queue.is_current_thread, queue.join(None)]), ())])
    queue.finish()
    assert seen == [True, True]
    assert not queue.is_current_thread


def test_stop_lets_the_queue_run_empty() -> None:
    """After stop, what is queued still runs, then the thread ends; what comes later runs on another thread."""
    queue = Queue()
    go = threading.Event()
    seen: list[int] = []
    queue.extend([Task(go.wait, (SOON,)), *(Task(seen.append, (number,)) for number in range(20))])
    queue.stop()
    go.set()
    assert queue.join(None)
    assert seen == list(range(20))
    assert threads() == []
    queue.extend([Task(seen.append, (20,))])
    assert queue.join(None)
    assert seen[20:] == [20]
    assert threads() == []


def test_no_thread_is_started_when_none_may_be() -> None:
    """With may_start False tasks stay where they are: the interpreter exits and starts no thread any more."""
    queue = Queue()
    queue.may_start = False
    queue.extend([Task(int, ())])
    assert threads() == []
    assert len(queue) == 1


def test_the_first_task_waits_for_the_thread_before(queue: Queue) -> None:
    """A queue made `after` a thread runs nothing until that has ended: no two callbacks run at once."""
    go = threading.Event()
    seen: list[int] = []
    queue.extend([Task(go.wait, (SOON,)), Task(seen.append, (1,))])
    second = CallbackQueue(10, on_error=print, on_room=print, after=queue.thread)
    second.extend([Task(seen.append, (2,))])
    second.stop()
    assert not second.join(10 * MS)
    second.extend([Task(seen.append, (3,))])
    go.set()
    queue.stop()
    assert second.join(SOON)
    assert seen == [1, 3]


def test_stop_wakes_a_thread_that_sleeps() -> None:
    """A thread with nothing to do ends at once when it is told to stop."""
    queue = Queue()
    idle = threading.Event()
    queue.on_idle = idle.set
    queue.extend([Task(int, ())])
    assert idle.wait(SOON)
    queue.finish()
    assert threads() == []


def test_a_callback_that_does_not_return_is_detached(caplog: pytest.LogCaptureFixture) -> None:
    """join gives up after its timeout, drops what waits and names the callback; the thread ends when that returns."""
    queue = Queue()
    go, in_it = threading.Event(), threading.Event()
    seen: list[int] = []
    queue.extend([Task(in_it.set, ()), Task(go.wait, (SOON,)), Task(seen.append, (1,))])
    assert in_it.wait(SOON)
    queue.stop()
    assert not queue.join(10 * MS)
    assert len(queue) == 0
    [record] = caplog.records
    assert "wait" in record.getMessage()
    assert "1 callbacks are dropped" in record.getMessage()
    go.set()
    assert queue.join(SOON)
    assert seen == []


def test_nothing_is_lost_among_many_threads() -> None:
    """Tasks that come while the thread falls asleep all run, in the order of each thread that brings them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    queue = Queue()
    seen: list[tuple[int, int]] = []
    ran = threading.Semaphore(0)

    def run(item: tuple[int, int]) -> None:
        seen.append(item)
        ran.release()

    def bring(source: int) -> None:
        for number in range(300):
            queue.extend([Task(run, ((source, number),))])
            assert source or ran.acquire(timeout=SOON)  # one of them waits, so that the queue is often empty

    try:
        sources = [threading.Thread(target=bring, args=(source,)) for source in range(4)]
        for thread in sources:
            thread.start()
        for thread in sources:
            thread.join(2 * SOON)
        queue.finish()
    finally:
        sys.setswitchinterval(before)
    for source in range(4):
        assert [number for other, number in seen if other == source] == list(range(300))


def test_a_sleeping_thread_is_always_woken() -> None:
    """Of many single tasks, each of which waits for the one before, not one is overlooked."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    queue = Queue()
    done = threading.Semaphore(0)
    try:
        for _ in range(2000):
            queue.extend([Task(done.release, ())])
            assert done.acquire(timeout=SOON)
    finally:
        sys.setswitchinterval(before)
        queue.finish()


def test_a_thread_that_cannot_start_loses_nothing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no thread can be started the tasks stay, which is logged; the next task tries again."""
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _thread: raises(RuntimeError))
        queue.extend([Task(seen.append, (1,))])
    assert "no thread can be started for callbacks; 1 wait" in caplog.text
    assert len(queue) == 1
    queue.extend([Task(seen.append, (2,))])
    queue.finish()
    assert seen == [1, 2]


def test_the_thread_keeps_nothing_alive_while_it_sleeps(queue: Queue) -> None:
    """What a task was given can be collected once it has run, though no other task comes."""

    class Owner:
        pass

    owner = Owner()
    gone = threading.Event()
    weakref.finalize(owner, gone.set)
    queue.extend([Task(lambda _owner: None, (owner,))])
    del owner
    for _ in range(100):
        gc.collect()
        if gone.wait(SOON / 100):
            break
    assert gone.is_set()
