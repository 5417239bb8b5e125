"""Many polled peers in one thread, connected to one polled server in another: is anything lost, does memory grow?

    python -m tests.load.polled_peers [--peers 500] [--seconds 10]

Each peer sends numbered packets and is answered by the server with the same; each counts whether its own come back in
their order. Prints the figures; ends 0 if all holds, else 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import selectors
import socket
import sys
import threading
import time
import tracemalloc
from typing import NamedTuple

from evtws import State, WebSocketPeer
from tests.timing import SOON

#: Bytes by which Python's objects may grow between two moments at which all peers are connected and all is answered.
OBJECTS_MAY_GROW = 300_000


class Report(NamedTuple):
    """Packets that came back in order, packets that did not, and by how many bytes Python's objects grew."""

    answered: int
    lost: int
    grown: int


class PolledLoop:
    """A loop that waits for what its peers want, and polls those that may have something to do."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[WebSocketPeer, tuple[int, int]] = {}

    def watch(self, peer: WebSocketPeer) -> None:
        """Wait for what it wants now; for nothing once it is CLOSED."""
        events = peer.wants_read * selectors.EVENT_READ | peer.wants_write * selectors.EVENT_WRITE
        wanted = (peer.fileno(), events)
        before = self._watched.get(peer)
        if wanted == before:
            return
        if before is not None:
            self._selector.unregister(before[0])
            del self._watched[peer]
        if wanted[0] >= 0 and events:
            self._selector.register(wanted[0], events, peer)
            self._watched[peer] = wanted

    def listen(self, listener: socket.socket) -> None:
        """Be woken by who connects; comes out of `turn` as None."""
        self._selector.register(listener, selectors.EVENT_READ, None)

    def turn(self, timeout: float) -> list[WebSocketPeer | None]:
        """Wait, poll, and return whom."""
        ready = [key.data for key, _ in self._selector.select(timeout)]
        for peer in ready:
            if peer is not None:
                peer.poll()
        return ready

    def close(self) -> None:
        self._selector.close()


class EchoServer:
    """One polled server in a thread of its own."""

    def __init__(self, backlog: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self._listener.setblocking(False)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join(SOON)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        loop = PolledLoop()
        loop.listen(self._listener)
        peers: set[WebSocketPeer] = set()
        while not self._done.is_set():
            for peer in loop.turn(0.05):
                if peer is None:
                    peers.update(self._accept())
                else:
                    _echo(peer)
            for peer in list(peers):
                loop.watch(peer)
                if peer.ready_state is State.CLOSED:
                    peers.remove(peer)
        for peer in peers:
            peer.close(-1)
        self._listener.close()
        loop.close()

    def _accept(self) -> list[WebSocketPeer]:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return []
        peer = WebSocketPeer()
        peer.accept_stream(sock)
        peer.poll()  # from here on it says what it waits for
        return [peer]


def _echo(peer: WebSocketPeer) -> None:
    while peer.get_available_packet_count() and peer.ready_state is State.OPEN:
        peer.put_packet(peer.get_packet())


class Caller:
    """One client: what it sent, and what came back."""

    def __init__(self, url: str) -> None:
        self.peer = WebSocketPeer()
        self.peer.connect_to_url(url)
        self.peer.poll()
        self.sent = self.answered = self.lost = 0

    def work(self, *, send: bool) -> None:
        """Take what came back, and send the next packet."""
        peer = self.peer
        while peer.get_available_packet_count():
            self.lost += int(peer.get_packet()) != self.answered
            self.answered += 1
        if send and self.sent == self.answered and peer.ready_state is State.OPEN:
            peer.put_packet(b"%d" % self.sent)
            self.sent += 1


def run(peers: int, seconds: float) -> Report:
    """Have so many peers call for so many seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4 * peers), hard), hard))
    tracemalloc.start()
    server = EchoServer(peers)
    loop = PolledLoop()
    callers = {caller.peer: caller for caller in (Caller(server.url) for _ in range(peers))}
    try:
        _work(loop, callers, seconds / 4)
        before = _objects()
        _work(loop, callers, 3 * seconds / 4)
        grown = _objects() - before
    finally:
        for peer in callers:
            peer.close(-1)
        server.close()
        loop.close()
        tracemalloc.stop()
    lost = sum(caller.lost + caller.sent - caller.answered for caller in callers.values())
    return Report(sum(caller.answered for caller in callers.values()), lost, grown)


def _work(loop: PolledLoop, callers: dict[WebSocketPeer, Caller], seconds: float) -> None:
    """Call for so long, and wait for what is still to be answered."""
    end = time.monotonic() + seconds
    latest = end + SOON
    while (now := time.monotonic()) < end or any(caller.sent > caller.answered for caller in callers.values()):
        assert now < latest, "answers do not come"
        for peer, caller in callers.items():
            caller.work(send=now < end)
            loop.watch(peer)
        loop.turn(0.01)


def _objects() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="many polled peers, one polled server")
    parser.add_argument("--peers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    report = run(arguments.peers, arguments.seconds)
    print(f"{arguments.peers} peers, {os.cpu_count()} cores: {report}")
    return 0 if not report.lost and report.grown <= OBJECTS_MAY_GROW and report.answered >= arguments.peers else 1


if __name__ == "__main__":
    sys.exit(main())
