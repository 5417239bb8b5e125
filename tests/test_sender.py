"""The sender: all or nothing, replies that outrun it, waits for room, and many threads at once."""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    Message,
    NotConnected,
    PendingFull,
    ReplyTimeout,
    State,
    WriteTimeout,
    in_order,
    keyed,
)
from evtws.errors import ForkedError, OutboxFull
from evtws.testing import ClientConnection, Server

from .faults.support import Ear, ask, echo, only_client, until
from .timing import MS, SOON

#: More than the system's buffers hold.
LARGE = "x" * (1 << 25)
BUFFER = 1 << 18
THREADS = 8


@contextmanager
def connected(
    ear: Ear, script: Callable[[ClientConnection, str | bytes], object] | None = None, **options: Any
) -> Iterator[tuple[Connection, ClientConnection]]:
    """A connection that matches by id unless told otherwise, and its server's end; all is heard by `ear`."""
    with (
        Server(script, max_size=None) as server,
        evtws.connect(server.url, **(ear.options | {"ping_interval": None} | options)) as connection,
    ):
        yield connection, only_client(server)


def transport_of(connection: Connection) -> Any:
    """What the connection writes to."""
    engine = connection._engine
    assert engine is not None
    return engine.life.transport


@contextmanager
def full(ear: Ear, **options: Any) -> Iterator[tuple[Connection, ClientConnection]]:
    """A connection to a peer that does not read, whose write buffer has no room for what is `padded`."""
    with connected(ear, echo_asked, **({"write_buffer": BUFFER, "write_timeout": 50 * MS} | options)) as both:
        connection, client = both
        client.pause_reading()
        assert until(lambda: client._paused)
        transport = transport_of(connection)
        quiet = 0
        while quiet < 100:
            if transport.backlog < BUFFER // 2:
                connection.send("x" * (BUFFER // 4))
                quiet = 0
            else:
                time.sleep(MS)  # the system may find more room; an acknowledgement may be delayed for 40 ms
                quiet += 1
        yield both


def echo_asked(client: ClientConnection, body: str | bytes) -> None:
    """A server's script that answers requests, not what fills the buffers."""
    if body[:1] != "x":
        client.send(body)


def padded(number: int, **more: Any) -> Message:
    """A request that does not fit in the write buffer."""
    return Message.json({"id": number, "pad": "x" * BUFFER}, **more)


def works_again(connection: Connection, client: ClientConnection) -> bool:
    """Whether the connection lives once the peer reads."""
    client.resume_reading()
    return bool(connection.request(ask(99), timeout=SOON).params == {"id": 99})


def in_threads(count: int, target: Callable[[int], object]) -> None:
    """Run `target(number)` in so many threads, to their end."""
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            target(number)
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert raised == []


# -- accepted or not


def test_a_reply_outruns_send() -> None:
    """A request is registered before it is written: its reply may be there before the sending has returned."""
    with connected(Ear(), echo) as (connection, _):
        transport = transport_of(connection)
        write = transport.send
        replies: queue.Queue[Message] = queue.Queue()

        def write_and_wait(*arguments: Any) -> Any:
            ticket = write(*arguments)
            assert replies.get(timeout=SOON).params == {"id": 1}
            return ticket

        transport.send = write_and_wait
        connection.send(Message.json({"id": 1}, lambda reply, _: replies.put(reply)))


def test_all_or_nothing() -> None:
    """`submit_many` that is refused one message sends none, keeps none and tells nobody."""
    ear = Ear()
    with connected(ear, echo, max_pending=3) as (connection, client):
        same = ask(7)
        refused: list[tuple[type[Exception], list[Message]]] = [
            (PendingFull, [ask(number) for number in range(4)]),
            (ValueError, [ask(1), same, same]),
            (ValueError, [ask(1), Message.json({})]),
        ]
        for error, messages in refused:
            with pytest.raises(error):
                connection.submit_many(messages)
            assert connection.pending == ()
        assert [reply.result(SOON).params for reply in connection.submit_many([same, ask(8)])] == [{"id": 7}, {"id": 8}]
        assert connection.submit_many([]) == []
        assert client.received == [same.body, ask(8).body]
    assert ear.errors == []


def test_all_or_nothing_in_order() -> None:
    """What a refused `submit_many` had accepted leaves no place in an `in_order` line."""
    with connected(Ear(), echo, match_msg=in_order, match_key=None, max_pending=1) as (connection, _):
        with pytest.raises(PendingFull):
            connection.submit_many([ask(1), ask(2)])
        assert connection.submit(ask(3)).result(SOON).params == {"id": 3}


def test_a_connection_that_is_closing() -> None:
    """What the transport does not take raises ConnectionLost, or ends with the connection if a reply is awaited."""
    ear = Ear()
    with connected(ear, echo) as (connection, client):
        transport_of(connection).seal()
        with pytest.raises(ConnectionLost) as caught:
            connection.send("x")
        assert caught.value.written == "no"
        future = connection.submit(ask(1))
        client.drop()
        error = future.exception(SOON)
        assert isinstance(error, ConnectionLost)
        assert error.written == "no"


# -- waiting for room

WAYS: dict[str, Callable[[Connection], object]] = {
    "send": lambda connection: connection.send("x" * BUFFER),
    "callback": lambda connection: connection.send(padded(1, callback=lambda *_: None)),
    "request": lambda connection: connection.request(padded(1), timeout=SOON),
    "submit": lambda connection: connection.submit(padded(1), timeout=SOON),
    "submit_many": lambda connection: connection.submit_many([padded(number) for number in range(3)], timeout=SOON),
    "stream": lambda connection: connection.stream(padded(1), until=lambda _: True, timeout=SOON),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_not_a_byte_is_written(way: Callable[[Connection], object]) -> None:
    """A message of which not a byte was written within `write_timeout` is withdrawn, and the connection lives."""
    ear = Ear()
    with full(ear) as (connection, client):
        before = transport_of(connection).backlog
        with pytest.raises(WriteTimeout):
            way(connection)
        assert connection.pending == ()
        assert transport_of(connection).backlog <= before
        assert works_again(connection, client)
        assert "pad" not in "".join(str(body)[:20] for body in client.received)
    assert ear.errors == []


@pytest.mark.parametrize("awaits", [False, True])
def test_a_part_is_written(awaits: bool) -> None:
    """When a part was written within `write_timeout`, the connection is lost, and the bytes are told as "maybe"."""
    ear = Ear()
    with connected(ear, write_timeout=20 * MS) as (connection, client):
        client.pause_reading()
        assert until(lambda: client._paused)
        with pytest.raises(ConnectionLost) as caught:
            connection.request(Message(LARGE, {"id": 1})) if awaits else connection.send(LARGE)
        assert caught.value.written == "maybe"
        ear.one_error()
        assert until(lambda: connection.state is State.CLOSED)


def test_the_deadline_comes_first() -> None:
    """A request whose own time is up before `write_timeout` raises ReplyTimeout, and is withdrawn all the same."""
    with full(Ear(), write_timeout=SOON) as (connection, client):
        with pytest.raises(ReplyTimeout) as caught:
            connection.request(padded(1), timeout=20 * MS)
        assert (caught.value.written, connection.pending) == ("no", ())
        assert works_again(connection, client)


def test_a_timer_ends_it_first() -> None:
    """A request that ends while its sender waits for room ends once: the sender hears of it, or its Future."""
    with full(Ear(), write_timeout=SOON) as (connection, client):
        with pytest.raises(ReplyTimeout):
            connection.submit(padded(1), timeout=20 * MS).result(SOON)
        assert connection.pending == ()
        assert works_again(connection, client)


def test_it_is_removed_meanwhile() -> None:
    """A request that was removed while its sender waits for room ends silently."""
    ear = Ear()
    message = padded(1, callback=lambda *_: None)
    with full(ear) as (connection, client):
        sending = threading.Thread(target=connection.send, args=(message,))
        sending.start()
        assert until(lambda: message in connection.pending)
        assert connection.remove_from_queue(message)
        assert not connection.remove_from_queue(message)
        sending.join(SOON)
        assert not sending.is_alive()
        assert works_again(connection, client)
    assert ear.errors == []


def test_there_is_room() -> None:
    """A sender that waits goes on once the peer reads; without `write_timeout` it waits however long that takes."""
    with full(Ear(), write_timeout=None) as (connection, client):
        threading.Timer(20 * MS, client.resume_reading).start()
        connection.send("x" * BUFFER)
        assert connection.request(padded(1), timeout=None).params["id"] == 1


def test_there_is_room_just_now() -> None:
    """A sender whose time is up and whose message has just found room has sent it."""
    with full(Ear()) as (connection, client):
        transport = transport_of(connection)
        wait = transport.wait_for_room

        def too_late(ticket: Any, _timeout: float) -> bool:
            client.resume_reading()
            assert wait(ticket, SOON)
            return False

        transport.wait_for_room = too_late
        assert connection.request(padded(1), timeout=SOON).params["id"] == 1


@pytest.mark.parametrize("ending", ["close", "drop"])
def test_the_connection_ends_while_a_sender_waits(ending: str) -> None:
    """close() and a loss end the wait of every sender at once."""
    errors: list[BaseException] = []

    def send(number: int) -> None:
        try:
            if number % 2:
                connection.send("x" * BUFFER)
            else:
                connection.request(padded(number), timeout=SOON)
        except ConnectionLost as error:
            errors.append(error)

    with full(Ear(), write_timeout=SOON) as (connection, client):
        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        assert until(lambda: len(connection.pending) == 2)
        assert until(lambda: transport_of(connection).backlog > 4 * BUFFER)
        if ending == "close":
            connection.close(timeout=0)
        else:
            client.drop(reset=True)
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive()
    assert len(errors) == 4
    assert sum(isinstance(error, ConnectionClosed) for error in errors) == (2 if ending == "close" else 0)


def interrupt_when(what: Callable[[], object]) -> None:
    """Press Ctrl-C once that is true."""

    def interrupt() -> None:
        assert until(what)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()


@pytest.mark.skipif(os.name == "nt", reason="no signal can be sent to a thread")
def test_interrupted_before_a_byte_is_written() -> None:
    """Ctrl-C while a sender waits for room withdraws its message; the connection lives."""
    with full(Ear(), write_timeout=SOON) as (connection, client):
        before = transport_of(connection).backlog
        interrupt_when(lambda: transport_of(connection).backlog > before)
        with pytest.raises(KeyboardInterrupt):
            connection.send(padded(1, callback=lambda *_: None))
        assert connection.pending == ()
        assert transport_of(connection).backlog <= before
        assert works_again(connection, client)


@pytest.mark.skipif(os.name == "nt", reason="no signal can be sent to a thread")
def test_interrupted_when_a_part_is_written() -> None:
    """Ctrl-C while a message is half written ends the request; the rest is written, and the connection lives."""
    with connected(Ear(), echo_asked, write_timeout=SOON) as (connection, client):
        client.pause_reading()
        assert until(lambda: client._paused)
        interrupt_when(lambda: 0 < transport_of(connection).backlog < len(LARGE))
        with pytest.raises(KeyboardInterrupt):
            connection.request(Message(LARGE, {"id": 1}), timeout=SOON)
        assert connection.pending == ()
        assert works_again(connection, client)
        assert [len(body) for body in client.received] == [len(LARGE), len(ask(99).body)]


def test_a_function_that_must_not_block() -> None:
    """What msg_prep sends is queued past the bound: it would hold up the reading otherwise."""
    sent = threading.Event()

    def msg_prep(message: Message) -> None:
        evtws.json_params(message)
        if not sent.is_set():
            connection.send("x" * BUFFER)
            sent.set()

    with full(Ear(), msg_prep=msg_prep, write_timeout=SOON) as (connection, client):
        client.send(ask(1).body)
        assert sent.wait(SOON)
        client.resume_reading()
        assert until(lambda: transport_of(connection).backlog == 0)


# -- from everywhere


def test_sending_in_a_callback() -> None:
    """A callback may send and request."""
    came: list[Any] = []

    def callback(reply: Message, connection: Connection) -> None:
        came.append(reply.params["id"])
        came.append(connection.request(ask(2), timeout=SOON).params["id"])
        connection.send(Message.json({"id": 3}, lambda reply, _: came.append(reply.params["id"])))

    with connected(Ear(), echo) as (connection, _):
        connection.send(Message.json({"id": 1}, callback))
        assert until(lambda: len(came) == 3)
    assert came == [1, 2, 3]


def test_in_order_from_many_threads() -> None:
    """Where replies come in order, each of many threads gets its own, whatever they do."""

    def ask_many(number: int) -> None:
        for count in range(250):
            if count % 5:
                assert connection.request(f"{number} {count}", timeout=SOON).body == f"{number} {count}"
            else:
                bodies = [f"{number} {count} {part}" for part in "abc"]
                assert [reply.result(SOON).body for reply in connection.submit_many(bodies)] == bodies

    ear = Ear()
    with connected(ear, echo, match_msg=in_order, match_key=None, msg_prep=None) as (connection, _):
        in_threads(THREADS, ask_many)
        stats = connection.stats()
        assert (stats.late, stats.duplicate, stats.unmatched) == (0, 0, 0)
    assert (ear.errors, ear.messages) == ([], [])


def test_keys_from_many_threads() -> None:
    """Where replies have keys, each of many threads gets its own."""

    def ask_many(number: int) -> None:
        for count in range(number * 1000, number * 1000 + 250):
            assert connection.request(ask(count), timeout=SOON).params == {"id": count}

    ear = Ear()
    with connected(ear, echo) as (connection, _):
        in_threads(THREADS, ask_many)
    assert (ear.errors, ear.messages) == ([], [])


def test_the_order_of_each_thread() -> None:
    """What one thread sends arrives in its order, however many send at once."""
    with connected(Ear()) as (connection, client):

        def send_many(number: int) -> None:
            for count in range(500):
                connection.send(f"{number} {count}")

        in_threads(THREADS, send_many)
        assert until(lambda: len(client.received) == THREADS * 500)
    for number in range(THREADS):
        mine = [body for body in client.received if str(body).startswith(f"{number} ")]
        assert mine == [f"{number} {count}" for count in range(500)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child() -> None:
    """In a forked child every way to send raises ForkedError; the parent's connection lives."""
    with connected(Ear(), echo) as (connection, client):
        child = os.fork()
        if child == 0:
            refused = 0
            for way in WAYS.values():
                try:
                    way(connection)
                except ForkedError:
                    refused += 1
                except BaseException:
                    pass
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(WAYS)
        assert works_again(connection, client)


# -- waiting to be sent


def test_the_outbox() -> None:
    """While not OPEN messages wait in the outbox, within its bound and in order; without one they are refused."""
    may_open, came = threading.Event(), threading.Event()

    def prepare(connection: Connection) -> None:
        assert connection.request(ask(0), timeout=SOON).params == {"id": 0}
        came.set()
        may_open.wait(SOON)

    for outbox in (0, 2):
        may_open.clear()
        came.clear()
        connection = Connection(outbox=outbox, prepare=prepare, msg_prep=evtws.json_params, match_key=keyed("id"))
        with Server(echo) as server:
            dialling = threading.Thread(target=connection.dial, args=(server.url,))
            dialling.start()
            assert came.wait(SOON)
            if outbox:
                future = connection.submit(ask(1))
                connection.send("2")
            with pytest.raises(OutboxFull if outbox else NotConnected):
                connection.submit_many([ask(3)])
            assert server.received == [ask(0).body]
            may_open.set()
            dialling.join(SOON)
            if outbox:
                assert future.result(SOON).params == {"id": 1}
                assert server.wait_for(3, SOON)
                assert server.received == [ask(0).body, ask(1).body, "2"]
            assert connection.pending == ()
            connection.close()


def test_answered_in_the_last_moment() -> None:
    """A request that is answered when its time is up just then has its reply."""
    with connected(Ear(), echo) as (connection, _):
        engine: Any = connection._engine
        wait = engine.reader.wait

        def too_late(waiter: Any, deadline: float) -> bool:
            assert wait(waiter, deadline)
            return False

        engine.reader.wait = too_late
        assert connection.request(ask(1), timeout=SOON).params == {"id": 1}


def test_its_time_is_up() -> None:
    """A request whose time is up raises ReplyTimeout, and is pending no more."""
    with connected(Ear()) as (connection, _):
        before = time.monotonic()
        with pytest.raises(ReplyTimeout) as caught:
            connection.request(ask(1), timeout=20 * MS)
        assert time.monotonic() - before >= 20 * MS
        assert (caught.value.written, connection.pending) == ("yes", ())


class Interrupted:
    """A transport's socket whose next write is interrupted by Ctrl-C."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._sock = transport._sock
        transport._sock = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, _data: bytes) -> int:
        self._transport._sock = self._sock
        raise KeyboardInterrupt


@pytest.mark.parametrize("rule", [{}, {"match_msg": in_order, "match_key": None}])
def test_interrupted_while_writing(rule: dict[str, Any]) -> None:
    """Ctrl-C inside a write ends the request and loses the connection: bytes may be missing."""
    ear = Ear()
    with connected(ear, echo, **rule) as (connection, _):
        Interrupted(transport_of(connection))
        with pytest.raises(KeyboardInterrupt):
            connection.request(ask(1))
        assert connection.pending == ()
        assert isinstance(ear.one_error(), ConnectionLost)


@pytest.mark.skipif(os.name == "nt", reason="no signal can be sent to a thread")
def test_interrupted_while_a_reply_is_awaited() -> None:
    """Ctrl-C while a request awaits its reply takes it out of the queue; the connection lives."""
    with connected(Ear(), lambda client, body: client.send(body) if body == ask(2).body else None) as (connection, _):
        interrupt_when(lambda: connection.pending)
        with pytest.raises(KeyboardInterrupt):
            connection.request(ask(1), timeout=SOON)
        assert connection.pending == ()
        assert connection.request(ask(2), timeout=SOON).params == {"id": 2}


def test_a_request_is_removed_with_an_error() -> None:
    """A request that is removed with an error ends by that error, whoever waits for it."""
    known = evtws.EvtwsError("the target has closed")
    failures: queue.Queue[Any] = queue.Queue()
    with connected(Ear(), lambda _client, _body: None) as (connection, _):
        waited, submitted, called = ask(1), ask(2), ask(3)
        called.callback = lambda _reply, _connection: None
        called.on_failure = lambda error, _connection: failures.put(error)
        outcome: queue.Queue[Any] = queue.Queue()

        def wait() -> None:
            try:
                connection.request(waited, timeout=SOON)
            except evtws.EvtwsError as error:
                outcome.put(error)

        thread = threading.Thread(target=wait)
        thread.start()
        future = connection.submit(submitted)
        connection.send(called)
        assert until(lambda: len(connection.pending) == 3)
        for message in (waited, submitted, called):
            assert connection.remove_from_queue(message, known)
            assert not connection.remove_from_queue(message, known)
        errors = [outcome.get(timeout=SOON), future.exception(SOON), failures.get(timeout=SOON)]
        thread.join(SOON)
    assert [str(error) for error in errors] == ["the target has closed"] * 3
    assert [error.message for error in errors if isinstance(error, evtws.EvtwsError)] == [waited, submitted, called]


def test_a_reply_that_lies_unread_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that has come when the time is found to be up is given to its request, whoever was held up."""
    with connected(Ear(), echo) as (connection, _):
        engine = connection._engine
        assert engine is not None

        def held_up(_reader: object, _waiter: object, _deadline: float | None) -> bool:
            assert select.select([transport_of(connection)], [], [], SOON)[0]
            return False

        monkeypatch.setattr("evtws.reader.Reader.wait", held_up)
        engine.life.poller.want_read(False)
        assert connection.request(ask(1), timeout=0).params == {"id": 1}
        engine.life.poller.want_read(True)
