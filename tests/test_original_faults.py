"""None of evtWebsocketClient's ten faults was taken over.

Each is a check that takes the class under test: Connection passes it, and a model of the original fails it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import Connection, Message, ReconnectPolicy
from evtws.testing import ClientConnection, Reply, Server

from .faults.support import until
from .original_model import Original
from .timing import MS, SOON

#: What the checks wait for what never happens on the model.
PATIENCE = 150 * MS


Make = Callable[..., Any]
Check = Callable[[Make, float], None]


def ask(number: int, callback: Callable[[Message, Any], object] | None = None) -> Message:
    """A request with this id."""
    return Message(f'{{"id":{number}}}', {"id": number}, callback)


def same_id(request: Message, response: Message) -> bool:
    return bool(request.params["id"] == response.params["id"])


@contextmanager
def dialled(make: Make, server: Server, **options: Any) -> Iterator[Any]:
    """A connection of that class, which is closed for good at the end."""
    connection = make(**({"match_msg": same_id, "msg_prep": evtws.json_params} | options))
    connection.dial(server.url)
    try:
        yield connection
    finally:
        if isinstance(connection, Original):
            connection.reconnect = False
        connection.close()


def close_closes(make: Make, within: float) -> None:
    """1: `close` closes, although `reconnect` is set."""
    with Server() as server, dialled(make, server, reconnect=True) as connection:
        connection.close()
        assert not connection.is_connected
        assert server.dials == 1


def match_has_its_order(make: Make, within: float) -> None:
    """2: `match_msg` is called with the request and the response, in that order, and never with two requests."""
    asked: list[tuple[str | bytes, str | bytes]] = []
    told = threading.Event()

    def match(request: Message, response: Message) -> bool:
        asked.append((request.body, response.body))
        return True

    with (
        Server(lambda client, _: client.send('{"reply":1}')) as server,
        dialled(make, server, match_msg=match) as connection,
    ):
        connection.send(ask(1, lambda *_: told.set()))
        assert told.wait(within)
        removed = ask(2, print)
        connection.send(removed)
        connection.remove_from_queue(removed)
        assert set(asked) <= {(ask(1).body, '{"reply":1}'), (removed.body, '{"reply":1}')}


def removal_is_by_identity(make: Make, within: float) -> None:
    """3: removing a message leaves another one alone that matches the same."""
    told: list[str] = []
    with Server() as server, dialled(make, server) as connection:
        mine, other = ask(1, lambda *_: told.append("mine")), ask(1, lambda *_: told.append("other"))
        connection.send(other)
        connection.send(mine)
        connection.remove_from_queue(mine)
        assert server.wait_for(2, SOON)
        server.connections[0].send(mine.body)
        until(lambda: told, within)
        assert told == ["other"]


def messages_are_in_order(make: Make, within: float) -> None:
    """4: messages are handled one after another, in their order."""
    handled: list[str | bytes] = []
    overtaken = threading.Event()

    def on_message(message: Message, _: object) -> None:
        if message.body == "0":
            overtaken.wait(PATIENCE)
        else:
            overtaken.set()
        handled.append(message.body)

    with Server() as server, dialled(make, server, on_message=on_message):
        for number in range(5):
            server.connections[0].send(str(number))
        until(lambda: len(handled) == 5, within + PATIENCE)
        assert handled == ["0", "1", "2", "3", "4"]


def one_reply_for_one_request(make: Make, within: float) -> None:
    """4: of two replies to one request that come at once its callback has one, and on_message the other."""
    told: list[str] = []
    both = threading.Barrier(2)

    def match(one: Message, other: Message) -> bool:
        try:
            both.wait(PATIENCE)
        except threading.BrokenBarrierError:
            pass
        return same_id(one, other)

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send(body)
        client.send(body)

    options = {"match_msg": match, "on_message": lambda *_: told.append("message")}
    with Server(script) as server, dialled(make, server, **options) as connection:
        connection.send(ask(1, lambda *_: told.append("callback")))
        until(lambda: len(told) == 2, within + 2 * PATIENCE)
        assert sorted(told) == ["callback", "message"]


def the_queue_is_whole(make: Make, within: float) -> None:
    """5: a reply that is matched while another one is taken out of the queue takes out its own request."""
    told: list[int] = []
    requests = [ask(number, lambda reply, _: told.append(reply.params["id"])) for number in (1, 2, 3)]

    def match(one: Message, other: Message) -> bool:
        if one.params["id"] == other.params["id"] == 2:
            until(lambda: len(connection.pending) < 3, PATIENCE)
        return same_id(one, other)

    with Server() as server, dialled(make, server, match_msg=match) as connection:
        for request in requests:
            connection.send(request)
        assert server.wait_for(3, SOON)
        client = server.connections[0]
        client.send(ask(2).body)
        client.send(ask(1).body)
        until(lambda: len(connection.pending) == 1, within)
        client.send(ask(3).body)
        until(lambda: len(told) == 3, within + PATIENCE)
        assert sorted(told) == [1, 2, 3]


def nothing_is_sent_twice(make: Make, within: float) -> None:
    """6: a request that was written before the connection was lost is not sent again unasked."""
    connected = threading.Semaphore(0)
    policy = ReconnectPolicy(wait=lambda _: 0)
    options = {"reconnect": policy, "on_connected": lambda _: connected.release()}
    with Server() as server, dialled(make, server, **options) as connection:
        connection.send(Message(ask(1).body, {"id": 1}, print, on_failure=lambda *_: None))
        assert server.wait_for(1, SOON)
        server.drop_all()
        for _ in range(2):
            assert connected.acquire(timeout=SOON)
        server.wait_for(2, PATIENCE)
        connection.send(Message("last"))
        until(lambda: "last" in server.received, within)
        assert server.received == [ask(1).body, "last"]


def it_gives_up(make: Make, within: float) -> None:
    """7: a refusal that no repetition mends ends the reconnection."""
    refusing = threading.Event()
    policy = ReconnectPolicy(wait=lambda _: 0)
    with (
        Server(on_handshake=lambda _: Reply(403) if refusing.is_set() else None) as server,
        dialled(make, server, reconnect=policy) as connection,
    ):
        refusing.set()
        server.drop_all()
        server.wait_for(lambda: server.dials > 2, PATIENCE)
        assert not connection.is_connected
        assert server.dials == 2


def a_callback_may_raise(make: Make, within: float) -> None:
    """8: a callback that raises is reported, and the next reply finds its callback."""
    errors: list[Exception] = []
    told = threading.Event()

    def fails(*_: object) -> None:
        raise ZeroDivisionError("in a callback")

    with (
        Server(lambda client, body: client.send(body)) as server,
        dialled(make, server, on_error=errors.append) as connection,
    ):
        connection.send(ask(1, fails))
        until(lambda: errors, within)
        assert [str(error.__cause__) for error in errors] == ["in a callback"]
        connection.send(ask(2, lambda *_: told.set()))
        assert told.wait(within)


def pings_are_counted_without_on_message(make: Make, within: float) -> None:
    """9: pings that go unanswered are counted although there is no on_message."""
    pings_are_counted(make, within, on_message=None)


def pings_are_counted(make: Make, within: float, on_message: Any = print) -> None:
    """9: as many pings as the threshold says go unanswered, and then the connection is lost."""
    errors: list[Exception] = []
    options: dict[str, Any] = {"on_message": on_message}
    options |= {"ping_msg": "beat", "ping_interval": 20 * MS, "count_pongs": True, "unreceived_ping_threshold": 2}
    with (
        Server(pongs=False) as server,
        dialled(make, server, on_error=errors.append, **options),
    ):
        client = server.connections[0]
        until(lambda: errors, within + PATIENCE)
        assert len(errors) == 1
        assert len(client.pings) == 2


def a_ping_is_one_frame(make: Make, within: float) -> None:
    """9: a ping is one frame with its payload, and no message; one goes out for each interval on any connection."""
    connected = threading.Semaphore(0)
    options = {
        "ping_msg": "beat",
        "ping_interval": 20 * MS,
        "reconnect": ReconnectPolicy(wait=lambda _: 0),
        "on_connected": lambda _: connected.release(),
    }
    with Server() as server, dialled(make, server, **options):
        for _ in range(2):
            assert connected.acquire(timeout=SOON)
            server.drop_all()
        assert connected.acquire(timeout=SOON)
        client = server.wait_for(lambda: server.connections, SOON)[0]
        began = time.monotonic()
        server.wait_for(lambda: len(client.pings) >= 3, within + PATIENCE)
        assert time.monotonic() - began >= 40 * MS
        assert set(client.pings) == {b"beat"}
        assert server.received == []


def a_send_ends(make: Make, within: float) -> None:
    """10: a send to a peer that does not read ends by an error for whoever sends."""
    errors: list[Exception] = []

    def send() -> None:
        try:
            connection.send(Message("x" * (32 << 20)))
        except Exception as error:
            errors.append(error)

    with (
        Server(on_connect=lambda client: client.pause_reading()) as server,
        dialled(make, server, write_timeout=50 * MS) as connection,
    ):
        sending = threading.Thread(target=send)
        sending.start()
        sending.join(within + 10 * PATIENCE)
        ended = not sending.is_alive()
        connection.close()
        sending.join(SOON)
        assert ended
        assert errors


def a_request_ends(make: Make, within: float) -> None:
    """10: a request that is not answered ends, and whoever sent it is told."""
    failed = threading.Event()
    with Server() as server, dialled(make, server, request_timeout=20 * MS) as connection:
        connection.send(Message(ask(1).body, {"id": 1}, print, on_failure=lambda *_: failed.set()))
        assert failed.wait(within)
        assert not connection.pending


def sizes_are_bounded(make: Make, within: float) -> None:
    """10: a message over `max_size` is not delivered."""
    errors: list[Exception] = []
    messages: list[Message] = []
    options = {"max_size": 1000, "on_error": errors.append, "on_message": lambda message, _: messages.append(message)}
    with Server() as server, dialled(make, server, **options):
        server.connections[0].send('"' + "x" * 1000 + '"')
        until(lambda: errors or messages, within)
        assert [getattr(error, "code", None) for error in errors] == [1009]
        assert messages == []


def close_codes_are_told(make: Make, within: float) -> None:
    """10: the peer's close code and reason are told."""
    errors: list[Exception] = []
    with Server() as server, dialled(make, server, on_error=errors.append):
        server.connections[0].close(4001, "enough")
        until(lambda: errors, within)
        assert [(getattr(error, "code", 0), getattr(error, "reason", "")) for error in errors] == [(4001, "enough")]


CHECKS: list[Check] = [
    close_closes,
    match_has_its_order,
    removal_is_by_identity,
    messages_are_in_order,
    one_reply_for_one_request,
    the_queue_is_whole,
    nothing_is_sent_twice,
    it_gives_up,
    a_callback_may_raise,
    pings_are_counted,
    pings_are_counted_without_on_message,
    a_ping_is_one_frame,
    a_send_ends,
    a_request_ends,
    sizes_are_bounded,
    close_codes_are_told,
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_fault_of_the_original(check: Check) -> None:
    """A Connection has none of the faults of the original."""
    check(Connection, SOON)


@pytest.mark.parametrize("check", CHECKS)
def test_the_original_has_that_fault(check: Check) -> None:
    """The model of the original fails each check, so that a check says something."""
    threads = set(threading.enumerate())
    with pytest.raises(AssertionError):
        check(Original, PATIENCE)
    assert until(lambda: set(threading.enumerate()) <= threads, SOON)
