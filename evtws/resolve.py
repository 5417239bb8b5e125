"""From a host name to a connected TCP socket, without blocking: names are resolved aside, addresses raced."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import math
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .errors import DialError, DialTimeout, ResolveError

#: Seconds between the starts of two connection attempts (RFC 8305 section 8: 250 ms).
CONNECT_DELAY = 0.25

# Neither of these needs a descriptor of its own, of which there may be none left.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

_UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class HasFileno(Protocol):
    """Whatever a selector can wait for."""

    def fileno(self) -> int: ...


class Wait(Protocol):
    """`wait(readers, writers, deadline)`: those that are ready, or [] once `time.monotonic() >= deadline`.

    `deadline` may be infinite. Raises DialAborted to end the dial.
    """

    def __call__(
        self, readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float, /
    ) -> list[HasFileno]: ...


def blocking_wait(readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
    """A Wait that only waits; nothing can abort it."""
    with _Selector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ, reader)
        for writer in writers:
            selector.register(writer, selectors.EVENT_WRITE, writer)
        timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        return [key.data for key, _ in selector.select(timeout)]


@dataclass(frozen=True)
class Attempt:
    """One attempt to open a connection: its total deadline (`time.monotonic()`), and how it waits."""

    deadline: float
    wait: Wait

    def until(
        self,
        readers: Sequence[HasFileno],
        writers: Sequence[HasFileno],
        doing: str,
        at_most: float = math.inf,
    ) -> list[HasFileno]:
        """Those that are ready; [] once `at_most` has come.

        Raises DialTimeout, whose text says what was being done, at the deadline.
        """
        ready: list[HasFileno] = []
        if time.monotonic() < self.deadline:
            ready = self.wait(readers, writers, min(self.deadline, at_most))
        if not ready and time.monotonic() >= self.deadline:
            raise DialTimeout(f"timed out {doing}")
        return ready


class Address(NamedTuple):
    """Where to connect: a family, and what `socket.connect` takes for it."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return host_port(str(self.sockaddr[0]), int(self.sockaddr[1]))


def host_port(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int, attempt: Attempt) -> list[Address]:
    """The addresses of `host`, in the system's order; at least one.

    Raises ResolveError. A literal address is no question to anybody, and starts no thread.
    """
    with Lookup(host, port) as lookup:
        while not lookup.done:
            if attempt.until([lookup], [], f"resolving {host}"):
                lookup.look()
    return lookup.addresses()


class Lookup:
    """One question to the system's resolver, asked aside; a literal address is answered at once.

    `fileno()` becomes readable when there is an answer, and `look` takes it. `aside` is called by the same thread
    first: something else that takes a moment; what it raises is raised by `addresses`. Without one, a literal address
    starts no thread. Raises ResolveError if no thread can be started. Leaving the `with` block gives the descriptor
    back, whatever the resolver does.
    """

    def __init__(self, host: str, port: int, aside: Callable[[], object] | None = None) -> None:
        self.host = host
        self._port = port
        self._aside = aside
        self._found: list[Address] = []
        self._error: Exception | None = None
        #: Whether there is an answer, or it is known that there is none.
        self.done = aside is None and _is_literal(host)
        self._reading: socket.socket | None = None
        if self.done:
            self._look_up()
        else:
            self._start()

    def _start(self) -> None:
        # The system's resolver can neither be waited for with others nor be ended. The thread owns the writing
        # end, the caller the reading one: whichever ends first, nothing leaks once the other has ended too.
        try:
            self._reading, writing = socket.socketpair()
        except OSError as exc:  # out of descriptors
            raise ResolveError(f"could not resolve {self.host}: {_reason(exc)}") from exc
        try:
            threading.Thread(target=self._run, args=(writing,), name="evtws-resolve", daemon=True).start()
        except RuntimeError as exc:
            self._reading.close()
            writing.close()
            raise ResolveError(f"could not resolve {self.host}: {exc}") from exc

    def _run(self, done: socket.socket) -> None:
        with done:
            self._look_up()

    def _look_up(self) -> None:
        try:
            if self._aside is not None:
                self._aside()
            self._found = self._ask()
        except Exception as exc:
            self._error = exc

    def _ask(self) -> list[Address]:
        flags = socket.AI_NUMERICHOST if _is_literal(self.host) else 0
        try:
            found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except Exception as exc:  # not OSError alone: a label that is too long is a UnicodeError
            raise ResolveError(f"could not resolve {self.host}: {_reason(exc)}") from exc
        return [Address(family, sockaddr) for family, _, _, _, sockaddr in found]

    def fileno(self) -> int:
        """Readable once there is an answer; -1 if that was at once."""
        return -1 if self._reading is None else self._reading.fileno()

    def look(self) -> None:
        """Note the answer; to be called when `fileno()` is readable."""
        self.done = True

    def addresses(self) -> list[Address]:
        """The addresses, in the system's order; at least one. Raises ResolveError, or what `aside` raised."""
        if self._error is not None:
            raise self._error
        if not self._found:
            raise ResolveError(f"could not resolve {self.host}: it has no address")
        return self._found

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._reading is not None:
            self._reading.close()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def connect(addresses: Sequence[Address], attempt: Attempt) -> socket.socket:
    """A non-blocking socket, connected to the first of `addresses` that answers (RFC 8305, "happy eyeballs").

    Raises DialError, which names each address and its error, or DialTimeout.
    """
    with Race(addresses) as race:
        while race.winner is None:
            race.start_next()
            race.look(attempt.until([], race.running, race.doing, race.next_start))
    return race.winner


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Each address once, the families taking turns (RFC 8305 section 4), that of the first one first."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address.family, []).append(address)
    rounds = itertools.zip_longest(*families.values())
    return [address for turn in rounds for address in turn if address is not None]


class Race:
    """Connection attempts that start one after another, and end with the first that succeeds.

    To be repeated until there is a `winner`: `start_next`, wait until some of the `running` sockets are writable or
    it is time for the `next_start`, `look` at those. Leaving the `with` block closes the losers.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._waiting = deque(interleave(addresses))
        self._running: dict[HasFileno, tuple[socket.socket, Address]] = {}
        self._failures: list[str] = []
        self._last_error: OSError | None = None
        self._next_start = 0.0
        #: The connected socket.
        self.winner: socket.socket | None = None
        #: For a person to read.
        self.doing = "connecting to " + ", ".join(map(str, list(self._waiting)[:4]))

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock, _ in self._running.values():
            sock.close()

    @property
    def running(self) -> list[HasFileno]:
        """The sockets that are connecting, the newest last."""
        return list(self._running)

    @property
    def next_start(self) -> float:
        """When the next attempt starts (monotonic seconds); infinite: there is no other."""
        return self._next_start if self._waiting else math.inf

    def start_next(self) -> None:
        """Start the attempts that are due. Raises DialError when all have failed."""
        while self._waiting and (not self._running or time.monotonic() >= self._next_start):
            self._start(self._waiting.popleft())
        if not self._running:
            raise DialError("could not connect: " + "; ".join(self._failures)) from self._last_error

    def _start(self, address: Address) -> None:
        self._next_start = time.monotonic() + CONNECT_DELAY
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as exc:
            self._failed(address, exc)
            return
        self._running[sock] = (sock, address)
        sock.setblocking(False)
        code = sock.connect_ex(address.sockaddr)
        if code not in _UNDER_WAY:
            self._drop(sock, OSError(code, os.strerror(code)))

    def look(self, writable: Sequence[HasFileno]) -> None:
        """Take the first of these sockets that is connected; those that failed drop out."""
        for ready in writable:
            sock, _ = self._running[ready]
            try:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as exc:
                self._drop(ready, exc)
            else:
                del self._running[ready]
                self.winner = sock
                return

    def _drop(self, key: HasFileno, error: OSError) -> None:
        sock, address = self._running.pop(key)
        sock.close()
        self._failed(address, error)

    def _failed(self, address: Address, error: OSError) -> None:
        self._failures.append(f"{address}: {_reason(error)}")
        self._last_error = error
        self._next_start = 0.0  # the next one starts at once


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
