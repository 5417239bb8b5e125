"""Connections that are lost again and again: as many dials as the policy allows, and nothing left behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

import evtws
from evtws import Connection, ConnectionClosed, ConnectionLost, DialError, HandshakeError, ReconnectPolicy, State
from evtws.testing import ClientConnection, Reply, Server

from ..raw import descriptors
from ..timing import MS, SOON
from .support import Ear, ask, dialled, echo, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")

AT_ONCE = ReconnectPolicy(wait=lambda _: 0)


def test_h1_a_server_that_accepts_and_drops() -> None:
    """H1: a server that accepts and drops meets the whole backoff: it grows, although each dial succeeded."""
    ear = Ear()
    times: list[float] = []
    delays = [20 * MS * 2**number for number in range(5)]
    policy = ReconnectPolicy(wait=lambda state: delays[min(state.attempt_number, 5) - 1])

    def drop(client: ClientConnection) -> None:
        times.append(time.monotonic())
        client.drop()

    with Server(on_connect=drop) as server, dialled(server.url, ear, reconnect=policy):
        assert server.wait_for(lambda: len(times) == 6, SOON)
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(wait >= delay for wait, delay in zip(waits, delays, strict=True)), waits
    assert ear.connected == len(ear.disconnected)


def test_h1_the_default_policy() -> None:
    """H1: with the default policy a server that accepts and drops is dialled a few times a second at the most."""
    ear = Ear()
    with Server(on_connect=lambda client: client.drop()) as server, dialled(server.url, ear, reconnect=True):
        time.sleep(1000 * MS)
        # At random below 3, 6, 12, … seconds: 20 dials within one have a chance below 10 ** -20.
        assert 1 <= server.dials < 20


def test_h1_a_stable_connection_ends_the_outage() -> None:
    """H1: the backoff begins anew after a connection that lived `stable_after`, and only then."""
    ear = Ear()
    asked: list[int] = []

    def wait(state: object) -> float:
        asked.append(state.attempt_number)  # type: ignore[attr-defined]
        return 0.0

    policy = ReconnectPolicy(wait=wait, stable_after=100 * MS)
    with Server() as server, dialled(server.url, ear, reconnect=policy):
        for dials, lived in ((2, 0), (3, 0), (4, 150 * MS), (5, 0)):
            client = server.wait_for(lambda: server.connections, SOON)[0]
            ear.wait_for(lambda dials=dials: ear.connected == dials - 1)  # type: ignore[misc]
            time.sleep(lived)
            client.drop()
            ear.wait_for(lambda dials=dials: ear.connected == dials)  # type: ignore[misc]
    assert asked == [1, 2, 1, 2]


def test_h1_the_policy_stops() -> None:
    """H1: after the dials that the policy's `stop` allows the connection is given up, and is CLOSED."""
    ear = Ear()
    policy = ReconnectPolicy(wait=lambda _: 0, stop=lambda state: state.attempt_number >= 4)
    with Server(on_connect=lambda client: client.drop()) as server, dialled(server.url, ear, reconnect=policy) as gone:
        assert until(lambda: gone.state is State.CLOSED)
        assert server.dials == 4
        with pytest.raises(ConnectionLost):
            gone.wait_open(SOON)


@pytest.mark.parametrize("dropped", [True, False], ids=["lost", "refused"])
def test_h2_close_during_a_backoff(dropped: bool) -> None:
    """H2: `close` during a backoff returns at once, ends the threads, and no dial follows."""
    ear = Ear()
    policy = ReconnectPolicy(wait=lambda _: 3600)
    with Server() as server:
        connection = Connection(reconnect=policy, outbox=1, **ear.options)
        if dropped:
            connection.dial(server.url)
            server.drop_all()
        else:
            connection.dial("ws://127.0.0.1:1", retry=True)
        ear.wait_for(lambda: ear.errors)
        assert connection.state is State.CONNECTING
        waiting = connection.submit(ask(), timeout=None)
        dials = server.dials
        began = time.monotonic()
        connection.close()
        assert time.monotonic() - began < 500 * MS
        assert isinstance(waiting.exception(SOON), ConnectionClosed)
        assert not [thread for thread in threading.enumerate() if thread.name == "evtws-io"]
        assert (server.dials, connection.state) == (dials, State.CLOSED)


def test_h2_close_from_the_callback_of_a_loss() -> None:
    """H2: `close` in on_disconnected prevents the reconnection that would have followed at once."""
    for _ in range(20):
        ear = Ear()
        closed = threading.Event()

        def close(connection: Connection, _error: object, closed: threading.Event = closed) -> None:
            connection.close()
            closed.set()

        policy = ReconnectPolicy(wait=lambda _: 100 * MS)
        with Server() as server:
            connection = Connection(**(ear.options | {"reconnect": policy, "on_disconnected": close}))
            connection.dial(server.url)
            server.drop_all()
            assert closed.wait(SOON)
            connection.close()
            assert (server.dials, connection.state) == (1, State.CLOSED)


def close_by(code: int) -> Callable[[ClientConnection], None]:
    """A server's script that accepts and closes by this code."""
    return lambda client: client.close(code)


@pytest.mark.parametrize("code", [4401, 1008])
@pytest.mark.parametrize(("renewed", "dials"), [(True, 2), (False, 1)], ids=["callable", "fixed"])
def test_h3_a_token_expires(code: int, renewed: bool, dials: int) -> None:
    """H3: a close code that refuses the token asks a url that is a function once more, and is fatal after that."""
    ear = Ear()
    asked: list[str] = []

    def url() -> str:
        asked.append(server.url)
        return server.url

    with Server(on_connect=close_by(code)) as server:
        connection = Connection(reconnect=AT_ONCE, **ear.options)
        connection.dial(url if renewed else server.url)
        assert until(lambda: connection.state is State.CLOSED)
        connection.close()
        assert server.dials == dials
        assert len(asked) == (dials if renewed else 0)
    assert [error.code for error in ear.errors if isinstance(error, ConnectionClosed)] == [code] * dials
    assert len(ear.errors) == dials


def test_h3_a_token_is_refused_after_a_loss() -> None:
    """H3: a 401 upon a reconnection asks for the headers once more; a new token then carries on."""
    ear = Ear()
    tokens = iter(["first", "expired", "fresh"])
    good = {"first", "fresh"}

    with (
        Server(echo, on_handshake=lambda request: None if token(request) in good else Reply(401)) as server,
        dialled(server.url, ear, reconnect=AT_ONCE, headers=lambda: {"X-Token": next(tokens)}) as connection,
    ):
        server.drop_all()
        ear.wait_for(lambda: ear.connected == 2)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        assert server.dials == 3
    assert isinstance(ear.errors[1], HandshakeError)
    assert ear.errors[1].status == 401


def token(request: evtws.handshake.UpgradeRequest) -> str | None:
    """The token in an upgrade request."""
    return dict(request.headers).get("x-token")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_h3_a_fatal_refusal(status: int) -> None:
    """H3: a refusal that no repetition mends ends the reconnection, and is what `wait_open` raises."""
    ear = Ear()
    refusing = threading.Event()
    with (
        Server(on_handshake=lambda _: Reply(status) if refusing.is_set() else None) as server,
        dialled(server.url, ear, reconnect=AT_ONCE) as connection,
    ):
        refusing.set()
        server.drop_all()
        assert until(lambda: connection.state is State.CLOSED)
        with pytest.raises(HandshakeError) as caught:
            connection.wait_open(SOON)
        assert (caught.value.status, server.dials) == (status, 2)


def test_h5_clients_of_a_server_that_restarts_are_spread() -> None:
    """H5: of 10,000 clients that lose their server at once no twentieth comes back within the same 100 ms."""
    buckets: dict[int, int] = {}
    for _ in range(10_000):
        delay = evtws.reconnect.Reconnect(ReconnectPolicy(), False).failed(ConnectionLost("restart"), 0.0)
        assert delay is not None
        buckets[int(delay * 10)] = buckets.get(int(delay * 10), 0) + 1
    assert max(buckets.values()) < 500


def test_h7_many_reconnections() -> None:
    """H7: 200 reconnections later there are as many threads and descriptors as after the first ones."""
    ear = Ear()
    with Server(echo) as server, dialled(server.url, ear, reconnect=AT_ONCE) as connection:
        before = None
        for number in range(1, 201):
            assert connection.request(ask(), timeout=SOON).params == {"id": 1}
            server.drop_all(reset=number % 2 == 0)
            ear.wait_for(lambda number=number: ear.connected == number + 1)  # type: ignore[misc]
            if number == 10:
                before = threading.active_count(), descriptors()
        assert server.wait_for(lambda: len(server.connections) == 1, SOON)
        assert (threading.active_count(), descriptors()) == before
        assert connection.stats().reconnects == 200
    assert not [error for error in ear.errors if isinstance(error, DialError)]
