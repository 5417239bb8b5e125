"""Server: a scriptable websocket server in one thread, for tests and demonstrations."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from types import TracebackType
from typing import TypeVar, overload

from ..handshake import UpgradeRequest
from ..nonblocking import NonBlockingSocket
from .certificates import tls_contexts
from .client_connection import ClientConnection
from .loop import Loop

_T = TypeVar("_T")

_CLOSE_TIMEOUT = 2.0


@dataclass(frozen=True)
class Reply:
    """What to answer to an upgrade request: 101 accepts it, any other status refuses it; after `delay` seconds.

    `subprotocol` None lets the server choose; it and `headers` may be given with a 101, `headers` and `body`
    with a refusal.
    """

    status: int = 101
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    subprotocol: str | None = None
    delay: float = 0.0


_ACCEPT = Reply()


class Server:
    """A websocket server on 127.0.0.1, at a port of the system's choice, from now until `close()`.

    The script is plain functions, called in the server's own thread: none needs a lock, and none may block. They are
    attributes too, None for none, and may be set at any time: `server.on_message = …`.
    `on_handshake(request)` returns a `Reply`, or None to accept; `on_connect(client)` follows the upgrade;
    `on_message(client, body)` has each message, `str` for text and `bytes` for binary. What one of them
    raises is kept in `errors`, ends that client with 1011 (before the upgrade: a 500), and is raised when the
    `with` block ends.

    `subprotocols` are what is chosen from, the favourite first; `ssl` makes it a wss server: a context, or True for a
    certificate of its own making, which needs trustme (ImportError); `max_size` is the most bytes of one message, None
    for no limit. `pongs` answers pings, `echo_close` close frames, `record` keeps what is received: these three are
    attributes too, to be changed at any time.
    """

    def __init__(
        self,
        on_message: Callable[[ClientConnection, str | bytes], object] | None = None,
        *,
        on_connect: Callable[[ClientConnection], object] | None = None,
        on_handshake: Callable[[UpgradeRequest], Reply | None] | None = None,
        subprotocols: Sequence[str] = (),
        ssl: SSLContext | bool | None = None,
        pongs: bool = True,
        max_size: int | None = 16 << 20,
        echo_close: bool = True,
        record: bool = True,
    ) -> None:
        self.on_message = on_message
        self.on_connect = on_connect
        self.on_handshake = on_handshake
        self.pongs = pongs
        self.echo_close = echo_close
        self.record = record
        self.max_size = max_size
        self.subprotocols = tuple(subprotocols)
        #: How many TCP connections were accepted.
        self.dials = 0
        #: How many messages were received, recorded or not.
        self.received_count = 0
        #: What the script functions raised.
        self.errors: list[Exception] = []
        #: The client's context that trusts the certificate of the server's own making; None if it made none.
        self.client_ssl: SSLContext | None = None
        if ssl is True:
            ssl, self.client_ssl = tls_contexts()
        self._ssl = ssl or None
        self._received: list[str | bytes] = []
        self._clients: dict[ClientConnection, None] = {}
        # Wakes wait_for at the end of each turn. It guards nothing: only the loop's thread changes things.
        self._turned = threading.Condition()
        #: Clients with bytes to write at the end of this turn. Server's thread only.
        self.unflushed: set[ClientConnection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        #: The port of the system's choice.
        self.port: int = self._listener.getsockname()[1]
        #: Where to connect to.
        self.url = f"{'wss' if self._ssl else 'ws'}://127.0.0.1:{self.port}"
        #: The server's thread.
        self.loop = Loop("evtws-testing-server", after_turn=self._after_turn, on_error=self.errors.append)
        self.loop.watch(self._listener, selectors.EVENT_READ, self._accept)
        self.loop.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()
        if not self.errors:
            return
        if error is None:
            raise self.errors[0]
        error.__context__ = error.__context__ or self.errors[0]  # shown above the failure that it may explain

    def close(self) -> None:
        """End all connections without a close frame and stop; within 2 s, from any thread, more than once.

        A script function that blocks longer is reported as a TimeoutError in `errors`.
        """
        self.loop.call(self._shut_down)
        if not self.loop.stop(_CLOSE_TIMEOUT) and not self.loop.is_current():
            self.errors.append(TimeoutError("a script function keeps the server from closing"))

    # What tests look at, from any thread

    @property
    def connections(self) -> list[ClientConnection]:
        """The clients whose connection is open, oldest first; a snapshot."""
        return [client for client in list(self._clients) if client.is_open]

    @property
    def received(self) -> list[str | bytes]:
        """The messages of all clients, in the order of their arrival, if the server records; a snapshot."""
        return list(self._received)

    @overload
    def wait_for(self, what: int, timeout: float) -> bool: ...
    @overload
    def wait_for(self, what: Callable[[], _T], timeout: float) -> _T: ...
    def wait_for(self, what: int | Callable[[], _T], timeout: float) -> _T | bool:
        """Wait at most `timeout` seconds until that many messages were received, or until `what()` is true.

        Returns whether they were, or what `what()` last returned: `wait_for(lambda: server.connections, 5)`
        gives the open connections as soon as there is one. `what` is asked again after each turn of the
        server, in the caller's thread.
        """
        with self._turned:
            if isinstance(what, int):
                return self._turned.wait_for(lambda: self.received_count >= what, timeout)
            return self._turned.wait_for(what, timeout)

    def drop_all(self, *, reset: bool = False) -> None:
        """`drop` every client that is open now."""
        for client in self.connections:
            client.drop(reset=reset)

    # What the clients' connections call, in the server's thread

    def answer(self, request: UpgradeRequest) -> Reply:
        """What to answer to this request."""
        on_handshake = self.on_handshake
        try:
            return (on_handshake and on_handshake(request)) or _ACCEPT
        except Exception as exc:
            self.errors.append(exc)
            return Reply(500)

    def opened(self, client: ClientConnection) -> None:
        """This client's upgrade is done."""
        self._run(client, self.on_connect, client)

    def message(self, client: ClientConnection, body: str | bytes) -> None:
        """This client sent a message."""
        self.received_count += 1
        if self.record:
            self._received.append(body)
        self._run(client, self.on_message, client, body)

    def ended(self, client: ClientConnection) -> None:
        """This client's socket is closed."""
        self._clients.pop(client, None)

    def _run(self, client: ClientConnection, function: Callable[..., object] | None, *args: object) -> None:
        try:
            if function is not None:
                function(*args)
        except Exception as exc:
            self.errors.append(exc)
            client.close(1011)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it went away before it was taken
        self.dials += 1
        try:
            client = ClientConnection(self, NonBlockingSocket(sock, self._ssl))
        except OSError:
            sock.close()
        else:
            self._clients[client] = None

    def _after_turn(self) -> None:
        unflushed, self.unflushed = self.unflushed, set()
        for client in unflushed:
            client.flush()
        with self._turned:
            self._turned.notify_all()

    def _shut_down(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.watch(self._listener, 0, self._accept)
            self._listener.close()
        for client in list(self._clients):
            client.flush()
            client.end()
