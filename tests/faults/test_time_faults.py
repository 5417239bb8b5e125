"""Clocks that jump, and timeouts at their limits."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import evtws
from evtws import Connection, EvtwsError, Message, NotConnected, ReplyTimeout
from evtws.testing import ClientConnection, Server

from ..timing import MS, SOON
from .support import Ear, ask, echo, only_client

pytestmark = pytest.mark.usefixtures("nothing_leaks")

#: Beyond what epoll takes in milliseconds, and as long as a lock can be waited for.
LONG = [30 * 86_400.0, threading.TIMEOUT_MAX]


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0], ids=["forward", "back"])
def test_g1_the_wall_clock_jumps(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """G1: a wall clock that jumps by a day disturbs neither pings, nor timeouts, nor a backoff."""
    ear = Ear()
    policy = evtws.ReconnectPolicy(wait=lambda _: 10 * MS)

    def answer_the_first(client: ClientConnection, body: str | bytes) -> None:
        if body == ask(1).body:
            client.send(body)

    with (
        Server(answer_the_first) as server,
        evtws.connect(server.url, ping_interval=10 * MS, reconnect=policy, **ear.options) as connection,
    ):
        client = only_client(server)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        before = len(client.pings)
        assert connection.request(ask(1), timeout=SOON).params == {"id": 1}
        assert server.wait_for(lambda: len(client.pings) >= before + 3, SOON)
        began = time.monotonic()
        with pytest.raises(ReplyTimeout):
            connection.request(ask(2), timeout=50 * MS)
        assert 50 * MS <= time.monotonic() - began < SOON
        assert (ear.errors, server.dials) == ([], 1)
        client.drop()
        ear.wait_for(lambda: ear.connected == 2)


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 1e-300])
def test_g3_no_time_at_all(timeout: float) -> None:
    """G3: a timeout of nothing, or next to it, is over at once, and what was asked for is not pending."""
    ear = Ear()
    with Server() as server, evtws.connect(server.url, **ear.options) as connection:
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), timeout=timeout)
        with pytest.raises(ReplyTimeout):
            connection.submit(ask(2), timeout=timeout).result(SOON)
        with pytest.raises(ReplyTimeout):
            next(connection.stream(ask(3), until=lambda _: True, timeout=timeout))
        failures: list[EvtwsError] = []
        failed = threading.Event()

        def on_failure(error: EvtwsError, _: Connection) -> None:
            failures.append(error)
            failed.set()

        connection.send(Message.json({"id": 4}, print, on_failure=on_failure, timeout=timeout))
        assert failed.wait(SOON)
        assert isinstance(failures[0], ReplyTimeout)
        assert connection.pending == ()
        assert connection.wait_open(timeout)
        connection.close(timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, -1e-9, -math.inf, math.nan, math.inf, 1e300, "1"])
@pytest.mark.parametrize(
    "call",
    [
        lambda connection, timeout: connection.request(ask(), timeout=timeout),
        lambda connection, timeout: connection.submit(ask(), timeout=timeout),
        lambda connection, timeout: connection.stream(ask(), until=bool, timeout=timeout),
        lambda connection, timeout: connection.ping(timeout),
        lambda connection, timeout: connection.wait_open(timeout),
        lambda connection, timeout: connection.drain(timeout),
        lambda connection, timeout: connection.close(timeout=timeout),
        lambda connection, timeout: Message("", timeout=timeout),
        lambda connection, timeout: Connection(connect_timeout=timeout),
        lambda connection, timeout: Connection(write_timeout=timeout),
    ],
    ids=["request", "submit", "stream", "ping", "wait_open", "drain", "close", "Message", "connect", "write"],
)
def test_g3_no_timeout(call: Callable[[Connection, Any], object], timeout: object) -> None:
    """G3: a timeout below nothing, beyond what can be waited for, or that is no number, is a ValueError."""
    ear = Ear()
    with Server(echo) as server, evtws.connect(server.url, **ear.options) as connection:
        with pytest.raises(ValueError, match="at least 0"):
            call(connection, timeout)
        assert connection.is_connected
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        assert server.received == [ask().body]


@pytest.mark.parametrize("timeout", [None, *LONG])
def test_g3_all_the_time_in_the_world(timeout: float | None) -> None:
    """G3: a timeout of None, of a month or of all the time there is holds nothing up, wherever one is taken."""
    ear = Ear()
    names = ("connect_timeout", "request_timeout", "write_timeout", "close_timeout")
    options: dict[str, Any] = ear.options | dict.fromkeys(names, timeout) | {"write_buffer": 0}
    with Server(echo) as server:
        connection = Connection(**options)
        connection.dial(server.url)
        assert connection.wait_open(timeout)
        assert connection.request(ask(1)).params == {"id": 1}
        assert connection.submit(ask(2)).result(SOON).params == {"id": 2}
        assert connection.submit(ask(3)).result(timeout).params == {"id": 3}
        replies = connection.stream(ask(4), until=lambda _: True, timeout=timeout)
        assert [reply.params for reply in replies] == [{"id": 4}]
        connection.send(Message("x" * (8 << 20), timeout=timeout))
        answered = threading.Event()
        connection.send(Message.json({"id": 5}, lambda *_: answered.set(), timeout=timeout))
        assert answered.wait(SOON)
        assert connection.ping(timeout) > 0
        assert connection.drain(timeout)
        with pytest.raises(NotConnected):
            connection.send(ask(6))
        connection.close(timeout=timeout)
    assert [error for error in ear.errors if "json_params" not in str(error)] == []


@pytest.mark.parametrize("interval", [*LONG, math.inf, 1e300])
def test_g3_a_ping_that_never_falls_due(interval: float) -> None:
    """G3: a ping interval or a backoff of a month or without end holds nothing up."""
    ear = Ear()
    policy = evtws.ReconnectPolicy(wait=lambda _: interval)
    with Server(echo) as server:
        connection = Connection(ping_interval=interval, reconnect=policy, **ear.options)
        connection.dial(server.url)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        server.drop_all()
        ear.one_error()
        assert not connection.wait_open(10 * MS)
        connection.reconnect_now()
        assert connection.wait_open(SOON)
        connection.close()


def test_g3_no_busy_loop() -> None:
    """G3: a connection that has nothing to do uses no processor time, although a request is pending."""
    ear = Ear()
    with Server() as server, evtws.connect(server.url, ping_interval=None, **ear.options) as connection:
        connection.submit(ask(1), timeout=None)
        before = time.process_time()
        with pytest.raises(ReplyTimeout):
            connection.request(ask(2), timeout=300 * MS)
        assert time.process_time() - before < 100 * MS


FROZEN = """
import sys
import evtws
options = dict(ping_interval=float(sys.argv[2]), msg_prep=evtws.json_params, match_key=evtws.keyed("id"))
with evtws.connect(sys.argv[1], on_error=lambda error: print("error", error, flush=True), **options) as connection:
    print(connection.request(evtws.Message.json({"id": 1}), timeout=None).body, flush=True)
    print(connection.request(evtws.Message.json({"id": 2})).body, flush=True)
"""


def test_a12_a_frozen_process() -> None:
    """A12: a process that is stopped for ten ping intervals resumes: the connection is not stale, no reply is lost."""

    def script(client: ClientConnection, body: str | bytes) -> None:
        if json.loads(body)["id"] == 2:
            client.send(body)

    with Server(script) as server:
        arguments = [server.url, str(100 * MS)]
        command = [sys.executable, "-W", "error", "-c", FROZEN, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            client = only_client(server)
            assert server.wait_for(lambda: client.received and client.pings, SOON)
            os.kill(process.pid, signal.SIGSTOP)
            try:
                client.send('{"id":1}')
                time.sleep(1000 * MS)
            finally:
                os.kill(process.pid, signal.SIGCONT)
            assert process.communicate(timeout=SOON)[0] == '{"id":1}\n{"id":2}\n'
        assert process.returncode == 0
        assert server.dials == 1
