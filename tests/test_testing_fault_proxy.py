"""The proxy that makes faults: raw sockets say exactly what it does, a Connection what that means."""

import fcntl
import random
import select
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest
from tenacity import RetryCallState

from evtws import Connection, ConnectionLost, Message, ReconnectPolicy, ReplyTimeout, StaleConnection, WriteTimeout
from evtws.testing import Direction, FaultProxy, Server, tls_contexts
from evtws.testing.pipe import CAPACITY, Pipe
from evtws.testing.relay import RECEIVE_BUFFER

from .faults.support import Ear, ask, echo, until
from .live import QUICK, nothing_leaks  # noqa: F401
from .raw import closed_port
from .timing import MS, SOON

WAYS = ("to_server", "to_client")
#: More than all buffers on the way hold.
PLENTY = 64 << 20


class Net:
    """A proxy before a listening socket, and the connections through it."""

    def __init__(self, stack: ExitStack, **settings: Any) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(SOON)
        self.proxy = stack.enter_context(FaultProxy(self.listener.getsockname()[1], **settings))

    def dial(self) -> socket.socket:
        """A client's socket; the server need not hear of it."""
        return self._kept(socket.create_connection(("127.0.0.1", self.proxy.port), timeout=SOON))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The client's and the server's end of a new connection."""
        client = self.dial()
        server = self._kept(self.listener.accept()[0])
        server.settimeout(SOON)
        return client, server

    def ends(self, way: str) -> tuple[Direction, socket.socket, socket.socket]:
        """A new connection, seen along that way: the direction, who sends, who receives."""
        client, server = self.connect()
        if way == "to_server":
            return self.proxy.to_server, client, server
        return self.proxy.to_client, server, client

    def _kept(self, sock: socket.socket) -> socket.socket:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._stack.enter_context(sock)


@pytest.fixture
def net(nothing_leaks: None) -> Iterator[Net]:  # noqa: F811
    """A proxy that does nothing yet."""
    with ExitStack() as stack:
        yield Net(stack)


def read(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(min(count - len(data), 1 << 18))
        assert chunk, f"the end after {len(data)} of {count} bytes"
        data += chunk
    return bytes(data)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the end."""
    data = bytearray()
    while chunk := sock.recv(1 << 18):
        data += chunk
    return bytes(data)


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection ends by an RST, whatever comes before."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False


def is_broken(sock: socket.socket) -> bool:
    """Whether writes soon fail."""

    def fails() -> bool:
        try:
            sock.sendall(b"x")
        except OSError:
            return True
        return False

    return until(fails)


def is_silent(*socks: socket.socket) -> bool:
    """Whether neither bytes nor an end comes for a while."""
    return select.select(socks, [], [], 50 * MS)[0] == []


def reset(sock: socket.socket) -> None:
    """Close by an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_dial_reset(net: Net) -> bool:
    """Whether a new connection is reset, perhaps before its socket is at hand."""
    try:
        return is_reset(net.dial())
    except ConnectionResetError:
        return True


def costs_less_than(seconds: float, what: Callable[[], None]) -> bool:
    """Whether that is so of all threads' time on the processor, which a busy machine hardly changes; best of three."""
    for _ in range(3):
        began = time.process_time()
        what()
        if time.process_time() - began < seconds:
            return True
    return False


def send_in_thread(sock: socket.socket, data: bytes) -> threading.Thread:
    """Send all that from a thread of its own, as far as the connection lets it."""

    def send() -> None:
        try:
            sock.sendall(data)
        except OSError:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def fill(sock: socket.socket) -> int:
    """Send until there is no room for a while; how many bytes that took."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 50 * MS)[1]:
        sent += sock.send(bytes(65536))
        assert sent < PLENTY, "there is always room"
    sock.settimeout(SOON)
    return sent


# Without faults


def test_bytes_pass_unchanged(net: Net) -> None:
    """Megabytes pass both ways at once, unchanged, and are counted."""
    client, server = net.connect()
    up, down = random.randbytes(3_000_000), random.randbytes(2_000_000)
    threads = [send_in_thread(client, up), send_in_thread(server, down)]
    assert read(client, len(down)) == down
    assert read(server, len(up)) == up
    for thread in threads:
        thread.join()
    assert net.proxy.wait_for(lambda: net.proxy.to_server.bytes_passed == len(up), SOON)
    assert net.proxy.wait_for(lambda: net.proxy.to_client.bytes_passed == len(down), SOON)
    assert net.proxy.connections == net.proxy.open_connections == 1


def test_connections_do_not_mix(net: Net) -> None:
    """Each connection has an upstream connection of its own."""
    pairs = [net.connect() for _ in range(20)]
    for number, (client, server) in enumerate(pairs):
        client.sendall(b"up %2d" % number)
        server.sendall(b"down %2d" % number)
    assert [(read(server, 5), read(client, 7)) for client, server in pairs] == [
        (b"up %2d" % number, b"down %2d" % number) for number in range(20)
    ]
    assert net.proxy.connections == net.proxy.open_connections == 20


def test_it_is_fast(net: Net) -> None:
    """Tens of megabytes cost less than a second of the processor, and so do ten thousand small messages."""
    client, server = net.connect()

    def megabytes() -> None:
        sending = send_in_thread(client, bytes(30_000_000))
        read(server, 30_000_000)
        sending.join()

    def messages() -> None:
        for _ in range(5000):
            client.sendall(b"message")
            server.sendall(read(server, 7))
            read(client, 7)

    patience = 1000 * MS if sys.gettrace() is None else 5000 * MS  # what measures coverage slows it down
    assert costs_less_than(patience, megabytes)
    assert costs_less_than(patience, messages)


@pytest.mark.parametrize("way", WAYS)
def test_a_fin_passes_after_the_bytes(net: Net, way: str) -> None:
    """A FIN comes after all bytes before it and ends one way only; after the other the connection is gone."""
    _, source, sink = net.ends(way)
    sending = send_in_thread(source, bytes(8_000_000))
    sending.join(50 * MS)  # by now the buffers are full

    def finish() -> None:
        sending.join(SOON)
        source.shutdown(socket.SHUT_WR)

    finishing = threading.Thread(target=finish)
    finishing.start()
    assert len(read_all(sink)) == 8_000_000
    finishing.join()
    sink.sendall(b"still here")
    assert read(source, 10) == b"still here"
    assert net.proxy.open_connections == 1
    sink.shutdown(socket.SHUT_WR)
    assert source.recv(1) == b""
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 0, SOON)


@pytest.mark.parametrize("way", WAYS)
def test_an_rst_passes_as_one(net: Net, way: str) -> None:
    """An RST of one side is an RST on the other."""
    _, source, sink = net.ends(way)
    reset(source)
    assert is_reset(sink)
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 0, SOON)


def test_last_words_before_an_rst(net: Net) -> None:
    """What a side sent before it was reset arrives, though by then it cannot be written to."""
    client, server = net.connect()
    client.sendall(b"first")
    assert read(server, 5) == b"first"  # so the proxy is connected, and does not take the reset for a refusal
    net.proxy.to_client.stalled = True
    server.sendall(b"last words")
    reset(server)
    # Bytes for the server find out about the reset.
    assert until(lambda: client.send(b"too late") and net.proxy.to_server.bytes_swallowed)
    net.proxy.to_client.stalled = False
    assert read(client, 10) == b"last words"
    assert is_reset(client)


def test_an_end_behind_a_fin(net: Net) -> None:
    """A side that has closed wholly, not only its own way, resets the connection when more comes for it."""
    client, server = net.connect()
    server.close()
    assert client.recv(1) == b""
    assert is_broken(client)
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 0, SOON)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_read_is_held_within_bounds(net: Net, way: str) -> None:
    """When one side does not read, the proxy soon stops reading the other; later everything arrives."""
    direction, source, sink = net.ends(way)
    sent = fill(source)
    assert sum(pipe._held for pipe in direction.pipes) <= CAPACITY + 65536
    assert direction.bytes_swallowed == 0
    assert len(read(sink, sent)) == sent
    source.sendall(b"more")
    assert read(sink, 4) == b"more"


# Slow


@pytest.mark.parametrize("way", WAYS)
def test_latency(net: Net, way: str) -> None:
    """Bytes, and the FIN after them, come `latency` later that way, and at once the other way."""
    direction, source, sink = net.ends(way)
    direction.latency = 80 * MS
    began = time.monotonic()
    source.sendall(b"one")
    sink.sendall(b"back")
    assert read(source, 4) == b"back"
    assert time.monotonic() - began < 80 * MS
    assert read(sink, 3) == b"one"
    assert time.monotonic() - began >= 80 * MS
    began = time.monotonic()
    source.shutdown(socket.SHUT_WR)
    assert sink.recv(1) == b""
    assert time.monotonic() - began >= 80 * MS


def test_latency_is_no_bandwidth(net: Net) -> None:
    """A hundred bytes under way at once are late by one latency, not by a hundred."""
    direction, source, sink = net.ends("to_server")
    direction.latency = 80 * MS
    began = time.monotonic()
    for _ in range(100):
        source.sendall(b"x")
    assert read(sink, 100) == b"x" * 100
    assert 80 * MS <= time.monotonic() - began < 800 * MS


def test_less_latency_does_not_overtake(net: Net) -> None:
    """Bytes that are under way when the latency ends come first, and as late as they were to be."""
    direction, source, sink = net.ends("to_server")
    direction.latency = 80 * MS
    began = time.monotonic()
    source.sendall(b"slow")
    assert net.proxy.wait_for(lambda: any(pipe._held for pipe in direction.pipes), SOON)
    direction.latency = 0.0
    source.sendall(b"fast")
    assert read(sink, 8) == b"slowfast"
    assert time.monotonic() - began >= 80 * MS


def test_jitter_keeps_the_order(net: Net) -> None:
    """With jitter bytes come late by different times, and in their order."""
    direction, source, sink = net.ends("to_client")
    direction.latency, direction.jitter = 5 * MS, 20 * MS
    delays = [direction.delay() for _ in range(100)]
    assert 5 * MS <= min(delays) < max(delays) <= 25 * MS
    numbers = b"".join(struct.pack("!H", number) for number in range(300))
    for at in range(0, len(numbers), 2):
        source.sendall(numbers[at : at + 2])
        if at % 20 == 0:
            time.sleep(MS)
    assert read(sink, len(numbers)) == numbers


@pytest.mark.parametrize(("bandwidth", "count"), [(100_000, 20_000), (50, 10), (10_000_000, 2_000_000)])
def test_bandwidth(net: Net, bandwidth: int, count: int) -> None:
    """Bytes come at the rate of the bandwidth, within a tick, however low or high it is."""
    direction, source, sink = net.ends("to_server")
    direction.bandwidth = bandwidth
    time.sleep(60 * MS)  # the idle line saves up nothing
    sending = send_in_thread(source, bytes(count))
    sink.recv(1)
    began = time.monotonic()
    read(sink, count - 1)
    took = time.monotonic() - began
    sending.join()
    assert 0.8 * count / bandwidth <= took <= 1.5 * count / bandwidth + 100 * MS
    direction.bandwidth = None
    source.sendall(bytes(1_000_000))
    began = time.monotonic()
    read(sink, 1_000_000)
    assert time.monotonic() - began < 1000 * MS


def test_both_directions_are_told_at_once(nothing_leaks: None) -> None:  # noqa: F811
    """The constructor's settings are for both directions."""
    settings = {"latency": 20 * MS, "jitter": MS, "bandwidth": 10_000, "slice_size": 3}
    with ExitStack() as stack:
        net = Net(stack, **settings)
        for way in WAYS:
            direction = getattr(net.proxy, way)
            assert {name: getattr(direction, name) for name in settings} == settings
        client, server = net.connect()
        began = time.monotonic()
        client.sendall(b"ping")
        server.sendall(read(server, 4))
        assert read(client, 4) == b"ping"
        assert time.monotonic() - began >= 40 * MS


# Sliced


@pytest.mark.parametrize("way", WAYS)
def test_slices(net: Net, way: str) -> None:
    """No segment has more than `slice_size` bytes, and slices that a bandwidth sets apart are read one by one."""
    direction, source, sink = net.ends(way)
    direction.slice_size = 7
    direction.bandwidth = 350
    source.sendall(b"x" * 30)
    assert [len(sink.recv(100)) for _ in range(5)] == [7, 7, 7, 7, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO has the number of segments on Linux only")
def test_slices_are_segments(net: Net) -> None:
    """Each slice is a segment of its own, though they follow at once."""
    direction, source, sink = net.ends("to_client")
    direction.slice_size = 1
    source.sendall(b"x" * 200)
    assert read(sink, 200) == b"x" * 200
    segments = struct.unpack_from("I", sink.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 152)[0]
    assert segments == 200


# Cut


@pytest.mark.parametrize(("way", "count"), list(product(WAYS, [0, 1, 5, 300_000])))
def test_cut_by_a_fin(net: Net, way: str, count: int) -> None:
    """The receiver gets exactly the first `cut_after` bytes, then a FIN; the sender gets a FIN too."""
    getattr(net.proxy, way).cut_after = count
    direction, source, sink = net.ends(way)
    sending = send_in_thread(source, bytes(range(256)) * 2000)
    assert read_all(sink) == (bytes(range(256)) * 2000)[:count]
    assert source.recv(1) == b""
    sending.join()
    assert direction.bytes_passed == count
    assert net.proxy.open_connections == 0


@pytest.mark.parametrize("way", WAYS)
def test_cut_by_an_rst(net: Net, way: str) -> None:
    """With `cut_by` an RST both sides are reset after that many bytes."""
    direction, source, sink = net.ends(way)
    direction.cut_after, direction.cut_by = 5, "RST"
    source.sendall(b"four")
    assert read(sink, 4) == b"four"
    assert is_silent(source)
    source.sendall(b"more")
    assert is_reset(source)
    assert is_reset(sink)
    assert direction.bytes_passed == 5


def test_cut_counts_per_connection_and_way(net: Net) -> None:
    """Each connection is cut after that many bytes of its own, and the other way does not count."""
    net.proxy.to_server.cut_after = 4
    for _ in range(3):
        client, server = net.connect()
        server.sendall(b"a long way back")
        assert read(client, 15) == b"a long way back"
        client.sendall(b"way there")
        assert read_all(server) == b"way "
        assert client.recv(1) == b""
    assert net.proxy.to_server.bytes_passed == 12


def test_cut_that_is_passed_already(net: Net) -> None:
    """A connection that has passed more than `cut_after` bytes is cut at once, one that has not is spared."""
    old, new = net.connect(), net.connect()
    old[0].sendall(b"many bytes")
    assert read(old[1], 10) == b"many bytes"
    net.proxy.to_server.cut_after = 8
    assert old[0].recv(1) == old[1].recv(1) == b""
    assert is_silent(*new)
    net.proxy.to_server.cut_after = None
    new[0].sendall(b"many bytes")
    assert read(new[1], 10) == b"many bytes"


def test_cut_of_a_sender_that_waits(net: Net) -> None:
    """A cut ends a connection whose receiver does not read, and nothing that is held gets out."""
    direction, source, sink = net.ends("to_server")
    fill(source)
    direction.cut_after = direction.bytes_passed - 1000
    passed = direction.bytes_passed
    assert len(read_all(sink)) == passed
    assert source.recv(1) == b""


def test_cut_of_what_is_there(net: Net) -> None:
    """`cut_in` counts from now, and is for the connections that are there now."""
    client, server = net.connect()
    client.sendall(b"before")
    assert read(server, 6) == b"before"
    net.proxy.to_server.cut_in(3)
    later_client, later_server = net.connect()
    for sock in (client, later_client):
        sock.sendall(b"behind")
    assert read_all(server) == b"beh"
    assert read(later_server, 6) == b"behind"
    net.proxy.to_client.cut_in(0)
    assert later_client.recv(1) == later_server.recv(1) == b""


def test_cut_on_the_last_send_of_a_turn(net: Net) -> None:
    """A cut that falls on the last of many slices is not missed."""
    net.proxy.to_server.slice_size = 1
    for count in (63, 64, 65, 128):
        net.proxy.to_server.cut_after = count
        client, server = net.connect()
        client.sendall(b"x" * count)
        assert read_all(server) == b"x" * count
        assert client.recv(1) == b""


# Swallowed, stalled, half-open


@pytest.mark.parametrize("way", WAYS)
def test_swallow(net: Net, way: str) -> None:
    """One way everything is read and thrown away, the other way passes; later bytes pass again."""
    direction, source, sink = net.ends(way)
    direction.swallow = True
    source.sendall(b"x" * 3_000_000)
    assert net.proxy.wait_for(lambda: direction.bytes_swallowed == 3_000_000, SOON)
    sink.sendall(b"hello?")
    assert read(source, 6) == b"hello?"
    assert is_silent(sink)
    direction.swallow = False
    source.sendall(b"again")
    assert read(sink, 5) == b"again"
    assert net.proxy.wait_for(lambda: direction.bytes_passed == 5, SOON)


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_an_end_is_swallowed_too(net: Net, end: Any) -> None:
    """A FIN or RST is thrown away as bytes are; the connection is gone when the other side ends as well."""
    direction, source, sink = net.ends("to_server")
    direction.swallow = True
    end(source)
    assert is_silent(sink)
    assert net.proxy.open_connections == 1
    sink.sendall(b"anybody there?")
    sink.close()
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 0, SOON)


def test_half_open(net: Net) -> None:
    """Nothing passes a half-open connection any more, not even its ends; a new connection is whole."""
    client, server = net.connect()
    net.proxy.half_open_all()
    client.sendall(b"x" * 2_000_000)
    server.sendall(b"x" * 2_000_000)
    assert is_silent(client, server)
    client.shutdown(socket.SHUT_WR)
    assert is_silent(client, server)
    assert net.proxy.open_connections == 1
    new_client, new_server = net.connect()
    new_client.sendall(b"new")
    assert read(new_server, 3) == b"new"
    server.close()
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 1, SOON)


def test_half_open_loses_what_is_under_way(net: Net) -> None:
    """Bytes that are held when the connection becomes half-open are lost, and no cut ends it."""
    direction, source, sink = net.ends("to_server")
    direction.latency = 20 * MS
    source.sendall(b"lost")
    assert net.proxy.wait_for(lambda: any(pipe._held for pipe in direction.pipes), SOON)
    net.proxy.half_open_all()
    direction.cut_after = 0
    assert is_silent(source, sink)
    net.proxy.drop_all()
    assert source.recv(1) == sink.recv(1) == b""


@pytest.mark.parametrize("way", WAYS)
def test_stalled(net: Net, way: str) -> None:
    """Nothing is read, so that writes soon find no room, while the other way passes; then everything arrives."""
    direction, source, sink = net.ends(way)
    direction.stalled = True
    sent = fill(source)
    assert direction.bytes_passed == direction.bytes_swallowed == 0
    sink.sendall(b"hello?")
    assert read(source, 6) == b"hello?"
    assert is_silent(sink)
    direction.stalled = False
    began = time.monotonic()
    assert len(read(sink, sent)) == sent
    assert time.monotonic() - began < 1000 * MS


def test_stalled_from_the_start(net: Net) -> None:
    """Bytes and ends are read by nobody before the stall is over."""
    net.proxy.to_server.stalled = True
    client, server = net.connect()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    assert is_silent(server)
    net.proxy.to_server.stalled = False
    assert read_all(server) == b"early"


@pytest.mark.skipif(sys.platform != "linux", reason="what is not acknowledged can be asked on Linux only")
def test_a_stall_after_much_traffic(net: Net) -> None:
    """The system holds little of what the proxy does not read, even of a sender that was fast before."""
    direction, source, sink = net.ends("to_server")
    sending = send_in_thread(source, bytes(50_000_000))
    read(sink, 50_000_000)
    sending.join()
    direction.stalled = True
    sent = fill(source)
    unacknowledged = struct.unpack("i", fcntl.ioctl(source, termios.TIOCOUTQ, bytes(4)))[0]
    assert sent - unacknowledged <= 2 * RECEIVE_BUFFER


# All connections


def test_drop_all(net: Net) -> None:
    """Every connection ends by a FIN on both sides, at once, and what is held is lost."""
    pairs = [net.connect() for _ in range(3)]
    net.proxy.to_client.latency = 50 * MS
    for _, server in pairs:
        server.sendall(b"held")
    net.proxy.drop_all()
    assert net.proxy.open_connections == 0
    assert [read_all(sock) for pair in pairs for sock in pair] == [b""] * 6
    net.proxy.to_client.latency = 0.0
    client, server = net.connect()
    client.sendall(b"new")
    assert read(server, 3) == b"new"


def test_a_fin_is_no_reset(net: Net) -> None:
    """A side that was dropped while it sent gets a FIN, even though its bytes were not read."""
    client, server = net.connect()
    net.proxy.to_server.stalled = True
    client.sendall(b"x" * 100_000)
    net.proxy.drop_all()
    assert read_all(client) == read_all(server) == b""


def test_a_side_that_ignores_the_end_is_not_waited_for(net: Net) -> None:
    """After a drop the sockets go away by themselves, though no side closes."""
    client, server = net.connect()
    net.proxy.drop_all()
    assert client.recv(1) == server.recv(1) == b""
    assert net.proxy.wait_for(lambda: not net.proxy.to_server.pipes, SOON)
    assert is_broken(client)


def test_reset_all(net: Net) -> None:
    """Every connection can be reset on both sides at once."""
    pairs = [net.connect() for _ in range(3)]
    net.proxy.drop_all(reset=True)
    assert net.proxy.open_connections == 0
    assert [is_reset(sock) for pair in pairs for sock in pair] == [True] * 6


@pytest.mark.parametrize("by_rst", [False, True])
def test_down_and_up(net: Net, by_rst: bool) -> None:
    """While it is down connections are ended and refused; up again they are accepted at the same port."""
    port = net.proxy.port
    for _ in range(3):
        client, server = net.connect()
        net.proxy.down(reset=by_rst)
        net.proxy.down()
        assert is_reset(client) is is_reset(server) is by_rst
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                net.dial()
        net.proxy.up()
        net.proxy.up()
        assert net.proxy.port == port
    client, server = net.connect()
    client.sendall(b"new")
    assert read(server, 3) == b"new"
    assert net.proxy.connections == 4


def test_the_port_is_kept_while_it_is_down(net: Net) -> None:
    """Nobody else is given the port while the proxy is down."""
    net.proxy.down()
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("127.0.0.1", net.proxy.port))
    net.proxy.up()
    net.connect()


def test_a_port_that_is_taken(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process takes the port, `down` and `up` say so, and `up` works when it is free again."""

    def fail(_port: int) -> socket.socket:
        raise OSError("in use")

    client, _ = net.connect()
    with monkeypatch.context() as patch:
        patch.setattr("evtws.testing.fault_proxy._bound", fail)
        with pytest.raises(OSError, match="in use"):
            net.proxy.down()
        assert client.recv(1) == b""
        with pytest.raises(OSError, match="in use"):
            net.proxy.up()
    net.proxy.up()
    net.connect()


def test_refuse(net: Net) -> None:
    """With `refuse` a new connection is accepted and closed at once, and the server hears nothing."""
    client, server = net.connect()
    net.proxy.refuse = True
    assert net.proxy.refuse
    assert net.dial().recv(1) == b""
    assert net.proxy.connections == 2
    assert net.proxy.open_connections == 1
    client.sendall(b"old")
    assert read(server, 3) == b"old"
    net.proxy.refuse = False
    net.connect()


# The upstream


def test_an_upstream_that_refuses(net: Net) -> None:
    """A client is reset when the upstream refuses."""
    net.proxy.upstream = closed_port()
    assert is_dial_reset(net)
    net.proxy.upstream = ("127.0.0.1", closed_port())
    assert is_dial_reset(net)
    assert net.proxy.wait_for(lambda: net.proxy.open_connections == 0, SOON)


def test_an_upstream_that_cannot_be_reached(net: Net) -> None:
    """A client is reset when the system knows no way to the upstream."""
    net.proxy.upstream = ("255.255.255.255", 9)
    assert is_dial_reset(net)


def test_an_upstream_that_does_not_answer(net: Net) -> None:
    """A client whose upstream does not answer waits, and can be dropped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        net.proxy.upstream = full.getsockname()[1]
        client = net.dial()
        client.sendall(b"hello?")
        assert is_silent(client)
        assert net.proxy.open_connections == 1
        net.proxy.drop_all()
        assert client.recv(1) == b""


def test_the_upstream_may_change(net: Net) -> None:
    """New connections go to the new upstream, by port or by host and port, and old ones stay."""
    client, server = net.connect()
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(SOON)
        address: tuple[str, int] = ("localhost", other.getsockname()[1])
        net.proxy.upstream = address
        assert net.proxy.upstream == address
        new = net.dial()
        new.sendall(b"new")
        with other.accept()[0] as accepted:
            assert read(accepted, 3) == b"new"
        client.sendall(b"old")
        assert read(server, 3) == b"old"


# The proxy itself


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("ws://127.0.0.1:9/x?y", "ws://127.0.0.1:{}/x?y"),
        ("wss://127.0.0.1:9", "wss://127.0.0.1:{}"),
        ("ws://localhost/?", "ws://127.0.0.1:{}/?"),
        ("wss://user:p@[::1]:443?a=b@c", "wss://user:p@127.0.0.1:{}?a=b@c"),
    ],
)
def test_url_of(net: Net, url: str, through: str) -> None:
    """A URL keeps all but its host and port."""
    assert net.proxy.url_of(url) == through.format(net.proxy.port)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "ws:///path", "ws://user@/", ""])
def test_url_of_nowhere(net: Net, url: str) -> None:
    """What has no scheme or no host is a ValueError."""
    with pytest.raises(ValueError, match="no scheme or no host"):
        net.proxy.url_of(url)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("latency", [-1, float("nan"), float("inf"), None, "1", True]),
        ("jitter", [-0.1, float("nan"), None]),
        ("bandwidth", [0, -5, float("inf"), "fast", False]),
        ("slice_size", [0, -1, 1.5, True]),
        ("cut_after", [-1, 1.5, True]),
        ("cut_by", ["fin", None, True]),
        ("swallow", [1, None, "yes"]),
        ("stalled", [0, None]),
    ],
)
def test_values_that_make_no_sense(net: Net, way: str, name: str, values: list[Any]) -> None:
    """A bad value is a ValueError that names the setting and the value, and changes nothing."""
    direction = getattr(net.proxy, way)
    before = getattr(direction, name)
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is .*{value!r}"):
            setattr(direction, name, value)
    assert getattr(direction, name) == before


def test_calls_that_make_no_sense(net: Net) -> None:
    """A bad count or flag is a ValueError; a setting that does not exist is an AttributeError."""
    with pytest.raises(ValueError, match=r"count is .*-1"):
        net.proxy.to_server.cut_in(-1)
    with pytest.raises(ValueError, match=r"refuse is .*1"):
        net.proxy.refuse = 1  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="latencey"):
        net.proxy.to_server.latencey = 1


@pytest.mark.parametrize("upstream", [0, 65536, True, "9", ("127.0.0.1", 0), ("127.0.0.1",), (127, 9), None])
def test_upstreams_that_make_no_sense(net: Net, upstream: Any) -> None:
    """A bad upstream is a ValueError that names it."""
    with pytest.raises(ValueError, match="upstream is "):
        FaultProxy(upstream)
    with pytest.raises(ValueError, match="upstream is "):
        net.proxy.upstream = upstream


def test_bad_settings_leave_nothing(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is made with a bad value, or before a host without an address, is not made."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror("no such host")

    with pytest.raises(ValueError, match=r"latency is .*-1"):
        FaultProxy(9, latency=-1)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OSError, match="no such host"):
        FaultProxy(("example", 9))


def test_close_is_bounded_and_final(net: Net) -> None:
    """Closing ends open, held, half-open and unread connections within two seconds; then changes have no effect."""
    proxy = net.proxy
    pairs = [net.connect() for _ in range(3)]
    proxy.half_open_all()
    pairs += [net.connect() for _ in range(3)]
    proxy.to_server.latency = 1000.0
    pairs[-1][0].sendall(b"held")
    fill(pairs[-1][1])
    began = time.monotonic()
    proxy.close()
    proxy.close()
    assert time.monotonic() - began < 2000 * MS
    assert proxy.open_connections == 0
    for change in (proxy.drop_all, proxy.half_open_all, proxy.down, proxy.up, lambda: proxy.to_server.cut_in(1)):
        change()
    proxy.to_server.latency = 1.0
    assert proxy.to_server.latency == 1000.0
    with pytest.raises(ConnectionRefusedError):
        net.dial()
    for client, _ in pairs:
        client.settimeout(SOON)
        is_reset(client)  # returns, for there is an end


def test_close_while_it_is_down(net: Net) -> None:
    """A proxy that is down can be closed, and its port is free then."""
    net.proxy.down()
    net.proxy.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", net.proxy.port))


def test_wait_for_gives_up(net: Net) -> None:
    """wait_for returns what was not true when its time is over."""
    began = time.monotonic()
    assert net.proxy.wait_for(lambda: net.proxy.connections, 20 * MS) == 0
    assert time.monotonic() - began >= 20 * MS


def test_wait_for_returns_soon(net: Net) -> None:
    """wait_for returns as soon as what it waits for is true."""
    later = threading.Timer(30 * MS, net.connect)
    later.start()
    began = time.monotonic()
    assert net.proxy.wait_for(lambda: net.proxy.open_connections, SOON) == 1
    assert time.monotonic() - began < SOON / 2
    later.join()


def test_wait_for_may_change_the_proxy(net: Net) -> None:
    """What wait_for asks may change the proxy and does not wait for itself."""

    def change() -> bool:
        net.proxy.to_server.latency += MS
        return net.proxy.to_server.latency > 50 * MS

    assert net.proxy.wait_for(change, SOON)


def test_it_changes_under_traffic(net: Net) -> None:
    """Threads may change settings while others pass bytes, and no byte is lost or moved."""
    client, server = net.connect()
    data = random.randbytes(20_000_000)
    over = threading.Event()

    def change(direction: Direction) -> None:
        while not over.is_set():
            direction.slice_size = random.choice([None, 1000, 50_000])
            direction.latency = random.choice([0.0, MS])
            direction.stalled = random.choice([True, False])
            direction.bandwidth = random.choice([None, 50_000_000])
        direction.stalled = False

    threads = [threading.Thread(target=change, args=(net.proxy.to_server,)) for _ in range(2)]
    for thread in (*threads, sending := send_in_thread(client, data)):
        if thread is not sending:
            thread.start()
    received = bytearray()
    while len(received) < len(data) // 2:
        received += server.recv(1 << 18)
    over.set()
    for thread in threads:
        thread.join(SOON)
    received += read(server, len(data) - len(received))
    sending.join()
    assert received == data


def test_no_descriptor_is_left(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection for which the system has no descriptor is closed, and the next one passes."""

    def fail(*_: object) -> None:
        raise OSError("no descriptor")

    with monkeypatch.context() as patch:
        patch.setattr("evtws.testing.fault_proxy.Relay", fail)
        assert net.dial().recv(1) == b""
    net.connect()


def test_a_fault_of_its_own_is_raised(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong within the proxy resets that connection, and is raised by the next close."""

    def fail(_: Pipe) -> None:
        raise LookupError("a fault of its own")

    client, server = net.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Pipe, "read", fail)
        client.sendall(b"x")
        assert is_reset(client)
        assert is_reset(server)
    with pytest.raises(LookupError, match="its own"):
        net.proxy.close()
    net.proxy.close()


# What it means to a Connection


@pytest.fixture(params=["ws", "wss"])
def contexts(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """The server's context and the client's: none for ws, two for wss."""
    return tls_contexts() if request.param == "wss" else (None, None)


class Wire:
    """A server behind a proxy, and a connection through it."""

    def __init__(self, stack: ExitStack, contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None]) -> None:
        self._stack = stack
        self._client_context = contexts[1]
        self.ear = Ear()
        self.server = stack.enter_context(Server(echo, ssl=contexts[0], record=False))
        self.proxy = stack.enter_context(FaultProxy(self.server.port))

    def dial(self, **options: Any) -> Connection:
        """A new connection, which ends with the test."""
        told = self.ear.options | {"ssl": self._client_context, "ping_interval": None, "request_timeout": SOON}
        connection = Connection(**(told | options))
        connection.dial(self.proxy.url_of(self.server.url))
        return self._stack.enter_context(connection)


@pytest.fixture
def wire(nothing_leaks: None, contexts: Any) -> Iterator[Wire]:  # noqa: F811
    """Such a server and proxy, over ws and over wss."""
    with ExitStack() as stack:
        yield Wire(stack, contexts)


def test_a_connection_passes(wire: Wire) -> None:
    """A Connection works through the proxy, byte by byte too."""
    connection = wire.dial()
    assert connection.request(ask()).params == {"id": 1}
    wire.proxy.to_server.slice_size = wire.proxy.to_client.slice_size = 1
    assert connection.request(ask(2)).params == {"id": 2}
    assert wire.dial().request(ask(3)).params == {"id": 3}


def test_latency_delays_a_reply(wire: Wire) -> None:
    """A reply is late by the latency of both directions, and a request may time out by it."""
    connection = wire.dial()
    wire.proxy.to_server.latency = 60 * MS
    wire.proxy.to_client.latency = 40 * MS
    began = time.monotonic()
    assert connection.request(ask()).params == {"id": 1}
    assert time.monotonic() - began >= 100 * MS
    with pytest.raises(ReplyTimeout):
        connection.request(ask(2), timeout=30 * MS)


@pytest.mark.parametrize(("way", "by"), list(product(WAYS, ["FIN", "RST"])))
def test_a_cut_within_a_message_loses_the_connection(wire: Wire, way: str, by: Any) -> None:
    """A cut in the middle of a request or of its reply ends the request by ConnectionLost."""
    connection = wire.dial()
    direction: Direction = getattr(wire.proxy, way)
    direction.cut_by = by
    direction.cut_in(50_000)
    with pytest.raises(ConnectionLost):
        connection.request(Message.json({"id": 1, "text": "x" * 100_000}))
    assert type(wire.ear.one_error()) is ConnectionLost
    assert wire.server.received_count == (0 if way == "to_server" else 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_swallowed_direction_makes_a_stale_connection(wire: Wire, way: str) -> None:
    """Where one direction is swallowed, pings stay unanswered and the connection is stale."""
    connection = wire.dial(ping_interval=40 * MS)
    connection.ping(SOON)
    getattr(wire.proxy, way).swallow = True
    assert isinstance(wire.ear.one_error(), StaleConnection)


def test_a_stall_makes_writes_time_out(wire: Wire) -> None:
    """A server that stops reading, with a window of zero, makes a send end by WriteTimeout."""
    connection = wire.dial(write_timeout=100 * MS)
    wire.proxy.to_server.stalled = True
    sent = 0
    with pytest.raises(WriteTimeout):  # noqa: PT012
        for _ in range(1000):
            connection.send("x" * 500_000)
            sent += 1
    assert connection.is_connected
    wire.proxy.to_server.stalled = False
    assert wire.server.wait_for(sent, SOON)


def test_a_reset_is_survived(wire: Wire) -> None:
    """After a reset the request in flight is sent again on the next connection."""
    connection = wire.dial(reconnect=QUICK, in_flight="resend")
    wire.proxy.to_client.swallow = True
    future = connection.submit(ask())
    assert wire.proxy.wait_for(lambda: wire.proxy.to_client.bytes_swallowed, SOON)  # the reply
    wire.proxy.to_client.swallow = False
    wire.proxy.drop_all(reset=True)
    assert future.result(SOON).params == {"id": 1}
    assert wire.proxy.connections == wire.server.dials == 2


def test_down_and_up_is_survived(wire: Wire) -> None:
    """While the proxy is down no attempt succeeds; when it is up again the connection is back."""
    attempts: list[int] = []

    def wait(state: RetryCallState) -> float:
        attempts.append(state.attempt_number)
        return 5 * MS

    connection = wire.dial(reconnect=ReconnectPolicy(wait=wait), outbox=10)
    wire.proxy.down()
    assert until(lambda: len(attempts) > 3)
    future = connection.submit(ask())
    assert wire.proxy.connections == 1
    wire.proxy.up()
    assert future.result(SOON).params == {"id": 1}
    assert connection.stats().reconnects == 1


def test_a_half_open_connection_is_left(wire: Wire) -> None:
    """A half-open connection is found stale, and the next one through the same proxy works."""
    connection = wire.dial(ping_interval=40 * MS, reconnect=QUICK, outbox=10)
    connection.ping(SOON)
    wire.proxy.half_open_all()
    assert isinstance(wire.ear.wait_for(lambda: wire.ear.disconnected)[0], StaleConnection)
    assert connection.request(ask()).params == {"id": 1}
    assert wire.proxy.open_connections == 2
    assert len(wire.server.connections) == 2
