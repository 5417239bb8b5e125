"""evtws with aria2's JSON-RPC: calls by id, batches, notifications, and a stray message for each ping."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

import evtws
from evtws import Message
from tests.timing import MS, SOON

from .servers import Aria2

_ids = count(1)


def parts(message: Message) -> list[Message]:
    """A `split`: the elements of a batch's array, or the message itself; their params are what they decode to."""
    params = json.loads(message.body)
    return [Message(message.body, part) for part in (params if isinstance(params, list) else [params])]


@contextmanager
def opened(server: Aria2, **options: Any) -> Iterator[tuple[evtws.Connection, queue.Queue[Any]]]:
    """A connection to aria2, and the params of what answers no call."""
    heard: queue.Queue[Any] = queue.Queue()
    options = {"match_key": evtws.keyed("id"), "split": parts, "ping_interval": None, **options}
    with evtws.connect(server.url, on_message=lambda message, _: heard.put(message.params), **options) as connection:
        yield connection, heard


def call(server: Aria2, method: str, *arguments: Any, secret: str | None = None) -> dict[str, Any]:
    """A call with an id of its own."""
    params = [f"token:{secret or server.secret}", *arguments]
    return {"jsonrpc": "2.0", "id": f"call-{next(_ids)}", "method": method, "params": params}


def test_a_call_gets_its_reply(aria2: Aria2) -> None:
    """A call's reply is the one with its id."""
    asked = call(aria2, "aria2.getVersion")
    with opened(aria2) as (connection, _):
        reply = connection.request(Message.json(asked), SOON)
    assert reply.params["id"] == asked["id"]
    assert "version" in reply.params["result"]


def test_an_error_is_a_reply(aria2: Aria2) -> None:
    """A call that the server refuses gets the server's error as its reply."""
    with opened(aria2) as (connection, _):
        reply = connection.request(Message.json(call(aria2, "aria2.noSuch")), SOON)
    assert reply.params["error"]["message"] == "No such method: aria2.noSuch"


def test_a_slow_reply_does_not_hold_up_the_others(aria2: Aria2) -> None:
    """Calls sent after a slow one are answered before it."""
    ended: list[str] = []
    slow = Message.json(call(aria2, "aria2.getVersion", secret="wrong"))  # refused after 2 s
    with opened(aria2) as (connection, _):
        futures = [connection.submit(slow, SOON), *connection.submit_many(_versions(aria2, 20), SOON)]
        for future in futures:
            future.add_done_callback(lambda done: ended.append(done.result().params["id"]))
        replies = [future.result(SOON).params for future in futures]
        assert connection.drain(SOON)
    assert replies[0]["error"]["message"] == "Unauthorized"
    assert all("version" in reply["result"] for reply in replies[1:])
    assert ended[-1] == slow.params["id"]


def _versions(server: Aria2, number: int) -> list[Message]:
    return [Message.json(call(server, "aria2.getVersion")) for _ in range(number)]


def answers(request: Message, response: Message) -> bool:
    """A `match_msg`: whether the response has the id of the call, or of one of the batch's calls."""
    asked = request.params if isinstance(request.params, list) else [request.params]
    return isinstance(response.params, dict) and response.params.get("id") in [one["id"] for one in asked]


def after(number: int) -> Callable[[Message], bool]:
    """An `until` that ends a stream with so many replies."""
    left = count(number - 1, -1)
    return lambda reply: next(left) == 0


def test_a_batch_is_a_stream_of_its_replies(aria2: Aria2) -> None:
    """An array of calls goes out as one message, and `split` gives its replies one by one, beside another call's."""
    batch = [call(aria2, method) for method in ("aria2.getVersion", "aria2.noSuch", "aria2.getSessionInfo")]
    with opened(aria2, match_key=None, match_msg=answers) as (connection, heard):
        stream = connection.stream(Message.json(batch), until=after(len(batch)), timeout=SOON)
        alone = connection.request(Message.json(call(aria2, "aria2.getVersion")), SOON)
        replies = {reply.params["id"]: reply.params for reply in stream}
        assert connection.pending == ()
    assert "version" in alone.params["result"]
    version, refused, session = (replies[one["id"]] for one in batch)
    assert "version" in version["result"]
    assert refused["error"]["code"] == 1
    assert "sessionId" in session["result"]
    assert heard.empty()


def test_a_download_tells_of_its_start_and_its_end(aria2: Aria2) -> None:
    """The notifications of a download answer no call and go to on_message, in their order."""
    asked = Message.json(call(aria2, "aria2.addUri", [aria2.file_url], {"out": "evtws.bin"}))
    with opened(aria2) as (connection, heard):
        gid = connection.request(asked, SOON).params["result"]
        said = [heard.get(timeout=SOON) for _ in range(2)]
    assert [(one["method"], one["params"]) for one in said] == [
        ("aria2.onDownloadStart", [{"gid": gid}]),
        ("aria2.onDownloadComplete", [{"gid": gid}]),
    ]
    assert (aria2.directory / "evtws.bin").read_bytes() == aria2.content


def test_the_stray_message_for_a_ping_answers_no_call(aria2: Aria2) -> None:
    """aria2 answers each ping by a message with the id null too, which leaves the pending call alone."""
    slow = Message.json(call(aria2, "aria2.getVersion", secret="wrong"))
    with opened(aria2) as (connection, heard):
        future = connection.submit(slow, SOON)
        for _ in range(3):
            assert 0 < connection.ping(SOON) < SOON
        strays = [heard.get(timeout=SOON) for _ in range(3)]
        assert connection.pending == (slow,)
        assert future.result(SOON).params["id"] == slow.params["id"]
        assert connection.stats().unmatched == 3
    assert {(stray["id"], stray["error"]["code"]) for stray in strays} == {(None, -32600)}


def test_periodic_pings_keep_the_connection(aria2: Aria2) -> None:
    """Pings of the connection's own are answered and measured, their stray messages notwithstanding."""
    with opened(aria2, ping_interval=20 * MS) as (connection, heard):
        strays = [heard.get(timeout=SOON) for _ in range(3)]
        stats = connection.stats()
    assert [stray["id"] for stray in strays] == [None] * 3
    assert stats.rtt_min is not None
    assert stats.reconnects == 0


def test_nonsense_is_refused_without_an_id(aria2: Aria2) -> None:
    """What is no JSON is answered with the id null: its sender waits in vain, and is told so in time."""
    nonsense = Message("{nonsense", {"id": "nonsense"})
    with opened(aria2) as (connection, heard):
        with pytest.raises(evtws.ReplyTimeout):
            connection.request(nonsense, 100 * MS)
        assert heard.get(timeout=SOON)["error"]["code"] == -32700
        assert "version" in connection.request(_versions(aria2, 1)[0], SOON).params["result"]
