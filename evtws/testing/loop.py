"""Loop: one thread that waits for sockets, for timers, and for calls that other threads hand to it."""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")

Ready = Callable[[int], None]


class Loop:
    """A selector in a daemon thread named `name`.

    `after_turn` is called when everything that was due has been done, before the thread waits again;
    `on_error` is given what a call or a timer raises.
    """

    def __init__(self, name: str, *, after_turn: Callable[[], None], on_error: Callable[[Exception], None]) -> None:
        self._after_turn = after_turn
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()  # equal times run in the order in which they were asked for
        self._running = True
        self._woken = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._drain_wake)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the caller is the loop's own thread."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` in the loop: at once if called from there, else in its next turn."""
        if self.is_current():
            function(*args)
        else:
            self.soon(function, *args)

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` in the loop's next turn; never, once the loop has stopped. Any thread."""
        self._calls.append((function, args))
        # The append comes first and the loop lowers the flag before it looks, so no call is slept over.
        if not self._woken:
            self._woken = True
            try:
                self._wake_out.send(b"\0")
            except OSError:
                pass  # stopped

    def call_and_wait(self, function: Callable[..., _T], *args: Any) -> _T:
        """Run `function(*args)` in the loop's next turn and return, or raise, what it does.

        From any other thread, and only while the loop runs.
        """
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(function(*args))
            except Exception as exc:
                done.set_exception(exc)

        self.soon(run)
        return done.result()

    def later(self, delay: float, function: Callable[[], object]) -> None:
        """Run `function()` after `delay` seconds. From the loop's own thread only."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), function))

    def watch(self, sock: socket.socket, events: int, ready: Ready) -> None:
        """Call `ready(events)` whenever `sock` is ready for one of `events`; 0 stops that.

        From the loop's own thread, or before it starts.
        """
        if not events:
            self._selector.unregister(sock)
        elif sock in self._selector.get_map():
            self._selector.modify(sock, events, ready)
        else:
            self._selector.register(sock, events, ready)

    def stop(self, timeout: float) -> bool:
        """End the thread after this turn and wait at most `timeout` seconds; whether it has ended."""
        self.call(self._stop)
        if not self.is_current():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _stop(self) -> None:
        self._running = False

    def _run(self) -> None:
        while self._running:
            self._turn()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._patience()):
            self._guarded(key.data, events)
        self._woken = False
        for _ in range(len(self._calls)):
            function, args = self._calls.popleft()
            self._guarded(function, *args)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._guarded(heapq.heappop(self._timers)[2])
        self._guarded(self._after_turn)

    def _patience(self) -> float | None:
        if self._calls:
            return 0
        return max(0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _guarded(self, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except Exception as exc:
            self._on_error(exc)

    def _drain_wake(self, _events: int) -> None:
        self._wake_in.recv(4096)
