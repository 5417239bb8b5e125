"""A TCP proxy that can cut a connection at a byte, swallow a direction, or stop reading one."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from ..timing import SOON


class Pipe:
    """One direction of the one connection at hand, to be changed while it runs."""

    def __init__(self) -> None:
        #: Bytes still to be forwarded before the whole connection is cut; None: it is not.
        self.left: int | None = None
        self.reset = False
        self.swallowing = False
        self.open = threading.Event()
        self.open.set()

    def cut_after(self, count: int, *, reset: bool = False) -> None:
        """Forward `count` bytes more, then end both sides: by a FIN, or with `reset` by an RST."""
        self.reset = reset
        self.left = count

    def pause(self) -> None:
        """Read nothing more, but for one last piece."""
        self.open.clear()

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What to forward of this, and whether to go on."""
        self.open.wait()
        if self.swallowing:
            return b"", True
        if self.left is None:
            return data, True
        data, self.left = data[: self.left], max(0, self.left - len(data))
        return data, self.left > 0


class Proxy:
    """Listens while it is entered and forwards to a port of 127.0.0.1; `up` is towards the server, `down` back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port: int = self._listener.getsockname()[1]
        self.up, self.down = Pipe(), Pipe()

    def __enter__(self) -> Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener)
        self._threads[0].join(SOON)
        for sock in self._socks:
            _end(sock)
        for pipe in (self.up, self.down):
            pipe.open.set()
        for thread in self._threads:
            thread.join(SOON)
            assert not thread.is_alive()
        for sock in (self._listener, *self._socks):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._socks.append(client)
                server = socket.create_connection(("127.0.0.1", self._target))
                self._socks.append(server)
                self._start(client, server, self.up)
                self._start(server, client, self.down)

    def _start(self, source: socket.socket, sink: socket.socket, pipe: Pipe) -> None:
        thread = threading.Thread(target=_pump, args=(source, sink, pipe))
        self._threads.append(thread)
        thread.start()


def _pump(source: socket.socket, sink: socket.socket, pipe: Pipe) -> None:
    try:
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        more = True
        while more and (data := source.recv(65536)):
            data, more = pipe.take(data)
            sink.sendall(data)
    except OSError:
        pass  # one side went away, or the test is over
    for sock in (source, sink):
        if pipe.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _end(sock)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
