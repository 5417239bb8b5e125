"""Sender: from a call to bytes, on the caller's thread; and the waits that follow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from .calls import Waiting
from .errors import ConnectionLost, EvtwsError, RequestCancelled, WriteTimeout
from .frames import encode_message
from .life import Life
from .message import Message
from .pending import Call
from .reader import Reader
from .transport import Transport
from .write_queue import Ticket


class Sender:
    """Registers calls and writes them, in one step under the lock: a reply can outrun the return of `send`."""

    def __init__(self, life: Life, reader: Reader) -> None:
        self._life = life
        self._reader = reader

    # -- out

    def start(self, call: Call) -> None:
        """Register and write one call. What it raises ended the call: nothing is kept, and nobody else is told."""
        self.start_all((call,))

    def start_all(self, calls: Sequence[Call]) -> None:
        """The same for several calls, written at once; all of them are accepted, or none."""
        try:
            self._start_all(calls)
        except Exception:
            raise
        except BaseException:
            self._interrupted(calls)
            raise

    def _start_all(self, calls: Sequence[Call]) -> None:
        life = self._life
        frames = [encode_message(call.message.body, masked=True) for call in calls]
        direct = life.preparer is threading.current_thread() if life.preparer is not None else False
        in_order = life.correlation.in_order
        ticket: Ticket | None = None
        with life.lock:
            writes = self._submit_all(calls, direct)
            transport = life.transport
            sooner = life.session.sooner
            if writes and in_order:
                ticket = self._write(transport, calls, frames, writes)
        if writes and not in_order:
            # Not under the lock: sixteen threads that send would queue behind one that waits for the interpreter.
            ticket = self._write(transport, calls, frames, writes)
        if sooner:
            life.poller.wake()
        if ticket is not None and ticket.room is not None:
            self._wait_for_room(calls, transport, ticket)

    def _interrupted(self, calls: Sequence[Call]) -> None:
        """A Ctrl-C while the calls were sent: nobody is left to hear of them."""
        transport, ticket = self._life.transport, calls[0].ticket
        if transport is not None and isinstance(ticket, Ticket) and transport.withdraw(ticket):
            self._cancel_all(calls, time.monotonic())
        for call in calls:
            self.cancel(call)
        self._life.after_interrupt()

    def _submit_all(self, calls: Sequence[Call], direct: bool) -> int:
        """Have all calls accepted; returns how many are to be written now, the rest waits. Requires the lock."""
        session = self._life.session
        accepted: list[Call] = []
        writes = 0
        try:
            for call in calls:
                writes += session.submit(call, call.asked_at, direct=direct)
                accepted.append(call)
        except Exception:
            for call in accepted:
                call.sent_at = None  # nothing of it was written, nothing will answer it
                session.cancel(call, call.asked_at)
            raise
        return writes

    def _write(
        self, transport: Transport | None, calls: Sequence[Call], frames: list[bytes], writes: int
    ) -> Ticket | None:
        """Write the first calls; where replies come in order, under the lock that orders the line.

        When writing is impossible, calls that await a reply are told by the end of the connection. None then.
        """
        assert transport is not None
        try:
            return transport.send(frames[0] if writes == 1 else b"".join(frames[:writes]), calls[:writes])
        except ConnectionLost as error:
            self._refused(calls, error)
            return None

    def _wait_for_room(self, calls: Sequence[Call], transport: Transport | None, ticket: Ticket) -> None:
        """Wait until the write buffer has room for what was sent."""
        assert transport is not None
        if self._reader.is_current_thread:
            return  # a function that must not block: what it sends is queued past the bound
        write_timeout = self._life.options.write_timeout
        write_by = math.inf if write_timeout is None else time.monotonic() + write_timeout
        deadline = min([write_by, *(call.deadline for call in calls if call.deadline is not None)])
        timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        try:
            in_time = transport.wait_for_room(ticket, timeout)
        except ConnectionLost as error:
            self._refused(calls, error)
        else:
            if not in_time:
                self._too_late(calls, transport, ticket, write_by)

    def _refused(self, calls: Sequence[Call], error: ConnectionLost) -> None:
        """The connection ended meanwhile: calls that await a reply are told by its end, the others here."""
        if not calls[0].wants_reply:
            raise error.about_request(calls[0].message, error.written) from error

    def _too_late(self, calls: Sequence[Call], transport: Transport, ticket: Ticket, write_by: float) -> None:
        now = time.monotonic()
        if not transport.withdraw(ticket):
            if ticket.has_room or now < write_by:
                return  # it fits just now; or it is begun and may go on, only a caller's own time is up
            # Part of it is written, and the rest cannot be: no other frame can follow.
            self._life.lose(transport, ConnectionLost("a message could not be written within write_timeout"))
            error = ConnectionLost("the message could not be written whole within write_timeout")
            error.written = ticket.written
            self._refused(calls, error)
            return
        mine = self._cancel_all(calls, now)
        for call in mine[1:]:
            self._life.tell(call.fail(self._write_timeout(call, now)))
        if mine:
            raise self._write_timeout(mine[0], now)

    def _write_timeout(self, call: Call, now: float) -> EvtwsError:
        if call.is_due(now):
            return self._life.timeout_of(call, now)
        error = WriteTimeout("not a byte was written within write_timeout: the peer does not read")
        return error.about(call.message)

    def _cancel_all(self, calls: Sequence[Call], now: float) -> list[Call]:
        """Take calls out of which not a byte was written."""
        with self._life.lock:
            for call in calls:
                call.sent_at = None  # so that an `in_order` line does not wait for its reply
            return [call for call in calls if self._life.session.cancel(call, now)]

    # -- and back

    def wait_for_reply(self, call: Waiting) -> Message:
        """Wait for the end of that call; raises what it ended by."""
        life = self._life
        try:
            ended = self._reader.wait(call, call.deadline)
        except BaseException:
            self.cancel(call)
            raise
        if not ended:
            self._reader.look_again()
            now = time.monotonic()
            if self.cancel(call):
                raise life.timeout_of(call, now)
            call.wait_on()  # somebody else took it out just now, and is about to tell
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # the error's traceback would keep it alive, and it the error
        assert call.reply is not None
        return call.reply

    def cancel(self, call: Call) -> bool:
        """Take a call out of the queue; False if it ended already. The caller tells it, or need not."""
        life = self._life
        life.check_process()
        with life.lock:
            ended = life.session.cancel(call, time.monotonic())
            sooner = life.session.sooner
        if sooner:
            life.poller.wake()
        return ended

    def remove(self, message: Message, error: EvtwsError | None = None) -> bool:
        """Take the call of that message out of the queue and tell it so; False if there is none."""
        with self._life.lock:
            call = self._life.session.find(message)
        if call is None or not self.cancel(call):
            return False
        error = error or RequestCancelled("the request was removed from the queue")
        self._life.tell(call.fail(error.about(message)))
        return True

    def check_may_wait(self) -> None:
        """Raise WouldDeadlock where the caller must not wait for a reply."""
        self._reader.check_may_wait()
