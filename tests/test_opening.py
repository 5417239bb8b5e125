"""Attempts to open a connection: what is asked anew, what is served meanwhile, and how they are ended."""

from __future__ import annotations

import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme

import evtws
from evtws import Connection, DialError, NotConnected, PrepareError, ReplyTimeout, ResolveError, State
from evtws import opening as opening_module
from evtws.testing import RawConnection, RawServer, Server

from .faults.support import Ear, ask, echo, only_client, until
from .live import NEVER, QUICK, dialled, hold, nothing_leaks
from .timing import MS, SOON

__all__ = ["nothing_leaks"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def header(server: Server, name: str) -> list[str]:
    """What the one client sent by that header."""
    return [value for key, value in only_client(server).request.headers if key == name]


def test_values() -> None:
    """url, headers and subprotocols may be values; they are sent at each attempt."""
    ear = Ear()
    options = {"headers": {"X-Token": "a"}, "subprotocols": ["b"], "reconnect": QUICK}
    with Server(subprotocols=["b"]) as server, dialled(server, ear, **options) as connection:
        for count in (1, 2):
            ear.wait_for(lambda count=count: ear.connected == count)  # type: ignore[misc]
            assert (header(server, "x-token"), connection.subprotocol) == (["a"], "b")
            server.drop_all()
            ear.wait_for(lambda count=count: len(ear.disconnected) == count)  # type: ignore[misc]


def test_functions_are_asked_anew() -> None:
    """headers and subprotocols may be functions, which are asked at each attempt."""
    ear = Ear()
    count = {"headers": 0, "subprotocols": 0}

    def headers() -> list[tuple[str, str]]:
        count["headers"] += 1
        return [("X-Token", str(count["headers"]))]

    def subprotocols() -> list[str]:
        count["subprotocols"] += 1
        return [f"v{count['subprotocols']}"]

    options = {"headers": headers, "subprotocols": subprotocols, "reconnect": QUICK}
    with Server(subprotocols=["v1", "v2"]) as server, dialled(server, ear, **options) as connection:
        assert (header(server, "x-token"), connection.subprotocol) == (["1"], "v1")
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
        assert (header(server, "x-token"), connection.subprotocol) == (["2"], "v2")


@pytest.mark.parametrize("callable_", [False, True])
def test_an_ssl_context(callable_: bool, serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """ssl may be a context, or a function that is asked for one at each attempt, for wss only."""
    asked: list[int] = []

    def context() -> ssl.SSLContext:
        asked.append(1)
        return trusting

    ear = Ear()
    options = {"ssl": context if callable_ else trusting, "reconnect": QUICK}
    with Server(echo, ssl=serving) as server, dialled(server, ear, **options) as connection:
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
        assert connection.request(ask(), SOON).params == {"id": 1}
    assert len(asked) == 2 * callable_
    with Server(echo) as server, dialled(server, ear, **options):
        assert len(asked) == 2 * callable_


def test_the_default_context_is_made_once(
    serving: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ssl the default context is made once for a connection, not for each attempt."""
    made: list[int] = []

    def default() -> ssl.SSLContext:
        made.append(1)
        return trusting

    monkeypatch.setattr(opening_module, "default_context", default)
    ear = Ear()
    with Server(ssl=serving) as server, dialled(server, ear, reconnect=QUICK):
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
    assert made == [1]


def fail() -> Any:
    """A function that is asked in vain."""
    raise KeyError("secret")


@pytest.mark.parametrize("option", ["url", "headers", "subprotocols", "ssl"])
def test_a_function_that_raises(option: str) -> None:
    """What url, headers, subprotocols or ssl raise fails the attempt, as the cause and without its text."""
    options: dict[str, Any] = {} if option == "url" else {option: fail}
    connection = Connection(**options)
    with pytest.raises(DialError, match=rf"^{option}\(\) raised KeyError$") as caught:
        connection.dial(fail if option == "url" else "wss://127.0.0.1:1")
    assert isinstance(caught.value.__cause__, KeyError)
    assert connection.state is State.CLOSED


def test_a_function_that_raises_once() -> None:
    """An attempt that failed by a function is tried again as the policy says."""
    ear = Ear()
    asked: list[int] = []

    def url() -> str:
        asked.append(1)
        if len(asked) == 1:
            fail()
        return server.url

    with Server() as server:
        connection = Connection(**ear.options, reconnect=QUICK)
        connection.dial(url, retry=True)
        assert connection.wait_open(SOON)
        connection.close()
    assert [type(error) for error in ear.errors] == [DialError]


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, [("X",)], 5])
def test_headers_that_are_none(headers: Any) -> None:
    """Headers that cannot be sent fail the attempt with a DialError."""
    with pytest.raises(DialError):
        Connection(headers=lambda: headers).dial("ws://127.0.0.1:1")


def test_timers_are_served_during_a_dial() -> None:
    """A request in the outbox times out on time, though the server never answers the handshake."""
    ear = Ear()
    first = [True]

    def script(peer: RawConnection) -> None:
        if first.pop() if first else False:
            peer.upgrade()
            peer.send(b"\x88\x00")
        peer.hold()

    with RawServer(script) as server:
        connection = Connection(**ear.options, reconnect=QUICK, outbox=5, connect_timeout=None)
        connection.dial(server.url)
        assert until(lambda: len(server.connections) == 2)
        began = time.monotonic()
        late = connection.submit(ask(1), SOON)
        early = connection.submit(ask(2), 50 * MS)
        error = early.exception(SOON)
        assert 50 * MS <= time.monotonic() - began < 1000 * MS
        assert isinstance(error, ReplyTimeout)
        assert error.written == "no"
        assert not late.done()
        began = time.monotonic()
        with pytest.raises(ReplyTimeout):
            connection.request(ask(3), 50 * MS)
        assert 50 * MS <= time.monotonic() - began < 1000 * MS
        connection.close()


def test_close_aborts_a_dial() -> None:
    """`close` aborts a dial at once, before its deadline and its own; no other attempt follows."""
    connection = Connection(reconnect=QUICK)
    with RawServer(lambda peer: peer.hold()) as server, ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(connection.dial, server.url)
        assert until(lambda: server.connections)
        began = time.monotonic()
        connection.close(timeout=SOON)
        assert time.monotonic() - began < 500 * MS
        assert isinstance(dialling.exception(SOON), NotConnected)
        assert len(server.connections) == 1


def test_close_between_the_upgrade_and_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `close` that comes just as the server accepts wins: the connection never opens, and the socket is closed."""
    ear = Ear()
    connection = Connection(**ear.options)
    real: Any = vars(opening_module)["dial"]

    def dial(*arguments: Any, **options: Any) -> Any:
        upgraded = real(*arguments, **options)
        connection.close(timeout=SOON)
        return upgraded

    monkeypatch.setattr(opening_module, "dial", dial)
    with Server() as server:
        with pytest.raises(NotConnected):
            connection.dial(server.url)
        assert until(lambda: connection.state is State.CLOSED)
        assert until(lambda: server.dials and not server.connections)
    assert (ear.connected, ear.disconnected, ear.errors) == (0, [], [])


def refuse_threads(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the system refuse to start threads of these names."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name in names:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_no_thread_for_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started `dial` raises that, leaves nothing, and works once one can."""
    ear = Ear()
    connection = Connection(**ear.options)
    with Server(echo) as server:
        with monkeypatch.context() as patch:
            refuse_threads(patch, "evtws-io")
            with pytest.raises(RuntimeError, match="can't start new thread"):
                connection.dial(server.url)
        assert (connection.state, ear.errors) == (State.CLOSED, [])
        connection.close()
        connection.dial(server.url)
        assert connection.request(ask(), SOON).params == {"id": 1}
        connection.close()


def test_an_open_connection_that_tells_nobody() -> None:
    """A connection without `on_connected` starts no thread for callbacks."""
    with Server() as server:
        connection = Connection()
        connection.dial(server.url)
        assert "evtws-callbacks" not in [thread.name for thread in threading.enumerate()]
        connection.close()


def test_no_thread_for_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started for `prepare` the attempt ends by a PrepareError."""
    refuse_threads(monkeypatch, "evtws-prepare")
    with Server() as server:
        with pytest.raises(PrepareError, match="thread"):
            Connection(prepare=lambda _: None).dial(server.url)
        assert until(lambda: not server.connections)


def test_no_thread_for_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started for the resolver the attempt ends by a ResolveError."""
    refuse_threads(monkeypatch, "evtws-resolve")
    with pytest.raises(ResolveError, match="thread"):
        Connection(proxy=None).dial("ws://localhost:1")


def test_prepare_that_raises() -> None:
    """What `prepare` raises ends the attempt by a PrepareError, with it as the cause; a BaseException, too."""

    def prepare(_: Connection) -> None:
        raise SystemExit("mine")

    with Server() as server, pytest.raises(PrepareError, match="SystemExit: mine") as caught:
        Connection(prepare=prepare).dial(server.url)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_prepare_opens_once() -> None:
    """A `prepare` that returns after its connection was lost opens nothing; the next one does."""
    inside, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def prepare(_: Connection) -> None:
        calls.append(1)
        if len(calls) == 1:
            inside.set()
            assert go_on.wait(SOON)

    ear = Ear()
    with Server() as server:
        connection = Connection(**ear.options, prepare=prepare, reconnect=NEVER)
        with ThreadPoolExecutor(1) as pool:
            dialling = pool.submit(connection.dial, server.url, True)
            assert inside.wait(SOON)
            server.drop_all()
            dialling.result(SOON)
            go_on.set()
        assert connection.state is State.CONNECTING
        connection.reconnect_now()
        assert connection.wait_open(SOON)
        connection.close()
    assert (len(calls), ear.connected) == (2, 1)
    assert [type(error) for error in ear.errors] == [evtws.ConnectionLost]


def test_what_waits_goes_first() -> None:
    """Once OPEN the outbox goes out in order, before what is sent then; `on_connected` comes before any reply."""
    order: list[Any] = []
    ear = Ear()
    options = ear.options | {"on_connected": lambda connection: order.append(connection.state)}
    with Server(echo) as server:
        connection = Connection(**options, reconnect=QUICK, outbox=100)
        connection.dial(server.url)
        server.drop_all()
        ear.wait_for(lambda: ear.disconnected)
        for number in range(50):
            connection.submit(ask(number)).add_done_callback(lambda future: order.append(future.result().params["id"]))
        assert connection.drain(SOON)
    assert order == [State.OPEN, State.OPEN, *range(50)]


def test_a_connection_lost_while_what_waits_is_written() -> None:
    """A plain message that could not be written on this connection goes out on the next one."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear, reconnect=NEVER, outbox=5) as connection:
        server.drop_all()
        ear.one_error()
        connection.send("plain")
        connection.reconnect_now()
        assert server.wait_for(1, SOON)
        assert server.received == ["plain"]
