"""The demo: what evtws promises, shown against a server inside this process. Whatever it shows is checked."""

from __future__ import annotations

import contextlib
import itertools
import json
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from .connection import Connection
from .correlation import json_params, keyed
from .errors import ConnectionLost, EvtwsError, ReplyTimeout
from .message import InFlight, Message
from .reconnect import ReconnectPolicy
from .state import State
from .testing import ClientConnection, Server

THREADS = 8
CALLS = 100
EVENTS = 1000

#: Seconds that a call may take before the demo holds it to have failed.
PATIENCE = 5.0

_WIDTH = 80
_THREADS = ("evtws-io", "evtws-callbacks", "evtws-prepare")
_FATES: tuple[InFlight, ...] = ("fail", "resend", "keep")


class Script:
    """What the demo's server does: a method for each that can be called. Runs in the server's thread."""

    def __init__(self) -> None:
        #: How often each job was asked for.
        self.jobs: Counter[str] = Counter()
        self._kept: dict[str, Any] | None = None

    def connected(self, client: ClientConnection) -> None:
        """A job that was begun on the last connection is done by now."""
        if self._kept is not None:
            client.send(_result(self._kept, "done"))

    def message(self, client: ClientConnection, body: str | bytes) -> None:
        """Do what a request asks for."""
        request = json.loads(body)
        method: Callable[[ClientConnection, dict[str, Any]], None] = getattr(self, request["method"])
        method(client, request)

    def double(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Answer after 0 to 4 ms, so that replies overtake each other."""
        client.send_later(request["id"] * 7 % 5 / 1000, _result(request, request["params"] * 2))

    def late(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Answer after so many seconds."""
        client.send_later(request["params"], _result(request, "too late"))

    def count(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Answer several times."""
        last: int = request["params"]
        for number in range(1, last + 1):
            client.send(json.dumps({"id": request["id"], "result": number, "last": number == last}))

    def subscribe(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Answer, and push so many events."""
        client.send(_result(request, "subscribed"))
        for number in range(request["params"]):
            client.send(json.dumps({"event": "tick", "number": number}))

    def job(self, client: ClientConnection, request: dict[str, Any]) -> None:
        """Cut the line once three jobs have begun; answer a job that is asked for again."""
        name = request["params"]
        self.jobs[name] += 1
        if self.jobs[name] > 1:
            client.send(_result(request, "done"))
        if name == "keep":
            self._kept = request
        if self.jobs.total() == 3:
            client.drop(reset=True)


def _result(request: dict[str, Any], result: object) -> str:
    return json.dumps({"id": request["id"], "result": result})


class Heard:
    """What the connection's callbacks were told. Filled on the callbacks thread."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.all_events = threading.Event()
        self.late_reply = threading.Event()
        self.connected = 0
        self.connected_again = threading.Event()
        self.losses: list[EvtwsError | None] = []
        self.errors: list[EvtwsError] = []

    def on_message(self, message: Message, _connection: Connection) -> None:
        """An event, or a reply that nobody waits for any more."""
        if "event" not in message.params:
            self.late_reply.set()
            return
        self.events.append(message.params["number"])
        if len(self.events) == EVENTS:
            self.all_events.set()

    def on_connected(self, _connection: Connection) -> None:
        """The connection is open, for the first time or again."""
        self.connected += 1
        if self.connected == 2:
            self.connected_again.set()

    def on_disconnected(self, _connection: Connection, error: EvtwsError | None) -> None:
        """The connection ended."""
        self.losses.append(error)


class Show:
    """Prints the demo, and knows whether everything that it showed was so."""

    def __init__(self) -> None:
        self.held: list[bool] = []
        #: The threads that there were before.
        self.threads = set(threading.enumerate())
        self._chapters = itertools.count(1)

    def chapter(self, title: str) -> None:
        """Begin a part."""
        print(f"\n{next(self._chapters)}. {title}")

    def say(self, text: str) -> None:
        """Print text, wrapped."""
        print(textwrap.fill(text, _WIDTH, initial_indent="     ", subsequent_indent="     "))

    def row(self, name: str, value: str) -> None:
        """Print a line of a table."""
        print(f"     {name:<34}{value:>14}")

    def check(self, claim: str, held: bool) -> None:
        """Print a claim and whether it is true."""
        self.held.append(held)
        print(textwrap.fill(claim, _WIDTH, initial_indent=" ok  " if held else "FAIL ", subsequent_indent="     "))

    def guard(self, part: Callable[..., object], *arguments: object) -> None:
        """Run a part of the demo; what it raises is a check that failed."""
        try:
            part(*arguments)
        except Exception as error:
            self.check(f"nothing was to be raised here: {type(error).__name__}: {error}", False)

    def conclude(self) -> int:
        """Print how it went; returns the exit status."""
        failed = self.held.count(False)
        print(f"\n{len(self.held) - failed} checks held, {failed} failed")
        return 1 if failed else 0


_ids = itertools.count(1)


def _request(method: str, params: object, in_flight: InFlight | None = None) -> Message:
    return Message.json({"id": next(_ids), "method": method, "params": params}, in_flight=in_flight)


def run(script: Script | None = None) -> int:
    """Show everything; returns 0 if all of it was so, 1 if not. `script` None is the server's usual one."""
    script = script or Script()
    show = Show()
    heard = Heard()
    server = Server(script.message, on_connect=script.connected)
    with contextlib.closing(server), _connection(heard) as connection:
        print(f"A server inside this process listens at {server.url}")
        show.guard(lambda: connection.dial(server.url))
        for part in (_calls, _timeout, _stream, _events, _pings):
            show.guard(part, show, connection, heard)
        show.guard(_cut, show, connection, heard, script)
        show.guard(_summary, show, connection)
        show.guard(_close, show, connection)
    show.check("the server met no fault", not server.errors)
    return show.conclude()


def _connection(heard: Heard) -> Connection:
    return Connection(
        match_key=keyed("id"),
        msg_prep=json_params,
        on_message=heard.on_message,
        on_connected=heard.on_connected,
        on_disconnected=heard.on_disconnected,
        on_error=heard.errors.append,
        reconnect=ReconnectPolicy(wait=lambda _: 0.2),
        request_timeout=PATIENCE,
        proxy=None,
    )


def _calls(show: Show, connection: Connection, _heard: Heard) -> None:
    show.chapter(f"Calls from {THREADS} threads, answered out of order")

    def call_often(_thread: int) -> int:
        right = 0
        for number in range(CALLS):
            reply = connection.request(_request("double", number))
            right += reply.params["result"] == number * 2
        return right

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        right = sum(pool.map(call_often, range(THREADS)))
    show.say(f"{THREADS * CALLS} calls over one connection in {time.monotonic() - began:.2f} s")
    show.check("each caller got its own reply", right == THREADS * CALLS)


def _timeout(show: Show, connection: Connection, heard: Heard) -> None:
    show.chapter("A request that times out after 0.3 s, and says what was going on")
    began = time.monotonic()
    try:
        connection.request(_request("late", 0.5), timeout=0.3)
    except ReplyTimeout as error:
        show.say(f"ReplyTimeout: {error}")
        show.check("the wait was bounded", 0.3 <= time.monotonic() - began < 0.3 + PATIENCE)
    else:
        show.check("the request timed out", False)
    show.check("nothing of it is left in the queue", not connection.pending)
    heard.late_reply.wait(PATIENCE)
    show.check("its reply, 0.2 s late, answered nobody else and was counted", connection.stats().late == 1)


def _stream(show: Show, connection: Connection, _heard: Heard) -> None:
    show.chapter("One request with several replies")
    with connection.stream(_request("count", 10), until=lambda reply: bool(reply.params["last"])) as replies:
        numbers = [reply.params["result"] for reply in replies]
    show.say(" ".join(map(str, numbers)))
    show.check("all ten came, in order, and the stream ended with the last", numbers == list(range(1, 11)))


def _events(show: Show, connection: Connection, heard: Heard) -> None:
    show.chapter("Pushed events")
    began = time.monotonic()
    connection.request(_request("subscribe", EVENTS))
    heard.all_events.wait(PATIENCE)
    show.say(f"{len(heard.events)} events in {(time.monotonic() - began) * 1000:.0f} ms, on the callbacks thread")
    show.check("every event came once, in order", heard.events == list(range(EVENTS)))


def _pings(show: Show, connection: Connection, _heard: Heard) -> None:
    show.chapter("Ping round trips")
    times = [connection.ping() for _ in range(5)]
    show.say("  ".join(f"{seconds * 1000:.2f} ms" for seconds in times))
    stats = connection.stats()
    show.check("every ping was answered", min(times) > 0 and stats.pings_unanswered == 0)


def _cut(show: Show, connection: Connection, heard: Heard, script: Script) -> None:
    show.chapter("The server cuts the line while three requests await their reply")
    fail, resend, keep = connection.submit_many([_request("job", fate, in_flight=fate) for fate in _FATES])
    error = fail.exception(PATIENCE)
    show.say(f'in_flight="fail": {type(error).__name__}: {error}')
    lost = isinstance(error, ConnectionLost) and error.written == "yes"
    show.check('"fail" ended at once, and says that its bytes were written', lost)
    again = resend.result(PATIENCE).params["result"] == "done" and script.jobs["resend"] == 2
    show.check('"resend" was sent once more, and has its reply', again)
    kept = keep.result(PATIENCE).params["result"] == "done" and script.jobs["keep"] == 1
    show.check('"keep" was sent once, and got its reply on the next connection', kept)
    back = connection.wait_open(PATIENCE) and connection.request(_request("double", 21)).params["result"] == 42
    show.check("the connection is back, and works", back and connection.stats().reconnects == 1)
    heard.connected_again.wait(PATIENCE)
    told = (heard.connected, len(heard.losses), len(heard.errors)) == (2, 1, 1)
    show.check("on_connected was told twice, on_disconnected and on_error once", told)


def _summary(show: Show, connection: Connection) -> None:
    show.chapter("What the connection counted: stats()")
    connection.ping()
    stats = connection.stats()
    for field in fields(stats):
        show.row(field.name.replace("_", " "), _readable(field.name, getattr(stats, field.name)))
    settled = (stats.pending, stats.outbox, stats.callbacks_dropped, stats.callbacks_failed) == (0, 0, 0, 0)
    show.check("nothing is pending, dropped or failed", settled)


def _readable(name: str, value: Any) -> str:
    if isinstance(value, State):
        return value.name
    if isinstance(value, float):
        return f"{value * 1000:.2f} ms" if name.startswith("rtt") else f"{value:.2f} s"
    return "-" if value is None else f"{value:,}"


def _close(show: Show, connection: Connection) -> None:
    show.chapter("The end")
    began = time.monotonic()
    connection.close()
    took = time.monotonic() - began
    left = [thread for thread in threading.enumerate() if thread not in show.threads and thread.name in _THREADS]
    show.check(f"close() returned after {took * 1000:.0f} ms and left no thread", took < PATIENCE and not left)
