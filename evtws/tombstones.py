"""Tombstones: what ended requests leave behind, to tell a late reply from a duplicate from an unknown one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import Enum
from typing import NamedTuple

from .message import Message


class Verdict(Enum):
    """What a reply is that no pending request claims."""

    LATE = "late"  # its request ended without it
    DUPLICATE = "duplicate"  # its request had its reply already
    UNKNOWN = "unknown"  # no request of this connection asked for it, or too long ago


class Tombstone(NamedTuple):
    """One ended request: what a reply to it would be, and until when (monotonic seconds).

    The message is kept only where there is no key to find the tombstone by: it may be large.
    """

    message: Message | None
    verdict: Verdict
    expires_at: float


class Tombstones:
    """At most `LIMIT` tombstones, each for `LIFETIME` seconds; lazily expired.

    Where there are no keys, only the newest `SCANNED` are kept: each message that no request claims, every pushed
    event among them, is compared with all of them.
    """

    LIMIT = 1024
    LIFETIME = 60.0
    SCANNED = 64

    def __init__(self) -> None:
        self._by_key: OrderedDict[Hashable, Tombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def bury(self, key: Hashable | None, message: Message, verdict: Verdict, now: float) -> None:
        """Remember an ended request. Without a key it is found by scanning only."""
        tombs = self._by_key
        kept: Message | None
        if key is None:
            key, limit, kept = (Tombstone, id(message)), self.SCANNED, message
        else:
            limit, kept = self.LIMIT, None
        tombs.pop(key, None)  # so that the newest is last
        tombs[key] = Tombstone(kept, verdict, now + self.LIFETIME)
        if len(tombs) > limit:
            tombs.popitem(last=False)

    def by_key(self, key: Hashable, now: float) -> Verdict:
        """What a reply with that key is."""
        tomb = self._by_key.get(key)
        return Verdict.UNKNOWN if tomb is None or tomb.expires_at < now else tomb.verdict

    def snapshot(self, now: float) -> list[Tombstone]:
        """Those that have not expired, newest first: to be asked by `match_msg` outside the lock."""
        return [tomb for tomb in reversed(self._by_key.values()) if tomb.expires_at >= now]

    def clear(self) -> None:
        """Forget all of them."""
        self._by_key.clear()


def judge(matches: Callable[[Message, Message], bool], tombs: list[Tombstone], reply: Message) -> Verdict:
    """What a reply is, by asking `matches(request, reply)` of each tombstone in turn."""
    for tomb in tombs:
        if tomb.message is not None and matches(tomb.message, reply):
            return tomb.verdict
    return Verdict.UNKNOWN
