"""What the parts of a connection share: its end, its writing, and what the user is told."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import Connection, ConnectionLost, Message, OutboxFull, ReplyTimeout
from evtws.calls import SendOnly, Waiting
from evtws.errors import EvtwsError, ForkedError, UserCodeError
from evtws.life import Life
from evtws.options import Options
from evtws.pending import Call
from evtws.session import Failed
from evtws.task import Task
from evtws.testing import Server

from .faults.support import Ear, echo, only_client, until
from .timing import MS, SOON


@contextmanager
def living(**options: Any) -> Iterator[Life]:
    """A life that is OPEN without a socket."""
    connection = Connection()
    life = Life(weakref.ref(connection), Options(**options), refreshable=False)
    life.session.dial(0.0)
    life.session.tick(0.0)
    life.session.opened(0.0)
    try:
        yield life
    finally:
        life.callbacks.stop()
        assert life.callbacks.join(SOON)
        life.poller.close()


class Writer:
    """A transport that takes so many messages, and then is lost."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written: list[Call] = []
        self.heard_at: float | None = None

    def send(self, _data: bytes, calls: Sequence[Call]) -> None:
        if len(self.written) >= self.room:
            raise ConnectionLost("gone")
        self.written += calls


def plain(body: str) -> SendOnly:
    """A message that nobody awaits a reply to."""
    return SendOnly(Message(body), 0.0, None, lambda error: ())


def waiting(body: str, timeout: float | None = None) -> Waiting:
    """A request."""
    return Waiting(Message(body), 0.0, timeout, "fail")


# -- the end of a connection


def test_a_connection_is_lost_once() -> None:
    """The first fault of the present connection stands; a connection that is gone already has none."""
    with living() as life:
        present: Any = Writer(0)
        other: Any = Writer(0)
        life.transport = present
        first, second = ConnectionLost("first"), ConnectionLost("second")
        life.lose(other, second)
        assert life.fault is None
        life.lose(present, first)
        life.lose(present, second)
        assert life.fault is first


class Broken:
    """A transport whose writing was interrupted."""

    def __init__(self, error: ConnectionLost | None) -> None:
        self.error = error
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.mark.parametrize("error", [None, ConnectionLost("a write was interrupted")])
def test_after_an_interrupt(error: ConnectionLost | None) -> None:
    """What was left is written, callbacks that nobody was woken for run, and a broken connection is lost."""
    told: list[int] = []
    with living() as life:
        ended = waiting("x")
        life.session.submit(ended, 0.0)
        ended.ended_at = 1.0  # and not taken out
        transport: Any = Broken(error)
        life.transport = transport
        life.callbacks._tasks.append(Task(told.append, (1,)))  # and its thread not woken
        life.after_interrupt()
        assert until(lambda: told == [1])
        assert (transport.flushed, life.fault, len(life.session.pending)) == (1, error, 0)
        life.transport = None
        life.after_interrupt()  # nothing to write to


def test_a_connection_that_is_gone() -> None:
    """The end of a life whose Connection is gone does not hide that it was dropped unclosed."""
    with living() as life:
        here, life.connection = life.connection, weakref.ref(Connection())
        life.session.close(evtws.ConnectionClosed(1000, by_peer=False), 0.0, None)
        told = []
        for reference in (life.connection, here):
            life.connection = reference
            with life.lock:
                life.state_changed()
            told.append(life.ended.is_set())
        assert told == [False, True]


def test_a_forked_child() -> None:
    """In a forked child nothing of the life may be touched."""
    with living() as life:
        life.check_process()
        life.forked = True
        with pytest.raises(ForkedError):
            life.check_process()


# -- writing


def test_what_waited_is_written() -> None:
    """What waited is written in its order; what cannot be written is kept, unless the connection's end tells of it."""
    with living(outbox=10) as life:
        writer: Any = Writer(2)
        life.transport = writer
        calls = [plain("a"), waiting("b"), waiting("c"), plain("d"), plain("e")]
        for call in calls:
            call.sent_at = 1.0
        with life.lock:
            life.write_all(calls)
            assert writer.written == calls[:2]
            assert life.session.outbox.take_all() == calls[3:]
        assert [call.sent_at for call in calls] == [1.0, 1.0, 1.0, None, None]


# -- telling the user


def test_errors_without_on_error(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no on_error, what is reported is logged."""
    with living() as life, caplog.at_level(logging.WARNING, "evtws"):
        assert list(life.report(EvtwsError("what went wrong"))) == []
    assert caplog.messages == ["what went wrong"]


def test_errors_are_told() -> None:
    """What is reported, what ended without a reply and what expired is told on the callbacks thread, in order."""
    told: list[Any] = []

    def on_error(error: EvtwsError) -> None:
        told.append((error, threading.current_thread().name))

    with living(on_error=on_error) as life:
        reported = EvtwsError("reported")
        life.tell(life.report(reported))
        failed, late = waiting("a"), waiting("b", timeout=1.0)
        life.fail([Failed(failed, reported)])
        life.expire([late], 2.0)
        assert failed.error is reported
        assert isinstance(late.error, ReplyTimeout)
        assert (late.error.waited, "nothing received" in str(late.error)) == (2.0, True)
        writer: Any = Writer(0)
        writer.heard_at = 1.5
        life.transport = writer
        assert "last byte 0.5 s ago" in str(life.timeout_of(late, 2.0))
        assert until(lambda: told) == [(reported, "evtws-callbacks")]


def test_a_callback_raises() -> None:
    """What a callback raises is reported, but for what on_error itself raises."""
    told: list[EvtwsError] = []

    def on_error(error: EvtwsError) -> None:
        told.append(error)
        raise LookupError("again")

    def bad() -> None:
        raise LookupError("no")

    with living(on_error=on_error) as life:
        life.tell([Task(bad, ())])
        assert until(lambda: life.callbacks.failed == 2)
    (error,) = told
    assert isinstance(error, UserCodeError)
    assert "bad" in str(error)


def test_the_callbacks_outlive_the_life() -> None:
    """A callback that is still running does not keep the life alive, and what it raises then is only logged."""
    entered, leave = threading.Event(), threading.Event()

    def bad() -> None:
        entered.set()
        leave.wait(SOON)
        raise LookupError("too late")

    life = Life(weakref.ref(Connection()), Options(), refreshable=False)
    callbacks, gone = life.callbacks, weakref.ref(life)
    life.tell([Task(bad, ())])
    assert entered.wait(SOON)
    life.poller.close()
    del life
    gc.collect()
    assert gone() is None
    leave.set()
    callbacks.stop()
    assert callbacks.join(SOON)
    assert callbacks.failed == 1


# -- waiting


def test_waiting_serves_the_timers() -> None:
    """While sockets are waited for, a call whose time is up is told, and the wait ends."""
    with living(ping_interval=None) as life:
        now = time.monotonic()
        call = SendOnly(Message("x"), now, 20 * MS, life.report)
        with life.lock:
            life.session.outbox.hold(call)
            assert life.session.timers.add(call)
        assert life.wait_for([], [], math.inf) == []
        assert time.monotonic() - now >= 20 * MS
        assert call.ended_at is not None
        assert life.next_at() is None


def test_waiting_ends() -> None:
    """A wait ends by its deadline or by a wake-up; without either it would last."""
    with living(ping_interval=None) as life:
        before = time.monotonic()
        assert life.wait_for([], [], before + 20 * MS) == []
        assert time.monotonic() - before >= 19 * MS
        life.poller.wake()
        assert life.wait_for([], [], math.inf) == []


# -- what the options make of it


@pytest.mark.parametrize("outbox", [1, (5, 3)])
def test_the_outbox(outbox: int | tuple[int, int]) -> None:
    """The outbox is bounded by messages, and by bytes where both are given."""
    with living(outbox=outbox) as life:
        life.session.outbox.add(plain("ab"))
        with pytest.raises(OutboxFull):
            life.session.outbox.add(plain("cd"))


def test_a_life_of_two_connections() -> None:
    """One life goes on over several connections, and counts what all of them sent and received."""
    ear = Ear()
    with Server(echo) as server, evtws.connect(server.url, reconnect=True, **ear.options) as connection:
        for number in (1, 2):
            client = only_client(server)
            assert connection.request(Message.json({"id": number}), timeout=SOON).params == {"id": number}
            if number == 1:
                connection.reconnect_now()
                ear.wait_for(lambda: ear.connected == 2)
                assert until(lambda: not client.is_open)  # noqa: B023
        stats = connection.stats()
        assert (stats.messages_sent, stats.messages_received, stats.reconnects) == (2, 2, 1)
