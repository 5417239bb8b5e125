"""Ending: what is done once a connection, or an attempt to open one, has ended."""

from __future__ import annotations

import time

from .errors import ConnectionClosed, ConnectionLost, EvtwsError, PrepareError, ProtocolError, UserCodeError
from .life import Life
from .reader import Reader
from .session import Loss
from .state import State
from .task import Task
from .transport import Transport

#: Seconds that a peer is given to end TCP once close frames went both ways; it should do so at once.
FAREWELL = 1.0


class Ending:
    """Ends connections, on the I/O thread.

    `first_must_open`: a first attempt that fails is final, whatever the policy says, and reported to its caller only.
    """

    def __init__(self, life: Life, reader: Reader, *, first_must_open: bool) -> None:
        self._life = life
        self._reader = reader
        self._first_must_open = first_must_open

    def end(self, error: EvtwsError) -> None:
        """This connection, or this attempt, has ended by `error`: calls, callbacks and the peer are told."""
        life = self._life
        self._reader.let_callers_go()
        with life.lock:
            transport, life.transport, life.fault = life.transport, None, None
            life.parting = transport
            wished = life.session.state is State.CLOSING
            if transport is not None:
                # Whoever is about to write does not: what is said of its bytes stays true.
                transport.seal(drop_queue=not wished)
            was_open = life.session.opened_at is not None
            silent = self._first_must_open and not life.session.openings
            loss = life.session.ended(time.monotonic()) if wished else self._lost(error, may_retry=not silent)
            life.state_changed()
        self._tell(loss, None if wished else error, was_open=was_open, silent=silent)
        if transport is not None:
            self._part(transport, error, wished)

    def _lost(self, error: EvtwsError, *, may_retry: bool) -> Loss:
        """Requires the lock."""
        life = self._life
        try:
            return life.session.lost(error, time.monotonic(), may_retry=may_retry)
        except Exception as exc:  # a strategy of the user's raised: there is no next attempt
            life.tell(life.report(UserCodeError("the ReconnectPolicy", exc)))
            return life.session.lost(error, time.monotonic(), may_retry=False)

    def _tell(self, loss: Loss, error: EvtwsError | None, *, was_open: bool, silent: bool) -> None:
        """`error` is None after a wish to close."""
        life = self._life
        life.fail(loss.failed)
        for waiter in loss.pings:
            waiter.fail(error or ConnectionLost("the connection was closed"))
        tasks: list[Task] = []
        connection = life.connection()
        if was_open and life.options.on_disconnected is not None and connection is not None:
            tasks.append(Task(life.options.on_disconnected, (connection, error)))
        if error is not None and not silent:
            tasks += life.report(error)
        life.tell(tasks)

    def _part(self, transport: Transport, error: EvtwsError, wished: bool) -> None:
        """Say goodbye as far as the peer still listens, and give the socket back."""
        life = self._life
        code = _goodbye(error)
        polite = False
        if code is not None:
            transport.send_close(code or None)
            polite = self._farewell(transport)
        life.poller.unwatch()
        transport.abort()
        transport.close(reset=wished and not polite)
        with life.lock:
            life.parting = None
            life.messages_sent += transport.messages_sent
            life.bytes_sent += transport.bytes_sent
            life.bytes_received += transport.bytes_received

    def _farewell(self, transport: Transport) -> bool:
        """Wait for the end of the stream, reading on into nothing; whether it came."""
        life = self._life
        latest = time.monotonic() + FAREWELL
        try:
            # close() may come in between, and shorten it.
            while time.monotonic() < (deadline := min(latest, life.session.close_by or latest)):
                transport.flush()
                transport.receive()
                if not transport.has_more:
                    life.wait_for([transport], [transport] if transport.wants_write else [], deadline)
        except EvtwsError:
            return True
        return False

    def abandon(self) -> None:
        """The Connection was dropped without close()."""
        life = self._life
        error = ConnectionClosed(1001, "the Connection was dropped", by_peer=False)
        with life.lock:
            failed = life.session.close(error, time.monotonic(), None)
        life.fail(failed)
        if life.session.state is State.CLOSING:
            self.end(ConnectionLost("the Connection was dropped"))

    def crash(self) -> None:
        """The I/O thread is about to die of a defect: every call ends here, for nobody else will end it."""
        life = self._life
        error = ConnectionLost("the I/O thread failed; the log says how")
        with life.lock:
            was_open = life.session.opened_at is not None
            failed = life.session.crash(error, time.monotonic())
            transport, life.transport = life.transport, None
            life.state_changed()
        loss = Loss(None, failed, life.session.keepalive.lost())
        self._tell(loss, error, was_open=was_open, silent=self._first_must_open and not life.session.openings)
        self._reader.let_callers_go()
        if transport is not None:
            life.poller.unwatch()
            transport.abort()
            transport.close()


def _goodbye(error: EvtwsError) -> int | None:
    """The code of the close frame that the peer is still sent; 0: one without a code, None: none."""
    if isinstance(error, ProtocolError):
        return error.code
    if isinstance(error, ConnectionClosed):
        return 0 if error.code == 1005 else error.code
    return 1000 if isinstance(error, PrepareError) else None
