"""The specification of evtws/tombstones.py."""

from evtws.message import Message
from evtws.tombstones import Tombstones, Verdict, judge


def test_unknown_key() -> None:
    """A reply whose key no ended request had is unknown."""
    assert Tombstones().by_key(1, 0) is Verdict.UNKNOWN


def test_verdict_by_key() -> None:
    """A reply with the key of an ended request is what that request's end says, the newest end where there are two."""
    tombs = Tombstones()
    tombs.bury(1, Message("x"), Verdict.LATE, 100)
    assert tombs.by_key(1, 101) is Verdict.LATE
    tombs.bury(1, Message("x"), Verdict.DUPLICATE, 102)
    assert tombs.by_key(1, 103) is Verdict.DUPLICATE
    assert len(tombs) == 1


def test_message_with_a_key_is_not_kept() -> None:
    """A tombstone that is found by its key does not keep the message."""
    tombs = Tombstones()
    tombs.bury(1, Message("x" * 1000), Verdict.LATE, 100)
    assert [tomb.message for tomb in tombs.snapshot(100)] == [None]


def test_tombstone_lasts_60_seconds() -> None:
    """After 60 seconds nothing is known of a request any more, by its key or by asking."""
    tombs = Tombstones()
    tombs.bury(1, Message("x"), Verdict.LATE, 100)
    assert tombs.by_key(1, 160) is Verdict.LATE
    assert len(tombs.snapshot(160)) == 1
    assert tombs.by_key(1, 160.1) is Verdict.UNKNOWN
    assert tombs.snapshot(160.1) == []


def test_1024_keys_are_remembered() -> None:
    """Of keyed requests the newest 1,024 are remembered."""
    tombs = Tombstones()
    for key in range(2000):
        tombs.bury(key, Message("x"), Verdict.LATE, 100)
    assert len(tombs) == 1024
    assert tombs.by_key(975, 100) is Verdict.UNKNOWN
    assert tombs.by_key(976, 100) is Verdict.LATE
    assert tombs.by_key(1999, 100) is Verdict.LATE


def test_key_that_ends_again_is_the_newest() -> None:
    """A key that is used again is remembered from then on."""
    tombs = Tombstones()
    for key in range(1024):
        tombs.bury(key, Message("x"), Verdict.LATE, 100)
    tombs.bury(0, Message("x"), Verdict.DUPLICATE, 100)
    tombs.bury(1024, Message("x"), Verdict.LATE, 100)
    assert tombs.by_key(0, 100) is Verdict.DUPLICATE
    assert tombs.by_key(1, 100) is Verdict.UNKNOWN


def test_64_requests_without_keys_are_remembered() -> None:
    """Of requests without keys the newest 64 are remembered, the newest first."""
    tombs = Tombstones()
    messages = [Message("x", number) for number in range(100)]
    for message in messages:
        tombs.bury(None, message, Verdict.LATE, 100)
    assert [tomb.message for tomb in tombs.snapshot(100)] == messages[:-65:-1]


def test_message_without_a_key_that_ends_again_is_the_newest() -> None:
    """A Message that was asked twice has one tombstone, with the verdict and the place of its second end."""
    tombs = Tombstones()
    first, second = Message("x"), Message("y")
    tombs.bury(None, first, Verdict.LATE, 100)
    tombs.bury(None, second, Verdict.LATE, 100)
    tombs.bury(None, first, Verdict.DUPLICATE, 100)
    assert [(tomb.message, tomb.verdict) for tomb in tombs.snapshot(100)] == [
        (first, Verdict.DUPLICATE),
        (second, Verdict.LATE),
    ]


def test_clear_forgets_all() -> None:
    """After clear() everything is unknown."""
    tombs = Tombstones()
    tombs.bury(1, Message("x"), Verdict.LATE, 100)
    tombs.clear()
    assert len(tombs) == 0
    assert tombs.by_key(1, 100) is Verdict.UNKNOWN


def test_judge_asks_each_in_turn() -> None:
    """Without keys a reply is what the first tombstone says whose request it matches; unknown if there is none."""
    tombs = Tombstones()
    for params, verdict in ((1, Verdict.LATE), (2, Verdict.DUPLICATE)):
        tombs.bury(None, Message("x", params), verdict, 100)
    tombs.bury("key", Message("x", 2), Verdict.LATE, 100)
    asked = []

    def matches(request: Message, reply: Message) -> bool:
        asked.append(request.params)
        return bool(request.params == reply.params)

    assert judge(matches, tombs.snapshot(100), Message("y", 2)) is Verdict.DUPLICATE
    assert asked == [2]
    assert judge(matches, tombs.snapshot(100), Message("y", 1)) is Verdict.LATE
    assert judge(matches, tombs.snapshot(100), Message("y", 3)) is Verdict.UNKNOWN
