"""The public surface of a connection, against servers in this process."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    DialError,
    IllegalTransition,
    InvalidURL,
    Message,
    NotConnected,
    OutboxFull,
    PrepareError,
    ReconnectPolicy,
    ReplyTimeout,
    RequestCancelled,
    State,
    UserCodeError,
    WouldDeadlock,
)
from evtws.testing import ClientConnection, RawConnection, RawServer, Reply, Server

from .faults.support import Ear, ask, echo, only_client, until
from .live import NEVER, QUICK, collect, dialled, hold, nothing_leaks
from .raw import closed_port
from .timing import MS, SOON

__all__ = ["nothing_leaks"]

# -- dial


def test_a_dial_returns_once_open() -> None:
    """`dial` returns once the connection is OPEN, and `close` once it is CLOSED."""
    connection = Connection()
    assert (connection.state, connection.is_connected) == (State.CLOSED, False)
    with Server() as server:
        connection.dial(server.url)
        assert (connection.state, connection.is_connected) == (State.OPEN, True)
        connection.close()
    assert (connection.state, connection.is_connected) == (State.CLOSED, False)


@pytest.mark.parametrize("reconnect", [False, QUICK])
def test_a_dial_raises_what_ended_the_first_attempt(reconnect: bool | ReconnectPolicy) -> None:
    """`dial` raises what ended the first attempt, which is tried once and told to nobody else."""
    ear = Ear()
    with Server(on_handshake=lambda _: Reply(503)) as server:
        connection = Connection(**ear.options, reconnect=reconnect)
        with pytest.raises(evtws.HandshakeError) as caught:
            connection.dial(server.url)
        assert (caught.value.status, server.dials, connection.state) == (503, 1, State.CLOSED)
    assert (ear.errors, ear.disconnected) == ([], [])


def test_a_dial_whose_connection_is_lost_at_once() -> None:
    """`dial` returns, too, when the connection was opened and lost before it could look."""

    def script(peer: RawConnection) -> None:
        peer.read_request()
        peer.send(peer.response() + b"\x88\x00")
        peer.hold()

    for _ in range(10):
        with RawServer(script) as server, dialled(server, reconnect=NEVER, close_timeout=0) as connection:
            assert until(lambda connection=connection: not connection.is_connected)  # type: ignore[misc]


def test_a_url_that_is_none() -> None:
    """`dial` raises InvalidURL for a url that is no websocket url."""
    with pytest.raises(InvalidURL):
        Connection().dial("http://127.0.0.1")


def test_a_dial_that_is_retried_returns() -> None:
    """`dial(retry=True)` returns after a first attempt that failed, and the connection opens once it can."""
    ear = Ear()
    refused = [Reply(503)]
    with Server(on_handshake=lambda _: refused.pop() if refused else None) as server:
        connection = Connection(**ear.options, reconnect=QUICK)
        connection.dial(server.url, retry=True)
        assert connection.wait_open(SOON)
        connection.close()
        assert server.dials == 2
    assert [type(error) for error in ear.errors] == [evtws.HandshakeError]
    assert ear.disconnected == [None]


def test_a_retry_needs_a_policy() -> None:
    """`dial(retry=True)` without `reconnect` is a ValueError, as are options that contradict each other."""
    with pytest.raises(ValueError, match="needs reconnect"):
        Connection().dial("ws://127.0.0.1", retry=True)
    with pytest.raises(ValueError, match="ping_msg"):
        Connection(ping_as="message").dial("ws://127.0.0.1")


def test_a_second_dial_is_refused() -> None:
    """`dial` raises IllegalTransition unless the connection is CLOSED, and changes nothing."""
    with Server(echo) as server, dialled(server) as connection:
        with pytest.raises(IllegalTransition, match="OPEN"):
            connection.dial(server.url)
        assert connection.request(ask(), SOON).params == {"id": 1}


def test_a_dial_after_closed_starts_fresh() -> None:
    """A connection that is CLOSED can be dialled again: nothing is counted, pending or refused any more."""
    with Server(echo) as server:
        connection = Connection(**Ear().options)
        for _ in range(3):
            connection.dial(server.url)
            assert connection.request(ask(), SOON).params == {"id": 1}
            assert (connection.stats().messages_sent, connection.stats().reconnects) == (1, 0)
            assert connection.drain(SOON)
        assert server.dials == 3


def test_a_dial_after_a_loss_starts_fresh() -> None:
    """A connection that was lost can be dialled again from `on_disconnected`."""
    opened = threading.Event()

    def again(connection: Connection, error: object) -> None:
        if error is not None:
            connection.dial(server.url)
            opened.set()

    with Server(echo) as server:
        connection = Connection(on_disconnected=again, match_key=lambda _: 1, ping_interval=None)
        connection.dial(server.url)
        server.drop_all()
        assert opened.wait(SOON)
        assert connection.request("x", SOON).body == "x"
        connection.close()


def test_a_url_is_asked_anew() -> None:
    """A url that is a function is asked at each attempt."""
    ear = Ear()
    asked: list[str] = []

    def url() -> str:
        asked.append(f"{server.url}/{len(asked)}")
        return asked[-1]

    with Server() as server:
        connection = Connection(**ear.options, reconnect=QUICK)
        connection.dial(url)
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
        assert only_client(server).request.target == "/1"
        connection.close()
    assert len(asked) == 2


def test_an_interrupted_dial_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in `dial` closes the connection and passes out."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    connection = Connection()
    with RawServer(lambda peer: peer.hold()) as server:
        monkeypatch.setattr(threading.Condition, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            connection.dial(server.url)
    assert connection.state is State.CLOSED


def test_wait_open_says_whether() -> None:
    """`wait_open` returns whether the connection is OPEN in time."""
    ear = Ear()
    connection = Connection(**ear.options, reconnect=NEVER)
    connection.dial(f"ws://127.0.0.1:{closed_port()}", retry=True)
    assert not connection.wait_open(20 * MS)
    connection.close()


def test_wait_open_raises_what_it_was_given_up_for() -> None:
    """`wait_open` raises what ended the connection, or NotConnected once it was closed or if it was never dialled."""
    with pytest.raises(NotConnected, match="never dialled"):
        Connection().wait_open(SOON)
    ear = Ear()
    with Server() as server, dialled(server, ear) as connection:
        assert connection.wait_open(0)
        only_client(server).close(1002, "bad")
        error = ear.one_error()
        with pytest.raises(ConnectionClosed) as caught:
            connection.wait_open(SOON)
        assert caught.value is error
        connection.close()
    with Server() as server, dialled(server) as connection:
        connection.close()
        with pytest.raises(NotConnected, match="was closed"):
            connection.wait_open(SOON)


# -- close


def test_code_and_reason_reach_the_server() -> None:
    """The peer is sent the code and the reason of `close`, and `on_disconnected` hears None."""
    ear = Ear()
    with Server() as server:
        with dialled(server, ear) as connection:
            client = only_client(server)
            connection.close(4001, "bye")
        assert (client.close_code, client.close_reason) == (4001, "bye")
    assert (ear.disconnected, ear.errors) == ([None], [])


@pytest.mark.parametrize(("code", "reason"), [(999, ""), (1005, ""), (1006, ""), (5000, ""), (1000, "x" * 124)])
def test_what_may_not_be_sent(code: int, reason: str) -> None:
    """`close` raises ValueError for a code that may not be sent and for a reason over 123 bytes, and does nothing."""
    with Server() as server, dialled(server) as connection:
        with pytest.raises(ValueError):
            connection.close(code, reason)
        assert connection.is_connected


def test_close_before_a_dial() -> None:
    """`close` of a connection that was never dialled does nothing."""
    connection = Connection()
    connection.close()
    assert connection.state is State.CLOSED


def test_close_a_hundred_times() -> None:
    """`close` may be called a hundred times from ten threads; the connection is closed once."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection:
        waiting = connection.submit(ask())
        client = only_client(server)
        with ThreadPoolExecutor(10) as pool:
            for future in [pool.submit(connection.close, 1000, str(i)) for i in range(100)]:
                future.result(SOON)
        assert (connection.state, client.close_code) == (State.CLOSED, 1000)
        error = waiting.exception(0)
        assert isinstance(error, ConnectionClosed)
        assert not error.by_peer
    assert ear.disconnected == [None]


def test_close_in_a_callback() -> None:
    """`close` returns in a callback, whose thread ends when it returns."""
    closed = threading.Event()

    def on_message(_: Message, connection: Connection) -> None:
        connection.close()
        assert connection.state is State.CLOSED
        closed.set()

    with Server(echo) as server:
        connection = Connection(on_message=on_message)
        connection.dial(server.url)
        connection.send("x")
        assert closed.wait(SOON)


def test_close_where_messages_are_read() -> None:
    """`close` in a function that runs where messages are read does not wait for its own thread."""
    closed = threading.Event()

    def msg_prep(_: Message) -> None:
        connection.close()
        closed.set()

    with Server(on_connect=lambda client: client.send("x")) as server:
        connection = Connection(msg_prep=msg_prep)
        connection.dial(server.url)
        assert closed.wait(SOON)
        connection.close()
        assert connection.state is State.CLOSED


def test_close_during_a_dial() -> None:
    """`close` ends a dial at once, and the dial raises NotConnected."""
    connection = Connection(connect_timeout=None)
    with RawServer(lambda peer: peer.hold()) as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        assert until(lambda: server.connections)
        began = time.monotonic()
        connection.close(timeout=SOON)
        with pytest.raises(NotConnected, match="before the connection was open"):
            dialling.result(SOON)
        assert time.monotonic() - began < 500 * MS


def test_close_during_a_backoff() -> None:
    """`close` ends a backoff at once."""
    ear = Ear()
    with Server() as server, dialled(server, ear, reconnect=NEVER) as connection:
        server.drop_all()
        error = ear.one_error()
        before = connection.state
        assert isinstance(error, ConnectionLost)
        began = time.monotonic()
        connection.close(timeout=SOON)
        assert time.monotonic() - began < 500 * MS
        assert (before, connection.state) == (State.CONNECTING, State.CLOSED)
    assert len(ear.disconnected) == 1


def test_close_during_prepare() -> None:
    """`close` during `prepare` tells its request, and the dial raises NotConnected."""
    told: list[Exception] = []

    def prepare(connection: Connection) -> None:
        try:
            connection.request(ask(), SOON)
        except ConnectionClosed as error:
            told.append(error)
            raise

    ear = Ear()
    connection = Connection(**ear.options, prepare=prepare)
    with Server(hold) as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        client = server.wait_for(lambda: server.connections, SOON)[0]
        assert server.wait_for(1, SOON)
        connection.close(4000)
        with pytest.raises(NotConnected):
            dialling.result(SOON)
        assert (client.close_code, len(told)) == (4000, 1)
    assert (ear.connected, ear.disconnected, ear.errors) == (0, [], [])


def test_close_in_prepare() -> None:
    """`close` in `prepare` does not wait for it."""
    with Server() as server, pytest.raises(NotConnected):
        Connection(prepare=lambda connection: connection.close()).dial(server.url)


def test_close_during_a_drain() -> None:
    """`close` ends a drain, which has not had its replies."""
    with Server(hold) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        waiting = connection.submit(ask())
        draining = pool.submit(connection.drain, SOON)
        assert until(lambda: "draining" in refused(connection))
        connection.close()
        draining.result(SOON)
        assert isinstance(waiting.exception(0), ConnectionClosed)


def refused(connection: Connection) -> str:
    """Why a message is refused, "" if it is not."""
    try:
        connection.send("probe")
    except NotConnected as error:
        return str(error)
    return ""


# -- drain


def test_a_drain_awaits_replies_and_callbacks() -> None:
    """`drain` refuses new messages, and closes once replies have come and callbacks have returned."""
    release, told = threading.Event(), []

    def callback(reply: Message, _: Connection) -> None:
        assert release.wait(SOON)
        told.append(reply.params)

    with Server(hold) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        client = only_client(server)
        connection.send(Message.json({"id": 1}, callback))
        future = connection.submit(ask(2))
        draining = pool.submit(connection.drain, SOON)
        assert until(lambda: "draining" in refused(connection))
        client.send('{"id":1}')
        client.send('{"id":2}')
        assert future.result(SOON).params == {"id": 2}
        assert not draining.done()
        release.set()
        assert draining.result(SOON)
        assert told == [{"id": 1}]
        assert (connection.state, client.close_code) == (State.CLOSED, 1000)


def test_a_drain_flushes() -> None:
    """`drain` waits until the peer has read what was sent."""
    body = b"x" * (16 << 20)
    with Server(on_connect=lambda client: client.pause_reading()) as server:
        connection = Connection(write_buffer=1 << 26)
        connection.dial(server.url)
        connection.send(body)
        client = only_client(server)
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(connection.drain, SOON)
            assert until(lambda: "draining" in refused(connection))
            client.resume_reading()
            assert draining.result(SOON)
        assert server.received == [body]


def test_a_drain_awaits_the_outbox() -> None:
    """`drain` while the connection reconnects lets the outbox go out first."""
    ear = Ear()
    with Server(echo) as server, dialled(server, ear, reconnect=NEVER, outbox=5) as connection:
        server.drop_all()
        ear.one_error()
        future = connection.submit(ask())
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(connection.drain, SOON)
            assert until(lambda: "draining" in refused(connection))
            connection.reconnect_now()
            assert draining.result(SOON)
        assert future.result(0).params == {"id": 1}


def test_a_drain_that_takes_too_long() -> None:
    """`drain` returns False when its time is up; what awaits a reply is told."""
    with Server(hold) as server, dialled(server) as connection:
        future = connection.submit(ask())
        assert not connection.drain(20 * MS)
        assert isinstance(future.exception(0), ConnectionClosed)
        assert connection.state is State.CLOSED


def test_a_drain_would_deadlock() -> None:
    """`drain` in a callback, or where messages are read, raises WouldDeadlock."""
    errors: list[BaseException] = []
    done = threading.Event()

    def drain(_: Message, connection: Connection | None = None) -> None:
        try:
            (connection or own).drain()
        except WouldDeadlock as error:
            errors.append(error)
        if connection is not None:
            done.set()

    with Server(echo) as server:
        own = Connection(on_message=drain, msg_prep=drain)
        own.dial(server.url)
        own.send(Message("x", params=1))
        assert done.wait(SOON)
        own.close()
    assert len(errors) == 2


def test_a_drain_in_vain() -> None:
    """`drain` raises NotConnected if the connection was never dialled, and is True once it is CLOSED."""
    with pytest.raises(NotConnected):
        Connection().drain()
    with Server() as server, dialled(server) as connection:
        connection.close()
        assert connection.drain(SOON)


# -- reconnect_now


def test_reconnect_now_dials_anew() -> None:
    """`reconnect_now` closes the connection with 1000 and dials anew, without a policy, too."""
    ear = Ear()
    with Server() as server, dialled(server, ear) as connection:
        first = only_client(server)
        connection.reconnect_now()
        ear.wait_for(lambda: ear.connected == 2)
        assert (first.close_code, server.dials, connection.state) == (1000, 2, State.OPEN)
        assert connection.stats().reconnects == 1


def test_reconnect_now_ends_a_backoff() -> None:
    """`reconnect_now` ends a backoff."""
    ear = Ear()
    with Server() as server, dialled(server, ear, reconnect=NEVER) as connection:
        server.drop_all()
        ear.one_error()
        connection.reconnect_now()
        assert connection.wait_open(SOON)


def test_reconnect_now_needs_a_dial() -> None:
    """`reconnect_now` raises NotConnected when CLOSED."""
    connection = Connection()
    with pytest.raises(NotConnected):
        connection.reconnect_now()
    with Server() as server, dialled(server) as connection:
        connection.close()
        with pytest.raises(NotConnected, match="CLOSED"):
            connection.reconnect_now()


# -- messages


CALLS: list[Callable[[Connection], object]] = [
    lambda connection: connection.send("x"),
    lambda connection: connection.send(Message("x", callback=lambda *_: None)),
    lambda connection: connection.request("x"),
    lambda connection: connection.submit("x"),
    lambda connection: connection.submit_many(["x", "y"]),
    lambda connection: connection.stream("x", until=bool),
    lambda connection: connection.ping(),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_needs_a_connection(call: Callable[[Connection], object]) -> None:
    """Every call raises NotConnected before the first dial and after the end, and keeps nothing."""
    with pytest.raises(NotConnected, match="never dialled"):
        call(Connection())
    with Server() as server:
        connection = Connection()
        connection.dial(server.url)
        connection.close()
        with pytest.raises(NotConnected):
            call(connection)
        assert connection.pending == ()


def test_bodies_keep_their_type() -> None:
    """A str is a text message and bytes are a binary one, both ways."""
    ear = Ear()
    with Server(echo) as server, dialled(server, ear, msg_prep=None, match_key=None) as connection:
        connection.send("text")
        connection.send(b"binary")
        connection.send(Message("message"))
        ear.wait_for(lambda: ear.messages == ["text", b"binary", "message"])
        assert server.received == ["text", b"binary", "message"]


def test_exactly_one_of_callback_and_on_failure() -> None:
    """Of `callback` and `on_failure` one is called once: with the reply, or with the error that ended the request."""
    ear = Ear()
    told: list[tuple[str, Any, Connection]] = []

    def message(number: int, timeout: float = SOON) -> Message:
        return Message.json(
            {"id": number},
            lambda reply, connection: told.append(("reply", reply.params, connection)),
            on_failure=lambda error, connection: told.append(("failure", error, connection)),
            timeout=timeout,
        )

    def script(client: ClientConnection, body: str | bytes) -> None:
        if json.loads(body)["id"] == 1:
            client.send(body)

    with Server(script) as server, dialled(server, ear) as connection:
        connection.send(message(1))
        connection.send(late := message(2, 10 * MS))
        assert until(lambda: len(told) == 2)
        connection.send(cut := message(3))
        connection.close()
    assert told[0] == ("reply", {"id": 1}, connection)
    assert [(kind, type(error), error.message, on) for kind, error, on in told[1:]] == [
        ("failure", ReplyTimeout, late, connection),
        ("failure", ConnectionClosed, cut, connection),
    ]
    assert ear.errors == []


def test_without_on_failure_on_error_is_told() -> None:
    """Without `on_failure` the error goes to `on_error`, and has the message."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection:
        message = Message.json({"id": 1}, lambda *_: pytest.fail("called"), timeout=10 * MS)
        connection.send(message)
        ear.wait_for(lambda: ear.errors)
        assert [(type(error), error.message) for error in ear.errors] == [(ReplyTimeout, message)]


def test_a_plain_message_awaits_nothing() -> None:
    """A message without callback is not pending, and can be sent again."""
    with Server(hold) as server, dialled(server) as connection:
        message = Message("{}")
        connection.send(message)
        connection.send(message)
        assert connection.pending == ()
        assert server.wait_for(2, SOON)


def test_a_pending_message_is_refused() -> None:
    """A Message that is pending cannot be sent: a ValueError, and it stays pending."""
    with Server(hold) as server, dialled(server) as connection:
        message = ask()
        connection.submit(message)
        for call in (connection.send, connection.request, connection.submit):
            with pytest.raises(ValueError, match="pending"):
                call(message)
        assert connection.pending == (message,)
        assert "1 pending" in repr(connection)


@pytest.mark.parametrize("retry", [0, 1])
def test_a_request_returns_its_reply(retry: int) -> None:
    """`request` takes a Message, a str or bytes and returns the reply."""
    with Server(echo) as server, dialled(server) as connection:
        assert connection.request(ask(retry)).params == {"id": retry}
        assert connection.request('{"id": 7}').params == {"id": 7}
        assert connection.request(b'{"id": 8}', None).body == b'{"id": 8}'


def test_whose_timeout_counts() -> None:
    """A call's own timeout counts before its message's, that before `request_timeout`."""
    with Server(hold) as server, dialled(server, request_timeout=10 * MS) as connection:
        with pytest.raises(ReplyTimeout) as caught:
            connection.request(ask())
        assert 10 * MS <= caught.value.waited < SOON
        assert caught.value.written == "yes"
        with pytest.raises(ReplyTimeout) as caught:
            connection.request(Message.json({"id": 2}, timeout=30 * MS))
        assert 30 * MS <= caught.value.waited < SOON
        with pytest.raises(ReplyTimeout) as caught:
            connection.request(Message.json({"id": 2}, timeout=SOON), 0)
        assert caught.value.waited < SOON
        assert connection.pending == ()


def test_a_request_in_a_callback() -> None:
    """`request` works in a callback, one inside the other's."""
    replies: list[Any] = []

    def on_message(message: Message, connection: Connection) -> None:
        replies.append(connection.request(ask(2), SOON).params)
        connection.send(Message.json({"id": 3}, callback))

    def callback(_: Message, connection: Connection) -> None:
        replies.append(connection.request(ask(4), SOON).params)
        replies.append(connection.submit(ask(5)).result(SOON).params)

    with (
        Server(echo, on_connect=lambda client: client.send("{}")) as server,
        dialled(server, on_message=on_message),
    ):
        assert until(lambda: len(replies) == 3)
    assert replies == [{"id": 2}, {"id": 4}, {"id": 5}]


def test_a_request_where_messages_are_read() -> None:
    """`request` in a function that runs where messages are read raises WouldDeadlock, which is reported."""
    ear = Ear()

    def msg_prep(_: Message) -> None:
        connection.request(Message("x", params=1))

    with Server(on_connect=lambda client: client.send("{}")) as server:
        connection = Connection(**(ear.options | {"msg_prep": msg_prep}))
        connection.dial(server.url)
        error = ear.wait_for(lambda: ear.errors)[0]
        connection.close()
    assert isinstance(error, UserCodeError)
    assert isinstance(error.__cause__, WouldDeadlock)


def test_many_by_one_write() -> None:
    """`submit_many` returns a Future for each message, in their order; either all are accepted, or none."""
    with Server(echo) as server, dialled(server, max_pending=50) as connection:
        futures = connection.submit_many([ask(number) for number in range(50)])
        assert [future.result(SOON).params["id"] for future in futures] == list(range(50))
        assert connection.submit_many([]) == []
        with pytest.raises(evtws.PendingFull):
            connection.submit_many([ask(number) for number in range(51)])
        assert connection.pending == ()
    assert server.received_count == 50


def test_a_cancelled_future_is_not_pending() -> None:
    """Cancelling a Future takes its request out of the queue."""
    with Server(hold) as server, dialled(server) as connection:
        future = connection.submit(ask())
        assert future.cancel()
        assert connection.pending == ()
        with pytest.raises(CancelledError):
            future.result(SOON)


def test_done_callbacks_run_with_the_callbacks() -> None:
    """A Future's done-callbacks run on the callbacks thread, and may be added at any time."""
    names: list[str] = []
    with Server(echo) as server, dialled(server) as connection:
        future = connection.submit(ask())
        future.add_done_callback(lambda _: names.append(threading.current_thread().name))
        future.result(SOON)
        future.add_done_callback(lambda _: names.append(threading.current_thread().name))
        assert connection.drain(SOON)
    assert names == ["evtws-callbacks"] * 2


def test_removal_is_silent() -> None:
    """`remove_from_queue` ends that very message's call: no callback, a cancelled Future, RequestCancelled."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection, ThreadPoolExecutor(1) as pool:
        called = Message.json({"id": 1}, lambda *_: pytest.fail("called"), on_failure=lambda *_: pytest.fail("called"))
        connection.send(called)
        assert not connection.remove_from_queue(ask())
        assert connection.remove_from_queue(called)
        assert not connection.remove_from_queue(called)
        future = connection.submit(asked := ask())
        assert connection.remove_from_queue(asked)
        assert future.cancelled()
        waiting = pool.submit(connection.request, waited := ask())
        assert until(lambda: connection.pending)
        assert connection.remove_from_queue(waited)
        error = waiting.exception(SOON)
        assert isinstance(error, RequestCancelled)
        assert error.message is waited
    assert (ear.errors, Connection().remove_from_queue(called)) == ([], False)


def count_to_three(client: ClientConnection, body: str | bytes) -> None:
    """A server's script that answers a request three times."""
    for number in (1, 2, 3):
        client.send(json.dumps({"id": json.loads(body)["id"], "n": number}))


def test_a_stream_yields_its_replies() -> None:
    """`stream` yields each reply up to and with the one for which `until` is true."""
    with Server(count_to_three) as server, dialled(server) as connection:
        items = connection.stream(ask(), until=lambda item: item.params["n"] == 3, timeout=SOON)
        assert [item.params["n"] for item in items] == [1, 2, 3]
        assert connection.pending == ()
        with pytest.raises(ValueError, match="maxsize"):
            connection.stream(ask(), until=bool, maxsize=0)


@pytest.mark.parametrize("cancel", [ask(9), lambda request: Message.json({"id": 9, "of": request.params["id"]})])
def test_a_stream_that_is_left(cancel: Any) -> None:
    """Leaving a stream early sends `on_cancel`, and its request is pending no more."""
    with Server(count_to_three) as server, dialled(server) as connection:
        with connection.stream(ask(), until=lambda _: False, on_cancel=cancel) as items:
            assert next(items).params["n"] == 1
        assert connection.pending == ()
        assert server.wait_for(2, SOON)
        assert json.loads(server.received[1])["id"] == 9


def test_a_stream_that_is_left_after_the_end() -> None:
    """Leaving a stream whose connection has ended sends nothing and raises nothing."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection:
        items = connection.stream(ask(), until=bool, on_cancel=ask(9))
        future = connection.submit(ask(2))
        server.drop_all()
        with pytest.raises(ConnectionLost):
            future.result(SOON)
        items.close()
        with pytest.raises(ConnectionLost):
            next(items)
        connection._send_cancel(ask(9))
        assert server.received_count <= 2


# -- not OPEN


def test_an_outbox_keeps_the_order() -> None:
    """While not OPEN messages wait in the outbox, in order and bounded, and go out first once OPEN."""
    ear = Ear()
    with Server(echo) as server, dialled(server, ear, reconnect=NEVER, outbox=3) as connection:
        server.drop_all()
        ear.one_error()
        futures = [connection.submit(ask(number)) for number in (1, 2)]
        connection.send(ask(3))
        with pytest.raises(OutboxFull):
            connection.send(ask(4))
        assert (connection.stats().outbox, connection.stats().pending) == (3, 2)
        connection.reconnect_now()
        assert [future.result(SOON).params["id"] for future in futures] == [1, 2]
        assert server.wait_for(3, SOON)
        assert [json.loads(body)["id"] for body in server.received] == [1, 2, 3]


def test_without_an_outbox_a_message_is_refused() -> None:
    """While not OPEN and without an outbox a message is refused."""
    ear = Ear()
    with Server() as server, dialled(server, ear, reconnect=NEVER) as connection:
        server.drop_all()
        ear.one_error()
        with pytest.raises(NotConnected, match="outbox"):
            connection.send("x")
        assert connection.pending == ()


# -- prepare


def test_prepare_goes_first() -> None:
    """What `prepare` sends goes straight out; others' messages wait, and come after it; then `on_connected`."""
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def prepare(connection: Connection) -> None:
        assert connection.state is State.CONNECTING
        inside.set()
        assert go_on.wait(SOON)
        order.append(connection.request(Message.json({"id": "login"}), SOON).params["id"])

    ear = Ear()
    options = ear.options | {"on_connected": lambda connection: order.append(f"connected {connection.state.name}")}
    connection = Connection(**options, prepare=prepare, outbox=5)
    with Server(echo) as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        assert inside.wait(SOON)
        future = connection.submit(ask())
        future.add_done_callback(lambda _: order.append("other"))
        go_on.set()
        dialling.result(SOON)
        future.result(SOON)
        assert connection.drain(SOON)
        assert [json.loads(body)["id"] for body in server.received] == ["login", 1]
    assert order == ["login", "connected OPEN", "other"]


def test_prepare_that_raises() -> None:
    """What `prepare` raises ends the attempt by a PrepareError with the cause, and the peer is told 1000."""
    ear = Ear()

    def prepare(_: Connection) -> None:
        raise KeyError("token")

    clients: list[ClientConnection] = []
    with Server(on_connect=clients.append) as server:
        connection = Connection(**ear.options, prepare=prepare, reconnect=QUICK)
        with pytest.raises(PrepareError) as caught:
            connection.dial(server.url)
        assert isinstance(caught.value.__cause__, KeyError)
        assert until(lambda: clients[0].close_code) == 1000
    assert (ear.connected, ear.errors, ear.disconnected) == (0, [], [])


def test_prepare_that_is_tried_again() -> None:
    """A `prepare` that raised is called again on the next connection, as the policy says."""
    ear = Ear()
    calls: list[int] = []

    def prepare(_: Connection) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no token now")

    with Server() as server, dialled(server, ear, prepare=prepare, reconnect=QUICK):
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
    assert len(calls) == 3
    assert list(map(type, ear.errors)) == [ConnectionLost, PrepareError]
    assert [type(error) for error in ear.disconnected] == [ConnectionLost, type(None)]


def test_prepare_that_is_too_slow() -> None:
    """A `prepare` that does not return within `connect_timeout` ends the attempt; its messages are refused then."""
    release, refusals = threading.Event(), []

    def prepare(connection: Connection) -> None:
        release.wait(SOON)
        try:
            connection.send("late")
        except NotConnected as error:
            refusals.append(error)

    with Server() as server:
        connection = Connection(prepare=prepare, connect_timeout=100 * MS, close_timeout=0)
        began = time.monotonic()
        with pytest.raises(PrepareError, match="connect_timeout"):
            connection.dial(server.url)
        assert 100 * MS <= time.monotonic() - began < SOON
        release.set()
        assert until(lambda: refusals)
        assert server.received == []


# -- lifecycle callbacks


def test_one_loss_is_told_once() -> None:
    """A loss is told to `on_disconnected` and to `on_error` once, before the next `on_connected`; a close as None."""
    order: list[Any] = []
    told = threading.Condition()

    def tell(what: object) -> None:
        with told:
            order.append(what)
            told.notify_all()

    with Server() as server:
        connection = Connection(
            reconnect=QUICK,
            on_connected=lambda connection: tell("connected"),
            on_disconnected=lambda connection, error: tell(("disconnected", type(error))),
            on_error=lambda error: tell(("error", type(error))),
        )
        connection.dial(server.url)
        server.drop_all()
        with told:
            assert told.wait_for(lambda: order.count("connected") == 2, SOON)
        connection.close()
    assert order == [
        "connected",
        ("disconnected", ConnectionLost),
        ("error", ConnectionLost),
        "connected",
        ("disconnected", type(None)),
    ]


def test_a_callback_that_raises() -> None:
    """What a callback raises is counted and told to `on_error`; the next one is called."""
    ear = Ear()

    def callback(*_: object) -> None:
        raise SystemExit("callback")

    with Server(echo) as server, dialled(server, ear) as connection:
        connection.send(Message.json({"id": 1}, callback))
        error = ear.wait_for(lambda: ear.errors)[0]
        assert isinstance(error, UserCodeError)
        assert isinstance(error.__cause__, SystemExit)
        assert connection.request(ask(), SOON).params == {"id": 1}
        assert connection.stats().callbacks_failed == 1


# -- pings


def test_a_ping_measures() -> None:
    """`ping` returns the round-trip time in seconds, which is in the stats, too."""
    with Server() as server, dialled(server) as connection:
        seconds = connection.ping()
        stats = connection.stats()
        assert 0 < seconds < SOON
        assert stats.rtt_last == stats.rtt_min == stats.rtt_mean is not None
        assert stats.pings_unanswered == 0


def test_a_ping_that_is_not_answered() -> None:
    """`ping` raises ReplyTimeout when no pong comes, and ConnectionLost when the connection ends meanwhile."""
    with Server(pongs=False) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        with pytest.raises(ReplyTimeout):
            connection.ping(10 * MS)
        assert connection.stats().pings_unanswered == 1
        pinging = pool.submit(connection.ping)
        assert until(lambda: connection.stats().pings_unanswered == 2)
        server.drop_all()
        assert isinstance(pinging.exception(SOON), ConnectionLost)


def test_a_service_pong() -> None:
    """`pong_received` answers every ping so far, and does nothing before the first dial."""
    Connection().pong_received()
    with Server(pongs=False) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(connection.ping)
        assert until(lambda: connection.stats().pings_unanswered == 1)
        connection.pong_received()
        assert 0 < pinging.result(SOON) < SOON


# -- what it is


def test_options_are_sealed_while_dialled() -> None:
    """Options are attributes that can be set until the dial and after the end, and are refused in between."""
    connection = Connection(request_timeout=1)
    connection.request_timeout = SOON
    with Server() as server:
        connection.dial(server.url)
        with pytest.raises(ValueError, match="request_timeout cannot be set while the connection is OPEN"):
            connection.request_timeout = 2
        assert connection.request_timeout == SOON
        connection.close()
    connection.request_timeout = 3
    with pytest.raises(ValueError, match="at least 0"):
        connection.request_timeout = -1
    with pytest.raises(TypeError):
        Connection(no_option=1)  # type: ignore[call-arg]


def test_the_subprotocol_is_told() -> None:
    """`subprotocol` is what the server chose, None if nothing."""
    assert Connection().subprotocol is None
    with Server(subprotocols=["b"]) as server, dialled(server, subprotocols=["a", "b"]) as connection:
        assert connection.subprotocol == "b"
    with Server() as server, dialled(server) as connection:
        assert connection.subprotocol is None


def test_a_context_manager_closes() -> None:
    """A connection is a context manager that closes it, as `connect` is, which makes and dials it."""
    with Server(echo) as server:
        with evtws.connect(server.url, match_key=lambda _: 1, request_timeout=SOON) as connection:
            assert (connection.request("x").body, connection.is_connected) == ("x", True)
        assert connection.state is State.CLOSED
        with connection as same:
            same.dial(server.url)
        assert connection.state is State.CLOSED
    with pytest.raises(DialError), evtws.connect(f"ws://127.0.0.1:{closed_port()}"):
        pass


def test_pending_is_a_snapshot() -> None:
    """`pending` is a snapshot of the messages that await a reply, oldest first."""
    assert Connection().pending == ()
    with Server(hold) as server, dialled(server) as connection:
        messages = tuple(ask(number) for number in range(3))
        for message in messages:
            connection.submit(message)
        before = connection.pending
        connection.remove_from_queue(messages[1])
        assert before == messages
        assert connection.pending == (messages[0], messages[2])


def test_the_stats_of_nothing() -> None:
    """A connection that was never dialled has done nothing."""
    stats = Connection().stats()
    assert (stats.state, stats.uptime, stats.messages_sent, stats.rtt_last) == (State.CLOSED, None, 0, None)
    with pytest.raises(AttributeError):
        stats.pending = 1  # type: ignore[misc]


def test_the_stats_tell_replies_apart() -> None:
    """Late, duplicate and unmatched replies, and what callbacks wait, are counted apart."""
    blocked, release = threading.Event(), threading.Event()

    def on_message(*_: object) -> None:
        blocked.set()
        assert release.wait(SOON)

    with Server(hold) as server, dialled(server, on_message=on_message, callback_queue=2) as connection:
        client = only_client(server)
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), 0)
        future = connection.submit(ask(2))
        client.send('{"id":2}')
        assert future.result(SOON).params == {"id": 2}
        client.send('{"id":1}')
        assert blocked.wait(SOON)
        for body in ('{"id":2}', '{"id":3}', '{"id":4}', '{"id":5}'):
            client.send(body)
        connection.submit(ask(6))
        assert until(lambda: connection.stats().messages_received == 6)
        connection.ping(SOON)
        stats = connection.stats()
        release.set()
    assert (stats.late, stats.duplicate, stats.unmatched) == (1, 1, 3)
    # One runs, two wait, and so does the SlowConsumer that tells of the others.
    assert (stats.callbacks_dropped, stats.callbacks_queued, stats.pending) == (2, 3, 1)
    assert stats.messages_sent == 3


def test_the_stats_add_up_over_reconnects() -> None:
    """Messages and bytes add up over reconnects, and never go down; uptime begins anew."""
    seen: list[tuple[int, int, int]] = []
    ear = Ear()

    def look(connection: Connection, *_: object) -> None:
        stats = connection.stats()
        seen.append((stats.messages_sent, stats.messages_received, stats.bytes_sent))

    def closed(connection: Connection, error: evtws.EvtwsError | None) -> None:
        look(connection)
        ear.on_disconnected(connection, error)

    with Server(echo) as server, dialled(server, ear, reconnect=QUICK, on_disconnected=closed) as connection:
        for life in (1, 2, 3):
            connection.request(ask(), SOON)
            connection.send('{"id":0}')
            ear.wait_for(lambda life=life: len(ear.messages) == life)  # type: ignore[misc]
            stats = connection.stats()
            assert (stats.messages_sent, stats.messages_received, stats.reconnects) == (2 * life, 2 * life, life - 1)
            # A client's frames have a mask of four bytes; the same frames come back without.
            assert stats.bytes_sent - stats.bytes_received >= 2 * life * 4
            assert stats.uptime is not None
            assert 0 <= stats.uptime < SOON
            before = stats
            if life < 3:
                only_client(server).close(1001)
                ear.wait_for(lambda life=life: ear.connected == life + 1)  # type: ignore[misc]
                assert connection.stats().bytes_sent == before.bytes_sent + 8  # and the answer to the close frame
    final = connection.stats()
    assert [(sent, received) for sent, received, _ in seen] == [(2, 2), (4, 4), (6, 6)]
    assert (final.messages_sent, final.state, final.uptime) == (6, State.CLOSED, None)


# -- dropped


def dial_and_drop(server: Server) -> weakref.ref[Connection]:
    """Open a connection for the second time, and forget it."""
    connection = Connection(on_connected=lambda _: None)
    for _ in range(2):
        connection.close()
        connection.dial(server.url)
    return weakref.ref(connection)


def test_a_connection_that_is_dropped() -> None:
    """A Connection that is dropped without `close` is collected, with one ResourceWarning, and its socket with it."""
    with Server() as server:
        with pytest.warns(ResourceWarning, match="without close") as warned:
            collect(dial_and_drop(server))
        assert len(warned) == 1
        assert until(lambda: not server.connections)


def test_a_connection_that_is_closed_and_dropped() -> None:
    """A Connection that is dropped after `close` is collected without a warning."""
    with Server() as server:
        connection = Connection()
        connection.dial(server.url)
        connection.close()
        dropped = weakref.ref(connection)
        del connection
        collect(dropped)
