"""Streams: the several replies of one request, over a real connection."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evtws import json_params, keyed
from evtws.connection import Connection
from evtws.errors import ConnectionClosed, ConnectionLost, ReplyTimeout, RequestCancelled, SlowConsumer, WouldDeadlock
from evtws.message import Message
from evtws.stream import ReplyStream
from evtws.testing import Server
from evtws.testing.client_connection import ClientConnection

from .timing import MS, SOON


def say(client: ClientConnection, body: str | bytes) -> None:
    """The server's script: `items` replies at once; the last one says so, unless the stream is endless."""
    params = json.loads(body)
    if "cancel" in params:
        return
    for number in range(params["items"]):
        last = number == params["items"] - 1 and not params.get("endless")
        client.send(json.dumps({"id": params["id"], "item": number, "last": last}))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(say) as server:
        yield server


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    connection = Connection(
        msg_prep=json_params, match_key=keyed("id"), on_error=lambda error: None, request_timeout=SOON
    )
    connection.dial(server.url)
    yield connection
    connection.close()


def ask(items: int, endless: bool = False) -> Message:
    return Message.json({"id": 1, "items": items, "endless": endless})


def is_last(reply: Message) -> bool:
    return bool(reply.params["last"])


CANCEL = Message.json({"cancel": True, "id": None})


def cancels(server: Server) -> int:
    """How often the server was told to stop."""
    return sum("cancel" in json.loads(body) for body in server.received)


def settled(connection: Connection, server: Server) -> int:
    """The same, once all that was sent so far has arrived: a request behind it has its reply."""
    connection.request(Message.json({"id": 2, "items": 1}), SOON)
    return cancels(server)


def eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(MS)
    return True


def test_a_stream_ends_after_its_last_reply(server: Server, connection: Connection) -> None:
    """The replies come in order, the one for which `until` is true as the last; then nothing is cancelled."""
    with connection.stream(ask(5), until=is_last, on_cancel=CANCEL) as stream:
        assert [reply.params["item"] for reply in stream] == [0, 1, 2, 3, 4]
        assert list(stream) == []
    stream.close()
    assert connection.pending == ()
    assert settled(connection, server) == 0


def test_replies_after_the_end_are_duplicates(server: Server, connection: Connection) -> None:
    """What the peer sends after the last reply is counted as a duplicate."""
    assert len(list(connection.stream(ask(1), until=is_last))) == 1
    server.connections[0].send(json.dumps({"id": 1, "item": 9, "last": True}))
    assert eventually(lambda: connection.stats().duplicate == 1)


def leave_by_break(stream: ReplyStream) -> None:
    for _ in stream:
        break
    stream.close()


def leave_by_with(stream: ReplyStream) -> None:
    with stream:
        next(stream)


def leave_by_error(stream: ReplyStream) -> None:
    with pytest.raises(ZeroDivisionError), stream:
        raise ZeroDivisionError


def leave_by_close(stream: ReplyStream) -> None:
    stream.close()
    stream.close()


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_with, leave_by_error, leave_by_close])
@pytest.mark.parametrize("on_cancel", [CANCEL, lambda request: Message.json({"cancel": request.params["id"], "id": 0})])
def test_leaving_early_cancels_once(
    server: Server, connection: Connection, leave: Callable[[ReplyStream], None], on_cancel: Any
) -> None:
    """Leaving a stream takes its request out of the queue and sends on_cancel, a message or what a function makes."""
    leave(connection.stream(ask(3, endless=True), until=is_last, on_cancel=on_cancel))
    assert connection.pending == ()
    assert settled(connection, server) == 1


def test_a_stream_that_is_dropped_is_left(server: Server, connection: Connection) -> None:
    """A stream that nobody holds any more is left, on the callbacks thread."""
    stream = connection.stream(ask(3, endless=True), until=is_last, on_cancel=CANCEL)
    next(stream)
    del stream
    gc.collect()
    assert eventually(lambda: cancels(server))
    assert connection.pending == ()
    assert settled(connection, server) == 1


def test_a_stream_can_be_collected_under_any_lock(connection: Connection, server: Server) -> None:
    """Garbage is collected wherever it likes, also while that thread holds the connection's lock: nothing blocks."""
    engine = connection._engine
    assert engine is not None
    streams = [connection.stream(ask(3, endless=True), until=is_last, on_cancel=CANCEL)]

    def drop() -> None:
        with engine.life.lock:
            streams.clear()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(SOON / 10)
    assert not thread.is_alive()
    assert eventually(lambda: cancels(server) == 1)


def test_leaving_without_on_cancel_sends_nothing(server: Server, connection: Connection) -> None:
    """Without on_cancel the request is taken out of the queue, and the peer is told nothing; the stream has ended."""
    stream = connection.stream(ask(1, endless=True), until=is_last)
    stream.close()
    assert (connection.pending, list(stream)) == ((), [])
    assert settled(connection, server) == 0
    assert server.received_count == 2


def test_a_reply_that_does_not_come_is_a_timeout(server: Server, connection: Connection) -> None:
    """The timeout is for each reply; the error says where the request was, and the stream is left."""
    stream = connection.stream(ask(2, endless=True), until=is_last, timeout=50 * MS, on_cancel=CANCEL)
    assert [next(stream).params["item"] for _ in range(2)] == [0, 1]
    with pytest.raises(ReplyTimeout, match="connection OPEN") as caught:
        next(stream)
    assert caught.value.written == "yes"
    assert caught.value.message is not None
    assert connection.pending == ()
    assert settled(connection, server) == 1


def test_a_stream_that_is_not_taken_ends(server: Server, connection: Connection) -> None:
    """One reply more than maxsize ends the stream by SlowConsumer, after those that wait; the peer is told."""
    stream = connection.stream(ask(10, endless=True), until=is_last, maxsize=3, on_cancel=CANCEL)
    assert eventually(lambda: not connection.pending)
    assert [next(stream).params["item"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SlowConsumer):
        next(stream)
    assert settled(connection, server) == 1


def test_the_end_of_the_connection_ends_a_stream(server: Server, connection: Connection) -> None:
    """A stream whose connection is lost raises ConnectionLost after the replies that came, and sends no cancel."""
    stream = connection.stream(ask(2, endless=True), until=is_last, on_cancel=CANCEL)
    assert eventually(lambda: connection.stats().messages_received == 2)
    server.drop_all()
    assert [next(stream).params["item"] for _ in range(2)] == [0, 1]
    with pytest.raises(ConnectionLost):
        next(stream)
    assert cancels(server) == 0


def test_close_ends_a_stream(connection: Connection) -> None:
    """A stream that waits when its connection is closed raises ConnectionClosed."""
    stream = connection.stream(ask(1, endless=True), until=is_last)
    next(stream)
    connection.close()
    with pytest.raises(ConnectionClosed):
        next(stream)


def test_leaving_after_the_end_of_the_connection_is_silent(server: Server, connection: Connection) -> None:
    """on_cancel that cannot be sent any more is not sent: the peer has forgotten the stream."""
    stream = connection.stream(ask(3, endless=True), until=is_last, maxsize=1, on_cancel=CANCEL)
    assert eventually(lambda: not connection.pending)
    connection.close()
    stream.close()
    assert cancels(server) == 0


def test_a_removed_stream_is_cancelled(connection: Connection, server: Server) -> None:
    """remove_from_queue ends a stream by RequestCancelled."""
    message = ask(0, endless=True)
    stream = connection.stream(message, until=is_last, on_cancel=CANCEL)
    assert connection.remove_from_queue(message)
    with pytest.raises(RequestCancelled):
        next(stream)
    assert settled(connection, server) == 0


def test_a_stream_is_not_awaited_where_messages_are_read(server: Server) -> None:
    """next in a function that runs where messages are read raises WouldDeadlock at once; the stream goes on."""
    streams: list[ReplyStream] = []
    errors: list[BaseException] = []
    tried = threading.Event()

    def prepare(message: Message) -> None:
        json_params(message)
        if streams and not tried.is_set():
            try:
                next(streams[0])
            except WouldDeadlock as error:
                errors.append(error)
            tried.set()

    with Connection(msg_prep=prepare, match_key=keyed("id"), request_timeout=SOON) as connection:
        connection.dial(server.url)
        streams.append(connection.stream(ask(0, endless=True), until=is_last))
        server.wait_for(1, SOON)
        server.connections[0].send(json.dumps({"id": 1, "item": 0, "last": True}))
        assert tried.wait(SOON)
        assert len(errors) == 1
        assert len(list(streams[0])) == 1


def test_a_stream_cannot_hold_nothing(connection: Connection) -> None:
    """maxsize must be at least 1."""
    with pytest.raises(ValueError, match="maxsize"):
        connection.stream(ask(1), until=is_last, maxsize=0)
