"""Outbox: what waits to be written until the connection is OPEN again, in order and bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from .errors import NotConnected, OutboxFull
from .message import Message
from .pending import Call


class Outbox:
    """At most `limit` messages of at most `byte_limit` bytes together; a `limit` of 0 takes none.

    A text is counted by its characters: close enough for a bound, and nothing need be encoded to know it.
    """

    def __init__(self, limit: int = 0, byte_limit: int | None = None) -> None:
        self._limit = limit
        self._byte_limit = byte_limit
        self._calls: OrderedDict[int, Call] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        """Take in a call; raises NotConnected where there is no outbox, OutboxFull where it has no room."""
        if self._limit == 0:
            raise NotConnected("the connection is not OPEN, and outbox= is not set")
        size = self._bytes + len(call.message.body)
        if len(self._calls) >= self._limit:
            raise OutboxFull(f"{len(self._calls)} messages wait in the outbox already")
        if self._byte_limit is not None and size > self._byte_limit:
            raise OutboxFull(f"the outbox would hold {size} bytes, over its {self._byte_limit}")
        self.hold(call)

    def hold(self, call: Call) -> None:
        """Take in a call whatever the bounds say: it waits for its turn, not for a connection."""
        self._calls[id(call)] = call
        self._bytes += len(call.message.body)

    def put_first(self, calls: Iterable[Call]) -> None:
        """Put calls that were accepted long ago before all others, in their order, past the bounds."""
        rest = self.take_all()
        for call in (*calls, *rest):
            self.hold(call)

    def find(self, message: Message) -> Call | None:
        """The call of this very message, or None."""
        return next((call for call in self._calls.values() if call.message is message), None)

    def remove(self, call: Call) -> bool:
        """Take a call out; False if it is not here."""
        if self._calls.pop(id(call), None) is None:
            return False
        self._bytes -= len(call.message.body)
        return True

    def mend(self) -> None:
        """Put right what an interrupted method has left half done."""
        self._calls = OrderedDict((id(call), call) for call in self._calls.values() if call.ended_at is None)
        self._bytes = sum(len(call.message.body) for call in self._calls.values())

    def take_all(self) -> list[Call]:
        """Take out everything, oldest first."""
        calls = list(self._calls.values())
        self._calls.clear()
        self._bytes = 0
        return calls
