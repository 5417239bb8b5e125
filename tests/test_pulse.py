"""Pings: when they go out and with what, what a missing pong means, and ping()."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    Message,
    NotConnected,
    ReplyTimeout,
    StaleConnection,
    State,
)
from evtws.errors import SlowUserCode, UserCodeError
from evtws.testing import ClientConnection, Server

from .faults.support import Ear, ask, echo, only_client, until
from .timing import MS, SOON

INTERVAL = 10 * MS


def pings(server: Server, count: int) -> list[bytes]:
    """The payloads of the first pings, once so many have come."""
    client = only_client(server)
    assert server.wait_for(lambda: len(client.pings) >= count, SOON)
    return client.pings[:count]


def test_pings_go_out_at_intervals() -> None:
    """After each interval a ping goes out, and not before; its payload is a counter."""
    with Server() as server:
        before = time.monotonic()
        with evtws.connect(server.url, ping_interval=INTERVAL) as connection:
            assert pings(server, 3) == [b"1", b"2", b"3"]
            assert time.monotonic() - before >= 3 * INTERVAL
            assert until(lambda: connection.stats().rtt_last is not None)


def test_no_pings() -> None:
    """With `ping_interval=None` no ping goes out by itself."""
    ear = Ear()
    with (
        Server(echo) as server,
        evtws.connect(server.url, ping_interval=None, count_pongs=True, **ear.options) as connection,
    ):
        assert connection.ping() >= 0
        connection.request(ask())
        assert only_client(server).pings == [b"1"]


@pytest.mark.parametrize("payload", ["é", b"\xff\0", b""])
def test_a_payload_of_ones_own(payload: str | bytes) -> None:
    """`ping_msg` is the payload of each ping, a text as UTF-8; its pongs are known."""
    with Server() as server, evtws.connect(server.url, ping_interval=INTERVAL, ping_msg=payload) as connection:
        data = payload.encode() if isinstance(payload, str) else payload
        assert pings(server, 4) == [data] * 4
        assert connection.state is State.OPEN


def test_a_payload_that_is_composed() -> None:
    """`compose_ping_message` makes the payload of each ping anew, rather than `ping_msg`."""
    numbers = iter(range(1000))
    with (
        Server() as server,
        evtws.connect(
            server.url, ping_interval=INTERVAL, ping_msg="no", compose_ping_message=lambda: f"<{next(numbers)}>"
        ),
    ):
        assert pings(server, 2) == [b"<0>", b"<1>"]


# -- pings as ordinary messages


def answer_service_ping(client: ClientConnection, body: str | bytes) -> None:
    """A server's script: its own pong to its own ping."""
    assert body == '{"ping":1}'
    client.send('{"pong":1}')


def is_pong(message: Message) -> bool:
    """An `is_pong` for that server."""
    return "pong" in message.params


SERVICE: dict[str, Any] = {"ping_interval": INTERVAL, "ping_as": "message", "ping_msg": '{"ping":1}'}


def test_pings_as_messages() -> None:
    """With `ping_as="message"` a ping is an ordinary message; what `is_pong` knows answers it, and goes no further."""
    ear = Ear()
    with (
        Server(answer_service_ping) as server,
        evtws.connect(server.url, is_pong=is_pong, **SERVICE, **ear.options) as connection,
    ):
        assert server.wait_for(5, SOON)
        assert until(lambda: connection.stats().rtt_min is not None)
        assert connection.stats().messages_received >= 1
        assert only_client(server).pings == []
    assert (ear.messages, ear.errors) == ([], [])


def test_pong_received() -> None:
    """`pong_received()` says that all pings so far are answered, whatever told the user."""
    ear = Ear()

    def on_message(_message: Message, connection: Connection) -> None:
        connection.pong_received()

    with (
        Server(answer_service_ping) as server,
        evtws.connect(server.url, **SERVICE, **(ear.options | {"on_message": on_message})),
    ):
        assert server.wait_for(6, SOON)
    assert ear.errors == []


def test_service_pings_that_nobody_answers() -> None:
    """With `ping_as="message"` the connection is stale as with frames, where nothing is known to be a pong."""
    ear = Ear()
    with Server(answer_service_ping) as server, evtws.connect(server.url, **SERVICE, **ear.options):
        assert isinstance(ear.one_error(), StaleConnection)
        assert len(server.received) == 2


# -- pongs that do not come


@pytest.mark.parametrize("threshold", [1, 3])
def test_a_stale_connection(threshold: int) -> None:
    """When a ping falls due and so many are unanswered, the connection is lost as stale."""
    ear = Ear()
    with Server(pongs=False) as server:
        connection = Connection(ping_interval=INTERVAL, unreceived_ping_threshold=threshold, **ear.options)
        connection.dial(server.url)
        client = only_client(server)
        error = ear.one_error()
        assert isinstance(error, StaleConnection)
        assert error.unanswered == threshold
        assert until(lambda: connection.state is State.CLOSED)
        assert len(client.pings) == threshold
        connection.close()


def test_missing_pongs_are_not_counted() -> None:
    """With `count_pongs=False` no number of unanswered pings ends the connection."""
    ear = Ear()
    with (
        Server(echo, pongs=False) as server,
        evtws.connect(server.url, ping_interval=INTERVAL, count_pongs=False, **ear.options) as connection,
    ):
        pings(server, 6)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        assert connection.stats().pings_unanswered >= 6
    assert ear.errors == []


def test_traffic_is_no_pong() -> None:
    """A peer that sends constantly and answers no ping is stale all the same."""
    ear = Ear()

    def chatter(client: ClientConnection) -> None:
        for number in range(1000):
            client.send_later(number * MS, b"{}")

    with (
        Server(on_connect=chatter, pongs=False) as server,
        evtws.connect(server.url, ping_interval=50 * MS, **ear.options),
    ):
        assert isinstance(ear.one_error(), StaleConnection)
        assert len(ear.messages) > 10


def test_a_pong_answers_all_before_it() -> None:
    """A pong answers the newest ping of its payload and all before it; one of no ping answers nothing."""
    with (
        Server(pongs=False) as server,
        evtws.connect(server.url, ping_interval=None) as connection,
        ThreadPoolExecutor(3) as pool,
    ):
        client = only_client(server)
        waits = []
        for number in range(3):
            waits.append(pool.submit(connection.ping, SOON))
            pings(server, number + 1)
        client.pong(b"unknown")
        client.pong(b"2")
        assert [wait.result(SOON) >= 0 for wait in waits[:2]] == [True, True]
        assert connection.stats().pings_unanswered == 1
        assert not waits[2].done()
        client.pong(b"3")
        assert waits[2].result(SOON) >= 0


# -- what composes a ping fails


def _raise() -> str:
    raise RuntimeError("no ping today")


WRONG: list[tuple[str, Callable[[], Any]]] = [
    ("frame", _raise),
    ("frame", lambda: "x" * 126),
    ("frame", lambda: 5),
    ("frame", lambda: ["x"]),
    ("frame", lambda: "\ud800"),
    ("message", _raise),
    ("message", lambda: {"ping": 1}),
    ("message", lambda: "\ud800"),
]


@pytest.mark.parametrize(("ping_as", "wrong"), WRONG)
def test_a_ping_that_cannot_be_composed(ping_as: Any, wrong: Callable[[], Any]) -> None:
    """A ping that cannot be composed is reported and left out; the connection lives, and the next one is tried."""
    ear = Ear()
    turns = iter([wrong, wrong])

    def compose() -> Any:
        return next(turns, lambda: '{"id":0}')()

    options: dict[str, Any] = {"ping_as": ping_as, "compose_ping_message": compose, "count_pongs": False}
    with (
        Server(echo) as server,
        evtws.connect(server.url, ping_interval=INTERVAL, **options, **ear.options) as connection,
    ):
        ear.wait_for(lambda: len(ear.errors) == 2)
        client = only_client(server)
        assert server.wait_for(lambda: client.pings or client.received, SOON)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
    assert all(isinstance(error, UserCodeError) and error.__cause__ is not None for error in ear.errors)
    assert (client.pings or client.received)[0] in (b'{"id":0}', '{"id":0}')


def test_a_ping_that_is_composed_slowly() -> None:
    """Composing a ping for over 50 ms is reported: nothing is read meanwhile."""
    ear = Ear()
    payloads = iter([60, 0, 0])

    def compose() -> str:
        time.sleep(next(payloads, 0) / 1000)
        return "x"

    with (
        Server() as server,
        evtws.connect(server.url, ping_interval=INTERVAL, compose_ping_message=compose, **ear.options),
    ):
        pings(server, 3)
        ear.wait_for(lambda: ear.slow)
    error = ear.slow[0]
    assert isinstance(error, SlowUserCode)
    assert error.seconds >= 0.06


# -- ping()


def test_ping() -> None:
    """`ping()` returns the round-trip time in seconds."""
    with Server() as server, evtws.connect(server.url, ping_interval=None) as connection:
        before = time.monotonic()
        rtt = connection.ping()
        assert 0 < rtt <= time.monotonic() - before
        assert connection.stats().rtt_last == rtt


def test_ping_has_a_payload_of_its_own() -> None:
    """As a frame, `ping()` does not use `ping_msg`: its pong is told from every other one."""
    with Server() as server, evtws.connect(server.url, ping_interval=None, ping_msg="same") as connection:
        connection.ping()
        assert pings(server, 1) == [b"1"]


def test_ping_as_a_message() -> None:
    """With `ping_as="message"` `ping()` sends the service's own ping, and any of its pongs answers it."""
    ear = Ear()
    with (
        Server(answer_service_ping) as server,
        evtws.connect(server.url, is_pong=is_pong, **(SERVICE | {"ping_interval": None}), **ear.options) as connection,
    ):
        assert connection.ping() > 0


def test_ping_cannot_be_composed() -> None:
    """What composing raises is raised by `ping()`, and nothing was sent."""
    with (
        Server() as server,
        evtws.connect(server.url, ping_as="message", ping_interval=None, compose_ping_message=_raise) as connection,
    ):
        with pytest.raises(RuntimeError, match="today"):
            connection.ping()
        assert connection.stats().pings_unanswered == 0


def test_ping_times_out() -> None:
    """`ping()` raises ReplyTimeout when the pong does not come in time; the connection lives, a late pong is known."""
    ear = Ear()
    with (
        Server(echo, pongs=False) as server,
        evtws.connect(server.url, ping_interval=None, **ear.options) as connection,
    ):
        with pytest.raises(ReplyTimeout) as caught:
            connection.ping(timeout=10 * MS)
        assert (caught.value.waited, caught.value.written) == (10 * MS, "yes")
        assert connection.stats().pings_unanswered == 1
        only_client(server).pong(b"1")
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        assert connection.stats().pings_unanswered == 0


def waiting_ping(connection: Connection, server: Server) -> list[BaseException]:
    """A thread that waits in `ping()` and leaves behind what it raised; returns once the ping has come."""
    raised: list[BaseException] = []

    def ping() -> None:
        try:
            connection.ping()
        except ConnectionLost as error:
            raised.append(error)

    threading.Thread(target=ping).start()
    pings(server, 1)
    return raised


def test_ping_ends_with_the_connection() -> None:
    """`ping()` raises what the connection was lost by, or ConnectionLost after `close()`."""
    ear = Ear()
    with Server(pongs=False) as server:
        connection = Connection(ping_interval=None, **ear.options)
        connection.dial(server.url)
        raised = waiting_ping(connection, server)
        server.drop_all()
        assert until(lambda: raised) == [ear.one_error()]
        connection.dial(server.url)
        raised = waiting_ping(connection, server)
        connection.close()
        assert isinstance(until(lambda: raised)[0], ConnectionLost)


def test_ping_while_not_open() -> None:
    """`ping()` raises NotConnected while not OPEN."""
    connection = Connection()
    with pytest.raises(NotConnected):
        connection.ping()
    with Server() as server:
        connection.dial(server.url)
        connection.close()
    with pytest.raises(NotConnected, match="CLOSED"):
        connection.ping()
    connection.pong_received()
    Connection().pong_received()


def test_the_connection_is_lost_while_a_ping_is_composed() -> None:
    """`ping()` raises NotConnected when the connection was lost between its beginning and its writing."""
    ear = Ear()

    def compose() -> str:
        server.drop_all()
        ear.one_error()
        return "x"

    with Server() as server:
        connection = Connection(
            ping_interval=None, ping_as="message", compose_ping_message=compose, reconnect=False, **ear.options
        )
        connection.dial(server.url)
        with pytest.raises(NotConnected, match="lost"):
            connection.ping()
        connection.close()


def test_a_ping_that_cannot_be_written() -> None:
    """A ping that the transport does not take is no error by itself: whoever reads finds out why."""
    ear = Ear()
    with (
        Server(echo) as server,
        evtws.connect(server.url, **(SERVICE | {"ping_interval": None}), **ear.options) as connection,
    ):
        engine = connection._engine
        assert engine is not None
        assert engine.life.transport is not None
        engine.life.transport.seal()
        with pytest.raises(ReplyTimeout):
            connection.ping(timeout=5 * MS)
        assert connection.state is State.OPEN
    assert ear.errors == []


def test_close_ends_a_ping_at_once() -> None:
    """Whoever waits in ping() is told of close() at once, though the peer takes its time to answer that."""
    ended = threading.Event()
    with Server(echo, pongs=False, echo_close=False) as server:
        connection = evtws.Connection(ping_interval=None)
        connection.dial(server.url)

        def wait() -> None:
            with pytest.raises(ConnectionClosed):
                connection.ping(timeout=SOON)
            ended.set()

        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(wait)
            server.wait_for(lambda: only_client(server).pings, SOON)
            closing = pool.submit(connection.close, timeout=500 * MS)
            assert ended.wait(400 * MS)
            waiting.result(SOON)
            closing.result(SOON)
