"""The reader: who reads, what ends a caller's wait, and what happens to what else comes."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    EvtwsError,
    Message,
    ReplyTimeout,
    RequestCancelled,
    State,
    WouldDeadlock,
    in_order,
)
from evtws.errors import UserCodeError
from evtws.poller import Poller, SelectorPoller, make_poller
from evtws.testing import ClientConnection, Reply, Server

from .faults.support import Ear, ask, echo, only_client, until
from .timing import MS, SOON

callers_read = pytest.mark.skipif(not hasattr(select, "epoll"), reason="the I/O thread does all the reading there")


class Readers(Ear):
    """Also hears on which threads messages are read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[str] = []

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"is_pong": self.is_pong, "ping_interval": None}

    def is_pong(self, _message: Message) -> bool:
        self.readers.append(threading.current_thread().name)
        return False


Script = Callable[[ClientConnection, str | bytes], object]


@contextmanager
def connected(ear: Ear, script: Script | None = None, **options: Any) -> Iterator[tuple[Connection, ClientConnection]]:
    """A connection that matches by id unless told otherwise, and its server's end; all is heard by `ear`."""
    with Server(script) as server, evtws.connect(server.url, **(ear.options | options)) as connection:
        yield connection, only_client(server)


def engine_of(connection: Connection) -> Any:
    """What is behind the connection."""
    assert connection._engine is not None
    return connection._engine


def in_a_thread(function: Callable[[], object], name: str | None = None) -> list[Any]:
    """Call it in a thread; what it returns or raises is put into the list that is returned."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except EvtwsError as error:
            outcome.append(error)

    threading.Thread(target=run, name=name).start()
    return outcome


def reading(connection: Connection) -> bool:
    """Whether somebody does the reading and waits."""
    lock = engine_of(connection).life.reading
    if not lock.acquire(blocking=False):
        return True
    lock.release()
    return False


# -- who reads

MAIN = threading.main_thread().name


@callers_read
@pytest.mark.parametrize(
    "way",
    [
        lambda connection: connection.request(ask(1), timeout=SOON),
        lambda connection: connection.submit(ask(1)).result(SOON),
    ],
)
def test_who_waits_alone_reads(way: Callable[[Connection], Message]) -> None:
    """A caller that waits alone reads its reply itself."""
    ear = Readers()
    with connected(ear, lambda client, body: client.send_later(5 * MS, body)) as (connection, _):
        for _ in range(5):
            assert way(connection).params == {"id": 1}
    assert MAIN in ear.readers  # the I/O thread may be first now and then


@callers_read
def test_several_are_served() -> None:
    """Where several wait, who reads leaves the reading to the I/O thread once it has its own reply."""
    ear = Readers()
    with connected(ear) as (connection, client):
        first = in_a_thread(lambda: connection.request(ask(1), timeout=SOON).params["id"], "first")
        assert until(lambda: reading(connection))
        second = in_a_thread(lambda: connection.request(ask(2), timeout=SOON).params["id"], "second")
        assert until(lambda: len(connection.pending) == 2)
        time.sleep(5 * MS)
        client.send(ask(1).body)
        assert until(lambda: first) == [1]
        client.send(ask(2).body)
        assert until(lambda: second) == [2]
    assert ear.readers == ["first", "evtws-io"]


def test_somebody_reads_already() -> None:
    """A caller that finds the reading taken waits for the I/O thread to read its reply."""
    ear = Readers()
    with connected(ear, echo) as (connection, _):
        lock = engine_of(connection).life.reading
        with lock:
            outcome = in_a_thread(lambda: connection.request(ask(1), timeout=SOON).params["id"])
            assert until(lambda: connection.pending)
            time.sleep(5 * MS)
            assert outcome == []
        assert until(lambda: outcome) == [1]
    assert ear.readers == ["evtws-io"]


def test_pushed_messages_are_delivered_meanwhile() -> None:
    """What comes while a caller reads and is not for it is delivered at once, before its own reply."""
    ear = Readers()
    with connected(ear) as (connection, client):
        outcome = in_a_thread(lambda: connection.request(ask(1), timeout=SOON).params["id"])
        assert until(lambda: reading(connection))
        client.send(ask(2).body)
        ear.wait_for(lambda: ear.messages)
        assert outcome == []
        client.send(ask(1).body)
        assert until(lambda: outcome) == [1]


def test_what_is_left_behind_is_read() -> None:
    """What came together with a caller's reply and was not handled by it is handled by whoever reads next."""
    ear = Ear()
    rest = [ask(number).body for number in range(2, 1000)]

    def answer(client: ClientConnection, body: str | bytes) -> None:
        for other in (body, *rest):
            client.send(other)

    with connected(ear, answer) as (connection, _):
        for _ in range(5):
            assert connection.request(ask(1), timeout=SOON).params == {"id": 1}
        ear.wait_for(lambda: len(ear.messages) == 5 * len(rest))
    assert ear.messages == 5 * rest


def test_after_a_burst_of_requests() -> None:
    """After a burst of requests what is pushed is read soon, though nobody asks any more."""
    ear = Readers()
    with connected(ear, echo) as (connection, client):
        for _ in range(3):
            for _ in range(30):
                connection.request(ask(1), timeout=SOON)
            ear.messages.clear()
            client.send(ask(2).body)
            ear.wait_for(lambda: ear.messages)
    assert ear.readers[-1] == "evtws-io"


@callers_read
def test_the_reading_is_left_to_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the reading is left to a caller that may ask again, one that cannot read itself gives it back."""
    monkeypatch.setattr("evtws.reader.LINGER", SOON)
    ear = Readers()
    with connected(ear, echo) as (connection, _):
        for _ in range(3):
            connection.request(ask(1), timeout=SOON)
        with engine_of(connection).life.reading:
            outcome = in_a_thread(lambda: connection.request(ask(2), timeout=SOON).params["id"])
            assert until(lambda: connection.pending)
            time.sleep(5 * MS)
        assert until(lambda: outcome) == [2]
    assert MAIN in ear.readers
    assert ear.readers[-1] == "evtws-io"


def test_no_busy_loop_while_a_caller_waits() -> None:
    """The I/O thread sleeps while a caller waits long for its reply, after a burst too."""

    def answer(client: ClientConnection, body: str | bytes) -> None:
        client.send_later(100 * MS if body == ask(2).body else 0, body)

    with connected(Readers(), answer) as (connection, _):
        engine = engine_of(connection)
        step, rounds = engine.step, []

        def counted(ready: bool) -> Any:
            rounds.append(ready)
            return step(ready)

        engine.step = counted
        for _ in range(30):
            connection.request(ask(1), timeout=SOON)
        rounds.clear()
        connection.request(ask(2), timeout=SOON)
        assert len(rounds) < 20


def test_draining_while_a_caller_reads() -> None:
    """drain() ends when the last caller, which read its reply itself, has it."""
    with connected(Ear(), lambda client, body: client.send_later(20 * MS, body)) as (connection, _):
        outcome = in_a_thread(lambda: connection.request(ask(1), timeout=SOON).params["id"])
        assert until(lambda: reading(connection))
        assert connection.drain(SOON)
        assert until(lambda: outcome) == [1]


# -- what ends a caller's wait


def test_its_time_is_up() -> None:
    """A caller that reads stops at its deadline, whatever else comes; the reading goes on without it."""
    ear = Ear()
    with connected(ear) as (connection, client):
        for number in range(200):
            client.send_later(number * MS, ask(2).body)
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), timeout=30 * MS)
        ear.wait_for(lambda: len(ear.messages) == 200)


ENDINGS: dict[str, tuple[Callable[[Connection, ClientConnection, Message], object], type[EvtwsError]]] = {
    "lost": (lambda connection, client, message: client.drop(), ConnectionLost),
    "closed by the peer": (lambda connection, client, message: client.close(), ConnectionClosed),
    "closed": (lambda connection, client, message: connection.close(), ConnectionClosed),
    "given up": (lambda connection, client, message: connection.reconnect_now(), ConnectionClosed),
    "removed": (lambda connection, client, message: connection.remove_from_queue(message), RequestCancelled),
}


@pytest.mark.parametrize(("end", "error"), ENDINGS.values(), ids=ENDINGS)
def test_the_wait_ends_at_once(end: Callable[..., object], error: type[EvtwsError]) -> None:
    """A loss, close() and a removal end the wait of a caller that reads at once."""
    message = ask(1)
    with connected(Ear()) as (connection, client):
        outcome = in_a_thread(lambda: connection.request(message, timeout=SOON))
        assert until(lambda: reading(connection))
        before = time.monotonic()
        end(connection, client, message)
        assert isinstance(until(lambda: outcome)[0], error)
        assert time.monotonic() - before < SOON / 4


def test_a_future_is_cancelled_while_its_result_is_awaited() -> None:
    """Cancelling a Future ends the wait of the caller that reads for its result."""
    with connected(Ear()) as (connection, _), ThreadPoolExecutor(1) as pool:
        future = connection.submit(ask(1))
        wait = pool.submit(future.exception, SOON)
        assert until(lambda: reading(connection))
        assert future.cancel()
        assert type(wait.exception(SOON)).__name__ == "CancelledError"


@callers_read
def test_reading_is_interrupted() -> None:
    """Ctrl-C inside the reading loses the connection, for bytes may be missing; the request is in no queue."""
    ear = Ear()
    with connected(ear, lambda client, body: client.send_later(20 * MS, body)) as (connection, _):
        transport = engine_of(connection).life.transport
        receive = transport.receive

        def interrupted() -> Any:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return receive()

        transport.receive = interrupted
        with pytest.raises(KeyboardInterrupt):
            connection.request(ask(1), timeout=SOON)
        assert connection.pending == ()
        error = ear.one_error()
        assert isinstance(error, ConnectionLost)
        assert "interrupted" in str(error)


def test_a_loss_waits_for_whoever_reads() -> None:
    """The connection's end waits for who reads to be done, even if nothing can wake it."""
    ear = Ear()
    with connected(ear) as (connection, _):
        life = engine_of(connection).life
        with life.reading:
            life.lose(life.transport, ConnectionLost("broken"))
            time.sleep(50 * MS)
            assert ear.errors == []
        assert str(ear.one_error()) == "broken"


def test_there_is_no_connection_to_read() -> None:
    """A caller whose request waits in the outbox waits for its deadline, though there is nothing to read."""
    answers = iter([None])
    ear = Ear()
    with Server(on_handshake=lambda _: next(answers, Reply(503, headers=[("Retry-After", "60")]))) as server:
        connection = Connection(outbox=1, reconnect=True, **ear.options)
        connection.dial(server.url)
        server.drop_all()
        ear.wait_for(lambda: ear.errors)
        with pytest.raises(ReplyTimeout, match="not written"):
            connection.request(ask(1), timeout=10 * MS)
        connection.close()


# -- what else comes


def test_control_frames_between_messages() -> None:
    """A ping between two messages of one batch is answered, a pong noted, and the messages keep their order."""
    ear = Ear()
    with connected(ear) as (_, client):
        client.send(ask(1).body)
        client.ping(b"x")
        client.send(ask(2).body)
        client.pong(b"nothing")
        client.ping(b"y")
        ear.wait_for(lambda: ear.messages == [ask(1).body, ask(2).body])
        assert until(lambda: client.pongs == [b"x", b"y"])
        client.close(3000, "bye")
        error = ear.one_error()
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.reason, error.by_peer) == (3000, "bye", True)


def test_a_line_moves_on() -> None:
    """With `in_order` what a late reply held back goes out as soon as that has come, whoever reads it."""
    with connected(Ear(), match_msg=in_order, match_key=None, late_after=SOON) as (connection, client):
        for future in [connection.submit(ask(1), timeout=5 * MS) for _ in range(2)]:
            assert isinstance(future.exception(SOON), ReplyTimeout)
        outcome = in_a_thread(lambda: connection.request(ask(2), timeout=SOON).params["id"])
        assert until(lambda: len(connection.pending) == 1)
        client.send(ask(1).body)
        assert until(lambda: connection.stats().late == 1)
        assert client.received == [ask(1).body] * 2
        client.send(ask(1).body)
        assert until(lambda: client.received == [ask(1).body, ask(1).body, ask(2).body])
        client.send(ask(2).body)
        assert until(lambda: outcome) == [2]


def test_a_callback_waits() -> None:
    """What a callback waits for is read by the I/O thread."""
    ear, outcome = Readers(), list[int]()

    def on_message(_message: Message, connection: Connection) -> None:
        outcome.append(connection.request(ask(1), timeout=SOON).params["id"])

    with connected(ear, echo, on_message=on_message) as (_, client):
        client.send(ask(2).body)
        assert until(lambda: outcome) == [1]
    assert ear.readers == ["evtws-io"] * 2


FILLER = "x" * 1000


def test_reading_is_held_while_the_queue_is_full() -> None:
    """With `overflow="block"` a full queue holds the reading, but not while a callback waits; it resumes by itself."""
    full, came = threading.Event(), list[int]()

    def on_message(message: Message, connection: Connection) -> None:
        if not came:
            full.wait(SOON)
            assert connection.request(ask(1), timeout=SOON).params == {"id": 1}
        came.append(message.params["id"])

    options: dict[str, Any] = {"overflow": "block", "callback_queue": 5, "on_message": on_message}
    with connected(Ear(), echo, **options) as (connection, client):
        for number in range(100, 600):
            client.send(Message.json({"id": number, "filler": FILLER}).body)
        assert until(lambda: engine_of(connection).reader.held)
        assert connection.stats().messages_received < 500
        full.set()
        assert until(lambda: len(came) == 500)
        assert until(lambda: not engine_of(connection).reader.held)
        assert connection.request(ask(1), timeout=SOON).params == {"id": 1}
    assert came == list(range(100, 600))


# -- a platform whose poller cannot be shared


@pytest.fixture(params=["selector", "unshared"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers do not read here."""

    def make() -> Poller:
        poller = SelectorPoller() if request.param == "selector" else make_poller()
        poller.can_share = False
        return poller

    monkeypatch.setattr("evtws.life.make_poller", make)


@pytest.mark.usefixtures("platform")
def test_the_io_thread_does_all_the_reading() -> None:
    """Where the poller cannot be shared all works as elsewhere, and the I/O thread reads."""
    ear = Readers()
    with connected(ear, echo) as (connection, client), ThreadPoolExecutor(4) as pool:
        assert connection.request(ask(1), timeout=SOON).params == {"id": 1}
        futures = [connection.submit(ask(number)) for number in range(2, 50)]
        waits = [pool.submit(connection.request, ask(number), SOON) for number in range(50, 100)]
        assert [future.result(SOON).params["id"] for future in futures] == list(range(2, 50))
        assert [wait.result(SOON).params["id"] for wait in waits] == list(range(50, 100))
        assert connection.ping(SOON) > 0
        large = connection.submit(Message.json({"id": 100, "pad": "x" * (1 << 22)}))
        assert len(large.result(SOON).body) > 1 << 22
        client.send(ask(101).body)
        ear.wait_for(lambda: ask(101).body in ear.messages)
        client.close()
        assert isinstance(ear.one_error(), ConnectionClosed)
    assert set(ear.readers) == {"evtws-io"}


# -- where waiting would be for ever

WAITS: dict[str, Callable[[Connection], object]] = {
    "request": lambda connection: connection.request(ask(5)),
    "result": lambda connection: connection.submit(ask(6)).result(),
    "stream": lambda connection: next(connection.stream(ask(7), until=lambda _: True)),
    "drain": lambda connection: connection.drain(),
    "ping": lambda connection: connection.ping(),
}


@pytest.mark.parametrize("where", ["msg_prep", "match_msg"])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_where_messages_are_read(wait: Callable[[Connection], object], where: str) -> None:
    """Whatever waits for a message raises WouldDeadlock in a function that runs where messages are read."""
    ear = Ear()

    def msg_prep(message: Message) -> None:
        evtws.json_params(message)
        if where == "msg_prep":
            wait(connection)

    def match_msg(request: Message, response: Message) -> bool:
        return bool(where == "match_msg" and wait(connection))

    with connected(ear, match_key=None, match_msg=match_msg, msg_prep=msg_prep) as (connection, client):
        connection.submit(Message.json({"id": 1}))
        client.send('{"id": 2}')
        ear.wait_for(lambda: ear.errors)
        assert isinstance(ear.errors[0], UserCodeError)
        assert isinstance(ear.errors[0].__cause__, WouldDeadlock)
        assert connection.state is State.OPEN
