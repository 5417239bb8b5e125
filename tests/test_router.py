"""The router: which message answers which request, what the user's functions may do there, and slow consumers."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import Connection, Message, ReplyTimeout, RequestCancelled, State, in_order, json_params
from evtws.calls import Calling, Streaming, Waiting
from evtws.errors import EvtwsError, SlowConsumer, SlowUserCode, UserCodeError
from evtws.life import Life
from evtws.options import Options
from evtws.pending import Call
from evtws.router import Router
from evtws.task import Task
from evtws.testing import ClientConnection, Server
from evtws.tombstones import Verdict

from .faults.support import Ear, ask, echo, only_client, until
from .timing import MS, SOON

#: Longer than a user's function may take where messages are read.
TOO_LONG = 0.06


def say(client: ClientConnection, *numbers: int, **more: Any) -> None:
    """Send these ids, at once."""
    for number in numbers:
        client.send(Message.json({"id": number} | more).body)


def same_id(request: Message, response: Message) -> bool:
    """A `match_msg` by the ids."""
    return bool(request.params["id"] == response.params["id"])


@contextmanager
def connected(
    ear: Ear, script: Callable[[ClientConnection, str | bytes], object] | None = None, **options: Any
) -> Iterator[tuple[Connection, ClientConnection]]:
    """A connection that matches by id unless told otherwise, and its server's end; all is heard by `ear`."""
    with (
        Server(script) as server,
        evtws.connect(server.url, **(ear.options | {"ping_interval": None} | options)) as connection,
    ):
        yield connection, only_client(server)


#: The three ways to find the request of a reply, where replies have ids.
RULES: list[dict[str, Any]] = [{}, {"match_msg": same_id}, {"match_msg": same_id, "match_key": None}]


# -- whose reply it is


@pytest.mark.parametrize("rule", RULES)
def test_replies_in_one_batch(rule: dict[str, Any]) -> None:
    """Of many replies that come together, each finds its request, whatever their order."""
    asked: list[str | bytes] = []

    def answer(client: ClientConnection, body: str | bytes) -> None:
        asked.append(body)
        if len(asked) == 100:
            for other in reversed(asked):
                client.send(other)

    ear = Ear()
    with connected(ear, answer, **rule) as (connection, _):
        futures = connection.submit_many([ask(number) for number in range(100)])
        assert [future.result(SOON).params["id"] for future in futures] == list(range(100))
        assert connection.stats().messages_received == 100
    assert (ear.messages, ear.errors) == ([], [])


@pytest.mark.parametrize("rule", RULES)
def test_what_no_request_claims(rule: dict[str, Any]) -> None:
    """A late, a second and an unknown reply go to on_message, and are counted as what they are."""
    ear = Ear()
    with connected(ear, **rule) as (connection, client):
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), timeout=0)
        answered = connection.submit(ask(2))
        say(client, 1, 2, 2, 3)
        assert answered.result(SOON).params == {"id": 2}
        ear.wait_for(lambda: ear.messages == [ask(number).body for number in (1, 2, 3)])
        stats = connection.stats()
        assert (stats.late, stats.duplicate, stats.unmatched) == (1, 1, 1)


def test_no_rule() -> None:
    """Without a rule nothing answers anything: all messages go to on_message."""
    ear = Ear()
    with connected(ear, match_key=None, msg_prep=None) as (connection, client):
        client.send("a")
        client.send(b"b")
        ear.wait_for(lambda: ear.messages == ["a", b"b"])
        assert connection.stats().unmatched == 2


def test_nobody_hears() -> None:
    """Without on_message what no request claims is only counted."""
    with connected(Ear(), on_message=None) as (connection, client):
        say(client, 1)
        assert until(lambda: connection.stats().unmatched == 1)


def test_the_key_narrows_and_the_function_decides() -> None:
    """With both, `match_msg` is asked only of requests with the message's key, and of none where it has no key."""
    asked: list[tuple[Any, Any]] = []

    def match_msg(request: Message, response: Message) -> bool:
        asked.append((request.params["part"], response.params["part"]))
        return bool(request.params["part"] == response.params["part"])

    ear = Ear()
    with connected(ear, match_msg=match_msg) as (connection, client):
        futures = [connection.submit(Message.json({"id": 1, "part": part})) for part in "ab"]
        connection.submit(Message.json({"id": 2, "part": "b"}))
        client.send('{"part": "b"}')
        say(client, 1, part="b")
        assert futures[1].result(SOON).params["part"] == "b"
        assert asked == [("a", "b"), ("b", "b")]
        assert not futures[0].done()
    assert ear.messages == ['{"part": "b"}']


def test_replies_in_order() -> None:
    """With `in_order` a reply answers the oldest request; one that ended keeps its place and takes its reply."""
    ear = Ear()
    with connected(ear, match_msg=in_order, match_key=None) as (connection, client):
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), timeout=5 * MS)
        second, third = connection.submit(ask(2)), connection.submit(ask(3))
        say(client, 10)
        assert until(lambda: client.received[1:] == [ask(2).body, ask(3).body])
        say(client, 20, 30, 40)
        assert [second.result(SOON).params["id"], third.result(SOON).params["id"]] == [20, 30]
        ear.wait_for(lambda: ear.messages == [ask(10).body, ask(40).body])
        stats = connection.stats()
        assert (stats.late, stats.unmatched) == (1, 1)


def test_split() -> None:
    """What `split` takes out of one message is matched one by one."""

    def split(message: Message) -> list[Message]:
        json_params(message)
        return [Message.json(part) for part in message.params]

    ear = Ear()
    with connected(ear, split=split) as (connection, client):
        future = connection.submit(ask(2))
        client.send('[{"id":1},{"id":2}]')
        client.send("[]")
        client.send('[{"id":3}]')
        assert future.result(SOON).params == {"id": 2}
        ear.wait_for(lambda: ear.messages == [ask(1).body, ask(3).body])


# -- what match_msg may do


def test_match_msg_may_use_the_connection() -> None:
    """A `match_msg` that looks at the queue, removes from it and sends does not deadlock."""
    removed, spared = ask(2), ask(1)
    outcomes: list[Any] = []

    def match_msg(request: Message, response: Message) -> bool:
        outcomes.append(spared in connection.pending)
        outcomes.append(connection.remove_from_queue(removed))
        connection.send("{}")
        return same_id(request, response)

    def answer(client: ClientConnection, body: str | bytes) -> None:
        if body == spared.body:
            client.send(body)

    ear = Ear()
    with connected(ear, answer, match_msg=match_msg) as (connection, client):
        cancelled = connection.submit(removed)
        assert connection.request(spared, timeout=SOON).params == {"id": 1}
        assert cancelled.cancelled()
        assert outcomes == [True, True]
        assert until(lambda: client.received[2:] == ["{}"])
    assert ear.errors == []


def test_a_candidate_that_is_gone_meanwhile() -> None:
    """A request that is removed after `match_msg` chose it does not take the reply: the next candidate does."""
    first = ask(1)

    def match_msg(request: Message, response: Message) -> bool:
        if request is first:
            connection.remove_from_queue(first)
        return True

    with connected(Ear(), match_msg=match_msg, match_key=None) as (connection, client):
        gone, takes = connection.submit(first), connection.submit(ask(2))
        say(client, 7)
        assert takes.result(SOON).params == {"id": 7}
        assert gone.cancelled()


def test_is_pong() -> None:
    """What `is_pong` knows goes no further; what comes behind it in the same batch does."""
    ear = Ear()
    with connected(ear, is_pong=is_bad) as (connection, client):
        say(client, 1, 13, 2)
        ear.wait_for(lambda: ear.messages == [ask(1).body, ask(2).body])
        assert connection.stats().messages_received == 3


# -- functions that raise


def fails(bad: Callable[[Message], bool]) -> Callable[[Message], Any]:
    """A function of a message that raises where `bad` says so."""

    def function(message: Message) -> Any:
        if bad(message):
            raise LookupError("no")
        return False

    return function


def is_bad(message: Message) -> bool:
    """Whether the function raises here: on receiving the id 13."""
    return message.body == ask(13).body


def bad_key(message: Message) -> Any:
    """A `match_key` that raises for the bad message."""
    return fails(is_bad)(message) or message.params["id"]


def bad_prep(message: Message) -> None:
    """A `msg_prep` that raises for the bad message."""
    json_params(message)
    fails(is_bad)(message)


def bad_split(message: Message) -> list[Message]:
    """A `split` that raises for the bad message."""
    fails(is_bad)(message)
    return [message]


def bad_match(request: Message, response: Message) -> bool:
    """A `match_msg` that raises for the bad message."""
    return fails(is_bad)(response) or same_id(request, response)


def unhashable(message: Message) -> Any:
    """A `match_key` whose key of the bad message cannot be hashed."""
    return [] if is_bad(message) else message.params["id"]


RAISING: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"msg_prep": bad_prep}, LookupError),
    ({"match_key": bad_key}, LookupError),
    ({"match_key": unhashable}, TypeError),
    ({"split": bad_split}, LookupError),
    ({"is_pong": fails(is_bad)}, LookupError),
    ({"match_key": None, "match_msg": bad_match}, LookupError),
]


@pytest.mark.parametrize(("options", "cause"), RAISING)
def test_a_function_raises(options: dict[str, Any], cause: type[Exception]) -> None:
    """What a function raises is reported with its message; the others of the batch are delivered, all goes on."""
    ear = Ear()
    with connected(ear, **options) as (connection, client):
        future = connection.submit(ask(2))
        say(client, 1, 13, 2, 3)
        assert future.result(SOON).params == {"id": 2}
        ear.wait_for(lambda: ask(3).body in ear.messages and ear.errors)
        assert connection.state is State.OPEN
    assert [body for body in ear.messages if body != ask(13).body] == [ask(1).body, ask(3).body]
    for error in ear.errors:
        assert isinstance(error, UserCodeError)
        assert isinstance(error.__cause__, cause)
        assert error.message is not None
        assert error.message.body == ask(13).body


def test_until_raises() -> None:
    """An `until` that raises is reported, and does not end the stream."""
    ear = Ear()

    def until_end(message: Message) -> bool:
        fails(lambda reply: reply.params["at"] == 1)(message)
        return bool(message.params["at"] == 2)

    with connected(ear) as (connection, client):
        stream = connection.stream(ask(1), until=until_end, timeout=SOON)
        for at in range(3):
            say(client, 1, at=at)
        assert [reply.params["at"] for reply in stream] == [0, 1, 2]
        ear.wait_for(lambda: ear.errors)
    assert isinstance(ear.errors[0].__cause__, LookupError)


# -- functions that are slow


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, slow where it is given the bad message."""

    def slow(*messages: Message) -> Any:
        if is_bad(messages[-1]):
            time.sleep(TOO_LONG)
        return function(*messages)

    return slow


SLOW: list[dict[str, Any]] = [
    {"msg_prep": slowly(json_params)},
    {"match_key": slowly(lambda message: message.params["id"])},
    {"is_pong": slowly(lambda _: False)},
    {"split": slowly(lambda message: [message])},
    {"match_key": None, "match_msg": slowly(same_id)},
]


@pytest.mark.parametrize("options", SLOW)
def test_a_slow_function(options: dict[str, Any]) -> None:
    """A function that takes over 50 ms where messages are read is reported, once for each time."""
    ear = Ear()
    with connected(ear, **options) as (connection, client):
        future = connection.submit(ask(1))
        say(client, 2, 13, 3, 1)
        assert future.result(SOON).params == {"id": 1}
        ear.wait_for(lambda: ask(3).body in ear.messages and ear.slow)
    assert ear.errors == []
    error = ear.slow[0]  # a busy machine may make innocent functions slow, too
    assert isinstance(error, SlowUserCode)
    assert error.seconds >= TOO_LONG


# -- callbacks


def test_the_order_of_callbacks() -> None:
    """Callbacks and on_message run in the order in which their messages came."""
    came: list[Any] = []

    def callback(reply: Message, _connection: Connection) -> None:
        came.append(("reply", reply.params["id"]))

    def on_message(message: Message, _connection: Connection) -> None:
        came.append(("event", message.params["id"]))

    with connected(Ear(), on_message=on_message) as (connection, client):
        for number in (2, 4):
            connection.send(Message.json({"id": number}, callback))
        say(client, 1, 2, 3, 4, 5)
        assert until(lambda: len(came) == 5)
    assert came == [("event", 1), ("reply", 2), ("event", 3), ("reply", 4), ("event", 5)]


class Gate:
    """An on_message that waits until it is opened, and what came through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.came: list[int] = []

    def __call__(self, message: Message, _connection: Connection) -> None:
        self.entered.set()
        self.open.wait(SOON)
        self.came.append(message.params["id"])


def overrun(connection: Connection, client: ClientConnection, gate: Gate) -> None:
    """Send more than a `callback_queue` of 5 holds, in two batches, and let through what was kept."""
    gate.open.clear()
    gate.entered.clear()
    before = connection.stats()
    say(client, 0)
    assert gate.entered.wait(SOON)
    for batch in (range(1, 11), range(11, 21)):
        say(client, *batch)
        assert until(lambda: connection.stats().messages_received == before.messages_received + batch.stop)  # noqa: B023
    assert connection.stats().callbacks_dropped == before.callbacks_dropped + 15
    gate.open.set()
    assert until(lambda: connection.stats().callbacks_queued == 0)


def test_a_slow_consumer() -> None:
    """Beyond `callback_queue` the newest unmatched messages are dropped, counted, and told once per episode."""
    gate, ear = Gate(), Ear()
    with connected(ear, on_message=gate, callback_queue=5) as (connection, client):
        overrun(connection, client, gate)
        ear.wait_for(lambda: len(ear.errors) == 1)
        say(client, 21)  # there is room, and the episode is over
        assert until(lambda: 21 in gate.came)
        overrun(connection, client, gate)
        ear.wait_for(lambda: len(ear.errors) == 2)
    assert gate.came == [0, 1, 2, 3, 4, 5, 21, 0, 1, 2, 3, 4, 5]
    assert all(isinstance(error, SlowConsumer) and error.dropped > 0 for error in ear.errors)


def test_replies_are_never_dropped() -> None:
    """However full the queue is, each callback of a reply runs."""
    gate, replies = Gate(), list[int]()
    with connected(Ear(), echo, on_message=gate, callback_queue=1) as (connection, client):
        say(client, *range(100, 110))
        assert gate.entered.wait(SOON)
        for number in range(20):
            connection.send(Message.json({"id": number}, lambda reply, _: replies.append(reply.params["id"])))
        assert until(lambda: connection.stats().messages_received == 30)
        gate.open.set()
        assert until(lambda: len(replies) == 20)
    assert replies == list(range(20))


# -- overflow="block"

COUNT = 1000
BLOCK: dict[str, Any] = {"overflow": "block", "callback_queue": 10}
FILLER = "x" * 1000


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_blocking(limit: int) -> None:
    """With `overflow="block"` nothing is read while the queue is full, and nothing is lost; no ping is judged then."""
    gate, ear = Gate(), Ear()
    options = {"ping_interval": 100 * MS, "unreceived_ping_threshold": 2}
    with connected(ear, on_message=gate, **(BLOCK | {"callback_queue": limit} | options)) as (connection, client):
        say(client, *range(COUNT), filler=FILLER)
        assert gate.entered.wait(SOON)
        assert until(lambda: len(client.pings) >= 1)
        read = connection.stats().messages_received
        assert read < COUNT / 2  # the rest is with the system, or with the peer
        assert until(lambda: len(client.pings) >= 4)
        assert connection.stats().messages_received == read
        gate.open.set()
        assert until(lambda: len(gate.came) == COUNT)
        assert connection.state is State.OPEN
    assert (gate.came, ear.errors) == (list(range(COUNT)), [])


def test_blocking_a_caller_that_reads() -> None:
    """A caller that does the reading stops it, too, when the queue is full; it gets its reply once there is room."""
    gate = Gate()

    def answer(client: ClientConnection, body: str | bytes) -> None:
        say(client, *range(100, 100 + COUNT), filler=FILLER)
        client.send(body)

    with connected(Ear(), answer, on_message=gate, **BLOCK) as (connection, _):
        threading.Timer(50 * MS, gate.open.set).start()
        reply: list[Message] = []
        asking = threading.Thread(target=lambda: reply.append(connection.request(ask(1), timeout=SOON)))
        asking.start()
        assert gate.entered.wait(SOON)
        most = 0
        while not gate.open.is_set():
            most = max(most, connection.stats().callbacks_queued)
            time.sleep(MS)
        asking.join(SOON)
        assert [message.params for message in reply] == [{"id": 1}]
        assert most < 100


WAYS: list[Callable[[Connection], Any]] = [
    lambda connection: connection.request(ask(1), timeout=SOON).params["id"],
    lambda connection: connection.submit(ask(1)).result(SOON).params["id"],
    lambda connection: next(connection.stream(ask(1), until=lambda _: True, timeout=SOON)).params["id"],
    lambda connection: connection.ping(SOON) > 0,
]


@pytest.mark.parametrize("way", WAYS, ids=["request", "result", "stream", "ping"])
def test_a_callback_that_waits_while_the_queue_is_full(way: Callable[[Connection], Any]) -> None:
    """A callback that waits for what the peer sends gets it although the queue is full; then reading stops again."""
    outcomes: list[Any] = []
    full = threading.Event()

    def on_message(_message: Message, connection: Connection) -> None:
        if not outcomes:
            full.wait(SOON)
            outcomes.append(way(connection))

    with connected(Ear(), echo, on_message=on_message, **BLOCK) as (connection, client):
        say(client, *range(100, 500), filler=FILLER)
        assert until(lambda: connection.stats().callbacks_queued >= 10)
        full.set()
        assert until(lambda: outcomes) == [True]
        assert until(lambda: connection.stats().messages_received >= 400)


# -- streams


@pytest.mark.parametrize("rule", [*RULES, {"match_msg": in_order, "match_key": None}])
def test_a_stream(rule: dict[str, Any]) -> None:
    """A stream takes the replies of its request up to and with the last; one after that is no reply of its any more."""
    ear = Ear()
    with connected(ear, **rule) as (connection, client):
        stream = connection.stream(ask(1), until=lambda reply: "end" in reply.params, timeout=SOON)
        say(client, 1, at=1)
        say(client, 1, at=2)
        say(client, 1, end=True)
        say(client, 1, at=4)
        assert [sorted(reply.params) for reply in stream] == [["at", "id"], ["at", "id"], ["end", "id"]]
        ear.wait_for(lambda: ear.messages)
        assert connection.pending == ()
        stats = connection.stats()
        assert stats.duplicate + stats.unmatched == 1
        assert stats.duplicate == ("match_key" not in rule or rule["match_msg"] is same_id)


def test_a_stream_that_is_not_taken() -> None:
    """A stream of which `maxsize` replies wait ends by SlowConsumer with one more; those that wait can be taken."""
    with connected(Ear()) as (connection, client):
        stream = connection.stream(ask(1), until=lambda _: False, timeout=SOON, maxsize=2)
        say(client, 1, 1, 1, 1)
        assert until(lambda: connection.pending == ())
        assert [next(stream).params, next(stream).params] == [{"id": 1}, {"id": 1}]
        with pytest.raises(SlowConsumer):
            next(stream)


def test_a_stream_that_its_until_removes() -> None:
    """A stream that is removed while its `until` runs ends as removed, whatever `until` says."""
    request = ask(1)
    with connected(Ear()) as (connection, client):
        stream = connection.stream(request, until=lambda _: connection.remove_from_queue(request), timeout=SOON)
        say(client, 1)
        assert next(stream).params == {"id": 1}
        with pytest.raises(RequestCancelled):
            next(stream)


# -- by itself


class Lock:
    """A lock that counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken = 0
        self.acquire, self.locked, self.release = self._lock.acquire, self._lock.locked, self._lock.release

    def __enter__(self) -> None:
        self.taken += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Queue(list[Task]):
    """A callback queue that runs nothing."""

    room = 1000


@contextmanager
def router(**options: Any) -> Iterator[tuple[Router, Life]]:
    """A router on a life that is OPEN without a socket."""
    connection = Connection()
    life = Life(weakref.ref(connection), Options(**options), refreshable=False)
    vars(life).update(lock=Lock(), callbacks=Queue())
    life.session.dial(0.0)
    life.session.opened(0.0)
    try:
        yield Router(life, lambda: None), life
    finally:
        life.poller.close()


def by_body(message: Message) -> str | bytes:
    """A `match_key`: the body itself."""
    return message.body


def test_one_lock_for_a_batch() -> None:
    """A batch of replies is matched by key under the lock once."""
    with router(match_key=by_body) as (rooted, life):
        calls = [Waiting(Message(str(number)), 0.0, None, "fail") for number in range(50)]
        for call in calls:
            call.key = call.message.body
            assert life.session.submit(call, 0.0)
        lock: Any = life.lock
        before = lock.taken
        rooted.route([call.message.body for call in calls])
        assert lock.taken == before + 1
        assert all(call.has_ended for call in calls)
        assert life.routing_thread is None


class Interrupted(Waiting):
    """A call whose thread hears a Ctrl-C right before, or right after, it is told of its reply."""

    __slots__ = ("after",)
    after: bool

    def answer(self, reply: Message) -> Sequence[Task]:
        if self.reply is None:
            if self.after:
                super().answer(reply)
            self.reply = reply
            raise KeyboardInterrupt
        return super().answer(reply)


@pytest.mark.parametrize("after", [False, True])
def test_a_ctrl_c_between_two_deliveries(after: bool) -> None:
    """What was found for a batch is delivered once though a Ctrl-C comes in between, and each callback queued once."""
    heard: list[object] = []
    with router(match_key=by_body, on_message=heard.append) as (rooted, life):
        interrupted = Interrupted(Message("1"), 0.0, None, "fail")
        interrupted.after = after
        calls: list[Call] = [
            Calling(
                Message("0", callback=lambda *_: None), 0.0, None, "fail", connection=Connection(), report=lambda _: ()
            ),
            interrupted,
            Waiting(Message("2"), 0.0, None, "fail"),
        ]
        for call in calls:
            call.key = call.message.body
            life.session.submit(call, 0.0)
        with pytest.raises(KeyboardInterrupt):
            rooted.route(["0", "1", "2", "pushed"])
        assert [call.has_ended for call in calls if isinstance(call, Waiting)] == [True, True]
        queue: Any = life.callbacks
        assert [task.function for task in queue] == [calls[0].message.callback, heard.append]
        assert len(life.session.pending) == 0
        assert life.routing_thread is None


def test_a_ctrl_c_right_after_a_delivery() -> None:
    """A callback that was queued when the Ctrl-C came is not queued again."""

    class Once(Router):
        """Is interrupted right after the first delivery."""

        interrupted = False

        def _deliver(self, message: Message, found: Call | Verdict, tasks: list[Task]) -> None:
            super()._deliver(message, found, tasks)
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt

    with router(on_message=lambda *_: None) as (plain, life):
        rooted = Once(life, lambda: None)
        with pytest.raises(KeyboardInterrupt):
            rooted.route(["1", "2"])
        queue: Any = life.callbacks
        assert [task.arguments[0].body for task in queue] == ["1"]  # the other was not looked at
        plain.route(["3"])


class Vanishing(Streaming):
    """A stream that another thread removes right before it is given its next reply."""

    __slots__ = ("gone",)
    gone: Callable[[], object]

    @property
    def is_full(self) -> bool:
        self.gone()
        return True


def test_a_stream_that_is_gone_when_its_reply_comes() -> None:
    """A full stream that somebody removed meanwhile is not told again that it is full."""
    with router(match_key=by_body) as (rooted, life):
        call = Vanishing(Message("x"), 0.0, "fail", lambda _: False, 1)
        call.key = "x"
        call.gone = lambda: life.session.cancel(call, 0.0)
        assert life.session.submit(call, 0.0)
        rooted.route(["x"])
        assert not call.overflowed
        assert not call.ended


def test_a_request_that_was_not_written() -> None:
    """`match_msg` is not asked of a request whose bytes did not go out: nothing can answer it."""
    asked: list[EvtwsError | Message] = []

    def match_msg(request: Message, response: Message) -> bool:
        asked.append(request)
        return True

    with router(match_msg=match_msg) as (rooted, life):
        call = Waiting(Message("x"), 0.0, None, "resend")
        life.session.submit(call, 0.0)
        call.rewind()
        rooted.route(["y"])
        assert asked == []
        assert not call.has_ended
