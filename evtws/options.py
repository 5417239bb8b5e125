"""Options: everything that a Connection can be told before it is dialled."""

from __future__ import annotations

import ssl as tls
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from .correlation import Correlation, MatchKey, MatchMsg
from .errors import EvtwsError
from .keepalive import Keepalive
from .message import InFlight, Message, check_timeout
from .pending import DuplicateKeys
from .proxy import ProxySetting
from .reconnect import ReconnectPolicy, as_policy

if TYPE_CHECKING:
    from .connection import Connection

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
URL = str | Callable[[], str]

_TIMEOUTS = ("connect_timeout", "request_timeout", "write_timeout", "close_timeout", "late_after")
_FUNCTIONS = (
    "msg_prep",
    "split",
    "prepare",
    "on_message",
    "on_connected",
    "on_disconnected",
    "on_error",
    "compose_ping_message",
    "is_pong",
)
_CHOICES = {
    "in_flight": ("fail", "resend", "keep"),
    "duplicate_keys": ("queue", "refuse"),
    "overflow": ("drop", "block"),
    "ping_as": ("frame", "message"),
}
_COUNTS = {
    "unreceived_ping_threshold": 1,
    "max_pending": 1,
    "max_size": 0,
    "write_buffer": 0,
    "callback_queue": 1,
    "redirects": 0,
}
_OPTIONAL_COUNTS = ("max_pending", "max_size")


@dataclass(kw_only=True, eq=False, repr=False)
class Options:
    """What a Connection is told: keyword arguments, and attributes that can be set until it is dialled.

    Every time is in seconds; None is no limit, below 0 is a ValueError.

    **Matching.** `match_msg(request, response) -> bool`, `match_key(message) -> hashable` (None: no key) or a pair of
    those, for requests and for responses; `msg_prep(message)` sets `message.params`, once on each received message and
    on a request that was given none; `split(message) -> messages` takes several messages out of one, before
    `msg_prep`. `duplicate_keys`: a request whose key is pending is queued behind it, or refused with a ValueError.
    `late_after` is for `in_order` alone: how long a request that ended without its reply keeps its place; None closes
    the connection as lost. These functions run where messages are read: they must not block, and what takes over
    50 ms is reported. What they raise goes to `on_error`; the connection lives.

    **Hearing.** On the callbacks thread, one after another, in arrival order: `on_message(message, connection)` for
    what answers no request, `on_connected(connection)`, `on_disconnected(connection, error)` (the error is None after
    `close()`), `on_error(error)`. `callback_queue` bounds the messages that wait for `on_message`; the newest are
    dropped, counted and reported once per episode as SlowConsumer, or with `overflow="block"` nothing more is read
    until there is room.

    **Opening.** `headers`, `subprotocols`, `ssl` (an `ssl.SSLContext`; None: the system's authorities) may be
    functions, asked anew at each attempt. `proxy`: one URL, True for what the environment says, None for none.
    `redirects` are followed that many times, to the same origin only. `connect_timeout` is the whole of an attempt,
    from resolving to the end of `prepare(connection)`, which logs in: until it returns nobody else's message goes out.

    **Staying.** `reconnect`: True for the default ReconnectPolicy, or one of yours. `in_flight`: what becomes of a
    request that awaits its reply when the connection is lost: "fail", "resend" or "keep". `outbox`: how many messages
    wait for the connection, or (messages, bytes); 0: none, a send while not OPEN raises NotConnected. `max_pending`
    bounds the requests that await a reply.

    **Pings.** Every `ping_interval` (None: none; websockets: 20, nats.go: 120) a ping with `ping_msg`, or what
    `compose_ping_message()` returns, or a counter; as a ping frame of at most 125 bytes, or with `ping_as="message"`
    as an ordinary message, whose answer `is_pong(message)` knows or `pong_received()` tells. When a ping falls due,
    `count_pongs` is set and `unreceived_ping_threshold` (nats.go: 2) pings are unanswered, the connection is lost by
    StaleConnection.

    **Limits.** `request_timeout` is from the call, the outbox included. A message that does not fit in `write_buffer`
    (bytes) waits at most `write_timeout`. `max_size` is the bytes that one received message may have, None: no limit.
    """

    match_msg: MatchMsg | None = None
    match_key: MatchKey | None = None
    msg_prep: Callable[[Message], object] | None = None
    split: Callable[[Message], Sequence[Message]] | None = None
    duplicate_keys: DuplicateKeys = "queue"
    late_after: float | None = 5.0

    on_message: Callable[[Message, Connection], object] | None = None
    on_connected: Callable[[Connection], object] | None = None
    on_disconnected: Callable[[Connection, EvtwsError | None], object] | None = None
    on_error: Callable[[EvtwsError], object] | None = None
    callback_queue: int = 10_000
    overflow: Literal["drop", "block"] = "drop"

    headers: Headers | Callable[[], Headers] = ()
    subprotocols: Sequence[str] | Callable[[], Sequence[str]] = ()
    ssl: tls.SSLContext | Callable[[], tls.SSLContext] | None = None
    proxy: ProxySetting = True
    redirects: int = 0
    connect_timeout: float | None = 10.0
    prepare: Callable[[Connection], object] | None = None

    reconnect: bool | ReconnectPolicy = False
    in_flight: InFlight = "fail"
    outbox: int | tuple[int, int] = 0
    max_pending: int | None = None

    ping_interval: float | None = 20.0
    ping_msg: str | bytes | None = None
    compose_ping_message: Callable[[], str | bytes] | None = None
    ping_as: Literal["frame", "message"] = "frame"
    is_pong: Callable[[Message], bool] | None = None
    count_pongs: bool = True
    unreceived_ping_threshold: int = 2

    request_timeout: float | None = 30.0
    write_timeout: float | None = 10.0
    close_timeout: float | None = 5.0
    write_buffer: int = 1 << 20
    max_size: int | None = 1 << 24

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            self._check_settable(name)
            _check(name, value)
        object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        """For subclasses."""

    def _check_settable(self, name: str) -> None:
        """A subclass raises here while options cannot be changed."""

    def check_together(self) -> None:
        """Raise ValueError or TypeError for what no single option can show."""
        Correlation(self.match_msg, self.match_key)
        Keepalive(self.ping_interval, self.unreceived_ping_threshold, self.count_pongs)
        as_policy(self.reconnect)
        if self.ping_as == "message" and self.ping_msg is None and self.compose_ping_message is None:
            raise ValueError('ping_as="message" needs ping_msg or compose_ping_message')
        if self.ping_as == "frame" and self.ping_msg is not None and len(as_bytes(self.ping_msg)) > 125:
            raise ValueError("ping_msg is over the 125 bytes that a ping frame holds (RFC 6455 section 5.5)")

    def copy(self) -> Options:
        """These options alone, as they are now."""
        return Options(**{name: getattr(self, name) for name in NAMES})


NAMES = frozenset(field.name for field in fields(Options))


def as_bytes(payload: str | bytes) -> bytes:
    """A ping's payload as the bytes of a frame."""
    return payload.encode() if isinstance(payload, str) else payload


def _check(name: str, value: Any) -> None:
    if name in _TIMEOUTS:
        check_timeout(value, name)
    elif name in _FUNCTIONS:
        if value is not None and not callable(value):
            raise TypeError(f"{name} is a function or None, not {type(value).__name__}")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} is one of {', '.join(map(repr, _CHOICES[name]))}, not {value!r}")
    elif name in _COUNTS:
        _check_count(name, value, _COUNTS[name], optional=name in _OPTIONAL_COUNTS)
    elif name == "ping_interval":
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise ValueError(f"ping_interval is a number of seconds above 0 or None, not {value!r}")
    elif name == "outbox":
        if isinstance(value, tuple) and len(value) != 2:
            raise ValueError(f"outbox is a number of messages, or (messages, bytes), not {value!r}")
        for count in value if isinstance(value, tuple) else (value,):
            _check_count(name, count, 0)


def _check_count(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is a whole number of at least {least}{' or None' * optional}, not {value!r}")
