"""evtws with graphql-ws: a login, subscriptions as streams, errors, cancelling, and the server's close codes."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import evtws
from evtws import Message
from tests.timing import MS, SOON

from . import servers
from .servers import Server

PROTOCOL = "graphql-transport-ws"
_ids = count(1)


def request_key(message: Message) -> str | None:
    """What answers: an operation's id, or the type of the answer to a message that has none."""
    params = message.params
    return params.get("id") or {"connection_init": "connection_ack", "ping": "pong"}.get(params["type"])


def response_key(message: Message) -> str | None:
    """The operation's id, or the type of a message that has none."""
    return message.params.get("id") or message.params["type"]  # type: ignore[no-any-return]


def ends(reply: Message) -> bool:
    """An `until`: whether this reply is an operation's last."""
    return reply.params["type"] in ("complete", "error")


def complete(request: Message) -> Message:
    """An `on_cancel`: what tells the server that nobody wants the operation's results any more."""
    return Message.json({"id": request.params["id"], "type": "complete"})


def operation(query: str, identifier: str | None = None) -> Message:
    """The message that begins an operation, with an id of its own if none is given."""
    return Message.json(
        {"id": identifier or f"op-{next(_ids)}", "type": "subscribe", "payload": {"query": query}},
        timeout=SOON,
    )


INIT = {"type": "connection_init"}


def login(connection: evtws.Connection) -> None:
    """A `prepare`: connection_init, and its acknowledgement."""
    connection.request(Message.json(INIT), SOON)


class Client:
    """A GraphQL client; it answers the server's own pings."""

    def __init__(self, **options: Any) -> None:
        #: What ended the connection, once it did.
        self.lost: queue.Queue[evtws.EvtwsError | None] = queue.Queue()
        #: The params of what answered no request.
        self.heard: queue.Queue[Any] = queue.Queue()
        settings: dict[str, Any] = {
            "subprotocols": [PROTOCOL],
            "prepare": login,
            "msg_prep": evtws.json_params,
            "match_key": (request_key, response_key),
            "on_message": self._heard,
            "on_disconnected": lambda _, error: self.lost.put(error),
            "request_timeout": SOON,
        }
        self.connection = evtws.Connection(**(settings | options))

    def _heard(self, message: Message, connection: evtws.Connection) -> None:
        self.heard.put(message.params)
        if message.params["type"] == "ping":
            connection.send(Message.json({"type": "pong"}))

    def stream(self, query: str, identifier: str | None = None) -> evtws.ReplyStream:
        """The results of an operation, as they come."""
        return self.connection.stream(operation(query, identifier), until=ends, on_cancel=complete)

    def results(self, query: str) -> list[Any]:
        """All results of an operation; raises RuntimeError with the first of its errors."""
        replies = [reply.params for reply in self.stream(query)]
        if replies[-1]["type"] == "error":
            raise RuntimeError(replies[-1]["payload"][0]["message"])
        return [reply["payload"] for reply in replies[:-1]]

    def fared(self, tag: str) -> Any:
        """How the endless subscriptions of that tag fared."""
        (result,) = self.results(f'{{endless(tag: "{tag}") {{active completed produced}}}}')
        return result["data"]["endless"]

    def closed(self) -> evtws.ConnectionClosed:
        """The close frame that ended the connection."""
        error = self.lost.get(timeout=SOON)
        assert isinstance(error, evtws.ConnectionClosed)
        assert error.by_peer
        return error


@contextmanager
def opened(server: Server, **options: Any) -> Iterator[Client]:
    """A client with an open connection."""
    client = Client(**options)
    client.connection.dial(server.url)
    with client.connection:
        yield client


def test_the_login_is_acknowledged_before_the_connection_is_open(graphql: Server) -> None:
    """`prepare` says connection_init and has the acknowledgement, so that operations are allowed at once."""
    with opened(graphql) as client:
        assert client.connection.subprotocol == PROTOCOL
        assert client.results("{hello}") == [{"data": {"hello": "hello world"}}]


def test_a_subscription_is_a_stream(graphql: Server) -> None:
    """A subscription's results come one by one, and the stream ends with `complete`."""
    with opened(graphql) as client:
        with client.stream("subscription{count(to: 3)}") as stream:
            replies = [reply.params for reply in stream]
        assert client.connection.pending == ()
    assert [reply["type"] for reply in replies] == ["next", "next", "next", "complete"]
    assert [reply["payload"]["data"]["count"] for reply in replies[:-1]] == [0, 1, 2]


def test_streams_run_side_by_side(graphql: Server) -> None:
    """The results of several operations come mixed, and each goes to its own stream."""
    sizes = [1, 50, 200, 0, 7]
    with opened(graphql) as client:
        streams = [client.stream(f"subscription{{count(to: {size}, delay: 1)}}") for size in sizes]
        counted = [[reply.params["payload"]["data"]["count"] for reply in list(stream)[:-1]] for stream in streams]
    assert counted == [list(range(size)) for size in sizes]


def test_an_error_is_the_last_reply(graphql: Server) -> None:
    """An operation that the schema does not allow ends with `error`, and no `complete` is waited for."""
    with opened(graphql) as client:
        with pytest.raises(RuntimeError, match='Cannot query field "nothing"'):
            client.results("{nothing}")
        assert client.connection.pending == ()
        assert client.results("{fail}")[0]["errors"][0]["message"] == "it always fails"


def test_leaving_a_stream_cancels_the_subscription(graphql: Server) -> None:
    """Whoever leaves a stream early has `complete` sent, and the server stops producing."""
    with opened(graphql) as client:
        with client.stream('subscription{endless(tag: "evtws")}') as stream:
            counted = [next(stream).params["payload"]["data"]["endless"] for _ in range(3)]
            assert client.fared("evtws")["active"] == 1
        assert client.connection.pending == ()
        deadline = time.monotonic() + SOON
        while client.fared("evtws")["active"] and time.monotonic() < deadline:
            time.sleep(5 * MS)
        at_the_end = client.fared("evtws")
        time.sleep(50 * MS)
        assert client.fared("evtws") == at_the_end
    assert counted == [0, 1, 2]
    assert (at_the_end["active"], at_the_end["completed"]) == (0, 1)


def test_a_stream_that_ended_cancels_nothing(graphql: Server) -> None:
    """A stream that came to its end sends nothing when it is left: the server would not know its id."""
    with opened(graphql) as client:
        before = client.connection.stats().messages_sent
        with client.stream("subscription{count(to: 1)}") as stream:
            assert len(list(stream)) == 2
        assert client.connection.stats().messages_sent == before + 1


def test_a_stream_that_stays_silent_ends_by_its_timeout(graphql: Server) -> None:
    """A stream's timeout is for each reply; when it ends the stream, the operation is cancelled too."""
    slow = operation("{slow(ms: 1000)}")
    with opened(graphql) as client:
        stream = client.connection.stream(slow, until=ends, timeout=50 * MS, on_cancel=complete)
        with pytest.raises(evtws.ReplyTimeout):
            next(stream)
        assert client.connection.pending == ()
        assert client.results("{hello}") == [{"data": {"hello": "hello world"}}]


def test_pings_of_both_kinds_are_answered(graphql: Server) -> None:
    """A ping frame has its pong, and graphql-ws's own `ping` message is a request whose reply is `pong`."""
    with opened(graphql) as client:
        assert client.connection.ping(SOON) > 0
        assert client.connection.request(Message.json({"type": "ping"})).params["type"] == "pong"


def test_4400_is_the_code_of_nonsense(graphql: Server) -> None:
    """A message that is none of the protocol's closes the connection with 4400."""
    with opened(graphql) as client:
        client.connection.send("nonsense")
        assert client.closed().code == 4400


def test_4401_is_the_code_of_an_operation_without_login(graphql: Server) -> None:
    """An operation before the acknowledgement closes the connection with 4401, which its stream raises too."""
    with opened(graphql, prepare=None) as client:
        with pytest.raises(evtws.ConnectionClosed) as caught:
            client.results("{hello}")
        assert (caught.value.code, caught.value.reason) == (4401, "Unauthorized")
        assert client.closed().code == 4401


def test_4403_is_the_code_of_a_refused_login(graphql: Server) -> None:
    """A refused login closes the connection with 4403, which is what `dial` raises."""
    forbidden = Message.json(INIT | {"payload": {"forbidden": True}})
    client = Client(prepare=lambda connection: connection.request(forbidden, SOON))
    with pytest.raises(evtws.ConnectionClosed) as caught:
        client.connection.dial(graphql.url)
    assert (caught.value.code, caught.value.reason) == (4403, "Forbidden")
    assert client.connection.state is evtws.State.CLOSED


def test_4406_is_the_code_of_a_missing_subprotocol(graphql: Server) -> None:
    """A client that does not offer the subprotocol is closed with 4406, even while it logs in."""
    with opened(graphql, subprotocols=(), prepare=None) as client:
        assert client.closed().code == 4406
    with pytest.raises(evtws.ConnectionClosed) as caught:
        Client(subprotocols=()).connection.dial(graphql.url)
    assert caught.value.code == 4406


def test_4408_is_the_code_of_silence(graphql: Server) -> None:
    """A client that does not log in for 2 s is closed with 4408."""
    with opened(graphql, prepare=None) as client:
        assert client.closed().code == 4408


def test_4409_is_the_code_of_a_duplicate_id(graphql: Server) -> None:
    """A second operation with an id that is in use closes the connection with 4409, which both streams raise."""
    endless = 'subscription{endless(tag: "twice")}'
    with opened(graphql) as client:
        streams = [client.stream(endless, "twice") for _ in range(2)]
        for stream in streams:
            with pytest.raises(evtws.ConnectionClosed) as caught:
                list(stream)
            assert caught.value.code == 4409
        assert client.closed().reason == "Subscriber for twice already exists"


def test_a_duplicate_id_need_not_leave_the_client(graphql: Server) -> None:
    """With duplicate_keys="refuse" the second operation with an id is a ValueError, and the first goes on."""
    endless = 'subscription{endless(tag: "refused")}'
    with opened(graphql, duplicate_keys="refuse") as client, client.stream(endless, "one") as stream:
        with pytest.raises(ValueError, match="pending already"):
            client.stream("{hello}", "one")
        assert next(stream).params["type"] == "next"


def test_4429_is_the_code_of_a_second_login(graphql: Server) -> None:
    """A second connection_init closes the connection with 4429."""
    with opened(graphql) as client:
        with pytest.raises(evtws.ConnectionClosed) as caught:
            client.connection.request(Message.json(INIT))
        assert caught.value.code == client.closed().code == 4429


def test_a_server_that_ends_says_1001(tmp_path: Path) -> None:
    """A server that is told to end closes with 1001, and a stream that is under way raises that."""
    with servers.graphql(tmp_path) as server, opened(server) as client:
        stream = client.stream('subscription{endless(tag: "goodbye")}')
        assert next(stream).params["type"] == "next"
        server.process.terminate()
        with pytest.raises(evtws.ConnectionClosed) as caught:
            list(stream)
        assert caught.value.code == client.closed().code == 1001
        assert server.process.wait(SOON) == 0
