"""Pulse: the pings of a live connection, scheduled or asked for, and the pongs that answer them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from .errors import ConnectionLost, EvtwsError, NotConnected, ReplyTimeout, SlowUserCode, UserCodeError
from .frames import Opcode, encode_message
from .life import Life
from .options import as_bytes
from .router import SLOW
from .state import State


class PingWait:
    """A thread that waits in `ping()`."""

    def __init__(self) -> None:
        # No Ctrl-C can leave it locked, as it can an Event.
        self._outcome: SimpleQueue[float | EvtwsError] = SimpleQueue()

    def answer(self, rtt: float) -> None:
        """The pong came after `rtt` seconds."""
        self._outcome.put(rtt)

    def fail(self, error: EvtwsError) -> None:
        """No pong will come."""
        self._outcome.put(error)

    def wait(self, timeout: float | None) -> float | None:
        """The round-trip time; None if the pong does not come in time. Raises what ended the wait."""
        try:
            outcome = self._outcome.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(outcome, EvtwsError):
            raise outcome
        return outcome


class Pulse:
    """Sends pings and notes pongs."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def beat(self, now: float) -> None:
        """Send the ping that is due."""
        ping = self._guarded()
        if ping is not None:
            self._send(*ping, None)
            return
        with self._life.lock:
            self._life.session.keepalive.postpone(now)

    def _guarded(self) -> tuple[bytes | None, bytes] | None:
        """A ping that is composed where messages are read; None if that fails, which is reported."""
        life = self._life
        before = time.monotonic()
        try:
            return self._encoded(self._compose())
        except Exception as exc:
            life.tell(life.report(UserCodeError("composing a ping", exc)))
            return None
        finally:
            if (seconds := time.monotonic() - before) > SLOW:
                life.tell(life.report(SlowUserCode("composing a ping", seconds)))

    def ping(self, timeout: float | None) -> float:
        """Send a ping and wait for its pong: seconds. Raises NotConnected, ReplyTimeout or a ConnectionLost."""
        life = self._life
        if life.session.state is not State.OPEN:
            raise NotConnected(f"the connection is {life.session.state.name}")
        waiter = PingWait()
        try:
            self._send(*self._encoded(self._unique() if self._is_free() else self._compose()), waiter)
            rtt = waiter.wait(timeout)
        except Exception:
            raise
        except BaseException:
            life.after_interrupt()
            raise
        finally:
            with life.lock:
                life.session.keepalive.forget(waiter)
        if rtt is None:
            raise ReplyTimeout(f"no pong within {timeout:.1f} s", waited=timeout or 0.0, written="yes")
        return rtt

    def _unique(self) -> bytes:
        with self._life.lock:
            return self._life.session.keepalive.compose()

    def _is_free(self) -> bool:
        # A payload of its own tells this pong from every other one.
        return self._life.options.ping_as == "frame"

    def _compose(self) -> str | bytes:
        options = self._life.options
        payload: str | bytes
        if options.compose_ping_message is not None:
            payload = options.compose_ping_message()
        elif options.ping_msg is not None:
            payload = options.ping_msg
        else:
            payload = self._life.session.keepalive.compose()
        return payload

    def _encoded(self, payload: str | bytes) -> tuple[bytes | None, bytes]:
        """What a pong will name, None where it names nothing; and what is to be written: a payload, or a message."""
        if not isinstance(payload, (str, bytes)):
            raise TypeError(f"a ping is str or bytes, not {type(payload).__name__}")
        if self._life.options.ping_as == "message":
            return None, encode_message(payload, masked=True)
        data = as_bytes(payload)
        if len(data) > 125:
            raise ValueError("a ping frame holds at most 125 bytes")
        return data, data

    def _send(self, named: bytes | None, data: bytes, waiter: PingWait | None) -> None:
        life = self._life
        with life.lock:
            transport = life.transport
            if transport is None:
                raise NotConnected("the connection was lost")
            # Noted first: the pong may be here before the sending has returned.
            life.session.keepalive.sent(named, time.monotonic(), waiter, scheduled=waiter is None)
        try:
            if named is None:
                transport.send(data)
            else:
                transport.send_control(Opcode.PING, data)
        except ConnectionLost:
            pass  # whoever reads finds out why

    def pong(self, payload: bytes) -> None:
        """A pong frame came."""
        with self._life.lock:
            answered = self._life.session.keepalive.pong(payload, time.monotonic())
        _tell(answered)

    def pong_received(self) -> None:
        """A service's own pong came; it names no ping."""
        with self._life.lock:
            answered = self._life.session.keepalive.pong_received(time.monotonic())
        _tell(answered)


def _tell(answered: Sequence[tuple[Any, float]]) -> None:
    for waiter, rtt in answered:
        waiter.answer(rtt)
