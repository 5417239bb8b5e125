"""The I/O thread: its rounds, its timers, and its end."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from evtws import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    ForkedError,
    Message,
    NotConnected,
    ReplyTimeout,
    StaleConnection,
    State,
    in_order,
)
from evtws import engine as engine_module
from evtws.testing import ClientConnection, RawServer, Server

from .faults.support import Ear, ask, echo, only_client, until
from .live import NEVER, QUICK, collect, dialled, hold, nothing_leaks
from .timing import MS, SOON

__all__ = ["nothing_leaks"]


def test_pings_are_sent_on_time() -> None:
    """While OPEN a ping goes out every `ping_interval`."""
    with Server() as server, dialled(server, ping_interval=20 * MS) as connection:
        client = only_client(server)
        assert until(lambda: client.pings[:3] == [b"1", b"2", b"3"])
        assert until(lambda: connection.stats().rtt_last is not None)


def test_a_silent_peer_is_stale() -> None:
    """A connection whose pings go unanswered is lost by StaleConnection, and dialled again."""
    ear = Ear()
    options = {"ping_interval": 20 * MS, "reconnect": QUICK}
    with Server(pongs=False) as server, dialled(server, ear, **options):
        ear.wait_for(lambda: ear.connected >= 2)
    assert isinstance(ear.errors[0], StaleConnection)


def test_timeouts_come_on_time() -> None:
    """Requests with callbacks or Futures end at their deadline, the earliest first, whatever their order."""
    ended: list[int] = []
    with Server(hold) as server, dialled(server) as connection:
        for number in (3, 1, 2):
            message = Message.json({"id": number}, timeout=number * 30 * MS)
            connection.submit(message).add_done_callback(lambda _, number=number: ended.append(number))  # type: ignore[misc]
        assert until(lambda: len(ended) == 3)
    assert ended == [1, 2, 3]


def test_a_late_reply_is_waited_for_in_order() -> None:
    """Where replies come in order, what waits behind a request that timed out goes out after `late_after`."""
    with Server(lambda client, body: client.send(body) if body == "b" else None) as server:
        connection = Connection(match_msg=in_order, late_after=50 * MS)
        connection.dial(server.url)
        with pytest.raises(ReplyTimeout):
            connection.request("a", 0)
        assert connection.request("b", SOON).body == "b"
        connection.close()


def test_an_order_that_is_broken_for_ever() -> None:
    """With `late_after=None` the connection is lost when a reply does not come in time."""
    ear = Ear()
    with Server(hold) as server:
        connection = Connection(match_msg=in_order, late_after=None, on_error=ear.on_error)
        connection.dial(server.url)
        future = connection.submit("a", 20 * MS)
        assert isinstance(future.exception(SOON), ReplyTimeout)
        ear.wait_for(lambda: ear.errors)
        assert "in order only" in str(ear.errors[0])
        connection.close()


def test_what_does_not_fit_is_flushed() -> None:
    """What the system does not take at once is flushed in its order as the peer reads."""
    bodies = [str(number) * (1 << 20) for number in range(10)]
    with Server(on_connect=lambda client: client.pause_reading()) as server:
        connection = Connection(write_buffer=1 << 24)
        connection.dial(server.url)
        for body in bodies:
            connection.send(body)
        only_client(server).resume_reading()
        assert server.wait_for(10, SOON)
        assert server.received == bodies
        connection.close()


def test_more_is_read_than_one_round_takes() -> None:
    """Thousands of messages that come at once are delivered in their order."""
    count = 5000
    ear = Ear()

    def flood(client: ClientConnection) -> None:
        for number in range(count):
            client.send(str(number))

    with Server(on_connect=flood) as server, dialled(server, ear, msg_prep=None, match_key=None):
        ear.wait_for(lambda: len(ear.messages) == count)
    assert ear.messages == [str(number) for number in range(count)]


def test_reading_is_left_to_a_caller_for_a_moment() -> None:
    """After requests that did the reading themselves, events are delivered without anybody asking."""
    ear = Ear()
    with Server(echo) as server, dialled(server, ear) as connection:
        client = only_client(server)
        for number in range(100):
            connection.request(ask(number), SOON)
        client.send('{"id":"event"}')
        ear.wait_for(lambda: ear.messages == ['{"id":"event"}'])


def test_close_ends_a_backoff_and_its_requests() -> None:
    """`close` during a backoff ends the life at once, and what waited is told."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear, reconnect=NEVER, outbox=2) as connection:
        server.drop_all()
        ear.one_error()
        future = connection.submit(ask())
        connection.close(timeout=None)
        assert isinstance(future.exception(0), ConnectionClosed)
        assert connection.state is State.CLOSED


def test_a_close_without_a_limit() -> None:
    """`close(timeout=None)` waits until the peer has answered."""
    with Server(echo_close=False) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        client = only_client(server)
        closing = pool.submit(connection.close, timeout=None)
        assert until(lambda: client.close_code) == 1000
        with pytest.raises(NotConnected, match="CLOSING"):
            connection.send("x")
        client.close(1000)
        closing.result(SOON)
        assert connection.state is State.CLOSED


def test_close_where_messages_are_read_does_not_wait() -> None:
    """A function that runs on the I/O thread and closes is not waited for by itself."""
    took: list[float] = []

    def match_msg(_request: Message, _response: Message) -> bool:
        began = time.monotonic()
        connection.close(timeout=SOON)
        took.append(time.monotonic() - began)
        return False

    with Server(echo) as server:
        connection = Connection(match_msg=match_msg)
        connection.dial(server.url)
        connection.submit("x")
        assert until(lambda: took)
        assert took[0] < 500 * MS
        assert until(lambda: connection.state is State.CLOSED)
        connection.close()


def test_a_function_that_blocks_the_reading(caplog: pytest.LogCaptureFixture) -> None:
    """A function that blocks the I/O thread is left to itself by `close`, which says so; its thread ends with it."""
    inside, release = threading.Event(), threading.Event()

    def msg_prep(_: Message) -> None:
        inside.set()
        assert release.wait(SOON)

    with Server(on_connect=lambda client: client.send("x")) as server:
        connection = Connection(msg_prep=msg_prep)
        connection.dial(server.url)
        assert inside.wait(SOON)
        began = time.monotonic()
        connection.close(timeout=50 * MS)
        assert time.monotonic() - began < 1000 * MS
        assert "detached" in caplog.text
        assert until(lambda: not server.connections)
        release.set()
        assert until(lambda: "evtws-io" not in [thread.name for thread in threading.enumerate()])
        assert connection.state is State.CLOSED


def test_a_prepare_that_does_not_return(caplog: pytest.LogCaptureFixture) -> None:
    """A `prepare` that does not return is left to itself by `close`, which says so."""
    inside, release = threading.Event(), threading.Event()

    def prepare(_: Connection) -> None:
        inside.set()
        assert release.wait(SOON)

    connection = Connection(prepare=prepare)
    with Server() as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        assert inside.wait(SOON)
        connection.close(timeout=50 * MS)
        assert isinstance(dialling.exception(SOON), NotConnected)
        assert "prepare() does not return" in caplog.text
        release.set()


def test_a_drain_waits_for_what_runs() -> None:
    """A drain is over when the last callback has returned, not when the last reply has come."""
    ended: list[int] = []
    go_on = threading.Event()

    def callback(*_: Any) -> None:
        assert go_on.wait(SOON)
        ended.append(1)

    with Server(echo) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        connection.send(Message.json({"id": 1}, callback))
        draining = pool.submit(connection.drain, SOON)
        assert until(lambda: connection.stats().messages_received == 1)
        assert not draining.done()
        go_on.set()
        assert draining.result(SOON)
    assert ended == [1]


def test_a_loss_ends_a_drain() -> None:
    """A drain whose connection is lost for good ends with it."""
    with Server(hold) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        future = connection.submit(ask())
        draining = pool.submit(connection.drain, SOON)
        assert server.wait_for(1, SOON)
        server.drop_all()
        assert draining.result(SOON)
        assert isinstance(future.exception(0), ConnectionLost)


def test_reconnect_now_during_a_dial() -> None:
    """`reconnect_now` during a dial leaves that attempt alone."""
    connection = Connection(reconnect=NEVER)
    with RawServer(lambda peer: peer.hold()) as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        assert until(lambda: server.connections)
        connection.reconnect_now()
        connection.close()
        assert isinstance(dialling.exception(SOON), NotConnected)
        assert len(server.connections) == 1


def test_a_crash_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When a round fails by a defect the log has its traceback, calls end, and the thread does, too."""

    def step(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    with Server(hold) as server:
        connection = Connection()
        connection.dial(server.url)
        future = connection.submit("x")
        monkeypatch.setattr(engine_module.Engine, "_tick", step)
        connection.submit("y", 0)
        assert isinstance(future.exception(SOON), ConnectionLost)
        assert until(lambda: connection.state is State.CLOSED)
        assert until(lambda: [record.levelno for record in caplog.records].count(logging.ERROR) == 1)
        assert "ZeroDivisionError: a defect" in caplog.text
        assert until(lambda: "evtws-io" not in [thread.name for thread in threading.enumerate()])
        connection.close()


def test_a_new_life_and_a_new_connection() -> None:
    """A connection that was closed can be dialled again, and `reconnect_now` dials an open one anew."""
    ear = Ear()
    with Server(echo) as server:
        connection = Connection(**ear.options)
        for life in (1, 2):
            connection.dial(server.url)
            connection.reconnect_now()
            ear.wait_for(lambda life=life: ear.connected == 2 * life)  # type: ignore[misc]
            assert connection.request(ask(), SOON).params == {"id": 1}
            connection.close()
        assert server.dials == 4


@pytest.mark.parametrize("kept", [False, True])
def test_a_connection_that_is_dropped(kept: bool) -> None:
    """The I/O thread of a Connection that is dropped ends, and its socket is closed; a Future that is kept is told."""
    futures: list[Future[Message]] = []

    def drop(server: Server) -> weakref.ref[Connection]:
        connection = Connection()
        connection.dial(server.url)
        if kept:
            futures.append(connection.submit("x"))
        return weakref.ref(connection)

    with Server(hold) as server:
        with pytest.warns(ResourceWarning):
            collect(drop(server))
        assert until(lambda: not server.connections)
    for future in futures:
        assert isinstance(future.exception(SOON), ConnectionClosed)


def test_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started `dial` raises that, and the connection is CLOSED."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connection = Connection()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            connection.dial("ws://127.0.0.1:1")
    assert connection.state is State.CLOSED


def test_a_forked_child_lets_go() -> None:
    """An engine that is told to let go closes this process's descriptors, and its connection is nobody's to use."""
    with Server() as server:
        connection = Connection(ping_interval=None)
        connection.dial(server.url)
        engine = connection._engine
        assert engine is not None
        transport = engine.life.transport
        assert transport is not None
        connection.close()
        engine.life.transport = transport  # as it would be in the child
        engine.forget_in_child()
        assert transport.fileno() == -1
        with pytest.raises(ForkedError):
            connection.stats()
        engine.life.transport = None
