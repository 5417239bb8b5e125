"""The specification of evtws/outbox.py."""

import pytest

from evtws.errors import NotConnected, OutboxFull
from evtws.message import Message
from evtws.outbox import Outbox
from evtws.pending import Call


def make(body: str | bytes = "x") -> Call:
    return Call(Message(body), 0, None)


def test_without_an_outbox_nothing_waits() -> None:
    """An outbox of 0 takes nothing: NotConnected."""
    outbox = Outbox()
    with pytest.raises(NotConnected, match="outbox="):
        outbox.add(make())
    assert len(outbox) == 0


def test_messages_wait_in_order() -> None:
    """What waits comes out in the order in which it came, and then the outbox is empty."""
    outbox = Outbox(10)
    calls = [make() for _ in range(5)]
    for call in calls:
        outbox.add(call)
    assert len(outbox) == 5
    assert outbox.take_all() == calls
    assert len(outbox) == 0
    assert outbox.take_all() == []


def test_number_is_bounded() -> None:
    """An outbox that is full refuses the next, until one is taken out."""
    outbox = Outbox(2)
    first = make()
    outbox.add(first)
    outbox.add(make())
    with pytest.raises(OutboxFull, match="2 messages"):
        outbox.add(make())
    assert outbox.remove(first)
    outbox.add(make())


def test_bytes_are_bounded() -> None:
    """Together the messages have at most so many bytes; what is taken out makes room."""
    outbox = Outbox(10, 10)
    call = make(b"123456")
    outbox.add(call)
    outbox.add(make("1234"))
    with pytest.raises(OutboxFull, match="11 bytes, over its 10"):
        outbox.add(make("1"))
    outbox.remove(call)
    outbox.add(make("123456"))
    outbox.take_all()
    outbox.add(make("1234567890"))


def test_hold_knows_no_bounds() -> None:
    """What waits for its turn only is taken in past the bounds, and counts for those that come after."""
    outbox = Outbox(1, 3)
    for _ in range(3):
        outbox.hold(make("12"))
    assert len(outbox) == 3
    with pytest.raises(OutboxFull):
        outbox.add(make(""))


def test_bytes_of_held_messages_count() -> None:
    """The bytes of what was held leave that much less room."""
    outbox = Outbox(10, 3)
    outbox.hold(make("12"))
    with pytest.raises(OutboxFull, match="4 bytes"):
        outbox.add(make("12"))


def test_put_first() -> None:
    """What is sent again goes before what waits, in its own order."""
    outbox = Outbox(2)
    waiting, again = [make(), make()], [make(), make()]
    for call in waiting:
        outbox.add(call)
    outbox.put_first(again)
    assert outbox.take_all() == again + waiting


def test_find_goes_by_identity() -> None:
    """A call is found by its very message."""
    outbox = Outbox(2)
    call = make()
    outbox.add(make())
    outbox.add(call)
    assert outbox.find(call.message) is call
    assert outbox.find(Message("x")) is None


def test_two_calls_of_one_message() -> None:
    """The same message can wait twice, and each of its calls is taken out alone."""
    outbox = Outbox(2)
    first = make()
    second = Call(first.message, 0, None)
    outbox.add(first)
    outbox.add(second)
    outbox.remove(first)
    assert outbox.take_all() == [second]


def test_removing_what_is_not_there() -> None:
    """Removing a call that does not wait is False, and frees no room."""
    outbox = Outbox(1, 1)
    outbox.add(make())
    assert not outbox.remove(make())
    with pytest.raises(OutboxFull):
        outbox.add(make())


def test_mend() -> None:
    """Whatever was interrupted half way: what has ended does not wait, and the bytes are those of what does."""
    outbox = Outbox(10, 100)
    first, second = make("1" * 60), make("2" * 30)
    outbox.add(first)
    outbox.add(second)
    first.ended_at = 1.0
    outbox._bytes = 1
    outbox.mend()
    outbox.add(make("3" * 70))
    with pytest.raises(OutboxFull, match="101 bytes"):
        outbox.add(make("4"))
    assert outbox.take_all()[0] is second
