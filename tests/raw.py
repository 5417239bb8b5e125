"""A scripted TCP server for the tests of the dial: a function of the test handles each connection."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable

from .timing import SOON

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def descriptors() -> int:
    """How many file descriptors this process has open; 0 where that cannot be told."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.request = ""

    def read_request(self) -> str:
        """The request's header, which is also kept in `request`."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += self.receive(1)
        self.request = data.decode("latin-1")
        return self.request

    def receive(self, size: int) -> bytes:
        """At most `size` bytes, but some."""
        data = self.sock.recv(size)
        if not data:
            raise ConnectionError("the client went away")
        return data

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's part of the TLS handshake."""
        self.sock.getpeername()  # wrap_socket would lose the socket if the client were gone
        tls = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock = tls
        tls.do_handshake()

    def header(self, name: str) -> str | None:
        """The value of a header of the request."""
        match = re.search(rf"^{re.escape(name)}: (.*)\r$", self.request, re.MULTILINE | re.IGNORECASE)
        return match[1] if match else None

    def accept(self) -> str:
        """What Sec-WebSocket-Accept must say to the request."""
        key = self.header("Sec-WebSocket-Key") or ""
        return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()

    def response(self, *headers: str, accept: str | None = None) -> bytes:
        """A right answer to the request, with `headers` added."""
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept or self.accept()}", *headers, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def upgrade(self, *headers: str) -> None:
        """Read the request and accept it."""
        self.read_request()
        self.send(self.response(*headers))

    def answer(self, *lines: str, body: bytes = b"") -> None:
        """Read the request and send a status line and headers."""
        self.read_request()
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def hold(self) -> None:
        """Keep the connection until the client closes it."""
        while self.sock.recv(65536):
            pass


Script = Callable[[Peer], object]


def upgrading(*headers: str) -> Script:
    """A script that accepts the upgrade, and then only listens."""

    def script(peer: Peer) -> None:
        peer.upgrade(*headers)
        peer.hold()

    return script


def refusing(*lines: str, body: bytes = b"") -> Script:
    """A script that answers with a status line and headers, and then only listens."""

    def script(peer: Peer) -> None:
        peer.answer(*lines, body=body)
        peer.hold()

    return script


class RawServer:
    """Listens while it is entered; `peers` are the connections so far, oldest first."""

    def __init__(self, script: Script, *, context: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._failures: list[BaseException] = []
        self.peers: list[Peer] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'wss' if context else 'ws'}://127.0.0.1:{self.port}/"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown wakes the accept; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(SOON)
        for peer in self.peers:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(peer.sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SOON)
            assert not thread.is_alive()
        for failure in self._failures:
            raise failure

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(SOON)
            peer = Peer(sock)
            self.peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: Peer) -> None:
        try:
            if self._context is not None:
                peer.start_tls(self._context)
            self._script(peer)
        except OSError:
            pass  # the client went away, or the server is ending
        except BaseException as exc:
            self._failures.append(exc)
        finally:
            peer.sock.close()
