"""Reader: bytes in, messages routed; by the I/O thread, or by a caller while it awaits its own reply."""

from __future__ import annotations

import time

from .calls import Waiting
from .errors import ConnectionClosed, ConnectionLost, EvtwsError
from .frames import Close, Opcode, Ping, Pong, Received
from .life import Life
from .poller import ReadWait
from .pulse import Pulse
from .router import Router
from .transport import Transport

#: Seconds between two attempts to take the reading away from a caller.
_PATIENCE = 0.02


class Reader:
    """Whoever holds `life.reading` reads and routes; nobody else does."""

    def __init__(self, life: Life, pulse: Pulse, router: Router) -> None:
        self._life = life
        self._pulse = pulse
        self._router = router
        #: True while a callback itself waits for a reply: reading goes on although the queue is full.
        self._callback_waits = False
        #: True while nothing is read because the callback queue is full.
        self.held = False
        # Where a caller that reads waits; made when first needed, for one transport. Guarded by `life.reading`.
        self._wait: ReadWait | None = None

    # -- on the I/O thread

    def round(self, transport: Transport, ready: bool) -> bool:
        """Read once, if there is something and nobody else does the reading; whether there is more at hand."""
        if not (ready or transport.has_more) or not self.may_read():
            return False
        if not self._life.reading.acquire(blocking=False):
            return False
        try:
            self._read(transport)
            return transport.has_more
        finally:
            self._life.reading.release()

    def may_read(self) -> bool:
        """Whether the callback queue has room for what is read, where `overflow="block"` asks that."""
        life = self._life
        if life.options.overflow == "drop" or self._callback_waits:
            return True
        half = life.callbacks.limit // 2
        if self.held:
            self.held = life.callbacks.room < half
            if not self.held:
                with life.lock:
                    # The pongs may have been there unread.
                    life.session.keepalive.postpone(time.monotonic())
        elif life.callbacks.room == 0:
            life.callbacks.note_full()
            # Looked at again: it may have emptied before the note.
            self.held = life.callbacks.room < half
        life.poller.want_read(not self.held)
        return not self.held

    def let_callers_go(self) -> None:
        """Take the reading away from a caller; the socket may be closed afterwards."""
        reading = self._life.reading
        while not reading.acquire(timeout=_PATIENCE):
            if (wait := self._wait) is not None:
                wait.wake()
        try:
            if self._wait is not None:
                self._wait.close()
                self._wait = None
        finally:
            reading.release()

    # -- on a caller's thread

    def read_for(self, call: Waiting) -> None:
        """Do the reading until this call has ended or its deadline has come, if nobody else does it.

        Saves two changes of thread for each request. Returns early when the connection ends.
        """
        life = self._life
        if life.callbacks.is_current_thread:
            self._callback_waits = True
            life.poller.want_read(True)
        try:
            if life.poller.can_share and self.may_read() and life.reading.acquire(blocking=False):
                try:
                    self._read_for(call)
                finally:
                    life.reading.release()
                    life.poller.want_read(True)
        finally:
            if life.callbacks.is_current_thread:
                call.wait()
                self._callback_waits = False
                life.poller.wake()

    def _read_for(self, call: Waiting) -> None:
        transport = self._life.transport
        if transport is None:
            return
        if self._wait is None:
            self._wait = ReadWait(transport)
        self._life.poller.want_read(False)
        call.wake = self._wait.wake
        try:
            while not call.done and self._is_current(transport) and not call.is_due(time.monotonic()):
                if not transport.has_more:
                    self._wait.wait(call.deadline)
                self._read(transport)
        finally:
            call.wake = None
        if transport.has_more or self._life.session.draining:
            self._life.poller.wake()  # no selector tells of these bytes

    def _is_current(self, transport: Transport) -> bool:
        return self._life.transport is transport and self._life.fault is None

    # -- whoever it is

    def _read(self, transport: Transport) -> None:
        """Read and route a bounded amount; requires `life.reading`."""
        assert self._life.reading.locked()
        try:
            items = transport.receive()
            if items:
                self._handle(transport, items)
        except EvtwsError as error:
            self._life.lose(transport, error)
        except BaseException:
            # A Ctrl-C in here: bytes may be missing, so this stream is never resumed.
            self._life.lose(transport, ConnectionLost("reading was interrupted"))
            raise

    def _handle(self, transport: Transport, items: list[Received]) -> None:
        bodies: list[str | bytes] = []
        for item in items:
            if isinstance(item, (str, bytes)):
                bodies.append(item)
            else:
                if bodies:
                    self._router.route(bodies)
                    bodies = []
                self._control(transport, item)
        if bodies:
            self._router.route(bodies)
        if self._life.correlation.in_order:
            with self._life.lock:
                self._life.write_all(self._life.session.unblocked(time.monotonic()))

    def _control(self, transport: Transport, item: Ping | Pong | Close) -> None:
        if isinstance(item, Ping):
            transport.send_control(Opcode.PONG, item.payload)
        elif isinstance(item, Pong):
            self._pulse.pong(item.payload)
        else:
            self._life.lose(transport, ConnectionClosed(item.code, item.reason, by_peer=True))
