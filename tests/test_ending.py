"""Losses and farewells: what the calls, the user and the peer are told."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from evtws import Connection, ConnectionClosed, ConnectionLost, EvtwsError, Message, ProtocolError, State, UserCodeError
from evtws.ending import FAREWELL
from evtws.frames import encode_close
from evtws.opening import Opening
from evtws.pulse import Pulse
from evtws.reconnect import ReconnectPolicy
from evtws.testing import ClientConnection, RawConnection, RawServer, Server

from .faults.support import Ear, ask, echo, frame, only_client, until
from .live import NEVER, QUICK, dialled, hold, nothing_leaks
from .timing import MS, SOON

__all__ = ["nothing_leaks"]


# -- losses


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_a_loss_without_a_word(reset: bool) -> None:
    """An EOF or an RST is a ConnectionLost, told once to each caller, `on_disconnected` and `on_error`."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection:
        future = connection.submit(message := ask())
        assert server.wait_for(1, SOON)
        server.drop_all(reset=reset)
        error = future.exception(SOON)
        assert type(error) is ConnectionLost
        assert (error.message, error.written) == (message, "yes")
        assert type(ear.one_error()) is ConnectionLost
        assert connection.state is State.CLOSED


@pytest.mark.parametrize(
    ("raw", "code"), [(frame(0x83), 1002), (frame(0x81, b"\xff"), 1007), (frame(0x81, length=b"\x7e\x10\x00"), 1009)]
)
def test_a_fault_of_the_peer(raw: bytes, code: int) -> None:
    """A peer that breaks the protocol is told the code that says so, and the connection is lost by it."""
    ear = Ear()
    with Server(lambda client, _: client.send_raw(raw)) as server, dialled(server, ear, max_size=4095) as connection:
        client = only_client(server)
        future = connection.submit(ask())
        error = ear.one_error()
        assert isinstance(error, ProtocolError)
        assert error.code == code
        assert isinstance(future.exception(SOON), ProtocolError)
        assert until(lambda: client.close_code) == code


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4999, 1005])
def test_the_close_of_the_peer(code: int) -> None:
    """A close frame of the peer is answered by the same code, and is a ConnectionClosed by the peer."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear) as connection:
        client = only_client(server)
        future = connection.submit(ask())
        client.close(None if code == 1005 else code, "" if code == 1005 else "why")
        error = ear.one_error()
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.by_peer) == (code, True)
        assert error.reason == ("" if code == 1005 else "why")
        told = future.exception(SOON)
        assert isinstance(told, ConnectionClosed)
        assert told.code == code
        assert until(lambda: client.close_code) == code


def cut(in_flight: str) -> tuple[list[Any], list[Any], list[EvtwsError]]:
    """What a server hears on both connections when three requests are in flight at a loss, and what they end by."""
    ear = Ear()
    heard: list[list[int]] = []

    def listen(client: ClientConnection, body: str | bytes) -> None:
        heard[-1].append(json.loads(body)["id"])
        if len(heard) == 1 and len(heard[0]) == 3:
            client.drop()
        elif len(heard) == 2:
            for number in (3, 2, 1):
                client.send(json.dumps({"id": number}))

    with (
        Server(listen, on_connect=lambda _: heard.append([])) as server,
        dialled(server, ear, reconnect=QUICK, in_flight=in_flight) as connection,
    ):
        futures = [connection.submit(ask(number)) for number in (1, 2, 3)]
        ear.wait_for(lambda: ear.connected == 2)
        connection.send('{"id": 9}')
        ends = [future.exception(SOON) or future.result() for future in futures]
    return heard, ends, ear.errors


def test_in_flight_fail() -> None:
    """With `in_flight="fail"` a request in flight fails at a loss, written, and is not sent again."""
    heard, ends, errors = cut("fail")
    assert heard == [[1, 2, 3], [9]]
    assert [(type(end), end.written) for end in ends] == [(ConnectionLost, "yes")] * 3
    assert len(errors) == 1


def test_in_flight_resend() -> None:
    """With `in_flight="resend"` a request in flight is sent again after a loss, in the old order, before others."""
    heard, ends, errors = cut("resend")
    assert heard == [[1, 2, 3], [1, 2, 3, 9]]
    assert [end.params["id"] for end in ends] == [1, 2, 3]
    assert len(errors) == 1


def test_in_flight_keep() -> None:
    """With `in_flight="keep"` a request in flight is not sent again, and takes its reply on the next connection."""
    heard, ends, errors = cut("keep")
    assert heard == [[1, 2, 3], [9]]
    assert [end.params["id"] for end in ends] == [1, 2, 3]
    assert len(errors) == 1


def test_a_message_says_otherwise() -> None:
    """A message's own `in_flight` counts before the connection's."""
    ear = Ear()
    with Server(hold) as server, dialled(server, ear, reconnect=NEVER) as connection:
        failing = connection.submit(ask(1))
        kept = connection.submit(Message.json({"id": 2}, in_flight="keep"))
        assert server.wait_for(2, SOON)
        server.drop_all()
        assert isinstance(failing.exception(SOON), ConnectionLost)
        assert not kept.done()
    error = kept.exception(0)
    assert isinstance(error, ConnectionClosed)
    assert error.written == "yes"


@pytest.mark.parametrize("closed", [False, True])
def test_a_ping_hears_of_the_end(closed: bool) -> None:
    """A thread that waits in `ping` is told that the connection was lost, or closed."""
    with Server(pongs=False) as server, dialled(server) as connection, ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(connection.ping, SOON)
        assert until(lambda: connection.stats().pings_unanswered)
        if closed:
            connection.close()
        else:
            server.drop_all()
        assert type(pinging.exception(SOON)) is (ConnectionClosed if closed else ConnectionLost)


def test_a_strategy_that_raises() -> None:
    """A strategy of the ReconnectPolicy that raises is reported, and there is no next attempt."""
    ear = Ear()

    def wait(_: object) -> float:
        raise ZeroDivisionError("mine")

    with Server(hold) as server, dialled(server, ear, reconnect=ReconnectPolicy(wait=wait)) as connection:
        future = connection.submit(ask())
        server.drop_all()
        ear.wait_for(lambda: len(ear.errors) == 2)
        raised, lost = ear.errors
        assert isinstance(raised, UserCodeError)
        assert "ReconnectPolicy" in str(raised)
        assert isinstance(raised.__cause__, ZeroDivisionError)
        assert type(lost) is ConnectionLost
        assert isinstance(future.exception(SOON), ConnectionLost)
        assert (connection.state, server.dials) == (State.CLOSED, 1)


def test_a_strategy_that_raises_at_the_first_attempt() -> None:
    """A strategy that raises is asked about the first attempt with `retry=True` only, which then is the last."""
    ear = Ear()

    def wait(_: object) -> float:
        raise ZeroDivisionError("mine")

    connection = Connection(**ear.options, reconnect=ReconnectPolicy(wait=wait))
    with RawServer(RawConnection.reset) as server, pytest.raises(EvtwsError):
        connection.dial(server.url, retry=True)
    assert connection.state is State.CLOSED
    ear.wait_for(lambda: len(ear.errors) == 2)
    connection.close()
    assert type(ear.errors[0]) is UserCodeError


# -- farewells


def closing(code: int) -> Callable[[RawConnection], None]:
    """A script that sends a close frame, reads all that comes, and never ends TCP by itself."""

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        peer.send(encode_close(code, "", masked=False))
        peer.hold()

    return script


def test_a_peer_that_never_ends_tcp() -> None:
    """A peer that sent its close frame and does not end TCP is given FAREWELL seconds; calls are told at once."""
    ear = Ear()
    began = time.monotonic()
    ends: list[float] = []

    def script(peer: RawConnection) -> None:
        closing(1001)(peer)
        ends.append(time.monotonic() - began)

    with RawServer(script) as server:
        connection = Connection(**ear.options)
        connection.dial(server.url)
        assert isinstance(ear.one_error(), ConnectionClosed)
        assert time.monotonic() - began < FAREWELL
        connection.close()
        assert until(lambda: ends)
    assert FAREWELL <= ends[0] < 2 * FAREWELL


def test_close_shortens_a_farewell(caplog: pytest.LogCaptureFixture) -> None:
    """`close` during the farewell of a lost connection returns within its timeout, and so does the farewell."""
    ear = Ear()
    with RawServer(closing(1001)) as server:
        connection = Connection(**ear.options, reconnect=NEVER)
        connection.dial(server.url)
        ear.one_error()
        began = time.monotonic()
        connection.close(timeout=20 * MS)
        assert time.monotonic() - began < FAREWELL / 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_farewell_reads_into_nothing() -> None:
    """What a peer still sends after a close frame is read, so that it can read ours, and is delivered to nobody."""
    ear = Ear()

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        peer.send(encode_close(1001, "", masked=False) + frame(0x81, b'"late"') * 10_000)
        head = peer.receive(2)
        assert head[0] == 0x88
        peer.sock.shutdown(socket.SHUT_WR)
        peer.hold()

    with RawServer(script) as server, dialled(server, ear):
        assert isinstance(ear.one_error(), ConnectionClosed)
    assert ear.messages == []


def test_a_farewell_reads_what_is_on_its_way() -> None:
    """A peer that answers our goodbye behind thousands of messages is read to its end, which is waited for."""
    ear = Ear()
    order: list[str] = []

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        if order:  # the next connection, which may be open before it is closed
            peer.hold()
            return
        assert peer.receive(1) == b"\x88"
        peer.send(frame(0x81, b'"late"') * 10_000 + encode_close(1000, "", masked=False))
        order.append("sent")
        peer.sock.shutdown(socket.SHUT_WR)
        peer.hold()
        order.append("ended")

    with RawServer(script) as server:
        connection = Connection(**ear.options, close_timeout=SOON)
        connection.dial(server.url)
        connection.reconnect_now()
        assert until(lambda: order == ["sent", "ended"])
        connection.close(timeout=0)
    assert ear.messages == []


def test_an_answer_that_does_not_come() -> None:
    """A peer that does not answer our close frame is left when `close_timeout` has passed, without an error."""
    ear = Ear()
    with Server(echo_close=False) as server:
        connection = Connection(**ear.options, close_timeout=50 * MS)
        connection.dial(server.url)
        client = only_client(server)
        began = time.monotonic()
        connection.close(4000)
        assert 50 * MS <= time.monotonic() - began < 1000 * MS
        assert until(lambda: client.close_code) == 4000
    assert (ear.disconnected, ear.errors) == ([None], [])


def test_the_counters_go_on_in_a_farewell() -> None:
    """The counters never go down, whatever is looked at in the farewell."""
    seen = []

    def look(connection: Connection, _error: object) -> None:
        seen.append(connection.stats())

    with RawServer(closing(1001)) as server:
        connection = Connection(on_disconnected=look)
        connection.dial(server.url)
        assert until(lambda: seen)
        connection.close(timeout=0)
    final = connection.stats()
    assert 0 < seen[0].bytes_received == final.bytes_received
    assert 0 <= seen[0].bytes_sent <= final.bytes_sent == 8


# -- dropped


def test_a_request_of_a_connection_that_was_dropped() -> None:
    """A Future that outlives its Connection, which was dropped without `close`, ends by ConnectionClosed."""

    def submit(server: Server) -> tuple[Future[Message], weakref.ref[Connection]]:
        connection = Connection()
        connection.dial(server.url)
        return connection.submit("x"), weakref.ref(connection)

    with Server(hold) as server:
        with pytest.warns(ResourceWarning):
            future, dropped = submit(server)
        assert dropped() is None
        error = future.exception(SOON)
        assert isinstance(error, ConnectionClosed)
        assert (error.by_peer, error.written) == (False, "yes")
        assert until(lambda: not server.connections)


# -- a defect of ours


@pytest.mark.parametrize("waits", ["request", "ping", "callback", "wait_open"])
def test_a_crash_ends_every_call(waits: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When the I/O thread fails every call ends by ConnectionLost, the state is CLOSED, and the log says how."""
    ear = Ear()
    told: list[EvtwsError] = []
    go_on = threading.Event()

    def crash(*_: object) -> None:
        assert go_on.wait(SOON)
        raise ZeroDivisionError("a defect")

    def failed(error: EvtwsError, _: Connection) -> None:
        told.append(error)

    def call(connection: Connection) -> None:
        try:
            if waits == "request":
                connection.request(ask(), SOON)
            elif waits == "ping":
                connection.ping(SOON)
            elif waits == "wait_open":
                assert until(lambda: not connection.is_connected)
                connection.wait_open(SOON)
            else:
                connection.send(Message.json({"id": 1}, lambda *_: None, on_failure=failed))
        except EvtwsError as error:
            told.append(error)

    monkeypatch.setattr(Pulse, "beat", crash)
    with Server(hold, pongs=False) as server, dialled(server, ear, ping_interval=20 * MS) as connection:
        thread = threading.Thread(target=call, args=(connection,))
        thread.start()
        if waits in ("request", "callback"):
            assert server.wait_for(1, SOON)
        elif waits == "ping":
            assert until(lambda: only_client(server).pings)
        go_on.set()
        thread.join(SOON)
        assert until(lambda: told)
        assert until(lambda: connection.state is State.CLOSED)
        assert "I/O thread failed" in str(ear.one_error())
        assert connection.stats().uptime is None
        connection.close()
    assert [type(error) for error in told] == [ConnectionLost]
    assert "ZeroDivisionError: a defect" in caplog.text


def test_a_crash_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the I/O thread fails in the first attempt, `dial` raises it, and the next dial works."""

    def crash(_: object) -> None:
        raise ZeroDivisionError("a defect")

    ear = Ear()
    connection = Connection(**ear.options)
    with Server(echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Opening, "attempt", crash)
            with pytest.raises(ConnectionLost, match="I/O thread failed"):
                connection.dial(server.url)
        connection.dial(server.url)
        assert connection.request(ask(), SOON).params == {"id": 1}
        connection.close()
    assert ear.errors == []
