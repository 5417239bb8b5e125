"""ReconnectPolicy: try again? after how long?

The strategies are tenacity's (`wait_*`, `stop_*`, `retry_*`), so that users can bring theirs; what calls
them, and the counting, is here. Times are in seconds of a monotonic clock, and given as `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import tenacity
from tenacity import RetryCallState

from .errors import (
    CertificateError,
    ConnectionClosed,
    DialAborted,
    HandshakeError,
    InvalidURL,
    ProtocolError,
    ProxyError,
)

#: Seconds to wait, from tenacity's view of the attempts so far (`tenacity.wait_*`).
WaitStrategy = Callable[[RetryCallState], float]

#: Whether to give up (`tenacity.stop_*`).
StopStrategy = Callable[[RetryCallState], bool]

#: Whether to try again after this outcome (`tenacity.retry_*`).
RetryStrategy = Callable[[RetryCallState], bool]

#: Close codes by which a server says that the token is no longer good; with status 401 those that a new
#: token mends.
_UNAUTHORIZED_CODES = frozenset({1008, 4401})

_DEFAULT_WAIT = tenacity.wait_random_exponential(multiplier=3, max=30)


@dataclass(frozen=True, kw_only=True)
class ReconnectPolicy:
    """When a connection is tried again; immutable, and good for any number of connections.

    An *attempt* is a dial and whatever connection it opened; it ends when the dial fails or the connection
    is lost. An *outage* is a row of attempts none of which lived `stable_after` seconds, and for it the
    strategies count: the first end is attempt 1, so after a loss `tenacity.stop_after_attempt(5)` allows
    four dials; time begins with the first end.

    Raises TypeError when a strategy cannot be called, ValueError when a number of seconds is below 0.
    """

    #: Seconds before the next attempt. The default is at random below 3, 6, 12, 24, 30, 30, … seconds. It
    #: has no lower bound, which would bring all clients of a server that restarts back at the same moment.
    wait: WaitStrategy = _DEFAULT_WAIT
    #: When to give up; by default never.
    stop: StopStrategy = tenacity.stop_never
    #: Whether an error is worth another attempt; None asks `fatal_statuses` and `fatal_close_codes`.
    retry: RetryStrategy | None = None
    #: Seconds that a connection must live for the counting to begin anew, so that a server that accepts and
    #: drops meets the same backoff as one that refuses (partysocket: 5).
    stable_after: float = 10.0
    #: HTTP statuses of a refused upgrade that no repetition mends. 401 is tried once more per outage where
    #: the url or the headers come from a callable, which may have a new token.
    fatal_statuses: Set[int] = frozenset({401, 403, 404, 407, 410, 426})
    #: Close codes, the peer's or those by which we answered its fault, that no repetition mends (RFC 6455
    #: section 7.4.1). 1008 and 4401 are treated as status 401 is.
    fatal_close_codes: Set[int] = frozenset({1002, 1003, 1007, 1008, 1009, 1010, 4401})
    #: Seconds beyond which a server's `Retry-After` (with status 429 or 503) is not followed.
    max_retry_after: float = 300.0

    def __post_init__(self) -> None:
        for name in ("wait", "stop"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} is a tenacity strategy, not {getattr(self, name)!r}")
        if self.retry is not None and not callable(self.retry):
            raise TypeError(f"retry is a tenacity strategy or None, not {self.retry!r}")
        for name in ("stable_after", "max_retry_after"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0 seconds, not {getattr(self, name)!r}")
        for name in ("fatal_statuses", "fatal_close_codes"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))


def as_policy(value: bool | ReconnectPolicy) -> ReconnectPolicy | None:
    """The policy that `reconnect=` means: True is the default one, False is None.

    Raises TypeError for anything else.
    """
    if isinstance(value, ReconnectPolicy):
        return value
    if not isinstance(value, bool):
        raise TypeError(f"reconnect is True, False or a ReconnectPolicy, not {value!r}")
    return ReconnectPolicy() if value else None


class Reconnect:
    """One connection's attempts, counted, and what its policy says to them.

    `refreshable` tells that the url or the headers are asked for anew at each attempt.
    """

    def __init__(self, policy: ReconnectPolicy, refreshable: bool) -> None:
        self.policy = policy
        self.refreshable = refreshable
        self.reset()

    def reset(self) -> None:
        """Begin anew: no attempt was made, no outage is on."""
        self._opened_at: float | None = None
        self._state: RetryCallState | None = None
        self._refreshed = False

    @property
    def attempts(self) -> int:
        """How many attempts ended in this outage; 0 when there was none since the last stable connection."""
        return 0 if self._state is None else self._state.attempt_number - 1

    def opened(self, now: float) -> None:
        """A connection was opened."""
        self._opened_at = now

    def failed(self, error: BaseException, now: float) -> float | None:
        """The seconds until the next attempt after one that `error` ended; None gives up.

        What a strategy raises passes out.
        """
        if self._opened_at is not None and now - self._opened_at >= self.policy.stable_after:
            self.reset()
        self._opened_at = None
        state = self._attempt_ended(error, now)
        try:
            return self._decide(state, error)
        finally:
            # Counts up, and lets go of the error, whose traceback holds much.
            state.prepare_for_next_attempt()

    def _attempt_ended(self, error: BaseException, now: float) -> RetryCallState:
        if self._state is None:
            self._state = RetryCallState(_NO_RETRYING, None, (), {})
            self._state.start_time = now
        outcome = tenacity.Future(self._state.attempt_number)
        outcome.set_exception(error)
        self._state.outcome = outcome
        self._state.outcome_timestamp = now
        return self._state

    def _decide(self, state: RetryCallState, error: BaseException) -> float | None:
        if _is_own_wish(error) or not self._is_worth_retrying(state, error):
            return None
        delay = max(0.0, float(self.policy.wait(state)), self._retry_after(error))
        state.upcoming_sleep = delay
        if self.policy.stop(state):
            return None
        state.idle_for += delay
        return delay

    def _is_worth_retrying(self, state: RetryCallState, error: BaseException) -> bool:
        if self.policy.retry is not None:
            return self.policy.retry(state)
        if not self._is_fatal(error):
            return True
        if not self.refreshable or self._refreshed or not _is_unauthorized(error):
            return False
        self._refreshed = True
        return True

    def _is_fatal(self, error: BaseException) -> bool:
        if isinstance(error, (HandshakeError, ProxyError)):
            return error.status in self.policy.fatal_statuses
        if isinstance(error, (ConnectionClosed, ProtocolError)):
            return error.code in self.policy.fatal_close_codes
        return isinstance(error, (CertificateError, InvalidURL))

    def _retry_after(self, error: BaseException) -> float:
        if not isinstance(error, HandshakeError) or error.status not in (429, 503):
            return 0.0
        return min(_retry_after(error.headers), self.policy.max_retry_after)


#: Every RetryCallState wants one; it decides nothing here.
_NO_RETRYING = tenacity.Retrying()


def _is_own_wish(error: BaseException) -> bool:
    return isinstance(error, DialAborted) or (isinstance(error, ConnectionClosed) and not error.by_peer)


def _is_unauthorized(error: BaseException) -> bool:
    if isinstance(error, HandshakeError):
        return error.status == 401
    return isinstance(error, ConnectionClosed) and error.code in _UNAUTHORIZED_CODES


def _retry_after(headers: Mapping[str, str]) -> float:
    # RFC 9110 section 10.2.3: seconds, or a date. 0 where there is none that can be read.
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _date(value)
    if until is None:
        return 0.0
    # The server's clock and ours may differ by hours; its own Date tells how it means the other one.
    now = _date(headers.get("date", "")) or datetime.now(timezone.utc)
    return (until - now).total_seconds()


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)
