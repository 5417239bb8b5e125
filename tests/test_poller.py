"""The pollers: where the I/O thread waits, and where a caller reads instead."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from evtws import poller as room
from evtws.poller import EpollPoller, Poller, ReadWait, SelectorPoller, Waker, make_poller

from .raw import descriptors
from .timing import MS, SOON

KINDS: list[type[Poller]] = [SelectorPoller, *([EpollPoller] if hasattr(select, "epoll") else [])]


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        yield here, there


@pytest.fixture(params=KINDS)
def poller(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Poller]:
    """One of each kind; closed before the pair, as a watched socket is unwatched before it is closed."""
    made: Poller = request.param()
    yield made
    made.close()


def fill(sock: socket.socket) -> None:
    """Leave no room to write."""
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass


class Background:
    """A thread in `poller.wait`."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.result: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.result = self._poller.wait(SOON)

    def waits(self) -> bool:
        """Whether it still waits after a moment."""
        self._thread.join(20 * MS)
        return self._thread.is_alive()

    def join(self) -> bool | None:
        self._thread.join(SOON / 2)
        assert not self._thread.is_alive()
        return self.result


def test_the_best_poller_of_the_platform_is_made() -> None:
    """make_poller gives epoll where there is epoll: there a caller may do the reading."""
    made = make_poller()
    made.close()
    assert type(made) is KINDS[-1]
    assert made.can_share is hasattr(select, "epoll")


def test_without_epoll_the_selector_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the platform has no epoll, make_poller gives one whose reading is not shared."""
    monkeypatch.delattr(select, "epoll", raising=False)
    made = make_poller()
    made.close()
    assert type(made) is SelectorPoller
    assert not made.can_share


def test_nothing_ready_is_a_timeout(poller: Poller, pair: Pair) -> None:
    """wait returns False when its seconds are over."""
    poller.watch(pair[0])
    before = time.monotonic()
    assert not poller.wait(20 * MS)
    assert time.monotonic() - before >= 19 * MS


def test_a_wait_without_limit_ends_for_a_look_at_the_time(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of None and of more than LONGEST end after LONGEST: no system takes every number."""
    monkeypatch.setattr(room, "LONGEST", 10 * MS)
    assert not poller.wait(None)
    assert not poller.wait(1e12)


def test_bytes_make_it_ready(poller: Poller, pair: Pair) -> None:
    """wait is True while there are bytes to read."""
    poller.watch(pair[0])
    background = Background(poller)
    pair[1].send(b"x")
    assert background.join() is True
    assert poller.wait(SOON)
    pair[0].recv(10)
    assert not poller.wait(0)


def test_the_end_of_the_stream_makes_it_ready(poller: Poller, pair: Pair) -> None:
    """wait is True when the peer has gone."""
    poller.watch(pair[0])
    pair[1].close()
    assert poller.wait(SOON)


def test_wake_ends_a_wait_once(poller: Poller, pair: Pair) -> None:
    """wake ends the present wait or the next one, and is forgotten then, however often it was called."""
    poller.watch(pair[0])
    background = Background(poller)
    assert background.waits()
    poller.wake()
    assert background.join() is False
    for _ in range(100):
        poller.wake()
    before = time.monotonic()
    assert not poller.wait(SOON)
    assert time.monotonic() - before < SOON / 2
    assert not poller.wait(10 * MS)
    assert time.monotonic() - before >= 9 * MS


def test_bytes_are_not_told_while_nobody_wants_to_read(poller: Poller, pair: Pair) -> None:
    """want_read(False) hides bytes from a wait, want_read(True) shows them again, also to a wait in progress."""
    poller.watch(pair[0])
    poller.want_read(False)
    poller.want_read(False)
    pair[1].send(b"x")
    assert not poller.wait(0)
    background = Background(poller)
    if poller.can_share:
        assert background.waits()
    poller.want_read(True)
    background.join()
    assert poller.wait(SOON)


def test_reading_is_resumed_whatever_was_told_before(poller: Poller, pair: Pair) -> None:
    """Bytes are told after `resume_reading`, though the system was told otherwise than is noted here."""
    here, there = pair
    poller.watch(here)
    poller.want_read(False)
    poller._read = True  # as an interrupted want_read leaves it
    poller.resume_reading()
    poller.wait(0)  # which it wakes
    there.send(b"x")
    assert poller.wait(SOON)


def test_room_to_write_ends_a_wait_if_it_is_wanted(poller: Poller, pair: Pair) -> None:
    """want_write(True) ends a wait once there is room to write, want_write(False) no longer does."""
    here, there = pair
    fill(here)
    poller.watch(here)
    poller.want_write(True)
    poller.want_write(True)
    poller.wait(0)
    background = Background(poller)
    assert background.waits()
    while select.select([there], [], [], 0)[0]:
        there.recv(1 << 20)
    background.join()
    before = time.monotonic()
    poller.wait(SOON)
    assert time.monotonic() - before < SOON / 2
    poller.want_write(False)
    poller.wait(0)
    assert not poller.wait(10 * MS)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="only epoll tells the two apart")
def test_room_to_write_is_nothing_to_read(pair: Pair) -> None:
    """With epoll a wait that ends by room to write is False: no read is tried in vain."""
    poller = EpollPoller()
    poller.watch(pair[0])
    poller.want_write(True)
    assert not poller.wait(SOON)
    pair[1].send(b"x")
    assert poller.wait(SOON)
    poller.close()


def test_a_dead_socket_that_nobody_wants_to_read_makes_no_busy_loop(poller: Poller, pair: Pair) -> None:
    """An error on a socket whose reading is held ends at most one wait; it is told again once reading is wanted."""
    poller.watch(pair[0])
    poller.want_read(False)
    pair[1].close()
    poller.wait(0)
    before = time.monotonic()
    assert not poller.wait(20 * MS)
    assert time.monotonic() - before >= 19 * MS
    poller.want_read(True)
    poller.wait(0)
    assert poller.wait(SOON)


def test_a_socket_is_not_watched_any_longer(poller: Poller, pair: Pair) -> None:
    """After unwatch nothing of that socket is told, and interests may change; the next one starts with reading."""
    here, there = pair
    poller.watch(here)
    poller.want_read(False)
    poller.want_write(True)
    poller.unwatch()
    poller.unwatch()
    there.send(b"x")
    poller.wait(0)
    assert not poller.wait(0)
    poller.want_write(False)
    poller.want_write(True)
    poller.watch(here)
    poller.wait(0)
    assert poller.wait(SOON)


def test_wait_for_gives_the_sockets_that_are_ready(poller: Poller, pair: Pair) -> None:
    """wait_for names which of several sockets can be read or written; [] after the timeout or a wake."""
    here, there = pair
    assert poller.wait_for([here, there], [], 0) == []
    assert poller.wait_for([], [here], SOON) == [here]
    assert poller.wait_for([here], [here], SOON) == [here]
    there.send(b"x")
    assert poller.wait_for([here, there], [], SOON) == [here]
    poller.wake()
    assert poller.wait_for([there], [], SOON) == []
    assert poller.wait_for([there], [], 0) == []


def test_close_gives_the_descriptors_back_and_wakes_no_one() -> None:
    """After close, wake does nothing, and must not write into a descriptor that is somebody else's by now."""
    for kind in KINDS:
        poller = kind()
        poller.close()
        poller.close()
        assert poller.waker.closed
        poller.wake()


def test_forget_closes_without_the_lock() -> None:
    """forget closes the descriptors although the locks are held for ever, as in a forked child."""
    before = descriptors()
    for kind in KINDS:
        poller = kind()
        with poller._lock, poller.waker._lock:
            poller.forget()
    assert descriptors() == before


def test_a_waker_can_be_woken_any_number_of_times() -> None:
    """wake never blocks, though nobody clears; clear may find nothing."""
    waker = Waker()
    waker.clear()
    for _ in range(20_000):
        waker.wake()
    assert select.select([waker], [], [], 0)[0]
    while select.select([waker], [], [], 0)[0]:
        waker.clear()
    waker.close()


def test_read_wait_ends_by_bytes_a_wake_or_the_deadline(pair: Pair) -> None:
    """ReadWait.wait returns when there are bytes, when somebody wakes, and at its deadline."""
    waiting = ReadWait(pair[0])
    before = time.monotonic()
    waiting.wait(before + 20 * MS)
    assert time.monotonic() - before >= 19 * MS
    waiting.wait(before)
    waiting.wake()
    waiting.wait(None)
    pair[1].send(b"x")
    waiting.wait(None)
    waiting.wait(time.monotonic() + SOON)
    assert time.monotonic() - before < SOON / 2
    waiting.close()
    waiting.wake()


@pytest.mark.parametrize("method", ["wait", "_register", "_unregister", "_update"])
def test_a_poller_says_how_it_waits(method: str) -> None:
    """What a kind of poller must bring is not in the base."""
    base = Poller()
    with pytest.raises(NotImplementedError):
        getattr(base, method)(*([0] if method == "wait" else []))
    base.close()
