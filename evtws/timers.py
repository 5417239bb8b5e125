"""Timers: which calls end when, in one heap, without keeping alive those that have ended."""

from __future__ import annotations

import heapq
from itertools import count

from .pending import Call


class Timers:
    """The deadlines of calls, earliest first.

    An entry whose call has ended is dropped when it comes to the top, or when the ended ones outnumber the rest: a
    heap that only forgets at the deadline would keep each answered call for as long as its timeout.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call]] = []
        self._order = count()
        self._compact_at = 64

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, call: Call) -> bool:
        """Watch a call that has a deadline; True if it is now the first that falls due."""
        assert call.deadline is not None
        heapq.heappush(self._heap, (call.deadline, next(self._order), call))
        if len(self._heap) > self._compact_at:
            self.compact()
        return self._heap[0][2] is call

    def compact(self) -> None:
        """Drop the entries of ended calls."""
        self._heap = [entry for entry in self._heap if entry[2].ended_at is None]
        heapq.heapify(self._heap)
        self._compact_at = max(64, 2 * len(self._heap))

    @property
    def next_at(self) -> float | None:
        """When to look again (monotonic seconds), or None.

        An ended call at the top is left there: whoever waits until its deadline need not be woken for each call that
        comes after it.
        """
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Call]:
        """Take out the calls whose deadline has come, earliest first; those that have ended are dropped."""
        calls = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            call = heapq.heappop(heap)[2]
            if call.ended_at is None:
                calls.append(call)
        return calls
