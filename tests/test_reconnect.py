"""The specification of evtws/reconnect.py."""

import collections
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from evtws.errors import (
    CertificateError,
    ConnectionClosed,
    ConnectionLost,
    DialAborted,
    DialTimeout,
    EvtwsError,
    HandshakeError,
    InvalidURL,
    MessageTooBig,
    PrepareError,
    ProtocolError,
    ProxyError,
    ResolveError,
    StaleConnection,
    TLSError,
)
from evtws.reconnect import Reconnect, ReconnectPolicy, as_policy

LOST = ConnectionLost("lost")


def fixed(refreshable: bool = False, **options: Any) -> Reconnect:
    """A connection's counting whose policy waits one second, unless told otherwise."""
    return Reconnect(ReconnectPolicy(**{"wait": tenacity.wait_fixed(1), **options}), refreshable)


def delays(reconnect: Reconnect, error: BaseException, count: int) -> list[float | None]:
    """What `count` failures in a row, one second apart, are answered with."""
    return [reconnect.failed(error, 100.0 + second) for second in range(count)]


def refused(status: int | None, **headers: str) -> HandshakeError:
    """A refused upgrade with these response headers."""
    return HandshakeError("refused", status, {name.replace("_", "-"): text for name, text in headers.items()})


def closed(code: int) -> ConnectionClosed:
    return ConnectionClosed(code, by_peer=True)


@pytest.fixture
def seeded() -> Iterator[None]:
    """The random numbers of this test are the same in each run."""
    before = random.getstate()
    random.seed(1)
    yield
    random.setstate(before)


def test_as_policy() -> None:
    """True is the default policy, False is none, a policy is itself, and anything else a TypeError."""
    policy = ReconnectPolicy(stable_after=1)
    assert as_policy(policy) is policy
    assert as_policy(True) == ReconnectPolicy()
    assert as_policy(False) is None
    nonsense: Any = 5
    with pytest.raises(TypeError, match="reconnect"):
        as_policy(nonsense)


def test_policy_is_immutable() -> None:
    """A policy cannot be changed, so that connections can share it."""
    policy: Any = ReconnectPolicy()
    with pytest.raises(AttributeError):
        policy.stable_after = 5


@pytest.mark.parametrize("name", ["wait", "stop", "retry"])
def test_strategies_must_be_callable(name: str) -> None:
    """A strategy that cannot be called is a TypeError that names it."""
    options: dict[str, Any] = {name: 5}
    with pytest.raises(TypeError, match=name):
        ReconnectPolicy(**options)


@pytest.mark.parametrize("name", ["stable_after", "max_retry_after"])
def test_seconds_must_be_at_least_0(name: str) -> None:
    """A number of seconds below 0 is a ValueError that names it."""
    options: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match=name):
        ReconnectPolicy(**options)


@pytest.mark.usefixtures("seeded")
def test_default_backoff() -> None:
    """By default the delays are at random below 3, 6, 12, 24 and then 30 seconds, without end."""
    seen: dict[int, list[float]] = collections.defaultdict(list)
    for _ in range(400):
        reconnect = Reconnect(ReconnectPolicy(), False)
        for attempt, delay in enumerate(delays(reconnect, LOST, 7)):
            assert delay is not None
            seen[attempt].append(delay)
    for attempt, top in enumerate([3, 6, 12, 24, 30, 30, 30]):
        assert 0.9 * top < max(seen[attempt]) <= top
        assert min(seen[attempt]) < 0.1 * top


@pytest.mark.usefixtures("seeded")
def test_no_herd() -> None:
    """Of 10,000 clients that lose one server at once, at most 5 % come back in any tenth of a second."""
    policy = ReconnectPolicy()
    buckets: collections.Counter[int] = collections.Counter()
    for _ in range(10_000):
        delay = Reconnect(policy, False).failed(LOST, 0.0)
        assert delay is not None
        buckets[int(delay * 10)] += 1
    assert max(buckets.values()) <= 500


def test_flapping_server() -> None:
    """A server that accepts and drops meets the growing delays of one that refuses."""
    reconnect = fixed(wait=tenacity.wait_exponential(multiplier=1, max=60))
    now, dials = 0.0, 0
    while now < 1000:
        dials += 1
        reconnect.opened(now)
        delay = reconnect.failed(LOST, now + 1)
        assert delay is not None
        now += 1 + delay
    # 1 + 2 + 4 + 8 + 16 + 32 seconds and one more each, then one dial in 61 seconds.
    assert dials == 6 + 16


def test_stable_connection_resets() -> None:
    """A connection that lived stable_after seconds ends the outage: the counting begins anew."""
    reconnect = fixed(wait=tenacity.wait_incrementing(start=1, increment=1), stable_after=10)
    assert delays(reconnect, LOST, 3) == [1, 2, 3]
    assert reconnect.attempts == 3
    reconnect.opened(200)
    assert reconnect.failed(LOST, 209.9) == 4
    reconnect.opened(300)
    assert reconnect.failed(LOST, 310) == 1
    assert reconnect.attempts == 1


def test_failed_dial_is_no_life() -> None:
    """The time between failed dials does not count as the life of the connection before."""
    reconnect = fixed(wait=tenacity.wait_incrementing(start=1, increment=1), stable_after=10)
    reconnect.opened(0)
    assert [reconnect.failed(LOST, now) for now in (1, 50, 100)] == [1, 2, 3]


def test_reset() -> None:
    """reset() forgets the attempts, the open connection and the used-up second try."""
    reconnect = fixed(refreshable=True, wait=tenacity.wait_incrementing(start=1, increment=1))
    assert delays(reconnect, refused(401), 2) == [1, None]
    reconnect.opened(100)
    reconnect.reset()
    assert reconnect.attempts == 0
    assert delays(reconnect, refused(401), 2) == [1, None]


def test_two_connections_one_policy() -> None:
    """Connections that share a policy count each for itself."""
    policy = ReconnectPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_attempt(2))
    one, other = Reconnect(policy, False), Reconnect(policy, False)
    assert delays(one, LOST, 2) == [1, None]
    assert delays(other, LOST, 2) == [1, None]


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        StaleConnection(2),
        DialTimeout("late"),
        ResolveError("no address"),
        TLSError("eof"),
        PrepareError("login"),
        ProxyError("refused"),
        ProxyError("refused", 502),
        OSError("no file descriptors"),
        refused(None),
        refused(408),
        refused(429),
        refused(500),
        refused(503),
        *map(closed, (1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000)),
    ],
    ids=repr,
)
def test_transient(error: BaseException) -> None:
    """What may go better next time is tried again, any number of times."""
    assert delays(fixed(), error, 5) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("refreshable", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        CertificateError("expired"),
        InvalidURL("no host"),
        ProtocolError("a reserved bit"),
        ProtocolError("no UTF-8", 1007),
        MessageTooBig(5, 4),
        *map(refused, (403, 404, 407, 410, 426)),
        *map(closed, (1002, 1003, 1007, 1009, 1010)),
        ProxyError("who are you?", 407),
    ],
    ids=repr,
)
def test_fatal(error: EvtwsError, refreshable: bool) -> None:
    """What no repetition mends is not tried again."""
    assert fixed(refreshable).failed(error, 100) is None


UNAUTHORIZED: list[EvtwsError] = [refused(401), closed(1008), closed(4401)]


@pytest.mark.parametrize("error", UNAUTHORIZED, ids=repr)
def test_unauthorized_is_fatal(error: EvtwsError) -> None:
    """A token that is refused is not tried again where it cannot be another one."""
    assert fixed().failed(error, 100) is None


@pytest.mark.parametrize("second", UNAUTHORIZED, ids=repr)
@pytest.mark.parametrize("first", UNAUTHORIZED, ids=repr)
def test_unauthorized_once_more(first: EvtwsError, second: EvtwsError) -> None:
    """A token that is refused is tried once more per outage where the url or the headers are a callable."""
    reconnect = fixed(refreshable=True)
    assert reconnect.failed(first, 100) == 1
    assert reconnect.failed(LOST, 101) == 1
    reconnect.opened(102)
    assert reconnect.failed(second, 103) is None


def test_unauthorized_once_more_in_the_next_outage() -> None:
    """After a connection that was stable a refused token is tried once more again."""
    reconnect = fixed(refreshable=True)
    for start in (0, 100, 200):
        reconnect.opened(start)
        assert reconnect.failed(closed(4401), start + 50) == 1


@pytest.mark.parametrize("error", [DialAborted("closing"), ConnectionClosed(1000, by_peer=False)], ids=repr)
def test_own_wish(error: EvtwsError) -> None:
    """An end that was asked for on this side is never tried again, whatever the strategies say."""
    assert fixed(retry=tenacity.retry_always).failed(error, 100) is None


def test_fatal_tables_can_be_set() -> None:
    """fatal_statuses and fatal_close_codes are what counts, as any set."""
    reconnect = fixed(fatal_statuses={500}, fatal_close_codes=[4000])
    assert reconnect.failed(refused(500), 100) is None
    assert reconnect.failed(closed(4000), 100) is None
    for error in (refused(404), closed(1002), closed(1008), ProtocolError("bad")):
        assert reconnect.failed(error, 100) == 1


def test_retry_strategy_decides() -> None:
    """A retry strategy replaces the tables: it is asked with the error as the outcome."""
    reconnect = fixed(retry=tenacity.retry_if_exception_type((CertificateError, DialTimeout)))
    assert reconnect.failed(CertificateError("expired"), 100) == 1
    assert reconnect.failed(DialTimeout("late"), 100) == 1
    assert reconnect.failed(LOST, 100) is None


@pytest.mark.parametrize(
    ("strategy", "again"),
    [
        (tenacity.retry_never, False),
        (tenacity.retry_always, True),
        (tenacity.retry_if_exception(lambda error: "lost" in str(error)), True),
        (tenacity.retry_if_exception_message(match="other"), False),
        (tenacity.retry_if_not_exception_type(ConnectionLost), False),
        (tenacity.retry_if_exception_type(ValueError) | tenacity.retry_if_exception_type(OSError), True),
        (tenacity.retry_all(tenacity.retry_always, tenacity.retry_if_exception_type(ValueError)), False),
        (lambda state: state.attempt_number == 1, True),
    ],
)
def test_tenacity_retry_strategies(strategy: Callable[[Any], bool], again: bool) -> None:
    """tenacity's retry strategies, and plain functions, work as they do there."""
    assert (fixed(retry=strategy).failed(LOST, 100) is not None) is again


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (tenacity.wait_none(), [0, 0, 0]),
        (tenacity.wait_fixed(timedelta(seconds=2)), [2, 2, 2]),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(5)), [1, 5, 5]),
        (tenacity.wait_exponential(multiplier=1, min=2, max=3), [2, 2, 3]),
        (tenacity.wait_fixed(1) + tenacity.wait_incrementing(start=0, increment=1), [1, 2, 3]),
        (lambda state: state.attempt_number * 10, [10, 20, 30]),
        (lambda state: state.idle_for + 1, [1, 2, 4]),
        (lambda state: state.seconds_since_start, [0, 1, 2]),
        (lambda state: -5, [0, 0, 0]),
    ],
)
def test_tenacity_wait_strategies(strategy: Callable[[Any], float], expected: list[float]) -> None:
    """tenacity's wait strategies, and plain functions, work as they do there; no delay is below 0."""
    assert delays(fixed(wait=strategy), LOST, 3) == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (tenacity.stop_never, [1, 1, 1, 1]),
        (tenacity.stop_after_attempt(3), [1, 1, None]),
        (tenacity.stop_after_delay(2), [1, 1, None]),
        (tenacity.stop_after_attempt(9) | tenacity.stop_after_delay(1), [1, None]),
        (tenacity.stop_after_attempt(3) & tenacity.stop_after_delay(1), [1, 1, None]),
        (lambda state: state.upcoming_sleep == 1 and state.attempt_number == 2, [1, None]),
    ],
)
def test_tenacity_stop_strategies(strategy: Callable[[Any], bool], expected: list[float | None]) -> None:
    """tenacity's stop strategies, and plain functions, work as they do there, on the caller's clock."""
    assert delays(fixed(stop=strategy), LOST, len(expected)) == expected


@pytest.mark.skipif(not hasattr(tenacity, "stop_before_delay"), reason="tenacity has it since 9.0")
def test_stop_before_delay() -> None:
    """A stop strategy sees how long the next wait would be, a server's Retry-After included."""
    reconnect = fixed(stop=tenacity.stop_before_delay(5))
    assert reconnect.failed(LOST, 100) == 1
    assert reconnect.failed(refused(503, retry_after="3"), 101) == 3
    assert reconnect.failed(refused(503, retry_after="4"), 101) is None


def test_delay_counts_per_outage() -> None:
    """stop_after_delay counts from the beginning of the outage."""
    reconnect = fixed(stop=tenacity.stop_after_delay(60))
    reconnect.opened(0)
    assert reconnect.failed(LOST, 5000) == 1
    assert reconnect.failed(DialTimeout("late"), 5059) == 1
    assert reconnect.failed(DialTimeout("late"), 5060) is None


@pytest.mark.parametrize("name", ["wait", "stop", "retry"])
def test_strategy_that_raises(name: str) -> None:
    """What a strategy raises passes out, and the attempt is counted all the same."""

    def broken(state: object) -> bool:
        raise ZeroDivisionError

    strategies: dict[str, Any] = {name: broken}
    reconnect = fixed(**strategies)
    with pytest.raises(ZeroDivisionError):
        reconnect.failed(LOST, 100)
    assert reconnect.attempts == 1


def test_error_is_let_go() -> None:
    """The error of an attempt, whose traceback holds much, is not kept."""
    reconnect = fixed()
    error = ConnectionLost("lost")
    watch = weakref.ref(error)
    reconnect.failed(error, 100)
    del error
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_seconds(status: int) -> None:
    """With status 429 and 503 the delay is no shorter than the server's Retry-After, in seconds."""
    assert fixed().failed(refused(status, retry_after="7"), 100) == 7
    assert fixed().failed(refused(status, retry_after=" 0 "), 100) == 1
    assert fixed(wait=tenacity.wait_fixed(20)).failed(refused(status, retry_after="7"), 100) == 20


def test_retry_after_elsewhere() -> None:
    """With any other status Retry-After is not looked at."""
    assert fixed().failed(refused(500, retry_after="7"), 100) == 1


@pytest.mark.parametrize("value", ["301", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_is_capped(value: str) -> None:
    """A Retry-After beyond max_retry_after counts as that; the strategy's own wait is not capped."""
    assert fixed().failed(refused(503, retry_after=value), 100) == 300
    assert fixed(max_retry_after=5).failed(refused(503, retry_after=value), 100) == 5
    assert fixed(wait=tenacity.wait_fixed(900)).failed(refused(503, retry_after=value), 100) == 900


@pytest.mark.parametrize(
    "until",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_retry_after_date(until: str) -> None:
    """A date in Retry-After, in any of HTTP's three forms, is taken relative to the response's own Date."""
    error = refused(503, retry_after=until, date="Sun, 06 Nov 1994 08:48:37 GMT")
    assert fixed().failed(error, 100) == 60


def test_retry_after_date_that_is_past() -> None:
    """A date in Retry-After that is past asks for no wait."""
    error = refused(503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT", date="Sun, 06 Nov 1994 08:50:37 GMT")
    assert fixed().failed(error, 100) == 1


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_retry_after_date_without_date(date: dict[str, str]) -> None:
    """Without a Date that can be read, a date in Retry-After is taken by our own clock."""
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=200), usegmt=True)
    delay = fixed().failed(refused(503, retry_after=until, **date), 100)
    assert delay is not None
    assert 150 < delay <= 200


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "٣", "Sun, 99 Nov 1994 08:49:37 GMT", "inf", "nan"])
def test_malformed_retry_after(value: str) -> None:
    """A Retry-After that cannot be read is ignored."""
    assert fixed().failed(refused(503, retry_after=value), 100) == 1


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ (Jan|Feb) \d+ \d+:\d+:\d+ ([+-]\d+|GMT)"))
def test_any_retry_after(value: str) -> None:
    """Whatever a server writes into Retry-After and Date, the delay is between the wait and the cap."""
    delay = fixed().failed(refused(503, retry_after=value, date=value[::-1]), 100)
    assert delay is not None
    assert 1 <= delay <= 300
