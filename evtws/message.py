"""Message: a body, the params that it decodes to, and who hears of its reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from .errors import EvtwsError

if TYPE_CHECKING:
    from .connection import Connection

#: What becomes of a request in flight when the connection is lost: it fails, it is sent again in its old order, or
#: it stays and awaits its reply on the next connection.
InFlight = Literal["fail", "resend", "keep"]

Callback = Callable[["Message", "Connection"], object]
FailureCallback = Callable[[EvtwsError, "Connection"], object]


class _Unset:
    def __repr__(self) -> str:
        return "DEFAULT"


#: Stands for "as the connection is set"; None means "no limit" wherever a timeout is asked for.
DEFAULT = _Unset()

Timeout = float | None | _Unset


def check_timeout(seconds: object, name: str = "timeout") -> None:
    """Raise ValueError unless `seconds` is None, DEFAULT or a number from 0 to what the system can wait for."""
    if seconds is None or isinstance(seconds, _Unset):
        return
    if not isinstance(seconds, (int, float)) or not 0 <= seconds <= threading.TIMEOUT_MAX:
        longest = f"{threading.TIMEOUT_MAX:.0f}"
        raise ValueError(f"{name} must be at least 0 seconds and at most {longest}, or None for no limit: {seconds!r}")


class Message:
    """One websocket message, sent or received.

    `body` is a `str` for a text message and `bytes` for a binary one, both ways. `params` is what the body means,
    for matching: whatever `msg_prep` made of it, or what was given.

    With a `callback`, exactly one of `callback(reply, connection)` and `on_failure(error, connection)` is called;
    without `on_failure` the error, which has this message as `.message`, goes to the connection's `on_error`.
    `timeout` is in seconds from the call that sends it; None means no limit, and left out it is the connection's
    `request_timeout`. `in_flight` ("fail", "resend" or "keep") overrides the connection's.
    """

    __slots__ = ("__weakref__", "body", "callback", "in_flight", "on_failure", "params", "timeout")

    def __init__(
        self,
        body: str | bytes,
        params: Any = None,
        callback: Callback | None = None,
        *,
        on_failure: FailureCallback | None = None,
        timeout: Timeout = DEFAULT,
        in_flight: InFlight | None = None,
    ) -> None:
        if not isinstance(body, (str, bytes)):
            raise TypeError(f"a message's body is str or bytes, not {type(body).__name__}")
        if in_flight not in (None, "fail", "resend", "keep"):
            raise ValueError(f'in_flight is "fail", "resend", "keep" or None, not {in_flight!r}')
        check_timeout(timeout)
        self.body = body
        self.params = params
        self.callback = callback
        self.on_failure = on_failure
        self.timeout = timeout
        self.in_flight = in_flight

    @classmethod
    def json(
        cls,
        obj: Any,
        callback: Callback | None = None,
        *,
        on_failure: FailureCallback | None = None,
        timeout: Timeout = DEFAULT,
        in_flight: InFlight | None = None,
    ) -> Message:
        """A text message whose body is `obj` as compact JSON and whose params are `obj` itself."""
        return cls(_compact(obj), obj, callback, on_failure=on_failure, timeout=timeout, in_flight=in_flight)

    def __repr__(self) -> str:
        # The body may hold a token: only its kind and size are shown.
        kind = "text" if isinstance(self.body, str) else "binary"
        return f"<Message {kind}, {len(self.body)} long>"


def received(body: str | bytes) -> Message:
    """A Message for a body that came from the wire: right by construction, so nothing is checked (hot path)."""
    message = _new(Message)
    message.body = body
    message.params = message.callback = message.on_failure = message.timeout = message.in_flight = None
    return message


_new = Message.__new__
# Made once: `json.dumps` with separators makes an encoder for each call.
_compact = json.JSONEncoder(separators=(",", ":")).encode
