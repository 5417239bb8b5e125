"""The transport: order, room and the truth about bytes, over a socket pair and over TLS."""

from __future__ import annotations

import gc
import itertools
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import trustme

from evtws import transport as room
from evtws import write_queue
from evtws.errors import ConnectionLost, ProtocolError
from evtws.frames import Close, Decoder, Opcode, Ping, Pong, Received, encode, encode_close, encode_message
from evtws.transport import Transport
from evtws.write_queue import WRITTEN, Ticket

from .raw import descriptors
from .timing import MS, SOON

BIG = 8 << 20  # bytes that no socket buffer of these tests holds


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


class Ends:
    """A transport and the peer's end of its socket."""

    def __init__(self, here: socket.socket, there: socket.socket, write_buffer: int, **options: Any) -> None:
        self._wanted = False
        options.setdefault("max_size", None)
        self.transport = Transport(here, write_buffer=write_buffer, want_write=self.want, **options)
        self.there = there
        self.decoder = Decoder(expect_masked=True, max_size=None)
        self.items: list[Received] = []
        self.bytes = 0

    def want(self, wanted: bool) -> None:
        self._wanted = wanted

    def watched(self) -> bool:
        """What was last asked of the poller."""
        return self._wanted

    def read_some(self, size: int = 65536) -> bool:
        """Take what the peer's kernel has, at most so much; whether there was something."""
        try:
            data = self.there.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        self.bytes += len(data)
        self.decoder.feed(data)
        while self.decoder.has_more:
            self.items += self.decoder.take()
        return bool(data)

    def read_until(self, done: Callable[[], object]) -> None:
        """Let both ends work until that is true."""
        deadline = time.monotonic() + SOON
        while not done():
            assert time.monotonic() < deadline
            self.transport.flush()
            self.read_some()

    def read_all(self) -> list[Received]:
        """Everything that the transport has to write."""
        self.read_until(lambda: not self.transport.wants_write)
        while self.read_some():
            pass
        return self.items

    def stall(self) -> None:
        """Fill the kernel's buffers, so that not a byte more is taken; leaves one message partly written."""
        assert not self.transport.wants_write
        self.transport.send(frame(b"x" * BIG))
        self.transport.flush()

    def close(self) -> None:
        self.transport.close()
        self.there.close()


Make = Callable[..., Ends]


def truth(ticket: Ticket) -> str:
    """What the ticket says now: a type checker thinks that it says the same for ever."""
    return ticket.written


def frame(body: bytes | str) -> bytes:
    return encode_message(body, masked=True)


def small_pair() -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair()
    for sock in (here, there):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    return here, there


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    for sock in (here, there):
        sock.setblocking(False)
    return here, there


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    client, server = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(client)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    return client, server


def tls_pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> tuple[socket.socket, socket.socket]:
    pair = tcp_pair()
    here = contexts[0].wrap_socket(pair[0], server_hostname="127.0.0.1", do_handshake_on_connect=False)
    there = contexts[1].wrap_socket(pair[1], server_side=True, do_handshake_on_connect=False)
    open_ends = {here, there}
    deadline = time.monotonic() + SOON
    while open_ends:
        assert time.monotonic() < deadline
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.discard(end)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
    return here, there


@pytest.fixture
def made() -> Iterator[list[Ends]]:
    made: list[Ends] = []
    yield made
    for ends in made:
        ends.close()


@pytest.fixture
def plain(made: list[Ends]) -> Make:
    def make(write_buffer: int = 1 << 20, **options: Any) -> Ends:
        made.append(Ends(*small_pair(), write_buffer, **options))
        return made[-1]

    return make


@pytest.fixture
def tls(made: list[Ends], contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Make:
    def make(write_buffer: int = 1 << 20, **options: Any) -> Ends:
        made.append(Ends(*tls_pair(contexts), write_buffer, **options))
        return made[-1]

    return make


@pytest.fixture(params=["plain", "tls"])
def either(request: pytest.FixtureRequest) -> Make:
    """Both kinds of socket, one after the other."""
    made: Make = request.getfixturevalue(request.param)
    return made


class Waiter:
    """A thread in wait_for_room."""

    def __init__(self, transport: Transport, ticket: Ticket, timeout: float | None = SOON) -> None:
        self.result: bool | None = None
        self.error: ConnectionLost | None = None
        self._thread = threading.Thread(target=self._run, args=(transport, ticket, timeout))
        self._thread.start()

    def _run(self, transport: Transport, ticket: Ticket, timeout: float | None) -> None:
        try:
            self.result = transport.wait_for_room(ticket, timeout)
        except ConnectionLost as error:
            self.error = error

    def join(self) -> Waiter:
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        return self


# -- writing


def test_a_message_that_fits_is_written_at_once(either: Make) -> None:
    """A message that the operating system takes whole is WRITTEN when send returns, and nothing is watched."""
    ends = either()
    ticket = ends.transport.send(frame("hello"))
    assert ticket is WRITTEN
    assert truth(ticket) == "yes"
    assert not ends.watched()
    assert ends.transport.backlog == 0
    assert ends.transport.bytes_sent == len(frame("hello"))
    assert ends.read_all() == ["hello"]


def test_what_is_not_taken_is_queued_and_flushed(either: Make) -> None:
    """Of a message that is too large for the kernel the rest is queued, and flush writes it on."""
    ends = either(write_buffer=BIG * 2)
    body = bytes(range(256)) * (BIG // 256)
    ticket = ends.transport.send(frame(body))
    assert truth(ticket) == "maybe"
    assert ends.watched()
    assert ends.transport.wants_write
    assert 0 < ends.transport.backlog <= len(frame(body))
    assert f"{ends.transport.backlog} bytes" in repr(ends.transport)
    assert ends.read_all() == [body]
    assert truth(ticket) == "yes"
    assert not ends.watched()
    assert ends.transport.backlog == 0
    assert ends.transport.bytes_sent == len(frame(body))


def test_one_flush_is_bounded(plain: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flush writes at most FLUSH_SIZE bytes and a send, however fast the peer reads."""
    monkeypatch.setattr(room, "WRITE_SIZE", 1000)
    monkeypatch.setattr(room, "FLUSH_SIZE", 2000)
    ends = plain()
    ends.stall()
    while ends.read_some():
        pass
    before = ends.transport.bytes_sent
    ends.transport.flush()
    assert ends.transport.bytes_sent - before == 2000
    assert ends.watched()


def test_messages_keep_their_order_and_frames_never_mix(either: Make) -> None:
    """Each sender's messages arrive whole and in its order, however many threads send."""
    ends = either(write_buffer=200_000)
    threads, messages = 6, 60
    calls: list[Any] = []

    def work(sender: int) -> None:
        for number in range(messages):
            size = 20 if number % 3 else 30_000
            ticket = ends.transport.send(frame(f"{sender} {number} ".ljust(size, "x")), ())
            assert ends.transport.wait_for_room(ticket, SOON)

    calls = [threading.Thread(target=work, args=(sender,)) for sender in range(threads)]
    for thread in calls:
        thread.start()
    ends.read_until(lambda: len(ends.items) == threads * messages)
    for thread in calls:
        thread.join(SOON)
    for sender in range(threads):
        mine = [int(str(item).split()[1]) for item in ends.items if str(item).startswith(f"{sender} ")]
        assert mine == list(range(messages))


@contextmanager
def taken(transport: Transport) -> Iterator[None]:
    """Another thread has the lock, and lets nothing in when it lets go."""
    has_it, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with transport._door._lock:
            has_it.set()
            may_go.wait(SOON)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(SOON)
    try:
        yield
    finally:
        may_go.set()
        thread.join(SOON)


def test_what_was_left_at_the_door_goes_first(plain: Make) -> None:
    """A message that found the lock taken goes out before the next of the same thread, which finds it free."""
    ends = plain()
    with taken(ends.transport):
        ticket = ends.transport.send(frame("1"))
        assert truth(ticket) == "no"
    assert ends.transport.send(frame("2")).written == "yes"
    assert truth(ticket) == "yes"
    assert ends.read_all() == ["1", "2"]
    assert ends.transport.messages_sent == 0
    with taken(ends.transport):
        ends.transport.send(frame("3"))
    ends.transport.send_close(1000)
    assert ends.read_all()[2:] == ["3", Close(1000, "")]


def test_what_was_left_at_the_door_is_refused_after_the_end(plain: Make) -> None:
    """A message that found the lock taken has an error once it turns out that nothing more can be written."""
    ends = plain()
    with taken(ends.transport):
        ticket = ends.transport.send(frame("x"))
        ends.transport.error = ConnectionLost("gone")
    ends.transport.flush()
    assert ticket.error is not None
    assert truth(ticket) == "no"


def test_what_is_left_at_the_door_of_a_sealed_transport_is_refused(plain: Make) -> None:
    """A message that is left at the door, and let in after the end, raises ConnectionLost; its call is not touched."""
    ends = plain()
    call: Any = SimpleNamespace(ticket="of the next connection")
    ends.transport.seal()
    door: Any = ends.transport._door
    door.is_taken = lambda: True  # for a moment only: it is free again when the message is left there
    with pytest.raises(ConnectionLost, match="closing"):
        ends.transport.send(frame("x"), [call])
    assert call.ticket == "of the next connection"


def test_a_message_past_half_the_buffer_waits_for_the_lock(plain: Make) -> None:
    """What would fill the write buffer is not left at the door: its sender queues for the lock."""
    ends = plain(write_buffer=100)
    tickets: list[Ticket] = []
    thread = threading.Thread(target=lambda: tickets.append(ends.transport.send(frame("x" * 60))))
    with ends.transport._door._lock:
        thread.start()
        thread.join(20 * MS)
        assert thread.is_alive()
    thread.join(SOON)
    assert tickets == [WRITTEN]


def test_small_messages_are_joined_into_one_write(made: list[Ends]) -> None:
    """Queued messages go out by one send as far as they fit in WRITE_SIZE together."""
    ends = whole_or_not(made, BIG)
    tickets = [ends.transport.send(frame("s" * 40_000)) for _ in range(2)]
    tickets += [ends.transport.send(frame("s")) for _ in range(1000)]
    tickets += [ends.transport.send(frame("s" * 40_000))]
    assert {truth(ticket) for ticket in tickets} == {"no"}
    packets = []
    while ends.read_some():
        if ends.items[-1] != "f" * 2000:
            packets.append(len(ends.items))
        ends.transport.flush()
    assert {truth(ticket) for ticket in tickets} == {"yes"}
    assert [end - start for start, end in itertools.pairwise(packets)] == [1001, 1]


def test_the_calls_of_a_message_get_its_ticket(plain: Make) -> None:
    """Each call that is written gets the ticket that tells of its bytes, and counts as a message sent."""
    ends = plain()
    calls: Any = [SimpleNamespace(ticket=None), SimpleNamespace(ticket=None)]
    ends.transport.send(frame("a") + frame("b"), calls)
    assert [call.ticket.written for call in calls] == ["yes", "yes"]
    assert ends.transport.messages_sent == 2
    ends.stall()
    ticket = ends.transport.send(frame("c"), calls[:1])
    assert calls[0].ticket is ticket
    assert calls[0].ticket.written == "no"


# -- control frames


def test_a_control_frame_goes_before_the_queue_but_not_into_a_frame(either: Make) -> None:
    """A ping or pong overtakes the messages that wait, and comes after the frame that is being written."""
    ends = either(write_buffer=BIG * 4)
    ends.stall()
    ends.transport.send(frame("queued"))
    ends.transport.send_control(Opcode.PING, b"1")
    ends.transport.send_control(Opcode.PONG, b"2")
    items = ends.read_all()
    assert [type(item) for item in items] == [bytes, Ping, Pong, str]
    assert items[1:3] == [Ping(b"1"), Pong(b"2")]
    assert ends.transport.backlog == 0


def test_a_control_frame_is_written_at_once_where_nothing_waits(either: Make) -> None:
    """A control frame needs no flush while the kernel has room."""
    ends = either()
    ends.transport.send_control(Opcode.PING, b"now")
    ends.read_until(lambda: ends.items)
    assert ends.items == [Ping(b"now")]
    assert not ends.watched()


def test_a_flood_of_pings_leaves_a_bounded_number_of_pongs(either: Make) -> None:
    """Of the pongs that a peer which does not read leaves unsent only the newest are kept; pings of ours all are."""
    ends = either(write_buffer=BIG * 4)
    ends.stall()
    before = ends.transport.backlog
    ends.transport.send_control(Opcode.PING, b"mine")
    for number in range(1000):
        ends.transport.send_control(Opcode.PONG, b"%d" % number)
    assert ends.transport.backlog - before < (write_queue.MAX_PONGS + 1) * 20
    items = ends.read_all()
    assert items[1:] == [Ping(b"mine"), *(Pong(b"%d" % number) for number in range(1000 - write_queue.MAX_PONGS, 1000))]
    assert ends.transport.backlog == 0


def test_control_frames_do_not_end_the_wait_of_a_sender(plain: Make) -> None:
    """The bytes of control frames, written or dropped, count neither for nor against a sender that waits for room."""
    ends = plain(write_buffer=0)
    ends.stall()
    ticket = ends.transport.send(frame(b"y" * 5000))
    for number in range(200):
        ends.transport.send_control(Opcode.PONG, b"%0125d" % number)
    behind = ends.transport.send(frame(b"z"))
    for number in range(200):
        ends.transport.send_control(Opcode.PONG, b"%0125d" % number)
    while truth(ticket) != "yes":
        assert not ends.transport.wait_for_room(ticket, 0)
        ends.transport.flush()
        ends.read_some(1000)
    assert ends.transport.wait_for_room(ticket, 0)
    ends.read_all()
    assert ends.transport.wait_for_room(behind, 0)


# -- the close frame


def test_the_close_frame_is_the_last(either: Make) -> None:
    """The close frame follows everything queued; neither a message nor a control frame can follow it."""
    ends = either(write_buffer=BIG * 4)
    ends.stall()
    ends.transport.send(frame("queued"))
    ends.transport.send_close(1000, "bye")
    ends.transport.send_close(1001)
    ends.transport.send_control(Opcode.PONG, b"")
    with pytest.raises(ConnectionLost, match="closing"):
        ends.transport.send(frame("late"))
    assert ends.read_all()[1:] == ["queued", Close(1000, "bye")]


def test_the_answer_to_a_close_frame_drops_the_queue(either: Make) -> None:
    """Sealed with drop_queue the close frame follows the frame that is begun; what was queued is not written."""
    ends = either(write_buffer=BIG * 4)
    ends.stall()
    tickets = [ends.transport.send(frame(b"z" * 50)) for _ in range(20_000)]
    ends.transport.seal(drop_queue=True)
    ends.transport.send_close(1000)
    assert ends.read_all()[1:] == [Close(1000, "")]
    assert {ticket.written for ticket in tickets} == {"no"}
    assert ends.transport.backlog == 0


def test_a_sealed_transport_accepts_no_message(plain: Make) -> None:
    """Once sealed it refuses messages, writes what it accepted and still takes control frames."""
    ends = plain()
    ends.transport.send(frame("before"))
    ends.transport.seal()
    with pytest.raises(ConnectionLost, match="closing"):
        ends.transport.send(frame("after"))
    ends.transport.send_control(Opcode.PING, b"")
    ends.transport.send_close(None)
    assert ends.read_all() == ["before", Ping(b""), Close(1005, "")]


# -- a sender waits for room


def test_room_comes_in_time(either: Make) -> None:
    """A sender whose message is past the write buffer waits until the peer has read enough."""
    ends = either(write_buffer=0)
    ticket = ends.transport.send(frame(b"x" * BIG))
    assert not ends.transport.wait_for_room(ticket, 0)
    waiter = Waiter(ends.transport, ticket)
    ends.read_all()
    assert waiter.join().result is True


def test_a_message_within_the_buffer_does_not_wait(either: Make) -> None:
    """A sender does not wait while the queue fits in the write buffer."""
    ends = either(write_buffer=2 * BIG)
    ticket = ends.transport.send(frame(b"x" * BIG))
    assert ends.transport.wait_for_room(ticket, 0)


def test_the_wait_for_room_is_bounded(plain: Make) -> None:
    """False after the timeout when the peer does not read."""
    ends = plain(write_buffer=10)
    ends.stall()
    before = time.monotonic()
    assert not ends.transport.wait_for_room(ends.transport.send(frame("m" * 20)), 20 * MS)
    assert 20 * MS <= time.monotonic() - before < SOON


def test_close_ends_the_wait_with_the_truth(either: Make) -> None:
    """send_close ends every wait: "maybe" for the frame that is begun, "no" for what is dropped and never written."""
    ends = either(write_buffer=0)
    begun = ends.transport.send(frame(b"x" * BIG))
    queued = ends.transport.send(frame("queued"))
    waiters = [Waiter(ends.transport, ticket) for ticket in (begun, queued)]
    ends.transport.send_close(1000)
    errors = [waiter.join().error for waiter in waiters]
    assert [error and error.written for error in errors] == ["maybe", "no"]
    assert "closed while the message waited" in str(errors[0])
    assert [type(item) for item in ends.read_all()] == [bytes, Close]
    assert not ends.transport.withdraw(queued)
    assert ends.transport.backlog == 0


def test_failure_ends_the_wait(either: Make) -> None:
    """fail ends every wait with the error that it was given, and makes sending impossible."""
    ends = either(write_buffer=0)
    ticket = ends.transport.send(frame(b"x" * BIG))
    waiter = Waiter(ends.transport, ticket, None)
    ends.transport.fail(ConnectionLost("gone"))
    error = waiter.join().error
    assert error is not None
    assert str(error) == "gone"
    assert error.written == "maybe"
    assert not ends.transport.withdraw(ticket)
    assert not ends.transport.wants_write
    ends.transport.fail(ConnectionLost("again"))
    with pytest.raises(ConnectionLost, match="gone"):
        ends.transport.send(frame("more"))
    assert "failed" in repr(ends.transport)


def full_of_whole_messages(ends: Ends) -> None:
    """Fill the kernel without leaving a message begun: each is written whole or not at all."""
    while True:
        ticket = ends.transport.send(frame("f" * 2000))
        if ticket.left:
            break
    if ticket.room is not None:
        assert ends.transport.withdraw(ticket)


def whole_or_not(made: list[Ends], write_buffer: int) -> Ends:
    """A transport over a socket that takes a message whole or not at all; the kernel is full."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (here, there):
        sock.setblocking(False)
    made.append(Ends(here, there, write_buffer))
    full_of_whole_messages(made[-1])
    return made[-1]


@pytest.fixture
def whole(made: list[Ends]) -> Ends:
    """The same, with no write buffer: whoever sends has to wait."""
    return whole_or_not(made, 0)


def test_an_unwritten_message_can_be_withdrawn(whole: Ends) -> None:
    """withdraw takes back a message of which not a byte was written, also the one that is next to be written."""
    transport = whole.transport
    tickets = [transport.send(frame(f"{number}" * (number + 1))) for number in range(4)]
    assert transport.withdraw(tickets[2])
    transport.flush()
    assert transport.withdraw(tickets[0])
    assert transport.backlog == tickets[1].left + tickets[3].left
    waiters = [Waiter(transport, tickets[number]) for number in (1, 3)]
    items = [item for item in whole.read_all() if not str(item).startswith("f")]
    assert items == ["11", "3333"]
    assert [waiter.join().result for waiter in waiters] == [True, True]
    assert tickets[0].written == "no"
    assert transport.backlog == 0


def test_a_message_that_is_begun_cannot_be_withdrawn(either: Make) -> None:
    """withdraw refuses a message of which a byte was written, and one that is written whole."""
    ends = either(write_buffer=0)
    ticket = ends.transport.send(frame(b"x" * BIG))
    assert not ends.transport.withdraw(ticket)
    assert [type(item) for item in ends.read_all()] == [bytes]
    assert not ends.transport.withdraw(ticket)


def test_a_message_that_found_room_just_now_is_not_withdrawn(plain: Make) -> None:
    """withdraw refuses a message that found room between the timeout and the withdrawal; it is written."""
    ends = plain(write_buffer=BIG + 200_000)
    ends.stall()
    ticket = ends.transport.send(frame(b"y" * (BIG + 100_000)))
    assert not ends.transport.wait_for_room(ticket, 0)
    ends.read_until(lambda: ends.transport.wait_for_room(ticket, 0))
    assert truth(ticket) == "no"
    assert not ends.transport.withdraw(ticket)
    assert ticket.has_room
    assert ends.read_all() == [b"x" * BIG, b"y" * (BIG + 100_000)]
    assert ends.transport.backlog == 0


def test_close_drops_a_waiting_message_that_is_next(whole: Ends) -> None:
    """A message that was next but not begun is not written once its sender was told "no" by send_close."""
    ticket = whole.transport.send(frame("next"))
    whole.transport.flush()
    whole.transport.send_close(1000)
    with pytest.raises(ConnectionLost) as caught:
        whole.transport.wait_for_room(ticket, SOON)
    assert caught.value.written == "no"
    assert whole.read_all()[-1] == Close(1000, "")
    assert "next" not in whole.items


# -- the truth about bytes


@pytest.mark.parametrize("cut", [0, 1, 2, 7, 8, 13, 14, 100, 1013, 1014, 1015, 5000, 65536, 300_000])
def test_a_ticket_tells_the_truth_wherever_the_line_is_cut(either: Make, cut: int) -> None:
    """Wherever the peer goes away, "no" means that it has not a byte of the message, "yes" that the kernel has all."""
    ends = either(write_buffer=BIG * 4)
    bodies = [b"a" * 1000, b"b" * BIG, *(b"c%d" % number for number in range(5)), b"d" * 100_000]
    tickets = [ends.transport.send(frame(body)) for body in bodies]
    received = b""
    while len(received) < cut:
        ends.transport.flush()
        try:
            received += ends.there.recv(cut - len(received))
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
    ends.transport.fail(ConnectionLost("cut"))
    try:
        while rest := ends.there.recv(65536):
            received += rest
    except (BlockingIOError, ssl.SSLWantReadError):
        pass
    start, sent = 0, ends.transport.bytes_sent
    for ticket, body in zip(tickets, bodies, strict=True):
        end = start + len(frame(body))
        if ticket.written == "no":
            assert len(received) <= start
        assert (ticket.written == "yes") == (sent >= end)
        start = end
    assert {ticket.written for ticket in tickets} == {"yes", "maybe", "no"}


def test_a_tls_write_that_blocked_may_have_written_something(tls: Make) -> None:
    """Under TLS a message that was tried and not taken is "maybe" and stays: the same bytes are tried again."""
    ends = tls(write_buffer=0)
    body = b"f" * 60_000  # one write, which TLS takes whole or not at all
    tickets = [ends.transport.send(frame(body)) for _ in range(200)]
    first = next(ticket for ticket in tickets if ticket.left)
    ends.read_until(lambda: not first.left)
    tried, behind = [ticket for ticket in tickets if ticket.left][:2]
    assert tried.left == len(tried.data)
    assert [truth(ticket) for ticket in (tried, behind)] == ["maybe", "no"]
    assert not ends.transport.withdraw(tried)
    assert ends.transport.withdraw(behind)
    assert ends.read_all() == [body] * 199
    assert [truth(ticket) for ticket in (tried, behind)] == ["yes", "no"]


def test_a_full_tls_peer_gets_the_stream_intact(tls: Make) -> None:
    """A message many times as large as TLS takes at once arrives whole, whatever the pieces in which it is read."""
    ends = tls(write_buffer=BIG * 4)
    body = bytes(range(256)) * (BIG // 128)
    ends.transport.send(frame(body))
    for number in range(200):
        ends.transport.flush()
        ends.transport.send(frame(f"{number}"))
        ends.read_some(1 + number * 37)
    assert ends.read_all() == [body, *map(str, range(200))]


# -- reading


def test_received_frames_come_out_whole(either: Make) -> None:
    """receive gives the messages and control frames that came, and counts their bytes."""
    ends = either()
    sent = encode_message("hello", masked=False) + encode(Opcode.PING, b"p", masked=False)
    assert ends.transport.receive() == []
    ends.there.send(sent)
    assert receive(ends) == ["hello", Ping(b"p")]
    assert ends.transport.bytes_received == len(sent)
    assert (ends.transport.heard_at or 0) > 0
    assert not ends.transport.has_more


def receive(ends: Ends) -> list[Received]:
    """What comes first, within SOON."""
    deadline = time.monotonic() + SOON
    while not (items := ends.transport.receive()):
        assert time.monotonic() < deadline
    return items


def test_what_came_behind_the_upgrade_is_received_first(plain: Make) -> None:
    """The bytes that the dial had left over are the first to be read, without the socket."""
    ends = plain(initial=encode_message("early", masked=False))
    assert ends.transport.has_more
    assert ends.transport.receive() == ["early"]
    assert ends.transport.bytes_received == len(encode_message("early", masked=False))


def test_bytes_inside_tls_count_as_more(tls: Make) -> None:
    """has_more sees what OpenSSL has decrypted already, of which no selector tells."""
    ends = tls()
    record = b"".join(encode_message("x" * 100, masked=False) for _ in range(100))
    ends.there.send(record)
    deadline = time.monotonic() + SOON
    while not ends.transport.has_more:
        try:
            # A read of one byte makes OpenSSL decrypt the whole record.
            assert ends.transport._sock.recv(1) == record[:1]
        except ssl.SSLWantReadError:
            assert time.monotonic() < deadline
    ends.transport._decoder.feed(record[:1])
    total = 0
    while total < 100:
        assert ends.transport.has_more
        total += len(ends.transport.receive())
    assert ends.transport.receive() == []
    ends.there.send(record)
    ends.transport.close()
    assert not ends.transport.has_more


def test_the_end_of_the_stream_is_a_loss(either: Make) -> None:
    """A FIN without a close frame raises ConnectionLost that says so, after what came before it."""
    ends = either()
    ends.there.send(encode_message("last", masked=False))
    ends.there.close()
    assert receive(ends) == ["last"]
    with pytest.raises(ConnectionLost, match="without a close frame"):
        receive(ends)


def test_a_reset_is_a_loss(made: list[Ends]) -> None:
    """An RST raises ConnectionLost with the system's reason."""
    ends = Ends(*tcp_pair(), 0)
    made.append(ends)
    ends.there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, room._RESET)
    ends.there.close()
    with pytest.raises(ConnectionLost, match="broke: Connection reset"):
        receive(ends)


def test_a_broken_frame_is_a_protocol_error(either: Make) -> None:
    """receive raises ProtocolError when the peer breaks the protocol."""
    ends = either()
    ends.there.send(b"\xff\xff")
    with pytest.raises(ProtocolError):
        receive(ends)


# -- the end


def test_a_write_error_leaves_reading_possible(made: list[Ends]) -> None:
    """When writing fails the peer's close frame can still be read; nothing more is written."""
    ends = Ends(*tcp_pair(), 0)
    made.append(ends)
    ends.there.send(encode_close(1001, "going", masked=False))
    ends.transport._sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="writing failed") as caught:
        ends.transport.send(frame("into nothing"))
    assert caught.value.written == "no"
    assert isinstance(ends.transport.error, ConnectionLost)
    assert isinstance(ends.transport.error.__cause__, OSError)
    ends.transport.flush()
    ends.transport.send_control(Opcode.PING, b"")
    ends.transport.send_close(1000)
    assert not ends.transport.wants_write
    assert receive(ends) == [Close(1001, "going")]


def test_a_write_error_in_a_flush_ends_the_wait(either: Make) -> None:
    """A sender that waits is told when a later write fails; what was tried under TLS is "maybe"."""
    ends = either(write_buffer=0)
    begun = ends.transport.send(frame(b"x" * BIG))
    queued = ends.transport.send(frame("queued"))
    waiters = [Waiter(ends.transport, ticket) for ticket in (begun, queued)]
    socket.socket.shutdown(ends.transport._sock, socket.SHUT_WR)
    ends.transport.flush()
    errors = [waiter.join().error for waiter in waiters]
    assert [error and error.written for error in errors] == ["maybe", "no"]
    assert "writing failed" in str(errors[0])


def test_a_tls_write_that_failed_is_maybe(tls: Make) -> None:
    """A TLS write that fails may have delivered some records, so that it is never called "no"."""
    ends = tls()
    socket.socket.shutdown(ends.transport._sock, socket.SHUT_WR)
    with pytest.raises(ConnectionLost) as caught:
        ends.transport.send(frame("x"))
    assert caught.value.written == "maybe"


class Interrupted:
    """A socket in whose send a Ctrl-C comes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> NoReturn:
        raise KeyboardInterrupt


def test_an_interrupted_write_is_never_resumed(plain: Make) -> None:
    """A Ctrl-C inside a write fails the transport for good: nobody knows which bytes are missing."""
    ends = plain()
    sock: Any = Interrupted(ends.transport._sock)
    ends.transport._sock = sock
    with pytest.raises(KeyboardInterrupt):
        ends.transport.send(frame("x"))
    with pytest.raises(ConnectionLost, match="interrupted"):
        ends.transport.send(frame("y"))


def test_an_interrupted_flush_is_maybe(whole: Ends) -> None:
    """A message on which a Ctrl-C fell while it was flushed is "maybe", those behind it are "no"."""
    first, second = whole.transport.send(frame("1")), whole.transport.send(frame("2"))
    sock: Any = Interrupted(whole.transport._sock)
    whole.transport._sock = sock
    waiters = [Waiter(whole.transport, ticket) for ticket in (first, second)]
    with pytest.raises(KeyboardInterrupt):
        whole.transport.flush()
    errors = [waiter.join().error for waiter in waiters]
    assert [error and error.written for error in errors] == ["maybe", "no"]


def read_to_the_end(sock: socket.socket) -> bytes:
    """Read until the peer has ended the connection; returns the empty rest."""
    sock.settimeout(SOON)
    while sock.recv(1 << 20):
        pass
    return b""


def test_abort_ends_everything_at_once(either: Make) -> None:
    """abort ends the wait of a sender and lets the peer see the end; it may come twice and after close."""
    ends = either(write_buffer=0)
    waiter = Waiter(ends.transport, ends.transport.send(frame(b"x" * BIG)))
    ends.transport.abort()
    ends.transport.abort()
    assert "aborted" in str(waiter.join().error)
    with pytest.raises(ConnectionLost):
        receive(ends)
    assert not read_to_the_end(ends.there)
    ends.transport.close()
    ends.transport.abort()
    assert ends.transport.fileno() == -1


def test_abort_bears_a_socket_that_is_shut_down_already(plain: Make) -> None:
    """abort says nothing when the operating system finds nothing to shut down."""
    ends = plain()
    ends.transport._sock.close()
    ends.transport.abort()


def test_close_gives_the_descriptor_back(either: Make) -> None:
    """close may come twice; afterwards reading raises ConnectionLost."""
    ends = either()
    assert ends.transport.fileno() >= 0
    ends.transport.close()
    ends.transport.close()
    assert ends.transport.fileno() == -1
    with pytest.raises(ConnectionLost):
        ends.transport.receive()


def test_close_with_reset_discards_what_the_kernel_holds(made: list[Ends]) -> None:
    """With reset=True the peer sees an RST, whatever was queued."""
    ends = Ends(*tcp_pair(), BIG * 2)
    made.append(ends)
    ends.transport.send(frame(b"x" * BIG))
    ends.transport.close(reset=True)
    with pytest.raises(ConnectionResetError):
        read_to_the_end(ends.there)


def test_a_socket_that_refuses_the_reset_is_closed_all_the_same(plain: Make) -> None:
    """close gives the descriptor back although the option for a reset is refused."""

    class Refusing(Interrupted):
        def setsockopt(self, *_: object) -> NoReturn:
            raise OSError("reset already")

    ends = plain()
    sock: Any = Refusing(ends.transport._sock)
    ends.transport._sock = sock
    ends.transport.close(reset=True)
    assert ends.transport.fileno() == -1


def test_a_forked_child_closes_its_copy_without_the_lock(plain: Make) -> None:
    """forget closes the descriptor although the lock is held for ever, and says nothing to the peer."""
    ends = plain()
    with ends.transport._door._lock:
        ends.transport.forget()
    assert ends.transport.fileno() == -1


def test_a_large_message_is_held_once(plain: Make) -> None:
    """A 64 MiB message to a peer that does not read is held as the frame that was given, not copied again."""
    size = 64 << 20
    ends = plain(write_buffer=size * 2)
    data = frame(bytes(size))
    gc.collect()
    tracemalloc.start()
    try:
        ends.transport.send(data)
        ends.transport.flush()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size // 16
