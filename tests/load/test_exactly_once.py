"""Every request ends once, with the truth about its bytes, whatever the server does."""

from __future__ import annotations

import os

import pytest

import evtws
from evtws.errors import Written
from tests.load.exactly_once import Run, tls_contexts
from tests.load.fickle import Fickle
from tests.load.ledger import Ledger, check

FULL = bool(os.environ.get("EVTWS_FULL"))


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_every_request_ends_once(secure: bool) -> None:
    """Of requests from 8 threads to a server that cuts the line each ends once, and no error lies about its bytes."""
    run = Run(100_000 if FULL else 5_000, 8, 1, tls_contexts() if secure else None)
    assert run.wrong == []
    assert run.stats.reconnects > 1
    assert run.stats.late
    assert run.stats.duplicate
    assert run.stats.unmatched


def test_every_request_ends_once_when_the_connection_is_closed() -> None:
    """So it is when close() comes while half of the requests are still to be sent and the server reads late."""
    run = Run(50_000 if FULL else 3_000, 8, 1, early=True)
    assert run.wrong == []


def ledger_of_one(*endings: str | BaseException, seen: list[int]) -> tuple[Ledger, Fickle]:
    """What is known after one request, number 0, which was seen on these connections."""
    ledger, fickle = Ledger(1), Fickle(1)
    for how in endings:
        ledger.ended(0, how)
    fickle.seen[0] += seen
    return ledger, fickle


def lost(written: Written) -> evtws.ConnectionLost:
    """A loss that says so much of a request's bytes."""
    return evtws.ConnectionLost("cut").about_request(evtws.Message(""), written)


def test_what_does_not_hold_is_told() -> None:
    """A request that did not end, or twice, that came and was said not to be written, or came twice, is told."""
    assert check(*ledger_of_one("reply", seen=[0]), 1) == []
    assert check(*ledger_of_one(lost("no"), seen=[]), 1) == []
    assert check(*ledger_of_one(lost("maybe"), seen=[0]), 1) == []
    for wrong, (ledger, fickle) in {
        "not once": ledger_of_one(seen=[0]),
        "by ['reply', 'reply']": ledger_of_one("reply", "reply", seen=[0]),
        "it was written": ledger_of_one(lost("no"), seen=[0]),
        "came twice": ledger_of_one("reply", seen=[0, 1]),
        "ended by ValueError": ledger_of_one(ValueError(), seen=[0]),
    }.items():
        told = check(ledger, fickle, 1)
        assert any(wrong in line for line in told), told


def test_a_request_that_is_missing_between_two_is_told() -> None:
    """A request whose bytes were written, as its error says, and that is missing between two that came, is told."""
    ledger, fickle = Ledger(3), Fickle(1)
    for number in (0, 2):
        ledger.ended(number, "reply")
        fickle.seen[number].append(0)
    ledger.ended(1, lost("yes"))
    assert check(ledger, fickle, 1) == ["1 was written, between 0 and 2, and never came"]


def test_a_reply_that_is_not_delivered_once_is_told() -> None:
    """A reply that is delivered twice, never, or not to the request that waits for it, is told."""
    for replies, extras, wrong in (
        ([1], [1], "delivered twice"),
        ([], [2], "1, for 0, was not delivered"),
        ([2], [1], "1, the first reply to 0"),
    ):
        ledger, fickle = ledger_of_one("reply", seen=[0])
        fickle.sent.append([(1, 0), (2, 0)])
        fickle.calm, ledger.replies, ledger.extras = True, replies, extras
        told = check(ledger, fickle, 1)
        assert any(wrong in line for line in told), told
