"""A process that exits, is interrupted, forks or forgets: its connections neither hold it up nor disturb another's."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import evtws
from evtws import Connection, Message, processes
from evtws.engine import Engine
from evtws.testing import RawServer, Server

from .faults.support import echo, until
from .live import collect, hold, nothing_leaks
from .timing import MS, SOON

__all__ = ["nothing_leaks"]

#: What a program may take from its last statement to its end, and its start.
EXIT = 2500 * MS

PREFACE = """
import json, os, signal, ssl, sys, threading, time
import evtws
from evtws import Connection, Message, ReconnectPolicy
signal.signal(signal.SIGINT, signal.default_int_handler)
url, *rest = sys.argv[1:]
context = ssl.create_default_context(cafile=rest[0]) if rest else None
def quietly(function, *arguments):
    try:
        function(*arguments)
    except evtws.EvtwsError:
        pass
"""


@contextlib.contextmanager
def program(body: str, url: str, *rest: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own; killed at the end if it still runs."""
    # A process that forks while it has threads is what is tested here; Python 3.12 warns of it.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREFACE + textwrap.dedent(body), url, *rest]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# -- exit

AT_EXIT = {
    "open": "connection = Connection(); connection.dial(url)",
    "callbacks": """
        connection = Connection(on_disconnected=print, on_connected=lambda _: None, on_error=print)
        connection.dial(url)
    """,
    "no callback yet": """
        connection = Connection(on_disconnected=lambda *_: None, on_error=lambda _: None)
        connection.dial(url)
        connection.submit("x").add_done_callback(lambda _: None)
    """,
    "pending": """
        connection = Connection(); connection.dial(url)
        futures = connection.submit_many(["x"] * 100)
        connection.send(Message("x", callback=lambda *_: None, on_failure=lambda *_: None))
    """,
    "waiting": """
        connection = Connection(); connection.dial(url)
        threading.Thread(target=quietly, args=(connection.request, "x"), daemon=True).start()
        while not connection.pending: time.sleep(0.001)
    """,
    "stream left open": """
        connection = Connection(); connection.dial(url)
        stream = connection.stream("x", until=bool)
        connection.close()
    """,
    "callback running": """
        inside = threading.Event()
        def block(connection): inside.set(); threading.Event().wait()
        connection = Connection(on_connected=block); connection.dial(url)
        inside.wait()
    """,
    "callbacks running": """
        def connect():
            inside = threading.Event()
            def block(connection): inside.set(); threading.Event().wait()
            connection = Connection(on_connected=block); connection.dial(url)
            inside.wait()
            return connection
        connections = [connect() for _ in range(20)]
    """,
    "backoff": """
        connection = Connection(reconnect=ReconnectPolicy(wait=lambda _: 1000), on_error=lambda _: None)
        connection.dial("ws://127.0.0.1:1", retry=True)
    """,
    "dialling": """
        connection = Connection(connect_timeout=None, reconnect=True)
        threading.Thread(target=quietly, args=(connection.dial, rest[0]), daemon=True).start()
        while connection.state: time.sleep(0.001)
    """,
    "prepare running": """
        inside = threading.Event()
        def block(connection): inside.set(); threading.Event().wait()
        connection = Connection(prepare=block, connect_timeout=None)
        threading.Thread(target=quietly, args=(connection.dial, url), daemon=True).start()
        inside.wait()
    """,
}


@pytest.mark.parametrize("body", AT_EXIT.values(), ids=AT_EXIT.keys())
def test_the_interpreter_exits(body: str) -> None:
    """F8: a program that ends without `close` ends in time with exit code 0 and without a traceback."""
    with Server(hold) as server, RawServer(lambda peer: peer.hold()) as silent:
        body = body.replace("rest[0]", repr(silent.url))
        with program(textwrap.dedent(body) + "\nprint('end', flush=True)", server.url) as process:
            assert line(process) == "end"
            began = time.monotonic()
            _, errors = process.communicate(timeout=SOON)
            assert time.monotonic() - began < EXIT
            assert (process.returncode, "Traceback" in errors, "Exception" in errors) == (0, False, False), errors
        assert until(lambda: not server.connections)


def test_the_peer_is_told_of_the_exit() -> None:
    """The peer of a program that ends is sent 1001."""
    clients: list[Any] = []
    with Server(on_connect=clients.append) as server:
        with program("connection = Connection(); connection.dial(url)", server.url) as process:
            assert process.wait(SOON) == 0
        assert until(lambda: clients[0].close_code) == 1001


def test_all_are_closed_at_once() -> None:
    """At exit all connections are closed together, within EXIT_TIME and a little, though no peer answers."""
    ends: list[evtws.EvtwsError | None] = []
    with Server(hold, echo_close=False) as server:
        connections = [Connection(on_disconnected=lambda _, error: ends.append(error)) for _ in range(5)]
        for connection in connections:
            connection.dial(server.url)
        futures = [connection.submit("x") for connection in connections]
        began = time.monotonic()
        processes._close_all()
        assert processes.EXIT_TIME <= time.monotonic() - began < 2 * processes.EXIT_TIME
        assert all(isinstance(future.exception(0), evtws.ConnectionClosed) for future in futures)
        assert until(lambda: {connection.state for connection in connections} == {evtws.State.CLOSED})
        processes._close_all()  # nothing is left to close
    assert ends == []  # no thread is started for it


# -- interrupts

INTERRUPTED = {
    "request": 'connection.send("probe"); connection.request("x", None)',
    "result": 'connection.send("probe"); connection.submit("x", None).result()',
    "stream": 'connection.send("probe"); next(connection.stream("x", until=bool, timeout=None))',
    "ping": 'connection.send("probe"); connection.ping(None)',
    "drain": 'connection.submit("x", None); connection.drain(None)',
}


@pytest.mark.parametrize("body", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_ctrl_c(body: str) -> None:
    """Ctrl-C in a wait ends the program with KeyboardInterrupt, in time."""
    with Server(hold, pongs=False) as server:
        body = f"connection = Connection(); connection.dial(url); print('go', flush=True); {body}"
        with program(body, server.url) as process:
            assert line(process) == "go"
            assert server.wait_for(1, SOON)
            interrupt(process)


def interrupt(process: subprocess.Popen[str]) -> None:
    """Interrupt it as Ctrl-C does, and see it end by that."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SOON)
    assert time.monotonic() - began < EXIT
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert "Exception ignored" not in errors
    assert process.returncode in (-signal.SIGINT, 130)


def test_ctrl_c_in_a_dial() -> None:
    """Ctrl-C in a dial ends the program with KeyboardInterrupt, in time."""
    with (
        RawServer(lambda peer: peer.hold()) as server,
        program("Connection(connect_timeout=None).dial(url)", server.url) as process,
    ):
        assert until(lambda: server.connections)
        interrupt(process)


def test_an_interrupted_request_is_over() -> None:
    """A request that Ctrl-C interrupts is not pending any more, and the connection works on."""
    body = """
        def go(message, connection): threading.Timer(0.1, print, ["go"], {"flush": True}).start()
        connection = Connection(match_key=lambda m: m.body[0], on_message=go)
        connection.dial(url)
        try:
            connection.request("x", None)
        except KeyboardInterrupt:
            print(len(connection.pending), connection.state.name, connection.request("y", 10).body, flush=True)
    """
    # The event is read by the waiting request itself, which is past its writing then, and soon waits again.
    with (
        Server(lambda client, said: client.send("event" if said == "x" else said)) as server,
        program(body, server.url) as process,
    ):
        assert line(process) == "go"
        process.send_signal(signal.SIGINT)
        assert line(process) == "0 OPEN y"


# -- fork

FORK = """
    connection = Connection(ssl=context, match_key=lambda m: m.body[0], request_timeout=10, ping_interval=None)
    connection.dial(url)
    future = connection.submit("held")
    stream = connection.stream("stream", until=bool)
    calls = {
        "send": lambda: connection.send("child"),
        "callback": lambda: connection.send(Message("child", callback=print)),
        "request": lambda: connection.request("child"),
        "submit": lambda: connection.submit("child"),
        "submit_many": lambda: connection.submit_many(["child"]),
        "stream": lambda: connection.stream("child", until=bool),
        "next": lambda: next(stream),
        "result": lambda: future.result(),
        "ping": lambda: connection.ping(),
        "pong_received": lambda: connection.pong_received(),
        "remove_from_queue": lambda: connection.remove_from_queue(Message("x")),
        "drain": lambda: connection.drain(),
        "wait_open": lambda: connection.wait_open(),
        "reconnect_now": lambda: connection.reconnect_now(),
        "dial": lambda: connection.dial(url),
        "stats": lambda: connection.stats(),
    }
    def failing():
        for name, call in calls.items():
            try:
                call()
            except evtws.ForkedError:
                continue
            yield name
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")


@pytest.fixture(params=["ws", "wss"])
def secure(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ssl.SSLContext | None, list[str]]:
    """A server's context, and what its clients are given to trust it."""
    if request.param == "ws":
        return None, []
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, [str(tmp_path / "ca.pem")]


def answer(client: Any, body: str | bytes) -> None:
    """A server's script that holds some requests back."""
    if body not in ("held", "stream"):
        client.send(body)


@needs_fork
def test_a_forked_child(secure: tuple[ssl.SSLContext | None, list[str]]) -> None:
    """F7: in a forked child each call raises ForkedError, and its exit does not disturb the parent's connection."""
    body = (
        FORK
        + """
    pid = os.fork()
    if pid == 0:
        print(json.dumps([list(failing()), len(connection.pending), repr(connection)]), flush=True)
        connection.close()
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    print(json.dumps([status, connection.request("parent").body, len(connection.pending)]), flush=True)
    connection.close()
    print(connection.state.name, flush=True)
    """
    )
    with Server(answer, ssl=secure[0]) as server, program(body, server.url, *secure[1]) as process:
        assert json.loads(line(process)) == [[], 0, "<Connection OPEN, 0 pending>"]
        assert json.loads(line(process)) == [0, "parent", 2]
        assert line(process) == "CLOSED"
        _, errors = process.communicate(timeout=SOON)
        assert (process.returncode, errors) == (0, "")
        assert server.received == ["held", "stream", "parent"]
        assert server.dials == 1


@needs_fork
def test_a_child_that_lives_on(secure: tuple[ssl.SSLContext | None, list[str]]) -> None:
    """The parent's `close` is seen by the peer though a forked child lives on, which can dial one of its own."""
    body = (
        FORK
        + """
    pid = os.fork()
    if pid == 0:
        with evtws.connect(url, ssl=context, match_key=lambda _: 1, close_timeout=0.1) as own:
            sys.stdin.readline()
            print("child", own.request("child").body, flush=True)
        os._exit(0)
    sys.stdin.readline()
    connection.close(timeout=0)
    print("closed", flush=True)
    os.waitpid(pid, 0)
    """
    )
    with Server(answer, ssl=secure[0], echo_close=False) as server, program(body, server.url, *secure[1]) as process:
        assert process.stdin is not None
        assert server.wait_for(lambda: len(server.connections) == 2, SOON)
        parent = server.connections[0]
        os.write(process.stdin.fileno(), b"\n")
        said = line(process)
        if said != "closed":  # the child read the line first
            assert said == "child child"
        os.write(process.stdin.fileno(), b"\n")
        if said == "closed":
            assert until(lambda: not parent.is_open)
        assert sorted([said, line(process)]) == ["child child", "closed"]
        assert until(lambda: not parent.is_open)


SPAWN = """
import multiprocessing, sys
import evtws

def ask(url):
    with evtws.connect(url, match_key=lambda _: 1) as connection:
        return connection.request("spawned").body

if __name__ == "__main__":
    with evtws.connect(sys.argv[1], match_key=lambda _: 1) as connection:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(ask, (sys.argv[1],)), connection.request("x").body)
"""


def test_a_spawned_process(tmp_path: Path) -> None:
    """A process that multiprocessing spawns has connections of its own."""
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    environment = os.environ | {"PYTHONPATH": str(Path(evtws.__file__).parent.parent)}
    with Server(echo) as server:
        command = [sys.executable, str(script), server.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SOON, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("spawned x\n", "", 0)


def test_each_engine_is_told_of_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child each engine is told once to let go of what is the parent's."""
    told: list[object] = []

    class Forgetting(Engine):
        def __init__(self) -> None:
            pass

        def forget_in_child(self) -> None:
            told.append(self)

    engine = Forgetting()
    monkeypatch.setattr(processes, "_engines", weakref.WeakSet())
    processes.register(engine)
    processes._forked()
    processes._forked()
    assert told == [engine]


# -- garbage


class Application:
    """Its callbacks are methods, so that it and its connection know each other."""

    def __init__(self, url: str, **options: Any) -> None:
        self.heard = threading.Event()
        self.connection = Connection(
            on_connected=self.on_connected, on_message=self.on_message, on_error=self.on_error, **options
        )
        self.connection.dial(url, retry="reconnect" in options)

    def on_connected(self, connection: Connection) -> None:
        connection.send(Message("x"))

    def on_message(self, _message: Message, _connection: Connection) -> None:
        self.heard.set()

    def on_error(self, _error: evtws.EvtwsError) -> None:
        self.heard.set()


def heard(url: str, **options: Any) -> weakref.ref[Connection]:
    """Start an application, wait until it has heard something, and forget it."""
    application = Application(url, **options)
    assert application.heard.wait(SOON)
    return weakref.ref(application.connection)


def test_a_connection_that_was_forgotten() -> None:
    """F6: a Connection that is dropped without `close`, in a cycle with its callbacks, ends with a ResourceWarning."""
    with Server(echo) as server:
        gc.collect()
        with pytest.warns(ResourceWarning, match="without close"):
            collect(heard(server.url))
        assert until(lambda: not server.connections)


def test_a_connection_that_was_forgotten_in_a_backoff() -> None:
    """A Connection that waits to dial again is collected like any other."""
    policy = evtws.ReconnectPolicy(wait=lambda _: 1000.0)
    with pytest.warns(ResourceWarning, match="without close"):
        collect(heard("ws://127.0.0.1:1", reconnect=policy))


def test_a_connection_that_was_forgotten_in_a_dial() -> None:
    """A Connection that is dialling again when it is dropped is collected, and its dial ends at once."""
    policy = evtws.ReconnectPolicy(wait=lambda _: 0.0)
    answers = iter([True])

    def script(peer: Any) -> None:
        if next(answers, False):
            peer.upgrade()
            peer.send(b"\x88\x00")
        peer.hold()

    with RawServer(script) as server:

        def drop() -> weakref.ref[Connection]:
            connection = Connection(reconnect=policy, connect_timeout=None, on_error=lambda _: None)
            connection.dial(server.url)
            assert until(lambda: len(server.connections) == 2)
            return weakref.ref(connection)

        with warnings.catch_warnings():
            # Where it is dropped while the I/O thread holds it, that thread does the collecting.
            warnings.simplefilter("ignore", ResourceWarning)
            collect(drop())
        assert until(lambda: server.connections[1].sock.fileno() < 0)
