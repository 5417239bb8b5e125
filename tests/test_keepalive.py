"""The specification of evtws/keepalive.py."""

import math
from typing import Any

import pytest

from evtws.keepalive import MAX_OUTSTANDING, Keepalive


def started(interval: float | None = 20, **options: Any) -> Keepalive:
    keepalive = Keepalive(interval, **options)
    keepalive.started(100)
    return keepalive


def ping(keepalive: Keepalive, now: float) -> bytes:
    """Send the ping that is due."""
    assert keepalive.is_due(now)
    payload = keepalive.compose()
    keepalive.sent(payload, now)
    return payload


def times(keepalive: Keepalive) -> list[float | None]:
    """The round-trip times: last, min and mean."""
    return [keepalive.rtt_last, keepalive.rtt_min, keepalive.rtt_mean]


def is_stale(keepalive: Keepalive) -> bool:
    return keepalive.is_stale


@pytest.mark.parametrize("interval", [0, -1, math.nan])
def test_interval_must_be_above_0(interval: float) -> None:
    """An interval that is not above 0 is a ValueError."""
    with pytest.raises(ValueError, match="ping_interval"):
        Keepalive(interval)


@pytest.mark.parametrize("threshold", [0, -1])
def test_threshold_must_be_at_least_1(threshold: int) -> None:
    """A threshold below 1 is a ValueError."""
    with pytest.raises(ValueError, match="unreceived_ping_threshold"):
        Keepalive(20, threshold)


def test_nothing_is_due_before_the_start() -> None:
    """Before a connection is opened no ping is due."""
    keepalive = Keepalive(20)
    assert keepalive.due_at is None
    assert not keepalive.is_due(1e9)


def test_first_ping() -> None:
    """The first ping is due one interval after the connection was opened, and not earlier."""
    keepalive = started(20)
    assert keepalive.due_at == 120
    assert not keepalive.is_due(119.9)
    assert keepalive.is_due(120)


def test_next_ping() -> None:
    """The next ping is due one interval after the last was sent, answered or not."""
    keepalive = started(20)
    payload = ping(keepalive, 121)
    assert keepalive.due_at == 141
    keepalive.pong(payload, 122)
    assert keepalive.due_at == 141


def test_no_interval() -> None:
    """Without an interval no ping is ever due, but the user's pings are answered."""
    keepalive = started(None)
    keepalive.sent(b"x", 101, "me", scheduled=False)
    assert keepalive.due_at is None
    assert keepalive.pong(b"x", 103) == [("me", 2)]
    keepalive.postpone(104)
    assert keepalive.due_at is None


def test_payloads_differ() -> None:
    """Composed payloads are all different, and fit into a ping frame."""
    keepalive = started()
    payloads = [keepalive.compose() for _ in range(1000)]
    assert len(set(payloads)) == 1000
    assert max(map(len, payloads)) <= 125


def test_stale_at_the_threshold() -> None:
    """The connection is stale when as many pings as the threshold are unanswered."""
    keepalive = started(threshold=2)
    ping(keepalive, 120)
    assert not is_stale(keepalive)
    ping(keepalive, 140)
    assert is_stale(keepalive)
    assert keepalive.unanswered == 2


def test_pong_clears() -> None:
    """A pong to the newest ping leaves nothing unanswered, so that missed ones do not add up."""
    keepalive = started(threshold=2)
    ping(keepalive, 120)
    keepalive.pong(ping(keepalive, 140), 141)
    assert keepalive.unanswered == 0
    ping(keepalive, 160)
    assert not is_stale(keepalive)


def test_pong_to_an_older_ping() -> None:
    """A pong to an older ping leaves the newer ones unanswered."""
    keepalive = started()
    first, _ = ping(keepalive, 120), ping(keepalive, 140)
    keepalive.pong(first, 141)
    assert keepalive.unanswered == 1


def test_pongs_not_counted() -> None:
    """With count_pongs=False a connection is never stale."""
    keepalive = started(threshold=1, count_pongs=False)
    ping(keepalive, 120)
    ping(keepalive, 140)
    assert keepalive.unanswered == 2
    assert not is_stale(keepalive)


def test_unknown_pong_is_ignored() -> None:
    """A pong that no ping has asked for changes nothing."""
    keepalive = started()
    ping(keepalive, 120)
    assert keepalive.pong(b"unasked", 121) == []
    assert keepalive.unanswered == 1
    assert keepalive.rtt_last is None


def test_pong_twice() -> None:
    """The second pong to one ping changes nothing."""
    keepalive = started()
    payload = ping(keepalive, 120)
    keepalive.pong(payload, 121)
    assert keepalive.pong(payload, 129) == []
    assert keepalive.rtt_last == 1


def test_pong_answers_all_before_it() -> None:
    """A pong answers its ping and all sent before it, each waiter with its own time, and none sent after."""
    keepalive = started()
    keepalive.sent(b"a", 101, "A", scheduled=False)
    keepalive.sent(b"b", 102, scheduled=False)
    keepalive.sent(b"c", 103, "C", scheduled=False)
    keepalive.sent(b"d", 104, "D", scheduled=False)
    assert keepalive.pong(b"c", 105) == [("A", 4), ("C", 2)]
    assert keepalive.unanswered == 1
    assert keepalive.lost() == ["D"]


def test_same_payload_twice() -> None:
    """Of two pings with the same payload a pong answers the newest, and so both; no time is measured."""
    keepalive = started()
    keepalive.sent(b"x", 120)
    keepalive.sent(b"x", 140)
    keepalive.pong(b"x", 141)
    assert keepalive.unanswered == 0
    assert keepalive.rtt_last is None


def test_user_ping_leaves_the_schedule() -> None:
    """A ping that the user asks for does not move the next scheduled one."""
    keepalive = started()
    keepalive.sent(keepalive.compose(), 110, "me", scheduled=False)
    assert keepalive.due_at == 120


def test_user_pings_make_nothing_stale() -> None:
    """Many pings of the user just before one falls due do not make the connection stale."""
    keepalive = started(threshold=2)
    for _ in range(5):
        keepalive.sent(keepalive.compose(), 119.9, "me", scheduled=False)
    assert keepalive.unanswered == 5
    assert not is_stale(keepalive)


def test_user_ping_answers_scheduled_ones() -> None:
    """A pong to the user's ping answers the scheduled pings before it."""
    keepalive = started()
    ping(keepalive, 120)
    keepalive.sent(b"mine", 121, "me", scheduled=False)
    keepalive.pong(b"mine", 122)
    assert keepalive.unanswered == 0


def test_service_pong() -> None:
    """A service's own pong answers all that is outstanding, and gives back the waiters."""
    keepalive = started()
    keepalive.sent(None, 120)
    keepalive.sent(b"b", 121, "me", scheduled=False)
    assert keepalive.pong_received(123) == [("me", 2)]
    assert keepalive.unanswered == 0
    assert keepalive.rtt_last is None


def test_service_pong_measures_one_ping() -> None:
    """A service's own pong measures the time when it is certain to which ping it belongs."""
    keepalive = started()
    keepalive.sent(None, 120)
    keepalive.pong_received(120.5)
    assert keepalive.rtt_last == 0.5


def test_service_pong_unasked() -> None:
    """A service's own pong with nothing outstanding changes nothing."""
    keepalive = started()
    assert keepalive.pong_received(105) == []
    assert keepalive.rtt_last is None


def test_ping_without_payload_is_named_by_no_pong() -> None:
    """A service's own ping is not answered by a pong frame, not even an empty one."""
    keepalive = started()
    keepalive.sent(None, 120)
    assert keepalive.pong(b"", 121) == []
    assert keepalive.unanswered == 1


def test_postpone() -> None:
    """While reading is paused the next ping moves to one interval from now."""
    keepalive = started(20)
    ping(keepalive, 120)
    keepalive.postpone(139)
    assert keepalive.due_at == 159
    assert not keepalive.is_due(158)


def test_round_trip_times() -> None:
    """Round-trip times are kept as the last, the least and the mean, in seconds."""
    keepalive = started()
    assert times(keepalive) == [None, None, None]
    for now, took in ((120, 2.0), (140, 1.0), (160, 6.0)):
        keepalive.pong(ping(keepalive, now), now + took)
    assert times(keepalive) == [6.0, 1.0, 3.0]


def test_round_trip_of_the_pinged_only() -> None:
    """Pings answered along with a later one are not measured: their own pong never came."""
    keepalive = started()
    ping(keepalive, 120)
    keepalive.pong(ping(keepalive, 140), 141)
    assert keepalive.rtt_mean == 1


def test_start_again() -> None:
    """A new connection starts with nothing outstanding, no times and a new schedule."""
    keepalive = started(threshold=1)
    keepalive.pong(ping(keepalive, 120), 121)
    ping(keepalive, 140)
    assert keepalive.rtt_last == 1
    keepalive.started(500)
    assert keepalive.due_at == 520
    assert keepalive.unanswered == 0
    assert not is_stale(keepalive)
    assert times(keepalive) == [None, None, None]


def test_lost() -> None:
    """A loss gives back all waiters once, and no ping is due any more."""
    keepalive = started()
    ping(keepalive, 120)
    keepalive.sent(b"a", 121, "A", scheduled=False)
    keepalive.sent(b"b", 122, "B", scheduled=False)
    assert keepalive.lost() == ["A", "B"]
    assert keepalive.lost() == []
    assert keepalive.due_at is None
    assert keepalive.unanswered == 0


def test_forget() -> None:
    """A waiter that gave up is not given back any more; its ping stays unanswered."""
    keepalive = started()
    gone, here = object(), object()
    keepalive.sent(b"a", 101, gone, scheduled=False)
    keepalive.sent(b"b", 102, here, scheduled=False)
    keepalive.forget(gone)
    assert keepalive.unanswered == 2
    assert keepalive.pong(b"b", 103) == [(here, 1)]
    keepalive.sent(b"c", 104, gone, scheduled=False)
    keepalive.forget(gone)
    assert keepalive.lost() == []


def test_memory_is_bounded() -> None:
    """A peer that answers nothing does not fill the memory: the oldest pings are dropped."""
    keepalive = started(count_pongs=False)
    for number in range(MAX_OUTSTANDING + 5):
        keepalive.sent(b"%d" % number, 120 + number)
    assert keepalive.unanswered == MAX_OUTSTANDING
    assert keepalive.pong(b"4", 9999) == []
    keepalive.pong(b"5", 9999)
    assert keepalive.unanswered == MAX_OUTSTANDING - 1


def test_waiters_are_never_dropped() -> None:
    """However many pings are outstanding, those that somebody waits for are kept."""
    keepalive = started(count_pongs=False)
    keepalive.sent(b"first", 101, "me", scheduled=False)
    for number in range(MAX_OUTSTANDING + 5):
        keepalive.sent(b"%d" % number, 120)
    assert keepalive.unanswered == MAX_OUTSTANDING
    assert keepalive.lost() == ["me"]


def test_all_waited_for() -> None:
    """When somebody waits for every ping, none is dropped."""
    keepalive = started()
    for number in range(MAX_OUTSTANDING + 5):
        keepalive.sent(b"%d" % number, 120, number, scheduled=False)
    assert keepalive.lost() == list(range(MAX_OUTSTANDING + 5))
