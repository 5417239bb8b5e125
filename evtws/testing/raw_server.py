"""RawServer: a TCP server whose script speaks in bytes, for servers that a client should be prepared for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from ssl import SSLContext

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_JOIN_TIMEOUT = 2.0


class RawConnection:
    """The server's end of one TCP connection, for one script in a thread of its own.

    Whatever waits raises TimeoutError after the server's `timeout`, and ConnectionError once the client is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        #: The socket; an SSLSocket after `start_tls`.
        self.sock = sock
        #: The header of the request that was read last.
        self.request = ""

    def receive(self, size: int) -> bytes:
        """At most `size` bytes, but some."""
        data = self.sock.recv(size)
        if not data:
            raise ConnectionError("the client went away")
        return data

    def send(self, data: bytes) -> None:
        """Send these bytes as they are."""
        self.sock.sendall(data)

    def hold(self) -> None:
        """Keep the connection until the client closes it, whatever it says."""
        while self.sock.recv(65536):
            pass

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def start_tls(self, context: SSLContext) -> None:
        """Do the server's part of the TLS handshake."""
        self.sock.getpeername()  # wrap_socket would lose the socket if the client were gone
        tls = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock = tls
        tls.do_handshake()

    # An upgrade, right or wrong

    def read_request(self) -> str:
        """Read the header of a request, up to and including its blank line."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += self.receive(1)
        self.request = data.decode("latin-1")
        return self.request

    def header(self, name: str) -> str | None:
        """The value of a header of the request, None if it is not there."""
        match = re.search(rf"^{re.escape(name)}: (.*)\r$", self.request, re.MULTILINE | re.IGNORECASE)
        return match[1] if match else None

    def accept(self) -> str:
        """What Sec-WebSocket-Accept must say to the request."""
        key = self.header("Sec-WebSocket-Key") or ""
        return base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()

    def response(self, *headers: str, accept: str | None = None) -> bytes:
        """A right answer to the request, with these lines added; or a wrong one, by an `accept` of your own."""
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept or self.accept()}", *headers, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def upgrade(self, *headers: str) -> None:
        """Read the request and accept it, with these lines added."""
        self.read_request()
        self.send(self.response(*headers))

    def answer(self, *lines: str, body: bytes = b"") -> None:
        """Read the request, and send a status line, headers and a body as they are."""
        self.read_request()
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


class RawServer:
    """Listens on 127.0.0.1 at a port of the system's choice, from now until `close()`.

    `script(connection)` runs in a thread of its own for each connection, which ends when it returns; it may block, for
    at most `timeout` seconds at a time. It need not speak HTTP, nor anything. `context` makes it a TLS server; without
    one a script may do so itself. What a script raises, but for an OSError of its socket, is raised by `close()`.
    """

    def __init__(
        self,
        script: Callable[[RawConnection], object],
        *,
        context: SSLContext | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._script = script
        self._context = context
        self._timeout = timeout
        self._failures: list[BaseException] = []
        #: The connections so far, oldest first.
        self.connections: list[RawConnection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: The port of the system's choice.
        self.port: int = self._listener.getsockname()[1]
        #: Where to connect to.
        self.url = f"{'wss' if context else 'ws'}://127.0.0.1:{self.port}/"
        self._threads = [threading.Thread(target=self._accept, name="evtws-testing-raw-server", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and stop; from any thread, more than once.

        Raises what a script raised, and TimeoutError if one does not end within 2 s.
        """
        # shutdown wakes the accept; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(_JOIN_TIMEOUT)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT)
            if thread.is_alive():
                raise TimeoutError("a script keeps the server from closing")
        if self._failures:
            raise self._failures.pop(0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(self._timeout)
            connection = RawConnection(sock)
            self.connections.append(connection)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="evtws-testing-raw-connection", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: RawConnection) -> None:
        try:
            if self._context is not None:
                connection.start_tls(self._context)
            self._script(connection)
        except OSError:
            pass  # the client went away, or the server is ending
        except BaseException as exc:
            self._failures.append(exc)
        finally:
            connection.sock.close()
