"""A websocket that is polled: its queues, its frames, and each way in which it ends."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from evtws.errors import ConnectionClosed, ConnectionLost, MessageTooBig, ProtocolError
from evtws.frames import Close, Decoder, Opcode, Ping, Pong, Received, encode, encode_close, encode_message
from evtws.nonblocking import NonBlockingSocket
from evtws.polled_websocket import FAREWELL, FRAMES, READS, Inbox, PolledWebSocket

from .timing import MS, SOON


class Far:
    """The other end: a raw socket with a decoder."""

    def __init__(self, sock: socket.socket, *, is_server: bool) -> None:
        self.sock = sock
        sock.settimeout(SOON)
        self.masked = not is_server
        self.decoder = Decoder(expect_masked=is_server, max_size=None)
        self.items: list[Received] = []

    def send(self, *bodies: str | bytes) -> None:
        """Send messages, at once."""
        self.sock.sendall(b"".join(encode_message(body, masked=self.masked) for body in bodies))

    def send_frame(self, opcode: Opcode, payload: bytes = b"") -> None:
        self.sock.sendall(encode(opcode, payload, masked=self.masked))

    def send_close(self, code: int | None, reason: str = "") -> None:
        self.sock.sendall(encode_close(code, reason, masked=self.masked))

    def read(self, count: int) -> list[Received]:
        """The next items, so many."""
        while len(self.items) < count:
            data = self.sock.recv(65536)
            assert data, "the connection ended"
            self.decoder.feed(data)
            self.items += self.decoder.take()
        taken, self.items = self.items[:count], self.items[count:]
        return taken

    def is_at_end(self) -> bool:
        """Whether the end of the stream comes next."""
        return not self.sock.recv(65536)


class Ends:
    """A PolledWebSocket and its other end."""

    def __init__(
        self, here: socket.socket, there: socket.socket, *, is_server: bool, inbox: Inbox, rest: bytes
    ) -> None:
        self.inbox = inbox
        self.near = PolledWebSocket(NonBlockingSocket(here), rest, inbox, is_server=is_server)
        self.far = Far(there, is_server=not is_server)

    def poll_until(self, what: Callable[[], object]) -> None:
        """Exchange until that is true."""
        deadline = time.monotonic() + SOON
        while not what():
            assert time.monotonic() < deadline
            self.near.exchange()
            time.sleep(MS / 10)

    def fill(self) -> int:
        """Send until the system takes nothing more; how many messages that were."""
        count, stuck = 0, 0
        while stuck < 100:  # longer than an acknowledgement may be delayed
            if not self.near.unsent:
                self.near.send(bytes(60_000))
                count += 1
            before = self.near.unsent
            self.near.exchange()
            stuck = stuck + 1 if self.near.unsent == before > 0 else 0
            time.sleep(MS)
        return count

    def packets(self) -> list[str | bytes]:
        """All packets that wait."""
        taken = [self.inbox.get() for _ in range(len(self.inbox))]
        return [packet.body.decode() if packet.is_text else packet.body for packet in taken]


Make = Callable[..., Ends]


@pytest.fixture(params=["client", "server"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes ends, in either role."""
    opened: list[Ends] = []

    def make(max_packets: int = 2048, max_bytes: int = 65535, rest: bytes = b"") -> Ends:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            there = socket.socket()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # which does not grow then
            there.connect(listener.getsockname())
            here, _ = listener.accept()
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        ends = Ends(here, there, is_server=request.param == "server", inbox=Inbox(max_packets, max_bytes), rest=rest)
        opened.append(ends)
        return ends

    yield make
    for ends in opened:
        ends.near.abort(None)
        ends.far.sock.close()


# -- the inbox


def test_inbox_keeps_order_and_kind() -> None:
    """Packets come out as they came, as bytes, and it is known which were text."""
    inbox = Inbox(10, 100)
    inbox.put("é")
    inbox.put(b"x")
    assert [tuple(inbox.get()) for _ in range(2)] == [("é".encode(), True), (b"x", False)]
    with pytest.raises(IndexError):
        inbox.get()


def test_inbox_is_full() -> None:
    """It is full at so many packets, or so many bytes of them, and not any longer once one was taken."""
    inbox = Inbox(2, 10)
    steps: list[Callable[[], object]] = [
        lambda: inbox.put(b""),
        lambda: inbox.put(b""),
        inbox.get,
        lambda: inbox.put(bytes(10)),
        inbox.get,
        inbox.get,
    ]
    full = []
    for step in steps:
        step()
        full.append(inbox.is_full)
    assert full == [False, True, False, True, True, False]


# -- messages


def test_messages_both_ways(make: Make) -> None:
    """Text and binary arrive as they were sent, in their order, in either role."""
    ends = make()
    ends.far.send("text", b"binary", "")
    ends.poll_until(lambda: len(ends.inbox) == 3)
    assert ends.packets() == ["text", b"binary", ""]
    ends.near.send("é")
    ends.near.send(b"\0")
    assert ends.far.read(2) == ["é", b"\0"]


def test_what_was_read_with_the_upgrade(make: Make) -> None:
    """Frames that came with the upgrade are messages like any other."""
    masked = make().near._is_server
    ends = make(rest=encode_message("first", masked=masked))
    assert ends.near.has_more
    ends.near.exchange()
    assert ends.packets() == ["first"]


def test_a_full_inbox_stops_the_reading(make: Make) -> None:
    """While the inbox is full nothing is read, and nothing of it is lost."""
    ends = make(max_packets=2)
    ends.far.send("1", "2", "3", "4")
    ends.poll_until(lambda: len(ends.inbox) == 2)
    ends.near.exchange()
    assert (len(ends.inbox), ends.near.wants_read, ends.near.has_more) == (2, False, False)
    assert ends.packets() == ["1", "2"]
    assert (ends.near.wants_read, ends.near.has_more) == (True, True)
    ends.near.exchange()
    assert ends.packets() == ["3", "4"]
    assert not ends.near.has_more


def test_one_exchange_is_bounded(make: Make) -> None:
    """One exchange reads a bounded amount, however much there is."""
    ends = make(max_packets=1 << 20, max_bytes=1 << 24)
    size = 60_000
    ends.far.sock.setblocking(False)
    sent = 0
    frame = encode_message(bytes(size), masked=ends.far.masked)
    try:
        while True:
            sent += ends.far.sock.send(frame)
    except BlockingIOError:
        pass
    assert sent > (READS + 1) * 65536
    ends.near.exchange()
    assert len(ends.inbox) * size <= READS * 65536


def test_one_exchange_takes_so_many_frames(make: Make) -> None:
    """One exchange takes a bounded number of frames, and says that it has more."""
    ends = make(max_packets=1 << 20)
    ends.far.send(*["x"] * (FRAMES + 10))
    ends.poll_until(lambda: len(ends.inbox))
    assert (len(ends.inbox), ends.near.has_more) == (FRAMES, True)
    ends.near.exchange()
    assert (len(ends.inbox), ends.near.has_more) == (FRAMES + 10, False)


def test_what_the_system_does_not_take(make: Make) -> None:
    """What finds no room waits, is counted in bytes and packets, and goes out when there is room."""
    ends = make()
    count = ends.fill()
    ends.near.send(b"last")
    assert ends.near.wants_write
    assert ends.near.unsent_packets == 2
    received: list[Received] = []
    while len(received) <= count:
        received += ends.far.read(1)
        ends.near.exchange()
    assert received[-1] == b"last"
    assert (ends.near.unsent, ends.near.unsent_packets, ends.near.wants_write) == (0, 0, False)


# -- control frames


def test_a_ping_is_answered(make: Make) -> None:
    """A ping is answered by a pong of its payload; a pong by nothing."""
    ends = make()
    ends.far.send_frame(Opcode.PONG, b"nobody asked")
    ends.far.send_frame(Opcode.PING, b"42")
    ends.far.send("after")
    ends.poll_until(lambda: len(ends.inbox))
    ends.near.send("answer")
    assert ends.far.read(2) == [Pong(b"42"), "answer"]


def test_of_many_pings_the_newest_is_answered(make: Make) -> None:
    """A peer that pings and does not read is owed one pong, the newest, and not inside a message."""
    ends = make()
    ends.fill()
    unsent = ends.near.unsent
    for number in range(100):
        ends.far.send_frame(Opcode.PING, b"%d" % number)
    ends.far.send("after")
    ends.poll_until(lambda: len(ends.inbox))
    assert ends.near.unsent <= unsent
    pongs: list[Received] = []
    while not pongs:
        pongs += [item for item in ends.far.read(1) if isinstance(item, (Ping, Pong))]
        ends.near.exchange()
    assert pongs == [Pong(b"99")]


# -- ends


def test_the_peer_closes(make: Make) -> None:
    """A close frame is answered by the same code and reason; the end of the stream follows, and then it is over."""
    ends = make()
    ends.far.send("last")
    ends.far.send_close(3001, "bye")
    ends.poll_until(lambda: ends.near.close_frame)
    assert ends.far.read(1) == [Close(3001, "bye")]
    if ends.near._is_server:
        assert ends.far.is_at_end()  # the server is the first to end TCP (RFC 6455 section 7.1.1)
    assert not ends.near.over
    ends.far.sock.shutdown(socket.SHUT_WR)
    ends.poll_until(lambda: ends.near.over)
    assert isinstance(ends.near.error, ConnectionClosed)
    assert (ends.near.error.code, ends.near.error.by_peer) == (3001, True)
    assert ends.packets() == ["last"]
    assert (ends.near.fileno(), ends.near.wants_read, ends.near.has_more) == (-1, False, False)
    ends.near.exchange()  # nothing is left to do


@pytest.mark.parametrize("fault", [False, True], ids=["close frame", "fault"])
def test_packets_before_the_end_can_be_answered(make: Make, fault: bool) -> None:
    """A close frame or a fault that comes right behind packets is left to the next exchange, and it says so."""
    ends = make()
    end = b"\xff\xff" if fault else encode_close(1000, "", masked=ends.far.masked)
    ends.far.sock.sendall(encode_message("question", masked=ends.far.masked) + end)
    ends.poll_until(lambda: len(ends.inbox))
    assert (ends.near.has_more, ends.near.close_frame, ends.near.error) == (True, None, None)
    ends.near.send("answer")
    ends.near.exchange()
    assert ends.far.read(2) == ["answer", Close(1002 if fault else 1000, "")]


def test_a_close_frame_without_a_code(make: Make) -> None:
    """A close frame that has no code is answered by one that has none."""
    ends = make()
    ends.far.send_close(None)
    ends.poll_until(lambda: ends.near.close_frame)
    assert ends.far.read(1) == [Close(1005, "")]


def test_we_close(make: Make) -> None:
    """What was sent goes out before the close frame; messages are still taken until the peer's own comes."""
    ends = make()
    ends.near.send("before")
    ends.near.close(1000, "done", math.inf)
    ends.near.close(1001, "again", math.inf)  # which changes nothing
    assert ends.far.read(2) == ["before", Close(1000, "done")]
    ends.far.send("late")
    ends.far.send_frame(Opcode.PING, b"1")  # which is not answered: nothing follows a close frame
    ends.far.send_close(1000)
    ends.poll_until(lambda: ends.near.close_frame)
    assert ends.packets() == ["late"]
    ends.far.sock.shutdown(socket.SHUT_WR)
    ends.poll_until(lambda: ends.near.over)
    assert ends.far.is_at_end()


def test_a_peer_that_does_not_answer(make: Make) -> None:
    """A peer that does not answer the close frame in time is left."""
    ends = make()
    ends.near.close(1000, "", time.monotonic() + 20 * MS)
    ends.poll_until(lambda: ends.near.over)
    assert type(ends.near.error) is ConnectionLost
    assert ends.near.close_frame is None


def test_a_peer_that_does_not_end_the_stream(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that keeps TCP open after both close frames, and goes on sending, is left after a moment."""
    monkeypatch.setattr("evtws.polled_websocket.FAREWELL", 20 * MS)
    ends = make()
    ends.far.send_close(1000)
    ends.poll_until(lambda: ends.near.close_frame)
    ends.far.send("of no use")
    ends.poll_until(lambda: ends.near.over)
    assert isinstance(ends.near.error, ConnectionClosed)
    assert ends.packets() == []
    assert FAREWELL > 0


def test_the_stream_ends(make: Make) -> None:
    """The end of the stream without a close frame is a loss; what came before is kept."""
    ends = make()
    ends.far.send("last")
    ends.far.sock.shutdown(socket.SHUT_WR)
    ends.poll_until(lambda: ends.near.over)
    assert type(ends.near.error) is ConnectionLost
    assert ends.packets() == ["last"]


def test_a_reset(make: Make) -> None:
    """A reset is a loss, also where something waits to be written."""
    ends = make()
    ends.fill()
    ends.far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.far.sock.close()
    ends.poll_until(lambda: ends.near.over)
    assert type(ends.near.error) is ConnectionLost
    assert ends.near.unsent == 0


def test_a_fault(make: Make) -> None:
    """A peer that breaks the protocol is told the code, its stream is ended, and nothing more of it is taken."""
    ends = make()
    ends.far.send("good")
    ends.far.sock.sendall(encode_message("wrong", masked=not ends.far.masked))
    ends.far.send("ignored")
    ends.poll_until(lambda: ends.near.error)
    assert ends.far.read(1) == [Close(1002, "")]
    assert ends.far.is_at_end()
    ends.far.sock.shutdown(socket.SHUT_WR)
    ends.poll_until(lambda: ends.near.over)
    assert isinstance(ends.near.error, ProtocolError)
    assert ends.packets() == ["good"]


def test_a_message_that_is_too_large(make: Make) -> None:
    """A message above the inbox's bytes closes with 1009; one of that very size is taken."""
    ends = make(max_bytes=100)
    ends.far.send(bytes(100))
    ends.poll_until(lambda: len(ends.inbox))
    assert ends.packets() == [bytes(100)]
    ends.far.send(bytes(101))
    ends.poll_until(lambda: ends.near.error)
    assert ends.far.read(1) == [Close(1009, "")]
    assert isinstance(ends.near.error, MessageTooBig)


def test_a_fault_after_our_close_frame(make: Make) -> None:
    """A fault that comes after our close frame sends no second one."""
    ends = make()
    ends.near.close(1000, "", math.inf)
    assert ends.far.read(1) == [Close(1000, "")]
    ends.far.sock.sendall(b"\xff\xff")
    ends.poll_until(lambda: ends.near.error)
    assert ends.far.is_at_end()


def test_abort(make: Make) -> None:
    """Aborting ends it at once, without a word, whatever waits; once."""
    ends = make()
    error = ConnectionLost("enough")
    ends.near.abort(error)
    ends.near.abort(None)
    assert (ends.near.over, ends.near.error, ends.near.fileno()) == (True, error, -1)
    assert ends.far.is_at_end()


@pytest.mark.parametrize(("code", "reason"), [(999, ""), (1006, ""), (1000, "é" * 62)])
def test_what_may_not_be_said(make: Make, code: int, reason: str) -> None:
    """A code that may not be sent, or a reason that is too long, is refused, and nothing is sent."""
    ends = make()
    with pytest.raises(ValueError, match=r"close"):
        ends.near.close(code, reason, math.inf)
    ends.near.send("still open")
    assert ends.far.read(1) == ["still open"]
