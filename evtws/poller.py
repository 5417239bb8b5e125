"""Poller: where the I/O thread waits, for one socket, a moment or a wake-up; and where a caller may read instead.

While a caller awaits its reply it may do the reading itself, which saves two changes of thread for each request. The
I/O thread must not be woken by the same bytes then, so its interest in reading is taken away and given back by
`share` from the caller's thread. With epoll that takes effect while the I/O thread is waiting; elsewhere
`can_share` is False, and the I/O thread does all the reading.
"""

from __future__ import annotations

import select
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from .resolve import HasFileno

#: Seconds after which every wait here ends: epoll and poll refuse 25 days, and whoever waits looks at the time again.
LONGEST = 86_400.0


class Waker:
    """A descriptor that becomes readable when another thread calls `wake`."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        # Guards closing: a wake that comes late must not write into somebody else's descriptor.
        self._lock = threading.Lock()
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """Make the descriptor readable; from any thread, at any time."""
        with self._lock:
            if not self.closed:
                try:
                    self._sender.send(b"\0")
                except BlockingIOError:
                    pass  # it has been woken thousands of times already

    def clear(self) -> None:
        """Make the descriptor unreadable again."""
        try:
            self._receiver.recv(4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptors back; `wake` does nothing from now on."""
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Close without the lock, which in a forked child may be held for ever."""
        self.closed = True
        self._receiver.close()
        self._sender.close()


class Poller:
    """What one I/O thread waits for. `wait`, `watch`, `unwatch` and `close` are for that thread only."""

    #: Whether `share` takes effect while the I/O thread waits.
    can_share = False

    def __init__(self) -> None:
        self.waker = Waker()
        self.wake = self.waker.wake
        # Guards the two interests and what the system was told of them.
        self._lock = threading.Lock()
        self._fd = -1
        self._read = True
        self._write = False

    def watch(self, sock: HasFileno) -> None:
        """Watch this socket from now on, for reading."""
        with self._lock:
            self._fd = sock.fileno()
            self._read, self._write = True, False
            self._register()

    def unwatch(self) -> None:
        """Watch no socket; must come before the socket is closed."""
        with self._lock:
            if self._fd >= 0:
                self._unregister()
                self._fd = -1

    def want_read(self, wanted: bool) -> None:
        """Watch for bytes to read, or not; from any thread."""
        with self._lock:
            if wanted != self._read:
                self._read = wanted
                self._update()

    def resume_reading(self) -> None:
        """Watch for bytes to read, whatever `want_read` was doing when it was interrupted."""
        with self._lock:
            self._read = True
            self._update()
        self.wake()

    def want_write(self, wanted: bool) -> None:
        """Watch for room to write, or not; from any thread."""
        with self._lock:
            if wanted != self._write:
                self._write = wanted
                self._update()

    def wait(self, timeout: float | None) -> bool:
        """Block until the socket is ready, somebody wakes, or `timeout` seconds (None: LONGEST) have passed.

        True if there is something to read, an error among it, whether or not it was asked for.
        """
        raise NotImplementedError

    def wait_for(
        self, readers: Sequence[HasFileno], writers: Sequence[HasFileno], timeout: float | None
    ) -> list[HasFileno]:
        """Block until one of these is ready, or as `wait`; for sockets that are not opened yet."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.waker, selectors.EVENT_READ)
            for sock in {*readers, *writers}:
                events = (sock in readers) * selectors.EVENT_READ | (sock in writers) * selectors.EVENT_WRITE
                selector.register(sock, events)
            ready = [key.fileobj for key, _ in selector.select(_bounded(timeout))]
        if self.waker in ready:
            self.waker.clear()
            ready.remove(self.waker)
        return ready  # type: ignore[return-value]  # they are what was registered

    def close(self) -> None:
        """Give the descriptors back."""
        self.unwatch()
        self.waker.close()

    def forget(self) -> None:
        """In a forked child: close this process's copies of the descriptors; takes no lock."""
        self.waker.forget()

    def _register(self) -> None:
        raise NotImplementedError

    def _unregister(self) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        """The interests changed; requires the lock."""
        raise NotImplementedError


class EpollPoller(Poller):
    """A Poller on epoll, whose interests change while it waits."""

    can_share = True

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll(2)
        self._epoll.register(self.waker.fileno(), select.EPOLLIN)

    def _mask(self) -> int:
        # Errors are told whether or not they are asked for; edge-triggered, while nobody asks, they are told once.
        return (self._read * select.EPOLLIN | self._write * select.EPOLLOUT) or select.EPOLLET

    def _register(self) -> None:
        self._epoll.register(self._fd, self._mask())

    def _unregister(self) -> None:
        self._epoll.unregister(self._fd)

    def _update(self) -> None:
        if self._fd >= 0:
            self._epoll.modify(self._fd, self._mask())

    def wait(self, timeout: float | None) -> bool:
        events = self._epoll.poll(_bounded(timeout))
        waker = self.waker.fileno()
        ready = False
        for fd, event in events:
            if fd == waker:
                self.waker.clear()
            elif event != select.EPOLLOUT:
                ready = True
        return ready

    def close(self) -> None:
        super().close()
        self._epoll.close()

    def forget(self) -> None:
        super().forget()
        self._epoll.close()


class SelectorPoller(Poller):
    """A Poller on whatever the platform has; a change of interest wakes it first."""

    def _register(self) -> None:
        pass  # `wait` looks at the interests anew each time

    def _unregister(self) -> None:
        pass

    def _update(self) -> None:
        self.wake()

    def wait(self, timeout: float | None) -> bool:
        with self._lock:
            sock: list[Any] = [self._fd] if self._fd >= 0 else []
            readers, writers = sock * self._read, sock * self._write
        return bool(self.wait_for(readers, writers, timeout)) and self._read


def make_poller() -> Poller:
    """The best Poller that the platform has."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()


def _bounded(timeout: float | None) -> float:
    return LONGEST if timeout is None else min(timeout, LONGEST)


class ReadWait:
    """Where a caller that does the reading waits: for bytes, or for somebody who ends its wait."""

    def __init__(self, sock: HasFileno) -> None:
        self._waker = Waker()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._poll.register(self._waker.fileno(), select.POLLIN)
        self.wake = self._waker.wake

    def wait(self, deadline: float | None) -> None:
        """Block until there may be something to read, `wake` was called, or the deadline (monotonic) has come."""
        timeout = None if deadline is None else _bounded(max(0.0, deadline - time.monotonic())) * 1000
        for fd, _ in self._poll.poll(timeout):
            if fd == self._waker.fileno():
                self._waker.clear()

    def close(self) -> None:
        """Give the descriptors back."""
        self._waker.close()
