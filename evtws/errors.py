"""Every error that evtws raises or reports.

    EvtwsError
    ├── ConnectionLost            (ConnectionError)  a connection that was open ended; `written` tells of the bytes
    │   ├── ConnectionClosed      by a close frame or by close(): `code`, `reason`, `by_peer`
    │   ├── StaleConnection       (TimeoutError)     too many pings went unanswered
    │   └── ProtocolError         the peer broke RFC 6455: `code` is the close code that says so
    │       └── MessageTooBig     `size` and `limit`, bytes
    ├── DialError                 (ConnectionError)  a connection was not opened
    │   ├── DialTimeout           (TimeoutError)     not within `connect_timeout`
    │   ├── DialAborted           close() was called meanwhile
    │   ├── ResolveError          the host name has no address
    │   ├── ProxyError            the proxy refused or broke off: `status`
    │   ├── TLSError              the TLS handshake failed
    │   │   └── CertificateError  the server's certificate was not accepted
    │   ├── HandshakeError        the HTTP upgrade was refused: `status`, `headers`, `body`
    │   └── PrepareError          prepare(connection) raised or took too long
    ├── InvalidURL                (ValueError)
    ├── NotConnected              (ConnectionError)  sent while not OPEN and without an outbox
    ├── OutboxFull                sent while not OPEN, and the outbox is full
    ├── PendingFull               `max_pending` requests await their reply already
    ├── ReplyTimeout              (TimeoutError)     no reply in time
    ├── RequestCancelled          the request was removed from the queue
    ├── WriteTimeout              (TimeoutError)     not a byte was written within `write_timeout`
    ├── SlowConsumer              messages came faster than they were taken: `dropped`
    ├── UserCodeError             a function of the user's raised; the exception is its `__cause__`
    ├── SlowUserCode              a function on the I/O thread took too long: `seconds`
    ├── IllegalTransition         (RuntimeError)     a signal that the state does not allow
    ├── WouldDeadlock             (RuntimeError)     a call that would wait for its own thread
    └── ForkedError               (RuntimeError)     a connection used in a forked child

An error that concerns one message has it as `message`, which is None otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from .message import Message

#: Whether a request's bytes were given to the operating system: none, some, all of them.
Written = Literal["no", "maybe", "yes"]

_E = TypeVar("_E", bound="EvtwsError")


class EvtwsError(Exception):
    """Whatever goes wrong in evtws."""

    #: The message that this error ended, or None.
    message: Message | None = None

    def about(self: _E, message: Message) -> _E:
        """A copy of this error that concerns `message`, with the same cause."""
        error = copy.copy(self)
        error.message = message
        error.__cause__ = self.__cause__
        return error

    def __reduce__(self) -> tuple[object, ...]:
        # The signatures below are keyword-only; copy and pickle rebuild from the attributes instead.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[_E], args: tuple[object, ...], attributes: dict[str, object]) -> _E:
    error = kind.__new__(kind)
    error.args = args  # said again: OSError.__new__ does not keep them for a class with an __init__ of its own
    error.__dict__.update(attributes)
    return error


class ConnectionLost(EvtwsError, ConnectionError):
    """A connection that was open ended while somebody still needed it.

    `written` tells, for a request, whether its bytes were given to the operating system: "no" (it is safe to
    send it again), "maybe" (a part of them) or "yes". What the peer did with them nobody can know.
    """

    written: Written = "no"

    def about_request(self: _E, message: Message, written: Written) -> _E:
        """A copy of this error for a request of which that much was written."""
        error = self.about(message)
        error.__dict__["written"] = written
        return error

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.message is None else f"{text} (written: {self.written})"


class ConnectionClosed(ConnectionLost):
    """The connection ended by a close frame or by `close()`.

    `code` is the close code (RFC 6455 section 7.4; 1005: none was given; 1006: no close frame came), `reason` its
    text, `by_peer` whether the peer began.
    """

    def __init__(self, code: int, reason: str = "", *, by_peer: bool) -> None:
        who = "the peer closed the connection" if by_peer else "the connection was closed by close()"
        super().__init__(f"{who}: {code}" + (f" {reason}" if reason else ""))
        self.code = code
        self.reason = reason
        self.by_peer = by_peer


class StaleConnection(ConnectionLost, TimeoutError):
    """So many pings in a row went unanswered that the connection is held to be dead."""

    def __init__(self, unanswered: int) -> None:
        super().__init__(f"{unanswered} pings went unanswered")
        self.unanswered = unanswered


class ProtocolError(ConnectionLost):
    """The peer broke the protocol; `code` is the close code that it was told (1002, 1007 or 1009)."""

    def __init__(self, text: str, code: int = 1002) -> None:
        super().__init__(text)
        self.code = code


class MessageTooBig(ProtocolError):
    """A message is larger than `max_size`; both in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of at least {size} bytes is over the limit of {limit}", 1009)
        self.size = size
        self.limit = limit


class DialError(EvtwsError, ConnectionError):
    """A connection was not opened."""


class DialTimeout(DialError, TimeoutError):
    """The connection was not opened within `connect_timeout`."""


class DialAborted(DialError):
    """The connection was not opened because `close()` was called meanwhile."""


class ResolveError(DialError):
    """The host name could not be resolved."""


class ProxyError(DialError):
    """The proxy refused the connection or broke off; `status` is its HTTP status, or None."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class TLSError(DialError):
    """The TLS handshake failed."""


class CertificateError(TLSError):
    """The server's certificate was not accepted."""


class HandshakeError(DialError):
    """The HTTP upgrade was refused, or answered by something that is no upgrade.

    `status` is the HTTP status (None when the answer was not even HTTP), `headers` the response's headers with
    lower-case names, `body` at most the first bytes of its body.
    """

    def __init__(
        self,
        text: str,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.body = body


class PrepareError(DialError):
    """`prepare(connection)` raised (see `__cause__`) or did not return within `connect_timeout`."""


class InvalidURL(EvtwsError, ValueError):
    """The URL is no websocket URL."""


class NotConnected(EvtwsError, ConnectionError):
    """The connection is not OPEN, and there is no outbox to wait in."""


class OutboxFull(EvtwsError):
    """The connection is not OPEN, and the outbox has no room for this message."""


class PendingFull(EvtwsError):
    """As many requests as `max_pending` allows await their reply."""


class ReplyTimeout(EvtwsError, TimeoutError):
    """No reply came in time; the text says where the request was then.

    `waited` is in seconds, `written` as in `ConnectionLost`.
    """

    def __init__(self, text: str, *, waited: float, written: Written) -> None:
        super().__init__(text)
        self.waited = waited
        self.written = written


class RequestCancelled(EvtwsError):
    """The request was removed from the queue while it awaited its reply."""


class WriteTimeout(EvtwsError, TimeoutError):
    """The message could not be written within `write_timeout`; not a byte of it was."""


class SlowConsumer(EvtwsError):
    """Messages came faster than they were taken; `dropped` of them were dropped so far in this episode."""

    def __init__(self, text: str, dropped: int = 0) -> None:
        super().__init__(text)
        self.dropped = dropped


class UserCodeError(EvtwsError):
    """A function of the user's raised; what it raised is `__cause__`, the message it was given is `message`."""

    def __init__(self, name: str, cause: BaseException, message: Message | None = None) -> None:
        super().__init__(f"{name} raised {type(cause).__name__}: {cause}")
        self.message = message
        self.__cause__ = cause


class SlowUserCode(EvtwsError):
    """A user's function that must run on the I/O thread held it for `seconds`."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"{name} took {seconds * 1000:.0f} ms on the I/O thread; nothing is read meanwhile")
        self.seconds = seconds


class IllegalTransition(EvtwsError, RuntimeError):
    """The state does not allow this signal; nothing was changed."""


class WouldDeadlock(EvtwsError, RuntimeError):
    """This call would wait for something that only its own thread can do."""


class ForkedError(EvtwsError, RuntimeError):
    """The connection belongs to the parent process; dial a new one in this one."""
