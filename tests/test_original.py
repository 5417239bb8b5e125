"""evtWebsocketClient's README, section by section, in Python's spelling."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

import evtws
from evtws import Connection, ConnectionLost, Message, ReconnectPolicy
from evtws.testing import ClientConnection, Server

from .timing import MS, SOON


def decode(message: Message) -> None:
    """The README's MsgPrep."""
    message.params = json.loads(message.body)


def same_message(request: Message, response: Message) -> bool:
    """The README's MatchMsg."""
    return bool(
        request.params["MsgID"] == response.params["MsgID"] and request.params["Type"] == response.params["Type"]
    )


def the_message(callback: Callable[[Message, Connection], object] | None = None) -> Message:
    """The README's message."""
    body = '{"MsgID":1,"Type":"test","Body":"test message"}'
    return Message(body, params={"MsgID": 1, "Type": "test"}, callback=callback)


def test_usage() -> None:
    """Usage: a connection is configured, dialled, and sends; it tells of its opening, of messages and of errors."""
    told: queue.Queue[object] = queue.Queue()
    connection = Connection(
        on_connected=lambda connection: told.put(("connected", connection)),
        on_message=lambda message, connection: told.put((message.body, connection)),
        on_error=lambda error: told.put(error),
    )
    with Server(lambda client, body: client.send(body)) as server:
        was_connected = [connection.is_connected]
        connection.dial(server.url)
        was_connected.append(connection.is_connected)
        assert told.get(timeout=SOON) == ("connected", connection)
        connection.send(Message('{"ID":1, "Body":"test message"}'))
        assert told.get(timeout=SOON) == ('{"ID":1, "Body":"test message"}', connection)
        server.drop_all()
        assert isinstance(told.get(timeout=SOON), ConnectionLost)
        was_connected.append(connection.is_connected)
        connection.close()
    assert was_connected == [False, True, False]


def test_configuration_before_dial() -> None:
    """Usage: options are attributes too, which can be set until the connection is dialled, and not after."""
    connection = Connection()
    connection.match_msg = same_message
    connection.msg_prep = decode
    with Server() as server:
        connection.dial(server.url)
        with pytest.raises(ValueError, match="OPEN"):
            connection.msg_prep = None
        connection.close()


def test_callbacks() -> None:
    """Using callbacks: the reply that `match_msg` knows goes to the message's callback, prepared once by `msg_prep`."""
    prepared: list[str | bytes] = []
    replies: queue.Queue[tuple[Message, Connection]] = queue.Queue()

    def prepare(message: Message) -> None:
        prepared.append(message.body)
        decode(message)

    with (
        Server(lambda client, body: client.send(body)) as server,
        evtws.connect(server.url, match_msg=same_message, msg_prep=prepare) as connection,
    ):
        sent = the_message(lambda reply, connection: replies.put((reply, connection)))
        connection.send(sent)
        reply, told = replies.get(timeout=SOON)
        assert told is connection
        assert (reply.body, reply.params["Body"]) == (sent.body, "test message")
        assert prepared == [sent.body]  # the reply alone: the message was given its params
        assert connection.pending == ()


def test_callbacks_and_other_messages() -> None:
    """Using callbacks: a message that answers nothing goes to on_message, one that is answered does not."""
    told: queue.Queue[str] = queue.Queue()

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send('{"MsgID":2,"Type":"event"}')
        client.send(body)

    options: dict[str, Any] = {"match_msg": same_message, "msg_prep": decode}
    options["on_message"] = lambda message, _: told.put(message.params["Type"])
    with Server(script) as server, evtws.connect(server.url, **options) as connection:
        connection.send(the_message(lambda reply, _: told.put("reply")))
        assert [told.get(timeout=SOON) for _ in range(2)] == ["event", "reply"]


def test_timeouts() -> None:
    """Using timeouts: whoever waited in vain removes the message from the queue; its callback is never called."""
    answers: queue.Queue[str | bytes] = queue.Queue()
    unmatched: queue.Queue[str | bytes] = queue.Queue()
    with (
        Server() as server,
        evtws.connect(
            server.url,
            match_msg=same_message,
            msg_prep=decode,
            on_message=lambda message, _: unmatched.put(message.body),
        ) as connection,
    ):
        message = the_message(lambda reply, _: answers.put(reply.body))
        connection.send(message)
        with pytest.raises(queue.Empty):
            answers.get(timeout=20 * MS)
        assert connection.remove_from_queue(message) is True
        assert connection.remove_from_queue(message) is False
        server.connections[0].send(message.body)
        assert unmatched.get(timeout=SOON) == message.body
        assert answers.empty()


def test_timeouts_of_our_own() -> None:
    """Using timeouts: nobody need handle them, for `request` and `timeout=` remove what was not answered in time."""
    failures: queue.Queue[evtws.EvtwsError] = queue.Queue()
    with Server() as server, evtws.connect(server.url, match_msg=same_message, msg_prep=decode) as connection:
        with pytest.raises(evtws.ReplyTimeout):
            connection.request(the_message(), timeout=20 * MS)
        message = Message(the_message().body, callback=print, on_failure=lambda error, _: failures.put(error))
        message.timeout = 20 * MS
        connection.send(message)
        failure = failures.get(timeout=SOON)
        assert isinstance(failure, evtws.ReplyTimeout)
        assert failure.message is message
        assert connection.pending == ()


@pytest.mark.parametrize("composed", [False, True], ids=["ping_msg", "compose_ping_message"])
def test_pings_with_counted_pongs(composed: bool) -> None:
    """Pings: messages of the service's own, answered as `pong_received` says; too many unanswered are an error."""
    errors: queue.Queue[evtws.EvtwsError] = queue.Queue()
    pings = threading.Semaphore(0)
    silent = threading.Event()

    def script(client: ClientConnection, body: str | bytes) -> None:
        if not silent.is_set():
            client.send("PONG")
        pings.release()

    def on_message(message: Message, connection: Connection) -> None:
        assert message.body == "PONG"
        connection.pong_received()

    options: dict[str, Any] = {"compose_ping_message": lambda: "PING"} if composed else {"ping_msg": "PING"}
    with Server(script) as server:
        connection = Connection(
            on_message=on_message,
            on_error=errors.put,
            ping_as="message",
            ping_interval=20 * MS,
            count_pongs=True,
            unreceived_ping_threshold=3,
            **options,
        )
        connection.dial(server.url)
        for _ in range(6):
            assert pings.acquire(timeout=SOON)
        assert connection.is_connected
        silent.set()
        assert isinstance(errors.get(timeout=SOON), evtws.StaleConnection)
        connection.close()
        assert set(server.received) == {"PING"}


def test_reconnect() -> None:
    """Reconnect: with `reconnect` a connection that is lost is opened again, and on_connected told again."""
    connected = threading.Semaphore(0)
    errors: queue.Queue[evtws.EvtwsError] = queue.Queue()
    policy = ReconnectPolicy(wait=lambda _: 0)
    with (
        Server(lambda client, body: client.send(body)) as server,
        evtws.connect(
            server.url,
            reconnect=policy,
            on_connected=lambda _: connected.release(),
            on_error=errors.put,
            match_msg=same_message,
            msg_prep=decode,
        ) as connection,
    ):
        assert connected.acquire(timeout=SOON)
        server.drop_all()
        assert isinstance(errors.get(timeout=SOON), ConnectionLost)
        assert connected.acquire(timeout=SOON)
        assert connection.request(the_message(), timeout=SOON).params["Body"] == "test message"
