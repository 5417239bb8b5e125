"""The specification of evtws/diagnosis.py."""

import pytest

from evtws.diagnosis import reply_timeout
from evtws.errors import Written
from evtws.message import Message
from evtws.pending import Call
from evtws.state import State


class Ticket:
    def __init__(self, written: Written) -> None:
        self.written = written


def sent(written: Written) -> Call:
    call = Call(Message("secret"), 100, 5)
    call.sent_at, call.ticket = 100.5, Ticket(written)
    return call


def test_error_concerns_its_message() -> None:
    """The error has the message, the seconds waited and what was written as attributes."""
    call = sent("maybe")
    error = reply_timeout(call, 105, State.OPEN, 104.8, None)
    assert error.message is call.message
    assert error.waited == 5
    assert error.written == "maybe"


def test_text_says_where_the_request_was() -> None:
    """The text tells how long was waited, when it was written, the state, and when the last byte came."""
    error = reply_timeout(sent("yes"), 105, State.OPEN, 104.8, None)
    assert str(error) == "no reply within 5.0 s, written 4.5 s ago (yes), connection OPEN, last byte 0.2 s ago"


def test_request_that_was_not_written() -> None:
    """A request that still waited to be written says so, as does a connection that received nothing."""
    error = reply_timeout(Call(Message("x"), 100, 5), 105, State.CONNECTING, None, None)
    assert str(error) == "no reply within 5.0 s, not written, connection CONNECTING, nothing received"
    assert error.written == "no"


@pytest.mark.parametrize(("written", "text"), [("no", "not written,"), ("yes", "not yet written again (before: yes),")])
def test_request_that_was_to_be_sent_again(written: Written, text: str) -> None:
    """A request that waited to be sent again says what was written on the connection before."""
    call = sent(written)
    call.rewind()
    error = reply_timeout(call, 105, State.CONNECTING, None, None)
    assert text in str(error)
    assert error.written == written


def test_busy_callbacks_are_named() -> None:
    """What the callbacks thread does is told, where it does something."""
    error = reply_timeout(sent("yes"), 105, State.OPEN, None, "3.0 s in f")
    assert str(error).endswith(", nothing received, callbacks busy 3.0 s in f")


def test_text_shows_no_body() -> None:
    """The body of the message is not in the text."""
    assert "secret" not in str(reply_timeout(sent("yes"), 105, State.OPEN, None, None))
