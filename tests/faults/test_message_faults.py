"""Messages that cannot be read, functions that fail on them, and streams that go wrong: the connection lives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionLost,
    Message,
    ReplyTimeout,
    RequestCancelled,
    SlowConsumer,
    UserCodeError,
    json_params,
    keyed,
)
from evtws.testing import ClientConnection, Server

from ..timing import MS, SOON
from .support import Ear, ask, echo, only_client, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def ignore(_client: ClientConnection, _body: str | bytes) -> None:
    """A server's script that answers nothing."""


@pytest.mark.parametrize(
    "body",
    ["", "{", "[" * 100_000, '{"id":' + "1" * 5000 + "}", b"\x00\xff", '{"id":1}}', "\ufeff{}"],
    ids=["empty", "half", "deep", "huge", "binary", "more", "bom"],
)
def test_e5_garbage(body: str | bytes) -> None:
    """E5: a message that `msg_prep` cannot read is one UserCodeError with that message; the connection lives."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        client = only_client(server)
        request = connection.submit(ask())
        client.send(body)
        client.send(ask().body)
        assert request.result(SOON).params == {"id": 1}
        ear.wait_for(lambda: ear.errors)
        assert_user_code(ear, "json_params", ValueError, body)
        assert connection.is_connected


@pytest.mark.parametrize("body", ["1", "[]", "null", '"x"', '{"id":NaN}', '{"id":{}}', b'{"ID":1}'])
def test_e5_json_that_is_no_reply(body: str | bytes) -> None:
    """E5: JSON without a usable id answers nothing, and goes to on_message."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        request = connection.submit(ask())
        only_client(server).send(body)
        ear.wait_for(lambda: ear.messages == [body])
        assert not request.done()
        assert ear.errors == []


def assert_user_code(ear: Ear, name: str, cause: type[Exception], body: str | bytes) -> None:
    """One UserCodeError was reported, with the message and the cause."""
    assert len(ear.errors) == 1
    error = ear.errors[0]
    assert isinstance(error, UserCodeError)
    assert name in str(error)
    assert isinstance(error.__cause__, cause)
    assert error.message is not None
    assert error.message.body == body


def boom(*_: object) -> Any:
    raise ZeroDivisionError("boom")


def on_bad(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which raises when the last message it is given says "bad"."""

    def raising(*messages: Message) -> Any:
        return boom() if "bad" in str(messages[-1].body) else function(*messages)

    return raising


def same_id(request: Message, response: Message) -> bool:
    return bool(request.params["id"] == response.params["id"])


@pytest.mark.parametrize(
    "options",
    [
        {"msg_prep": on_bad(json_params)},
        {"match_key": on_bad(lambda message: message.params["id"])},
        {"match_key": None, "match_msg": on_bad(same_id)},
        {"split": on_bad(lambda message: [message])},
        {"is_pong": on_bad(lambda message: False)},
    ],
    ids=["msg_prep", "match_key", "match_msg", "split", "is_pong"],
)
def test_e6_a_function_that_raises(options: dict[str, Any]) -> None:
    """E6: what a function of the user's raises is reported with the message and as the cause; the connection lives."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **(ear.options | options)) as connection:
        client = only_client(server)
        request = connection.submit(ask())
        client.send('{"id":1,"bad":1}')
        client.send(ask().body)
        assert request.result(SOON).body == ask().body
        ear.wait_for(lambda: ear.errors)
        assert_user_code(ear, "on_bad", ZeroDivisionError, '{"id":1,"bad":1}')


def test_e6_a_key_that_cannot_be_hashed() -> None:
    """E6: a `match_key` that returns a list is reported as one that raised."""
    ear = Ear()
    options = ear.options | {"match_key": (keyed("id")[0], lambda message: [1])}
    with Server(echo) as server, evtws.connect(server.url, **options) as connection:
        connection.submit(ask())
        ear.wait_for(lambda: ear.errors)
        assert_user_code(ear, "lambda", TypeError, ask().body)
        assert connection.is_connected


def test_e6_a_request_whose_key_raises() -> None:
    """E6: what a function raises for a request is raised to its sender, and nothing is pending or sent."""
    ear = Ear()
    with Server(echo) as server, evtws.connect(server.url, **ear.options | {"match_key": boom}) as connection:
        with pytest.raises(ZeroDivisionError):
            connection.request(ask())
        assert connection.pending == ()
        assert server.received == []


def test_e6_an_until_that_raises() -> None:
    """E6: a stream's `until` that raises is reported; the reply is delivered and the stream goes on."""
    ear = Ear()

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send(body)
        client.send('{"id":1,"last":1}')

    def last(message: Message) -> bool:
        return "last" in message.params or bool(boom())

    with Server(script) as server, evtws.connect(server.url, **ear.options) as connection:
        assert [reply.body for reply in connection.stream(ask(), until=last)] == [ask().body, '{"id":1,"last":1}']
        ear.wait_for(lambda: ear.errors)
        assert_user_code(ear, "last", ZeroDivisionError, ask().body)


def test_e6_a_slow_function() -> None:
    """E6: a `match_msg` that holds up the reading is reported with its time, and its answer counts."""
    ear = Ear()

    def slow(request: Message, response: Message) -> bool:
        time.sleep(100 * MS)
        return same_id(request, response)

    options = ear.options | {"match_key": None, "match_msg": slow}
    with Server(echo) as server, evtws.connect(server.url, **options) as connection:
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        ear.wait_for(lambda: ear.slow)
        assert ear.slow[0].seconds >= 100 * MS
        assert ear.errors == []


def test_e6_a_function_that_matches_everything() -> None:
    """E6: where a reply matches several requests, the one that was sent first has it."""
    ear = Ear()
    options = ear.options | {"match_key": None, "match_msg": lambda request, response: True}
    with Server(ignore) as server, evtws.connect(server.url, **options) as connection:
        client = only_client(server)
        futures = connection.submit_many([ask(1), ask(2), ask(3)])
        for number in (9, 8, 7):
            client.send(ask(number).body)
        assert [future.result(SOON).params["id"] for future in futures] == [9, 8, 7]


def test_e6_a_function_that_changes_what_it_is_given() -> None:
    """E6: a `match_msg` that clears the params of a request changes no other request and breaks nothing."""
    ear = Ear()

    def clearing(request: Message, response: Message) -> bool:
        params, request.params = request.params, None
        return bool(params == response.params)

    options = ear.options | {"match_key": None, "match_msg": clearing}
    with Server(ignore) as server, evtws.connect(server.url, **options) as connection:
        client = only_client(server)
        first, second = connection.submit_many([ask(1), ask(2)])
        client.send(ask(2).body)
        assert second.result(SOON).params == {"id": 2}
        assert first.cancel()


def stream_script(count: int) -> Callable[[ClientConnection, str | bytes], None]:
    """A server's script that gives so many replies to each request with an id, and notes the others."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        number = json.loads(body).get("id")
        for item in range(count if number is not None else 0):
            client.send(json.dumps({"id": number, "item": item}))

    return script


def items(replies: Iterator[Message], count: int) -> list[int]:
    """The next items of a stream."""
    return [next(replies).params["item"] for _ in range(count)]


def test_e10_a_stream_that_never_ends() -> None:
    """E10: leaving a stream that goes on sends `on_cancel`; what still comes is late, and nothing stays pending."""
    ear = Ear()
    with Server(stream_script(50)) as server, evtws.connect(server.url, **ear.options) as connection:
        cancel = Message.json({"cancel": 1})
        with connection.stream(ask(), until=lambda _: False, on_cancel=cancel) as replies:
            assert items(replies, 3) == [0, 1, 2]
        assert server.wait_for(lambda: cancel.body in server.received, SOON)
        only_client(server).send('{"id":1,"item":99}')
        ear.wait_for(lambda: ear.messages)
        assert connection.pending == ()
        assert connection.stats().late >= 1


def test_e10_items_after_the_end() -> None:
    """E10: an item after the end, or a second end, is a duplicate and goes to on_message."""
    ear = Ear()
    with Server(stream_script(4)) as server, evtws.connect(server.url, **ear.options) as connection:
        replies = connection.stream(ask(), until=lambda reply: reply.params["item"] == 1)
        assert [reply.params["item"] for reply in replies] == [0, 1]
        ear.wait_for(lambda: len(ear.messages) == 2)
        assert connection.stats().duplicate == 2
        assert list(replies) == []


def test_e10_a_slow_consumer() -> None:
    """E10: a stream of which nobody takes the items ends in SlowConsumer after the `maxsize` items that fit."""
    ear = Ear()
    with Server(stream_script(50)) as server, evtws.connect(server.url, **ear.options) as connection:
        replies = connection.stream(ask(), until=lambda _: False, maxsize=5)
        assert until(lambda: connection.stats().messages_received == 50)
        assert items(replies, 5) == [0, 1, 2, 3, 4]
        with pytest.raises(SlowConsumer):
            next(replies)
        assert connection.pending == ()
        assert connection.request(ask(2), timeout=SOON).params["item"] == 0


def test_e10_a_stream_ends_with_its_connection() -> None:
    """E10: a loss, a removal or a silence ends a stream by its error, after the items that came."""
    ear = Ear()
    with Server(stream_script(1)) as server:
        connection = Connection(**ear.options)
        connection.dial(server.url)
        message = ask(1)
        removed = connection.stream(message, until=lambda _: False)
        assert items(removed, 1) == [0]
        assert connection.remove_from_queue(message)
        with pytest.raises(RequestCancelled):
            next(removed)
        silent = connection.stream(ask(2), until=lambda _: False, timeout=20 * MS)
        assert items(silent, 1) == [0]
        with pytest.raises(ReplyTimeout):
            next(silent)
        lost = connection.stream(ask(3), until=lambda _: False)
        assert items(lost, 1) == [0]
        server.drop_all()
        with pytest.raises(ConnectionLost):
            next(lost)
        connection.close()
