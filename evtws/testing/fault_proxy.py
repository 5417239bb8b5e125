"""FaultProxy: a TCP proxy in one thread that delays, slices, cuts, swallows and refuses, for tests."""

from __future__ import annotations

import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .direction import Direction, check_flag
from .loop import Loop
from .relay import Relay

_T = TypeVar("_T")

_CLOSE_TIMEOUT = 2.0
_BACKLOG = 1024
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?)[^/?#@]+(|[/?#].*)", re.DOTALL)


class FaultProxy:
    """Stands between clients and a server, on 127.0.0.1 at a port of the system's choice, from now until `close()`.

    `upstream` is the server: a port of 127.0.0.1, or (host, port). It may speak anything over TCP; TLS goes through
    untouched. `latency`, `jitter`, `bandwidth` and `slice_size` are for both directions, which are `to_server` and
    `to_client`: their attributes say what else may happen, see `Direction`. Unless told otherwise everything passes
    unchanged: a FIN after the bytes before it, an RST as one; and of what one side does not read about 1 MiB is held,
    then the other is not read either.

    All may be changed at any time, from any thread, and holds when the assignment or the call returns. After `close()`
    changes have no effect. Raises ValueError when a value makes no sense, OSError when a host has no address.
    """

    def __init__(
        self,
        upstream: int | tuple[str, int],
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        bandwidth: float | None = None,
        slice_size: int | None = None,
    ) -> None:
        self._address = _resolved(upstream)
        self._upstream = upstream
        self._refuse = False
        self._relays: dict[Relay, None] = {}
        self._errors: list[Exception] = []
        self._closed = False
        # Guards _closed: nobody waits for a loop that has stopped.
        self._changing = threading.Lock()
        # Wakes wait_for at the end of each turn. Guards _turns.
        self._turned = threading.Condition()
        self._turns = 0
        #: How many connections were ever accepted.
        self.connections = 0
        #: From the clients to the server.
        self.to_server = Direction(self._change)
        #: From the server to the clients.
        self.to_client = Direction(self._change)
        self._listener = _bound(0)
        #: The port of the system's choice.
        self.port: int = self._listener.getsockname()[1]
        self._loop = Loop("evtws-fault-proxy", after_turn=self._after_turn, on_error=self._errors.append)
        self._is_up = False
        self._listen()
        self._loop.start()
        try:
            for direction in (self.to_server, self.to_client):
                direction.latency, direction.jitter = latency, jitter
                direction.bandwidth, direction.slice_size = bandwidth, slice_size
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and stop; within 2 s, from any thread, more than once."""
        with self._changing:
            self._closed = True
            self._loop.call(self._shut_down)
            self._loop.stop(_CLOSE_TIMEOUT)
        if self._errors:
            error = self._errors[0]  # a fault of the proxy's own, which must not go unseen
            self._errors.clear()
            raise error

    def url_of(self, url: str) -> str:
        """This URL with the proxy in the place of its host and port: `proxy.url_of(server.url + "/chat")`.

        With wss the server's certificate has to be one for 127.0.0.1.
        """
        parts = _URL.fullmatch(url)
        if parts is None:
            raise ValueError("the URL has no scheme or no host")
        return f"{parts[1]}127.0.0.1:{self.port}{parts[2]}"

    # What tests look at, from any thread

    @property
    def open_connections(self) -> int:
        """How many connections are open now, half-open ones included."""
        return sum(relay.is_open for relay in list(self._relays))

    def wait_for(self, what: Callable[[], _T], timeout: float) -> _T:
        """Wait at most `timeout` seconds until `what()` is true; returns what it last returned.

        `what` is asked again after each turn of the proxy, in the caller's thread.
        """
        deadline = time.monotonic() + timeout
        while True:
            turns = self._turns
            found = what()
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            # Not within: what() may change the proxy, whose thread would wait for this lock.
            with self._turned:
                self._turned.wait_for(lambda turns=turns: self._turns != turns, left)  # type: ignore[misc]

    # What tests do, from any thread

    @property
    def upstream(self) -> int | tuple[str, int]:
        """The server to which connections go from now on; those that are there stay where they are."""
        return self._upstream

    @upstream.setter
    def upstream(self, upstream: int | tuple[str, int]) -> None:
        self._address = _resolved(upstream)
        self._upstream = upstream

    @property
    def refuse(self) -> bool:
        """Whether each new connection is accepted and closed at once; `down()` lets none be accepted."""
        return self._refuse

    @refuse.setter
    def refuse(self, refuse: bool) -> None:
        check_flag("refuse", refuse)
        self._refuse = refuse

    def drop_all(self, *, reset: bool = False) -> None:
        """End every connection, both ways: by a FIN, or with `reset` by an RST; what is held is thrown away."""
        self._change(lambda: self._drop(reset))

    def half_open_all(self) -> None:
        """Pass nothing on any more between the two ends of every connection that is there now, not even its end.

        Both sockets stay open, and what comes is thrown away. New connections are not affected.
        """
        self._change(self._silence)

    def down(self, *, reset: bool = False) -> None:
        """End every connection as `drop_all` does, and have new ones refused by the system until `up()`.

        Raises OSError if another process takes the port at that very moment.
        """
        self._change(lambda: self._go_down(reset))

    def up(self) -> None:
        """Accept connections again after `down()`, at the same port. Raises OSError if another process has it."""
        self._change(self._listen)

    # From here on everything but _change runs in the proxy's thread

    def _change(self, function: Callable[[], object]) -> None:
        with self._changing:
            if not self._closed:
                self._loop.call_and_wait(self._do_and_refresh, function)

    def _do_and_refresh(self, function: Callable[[], object]) -> None:
        function()
        for relay in list(self._relays):
            relay.refresh()

    def _silence(self) -> None:
        for relay in list(self._relays):
            relay.silence()

    def _drop(self, reset: bool) -> None:
        for relay in list(self._relays):
            relay.end("RST" if reset else "FIN")

    def _go_down(self, reset: bool) -> None:
        self._drop(reset)
        if self._is_up:
            self._stop_listening()
            # Bound, but not listening: the port stays ours, and connections to it are refused.
            self._listener = _bound(self.port)

    def _listen(self) -> None:
        if not self._is_up:
            if self._listener.fileno() < 0:
                self._listener = _bound(self.port)  # down() failed to
            self._listener.listen(_BACKLOG)
            self._loop.watch(self._listener, selectors.EVENT_READ, self._accept)
            self._is_up = True

    def _stop_listening(self) -> None:
        self._is_up = False
        self._loop.watch(self._listener, 0, self._accept)
        self._listener.close()

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it went away before it was taken
        self.connections += 1
        if self._refuse:
            sock.close()
            return
        family, address = self._address
        try:
            relay = Relay(self._loop, sock, family, self.to_server, self.to_client, self._gone)
        except OSError:
            sock.close()  # no descriptor is left
            return
        self._relays[relay] = None
        relay.connect(address)

    def _gone(self, relay: Relay) -> None:
        self._relays.pop(relay, None)

    def _after_turn(self) -> None:
        with self._turned:
            self._turns += 1
            self._turned.notify_all()

    def _shut_down(self) -> None:
        if self._is_up:
            self._stop_listening()
        self._listener.close()
        for relay in list(self._relays):
            relay.close()


def _bound(port: int) -> socket.socket:
    """A socket with that port of 127.0.0.1, 0 for one of the system's choice, which does not listen yet."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let others take the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _resolved(upstream: Any) -> tuple[int, tuple[Any, ...]]:
    """The family and the address of an upstream; the first that the system names."""
    host, port = upstream if isinstance(upstream, tuple) and len(upstream) == 2 else ("127.0.0.1", upstream)
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ValueError(f"upstream is a port, or (host, port) with a port from 1 to 65535, not {upstream!r}")
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, address
