"""A peer that breaks RFC 6455, or goes to its limits: one clear error each, the right close code, nothing left."""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc
from typing import Any

import pytest

import evtws
from evtws import ConnectionClosed, ConnectionLost, EvtwsError, MessageTooBig, ProtocolError, ReplyTimeout, State
from evtws.testing import ClientConnection, RawConnection, RawServer, Server

from ..timing import MS, SOON
from .support import Ear, ask, frame, only_client, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def fault(raw: bytes, **options: Any) -> tuple[EvtwsError, int | None, list[str | bytes]]:
    """Answer a request by these bytes: what it ended by, the code of our close frame, and what on_message heard."""
    ear = Ear()
    with Server(lambda client, _: client.send_raw(raw)) as server:
        connection = evtws.Connection(**(ear.options | {"ping_interval": None} | options))
        connection.dial(server.url)
        client = only_client(server)
        with pytest.raises(ConnectionLost) as caught:
            connection.request(ask(), timeout=SOON)
        error = ear.one_error()
        assert type(caught.value) is type(error)
        assert caught.value.written == "yes"
        assert connection.state is State.CLOSED
        until(lambda: client.close_code is not None)
        connection.close()
        return error, client.close_code, ear.messages


@pytest.mark.parametrize(
    "raw",
    [
        frame(0x81, b"x", mask=True),
        frame(0xC1, b"x"),
        frame(0xA1, b"x"),
        frame(0x91, b"x"),
        *(frame(0x80 | opcode, b"x") for opcode in (3, 7, 11, 15)),
        frame(0x81, b"x", length=b"\x7e\x00\x01"),
        frame(0x81, b"x", length=b"\x7f" + struct.pack("!Q", 1)),
        frame(0x81, length=b"\x7f" + struct.pack("!Q", 1 << 63)),
    ],
    ids=["masked", "rsv1", "rsv2", "rsv3", "op3", "op7", "op11", "op15", "7e", "7f", "msb"],
)
def test_d2_broken_headers(raw: bytes) -> None:
    """D2: a masked frame, a reserved bit or opcode, a length that is not minimal or beyond 2^63 is answered by 1002."""
    error, code, messages = fault(raw)
    assert isinstance(error, ProtocolError)
    assert (error.code, code, messages) == (1002, 1002, [])


@pytest.mark.parametrize("opcode", [8, 9, 10], ids=["close", "ping", "pong"])
@pytest.mark.parametrize("kind", ["fragmented", "long"])
def test_d3_control_frames(opcode: int, kind: str) -> None:
    """D3: a control frame that is fragmented or over 125 bytes is answered by 1002."""
    body = struct.pack("!H", 1000) + b"x" * 124
    error, code, _ = fault(frame(opcode, body[:9]) if kind == "fragmented" else frame(0x80 | opcode, body))
    assert isinstance(error, ProtocolError)
    assert (error.code, code) == (1002, 1002)


def test_d4_a_ping_between_fragments() -> None:
    """D4: a ping and a pong between fragments are seen at once, and the message is whole all the same."""
    ear = Ear()
    with Server() as server, evtws.connect(server.url, **ear.options):
        client = only_client(server)
        client.send_raw(frame(0x01, b"a") + frame(0x89, b"p") + frame(0x8A, b"q") + frame(0x00, b"b"))
        assert server.wait_for(lambda: client.pongs == [b"p"], SOON)
        assert ear.messages == []
        client.send_raw(frame(0x80, b'"'))
        client.send_raw(frame(0x01, b'"a') + frame(0x00, b"b") + frame(0x80, b'"'))
        ear.wait_for(lambda: ear.messages)
        assert ear.messages == ['"ab"']
        assert [str(error) for error in ear.errors] != []  # the first one, 'ab"', is no JSON


def test_d4_a_close_between_fragments() -> None:
    """D4: a close frame inside a fragmented message is a clean close, and the partial message is not delivered."""
    error, code, messages = fault(frame(0x01, b"1") + frame(0x88, struct.pack("!H", 1001)))
    assert isinstance(error, ConnectionClosed)
    assert (error.code, error.by_peer, code, messages) == (1001, True, 1001, [])


@pytest.mark.parametrize(
    "raw", [frame(0x01, b"1") + frame(0x81, b"2"), frame(0x80, b"1"), frame(0x00, b"1")], ids=["new", "last", "first"]
)
def test_d4_fragments_out_of_place(raw: bytes) -> None:
    """D4: a message inside another, and a fragment that continues nothing, are answered by 1002."""
    error, code, messages = fault(raw)
    assert isinstance(error, ProtocolError)
    assert (error.code, code, messages) == (1002, 1002, [])


@pytest.mark.parametrize(
    "raw",
    [
        frame(0x81, b"\xff"),
        frame(0x81, b"\xed\xa0\x80"),
        frame(0x81, b"\xf4\x90\x80\x80"),
        frame(0x81, b"\xe2\x82"),
        frame(0x01, b"\xe2\x82") + frame(0x80, b"\x41"),
        frame(0x01, b"\xe2") + frame(0x00, b"\x82") + frame(0x80),
        frame(0x01, b"\xff"),
        frame(0x88, b"\x03\xe8\xff"),
    ],
    ids=["whole", "surrogate", "beyond", "truncated", "split", "truncated-split", "first-fragment", "reason"],
)
def test_d5_invalid_utf8(raw: bytes) -> None:
    """D5: text that is no UTF-8 is answered by 1007, as soon as that is certain, and is never a UnicodeError."""
    error, code, messages = fault(raw)
    assert isinstance(error, ProtocolError)
    assert (error.code, code, messages) == (1007, 1007, [])


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (frame(0x82, length=b"\x7e\x04\x01"), 1025),
        (frame(0x82, length=b"\x7f" + struct.pack("!Q", (1 << 63) - 1)), (1 << 63) - 1),
        (frame(0x02, b"x" * 1000) + frame(0x00, length=b"\x19"), 1025),
    ],
    ids=["16-bit", "64-bit", "fragments"],
)
def test_d6_a_message_over_the_limit(raw: bytes, size: int) -> None:
    """D6: a message over `max_size` is answered by 1009 upon its length, before any of it is allocated or read."""
    error, code, _ = fault(raw, max_size=1024)
    assert isinstance(error, MessageTooBig)
    assert (error.size, error.limit, error.code, code) == (size, 1024, 1009, 1009)


def test_d6_a_message_at_the_limit() -> None:
    """D6: `max_size` is inclusive, whole and in fragments."""
    ear = Ear()
    body = b'"' + b"x" * 1022 + b'"'
    with Server() as server, evtws.connect(server.url, max_size=1024, **ear.options):
        only_client(server).send_raw(frame(0x82, body) + frame(0x02, body[:1000]) + frame(0x80, body[1000:]))
        ear.wait_for(lambda: ear.messages == [body, body])


def test_d7_many_empty_fragments() -> None:
    """D7: 200,000 empty fragments take no memory."""
    ear = Ear()
    with Server(record=False) as server, evtws.connect(server.url, **ear.options):
        client = only_client(server)
        raw = frame(0x01, b'"') + frame(0x00) * 200_000 + frame(0x80, b'"')
        tracemalloc.start()
        client.send_raw(raw)
        ear.wait_for(lambda: ear.messages == ['""'])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(raw)  # the server's own copies of it


def test_d7_many_small_fragments_take_linear_time() -> None:
    """D7: four times as many small fragments take about four times as long, not sixteen times."""

    def seconds(count: int) -> float:
        best = SOON
        for _ in range(3):
            ear.messages.clear()
            raw = frame(0x02, b'"') + frame(0x00, b"x" * 100) * count + frame(0x80, b'"')
            began = time.perf_counter()
            client.send_raw(raw)
            ear.wait_for(lambda: ear.messages)
            best = min(best, time.perf_counter() - began)
        return best

    ear = Ear()
    with Server() as server, evtws.connect(server.url, **ear.options):
        client = only_client(server)
        assert seconds(40_000) < 8 * seconds(10_000)


CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4401, 4999]


@pytest.mark.parametrize("code", CODES)
def test_d8_close_codes(code: int) -> None:
    """D8: the peer's close code and reason are surfaced, and its code is what we answer."""
    error, answered, _ = fault(frame(0x88, struct.pack("!H", code) + b"r" * 123))
    assert isinstance(error, ConnectionClosed)
    assert (error.code, error.reason, error.by_peer, answered) == (code, "r" * 123, True, code)


def test_d8_no_close_code() -> None:
    """D8: a close frame without a code is 1005, and is answered by one without a code."""
    error, answered, _ = fault(frame(0x88))
    assert isinstance(error, ConnectionClosed)
    assert (error.code, error.reason, answered) == (1005, "", 1005)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_d8_illegal_close_codes(code: int) -> None:
    """D8: a close code that must not be on the wire is answered by 1002."""
    error, answered, _ = fault(frame(0x88, struct.pack("!H", code)))
    assert isinstance(error, ProtocolError)
    assert (error.code, answered) == (1002, 1002)


def test_d8_a_close_frame_of_one_byte() -> None:
    """D8: half a close code is answered by 1002."""
    error, answered, _ = fault(frame(0x88, b"\x03"))
    assert isinstance(error, ProtocolError)
    assert (error.code, answered) == (1002, 1002)


def test_d9_data_after_a_close_frame() -> None:
    """D9: what follows a close frame is ignored, be it right or wrong."""
    close = frame(0x88, struct.pack("!H", 1000))
    error, code, messages = fault(close + frame(0x81, b"1") + frame(0xFF, b"junk") + close)
    assert isinstance(error, ConnectionClosed)
    assert (error.code, code, messages) == (1000, 1000, [])


def test_d9_a_ping_flood() -> None:
    """D9: 20,000 pings at once are survived, the last one is answered, and requests find their replies meanwhile."""
    ear = Ear()
    flood = b"".join(frame(0x89, b"%d" % n) for n in range(20_000))

    def script(client: ClientConnection, body: str | bytes) -> None:
        client.send_raw(flood)
        client.send(body)

    with Server(script) as server, evtws.connect(server.url, **ear.options) as connection:
        assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        client = only_client(server)
        assert server.wait_for(lambda: client.pongs and client.pongs[-1] == b"19999", SOON)


def test_d9_a_ping_flood_by_a_peer_that_does_not_read() -> None:
    """D9: the pongs that a flooding peer does not read take a bounded amount of memory."""
    ear = Ear()
    flooded = threading.Event()

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        for _ in range(40):
            peer.send(frame(0x89, b"x" * 125) * 500)
        peer.send(frame(0x81, b"1"))
        flooded.wait(SOON)

    with RawServer(script) as server:
        connection = evtws.Connection(ping_interval=None, **ear.options)
        tracemalloc.start()
        connection.dial(server.url)
        ear.wait_for(lambda: ear.messages == ["1"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        connection.close(timeout=50 * MS)
        flooded.set()
    assert peak < 1 << 20  # of 2.6 MB of pongs


def test_d9_unsolicited_pongs() -> None:
    """D9: a pong that answers no ping is ignored, and one of another payload does not end the wait for a pong."""
    ear = Ear()
    with Server(pongs=False) as server, evtws.connect(server.url, ping_interval=None, **ear.options) as connection:
        client = only_client(server)
        client.send_raw(frame(0x8A) + frame(0x8A, b"1") + frame(0x8A, b"x" * 125) + frame(0x81, b"1"))
        ear.wait_for(lambda: ear.messages == ["1"])

        def answer_wrongly() -> None:
            server.wait_for(lambda: client.pings, SOON)
            client.pong(b"?")

        answering = threading.Thread(target=answer_wrongly)
        answering.start()
        with pytest.raises(ReplyTimeout):
            connection.ping(timeout=100 * MS)
        answering.join(SOON)
        assert connection.stats().pings_unanswered == 1
        assert connection.is_connected
        assert ear.errors == []


def test_d10_no_answer_to_our_close() -> None:
    """D10: a peer that does not answer our close frame costs the timeout of `close`, and no more."""
    ear = Ear()
    with Server(echo_close=False) as server:
        connection = evtws.Connection(**ear.options)
        connection.dial(server.url)
        client = only_client(server)
        began = time.monotonic()
        connection.close(4000, "bye", timeout=200 * MS)
        assert 150 * MS < time.monotonic() - began < 1500 * MS
        assert (client.close_code, client.close_reason) == (4000, "bye")
        assert connection.state is State.CLOSED
        assert (ear.disconnected, ear.errors) == ([None], [])


@pytest.mark.parametrize("begins", ["we", "peer"])
def test_d10_tcp_is_never_ended(begins: str) -> None:
    """D10: a peer that answers or sends a close frame but never ends TCP is left within about a second."""
    ear = Ear()

    def script(peer: RawConnection) -> None:
        peer.upgrade()
        if begins == "we":
            peer.receive(2)
        peer.send(frame(0x88, struct.pack("!H", 1000)))
        peer.hold()

    with RawServer(script) as server:
        connection = evtws.Connection(**ear.options)
        connection.dial(server.url)
        began = time.monotonic()
        if begins == "we":
            connection.close()
        ear.wait_for(lambda: ear.disconnected)
        connection.close()
        assert time.monotonic() - began < 3000 * MS
        assert connection.state is State.CLOSED
