"""What a network does to an open connection: noticed, in bounded time, by one clear error."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import evtws
from evtws import Connection, ConnectionLost, DialError, Message, ReplyTimeout, StaleConnection, State, WriteTimeout
from evtws.testing import ClientConnection, FaultProxy, RawConnection, RawServer, Server

from ..timing import MS, SOON
from .support import Ear, ask, dialled, echo, frame, only_client, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")

PING = 60 * MS


@pytest.mark.parametrize("raw", [b"", frame(0x01, b"half"), frame(0x81, b"whole")[:4], b"\x81"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_a4_a5_the_connection_breaks(raw: bytes, reset: bool) -> None:
    """A4, A5: an RST or a FIN, between frames or inside one, is a ConnectionLost; no partial message is delivered."""
    ear = Ear()

    def script(client: ClientConnection, _body: str | bytes) -> None:
        client.send_raw(raw)
        client.drop(reset=reset)

    with Server(script) as server, dialled(server.url, ear) as connection:
        with pytest.raises(ConnectionLost) as caught:
            connection.request(ask(), timeout=SOON)
        error = ear.one_error()
        assert type(error) is type(caught.value) is ConnectionLost
        assert ("reset" if reset else "without a close frame") in str(error).lower()
        assert (ear.messages, connection.state) == ([], State.CLOSED)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_a4_the_connection_breaks_during_close(reset: bool) -> None:
    """A4: a connection that breaks while our close frame awaits its answer is closed all the same, without an error."""
    ear = Ear()
    with Server(echo_close=False) as server, dialled(server.url, ear) as connection:
        client = only_client(server)
        closing = threading.Thread(target=connection.close, kwargs={"timeout": SOON})
        closing.start()
        assert server.wait_for(lambda: client.close_code, SOON) == 1000
        client.drop(reset=reset)
        closing.join(SOON)
        assert not closing.is_alive()
        assert (ear.disconnected, ear.errors) == ([None], [])


def stale(swallowed: str, server: Server, ear: Ear, **options: Any) -> float:
    """Swallow these directions of an open connection; how long it then took to be told that it is stale."""
    with (
        FaultProxy(server.port) as proxy,
        dialled(proxy.url_of(server.url), ear, ping_interval=PING, **options) as connection,
    ):
        connection.ping(SOON)
        began = time.monotonic()
        proxy.to_server.swallow = "up" in swallowed
        proxy.to_client.swallow = "down" in swallowed
        request = connection.submit(ask(), timeout=SOON)
        error = ear.one_error()
        took = time.monotonic() - began
        assert isinstance(error, StaleConnection)
        assert isinstance(request.exception(SOON), StaleConnection)
        assert connection.state is State.CLOSED
        return took


@pytest.mark.parametrize("swallowed", ["up down", "up", "down"])
def test_a6_a8_silence(swallowed: str) -> None:
    """A6, A8: a link that loses all bytes, or those of one direction, is stale once two pings are unanswered."""
    with Server() as server:
        took = stale(swallowed, server, Ear())
    assert 2 * PING < took < 3 * PING + 250 * MS


def test_a8_events_are_no_pongs() -> None:
    """A8: a peer that is heard but does not hear us is stale, however many messages it sends."""
    ear = Ear()
    stopped = threading.Event()

    def chatter(client: ClientConnection) -> None:
        client.send("1")
        if not stopped.is_set():
            client._loop.later(PING / 10, lambda: chatter(client))

    with Server(on_connect=chatter) as server:
        stale("up", server, ear)
        stopped.set()
    assert len(ear.messages) > 10


def test_a7_unsent_data() -> None:
    """A7: a link that dies under data on its way is noticed, and the sender is told that its bytes may be there."""
    ear = Ear()
    with (
        Server() as server,
        FaultProxy(server.port) as proxy,
        dialled(proxy.url_of(server.url), ear, ping_interval=200 * MS) as connection,
    ):
        connection.ping(SOON)
        proxy.to_server.stalled = True
        with pytest.raises(ConnectionLost) as caught:
            connection.send(Message("x" * (16 << 20)))
        assert caught.value.written == "maybe"
        assert isinstance(ear.one_error(), StaleConnection)


def fill(connection: Connection) -> int:
    """Send messages until one is refused; how many were accepted."""
    for sent in range(1000):
        try:
            connection.send("x" * 500_000)
        except WriteTimeout:
            return sent
    raise AssertionError("there is no end to the buffers")


def test_a9_a_peer_that_does_not_read() -> None:
    """A9: `send` waits for a peer that does not read for `write_timeout` only, and what was not begun is withdrawn."""
    ear = Ear()
    with (
        Server(on_connect=lambda client: client.pause_reading(), record=False, max_size=None) as server,
        dialled(server.url, ear, ping_interval=None, write_timeout=100 * MS, write_buffer=1 << 20) as connection,
    ):
        began = time.monotonic()
        sent = fill(connection)
        assert time.monotonic() - began < SOON
        large = Message("x" * (1 << 20), {"id": 1})
        with pytest.raises(WriteTimeout):
            connection.request(large)
        with pytest.raises(ReplyTimeout):
            connection.request(large, timeout=20 * MS)
        assert connection.pending == ()
        assert connection.is_connected
        only_client(server).resume_reading()
        assert server.wait_for(sent, SOON)  # and the connection has lost nothing
        connection.send("last")
        assert server.wait_for(sent + 1, SOON)
        assert server.received_count == sent + 1


def test_a9_a_message_that_is_half_written() -> None:
    """A9: where a message is written in part when its time is up, the connection is lost, and says "maybe"."""
    ear = Ear()
    with (
        Server(on_connect=lambda client: client.pause_reading()) as server,
        dialled(server.url, ear, ping_interval=None, write_timeout=50 * MS) as connection,
    ):
        with pytest.raises(ConnectionLost, match="whole") as caught:
            connection.send("x" * (64 << 20))
        assert caught.value.written == "maybe"
        assert "write_timeout" in str(ear.one_error())


def test_a9_close_does_not_wait_for_a_peer_that_does_not_read() -> None:
    """A9: `close` ends within its timeout under a send of 64 MiB that nobody reads, and the sender is told."""
    ear = Ear()
    outcomes: list[BaseException] = []

    def send(connection: Connection) -> None:
        try:
            connection.send("x" * (64 << 20))
        except ConnectionLost as error:
            outcomes.append(error)

    with (
        Server(on_connect=lambda client: client.pause_reading()) as server,
        dialled(server.url, ear, write_timeout=None) as connection,
    ):
        sending = threading.Thread(target=send, args=(connection,))
        sending.start()
        assert until(lambda: connection.stats().bytes_sent > 1 << 16)
        began = time.monotonic()
        connection.close(timeout=200 * MS)
        assert time.monotonic() - began < 700 * MS
        sending.join(SOON)
    assert [getattr(error, "written", error) for error in outcomes] == ["maybe"]
    assert (ear.disconnected, ear.errors) == ([None], [])


def test_a9_pings_are_judged_while_nothing_can_be_written() -> None:
    """A9: a peer that neither reads nor answers is stale although our pings cannot leave."""
    ear = Ear()
    with (
        Server(on_connect=lambda client: client.pause_reading()) as server,
        dialled(server.url, ear, ping_interval=200 * MS, write_buffer=1 << 26) as connection,
    ):
        connection.send("x" * (16 << 20))
        assert isinstance(ear.one_error(), StaleConnection)


def test_a11_one_byte_at_a_time() -> None:
    """A11: frames that come in segments of one byte are the same messages."""
    ear = Ear()
    raw = frame(0x81, b'"a"') + frame(0x01, b'"') + frame(0x89, b"p") + frame(0x80, b'b"') + frame(0x82, b"1" * 200)

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        for byte in raw:
            peer.send(bytes([byte]))
        peer.hold()

    with RawServer(script) as server, dialled(server.url, ear, close_timeout=0):
        ear.wait_for(lambda: ear.messages == ['"a"', '"b"', b"1" * 200])
    assert ear.errors == []


def test_a11_a_thousand_frames_in_one_segment() -> None:
    """A11: a thousand frames in one piece are a thousand messages, in their order."""
    ear = Ear()
    with Server() as server, dialled(server.url, ear):
        only_client(server).send_raw(b"".join(frame(0x81, b"%d" % number) for number in range(1000)))
        ear.wait_for(lambda: len(ear.messages) == 1000)
    assert ear.messages == [str(number) for number in range(1000)]


def test_a11_a_flood_holds_up_no_timer() -> None:
    """A11: while messages flood in, timeouts come on time and pings go out."""
    ear = Ear()
    flooding = threading.Event()
    flooding.set()
    flood = frame(0x81, b"1") * 2000

    def pour(client: ClientConnection) -> None:
        if flooding.is_set():
            client.send_raw(flood)
            client._loop.later(0, lambda: pour(client))

    with (
        Server(on_connect=pour, pongs=False) as server,
        dialled(server.url, ear, ping_interval=PING, count_pongs=False, close_timeout=50 * MS) as connection,
    ):
        for ask_again in (connection.request, lambda message, timeout: connection.submit(message, timeout).result()):
            began = time.monotonic()
            with pytest.raises(ReplyTimeout):
                ask_again(ask(), 200 * MS)
            assert time.monotonic() - began < 1000 * MS
        assert connection.stats().messages_received > 10_000
        assert connection.stats().pings_unanswered >= 2
        flooding.clear()
        assert [error for error in ear.errors if not isinstance(error, evtws.SlowConsumer)] == []


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no file and no socket meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a14_no_descriptors_for_a_dial() -> None:
    """A14: a dial for which there are no descriptors raises an OSError, and the next one works."""
    ear = Ear()
    with Server(echo) as server:
        connection = Connection(**ear.options)
        connection.dial(server.url)
        connection.close()
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            connection.dial(server.url)
        connection.dial(server.url)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        connection.close()


def test_a14_no_descriptors_for_a_reconnection() -> None:
    """A14: a reconnection for which there are no descriptors is a DialError and tried again, until there are."""
    ear = Ear()
    policy = evtws.ReconnectPolicy(wait=lambda _: 20 * MS)
    with Server(echo) as server, dialled(server.url, ear, reconnect=policy) as connection:
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        with no_descriptors():
            server.drop_all()
            ear.wait_for(lambda: len(ear.errors) >= 3)
        ear.wait_for(lambda: ear.connected == 2)
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
    assert all(isinstance(error, DialError) for error in ear.errors[1:])
    assert "Too many open files" in str(ear.errors[1])
