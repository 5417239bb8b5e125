"""What a reply costs among few and among many requests that await theirs."""

from __future__ import annotations

import gc
import itertools
import time
from contextlib import ExitStack

import evtws

from .evtws_client import Calls, connected
from .runner import Row, ratios
from .workloads import request_of

FEW, MANY = 10, 100_000

#: The greatest allowed ratio of the time among MANY to the time among FEW.
TARGET = 1.3

_BATCH = 1000


def measure_pending(url: str, rounds: int, count: int, many: int = MANY) -> list[Row]:
    """Two rows: the seconds for `count` calls among FEW and among `many` pending requests, in turn."""
    seconds: dict[int, list[float]] = {FEW: [], many: []}
    with ExitStack() as stack:
        opened = {pending: stack.enter_context(connected(url)) for pending in seconds}
        for pending, connection in opened.items():
            fill(connection, pending)
        numbers = itertools.count()
        for turn in range(rounds):
            for pending in sorted(seconds, reverse=bool(turn % 2)):
                _timed(opened[pending], numbers, count // 10)
                seconds[pending].append(_timed(opened[pending], numbers, count))
    cost = ratios(seconds[many], seconds[FEW], "few")
    return [
        Row("among pending", f"evtws, {FEW}", seconds[FEW], []),
        Row("among pending", f"evtws, {many} (to {FEW})", seconds[many], cost, TARGET),
    ]


def fill(connection: evtws.Connection, pending: int) -> None:
    """Leave `pending` requests that the server never answers, each with its timeout, as a user's have."""
    for start in range(0, pending, _BATCH):
        numbers = range(start, min(start + _BATCH, pending))
        connection.submit_many([evtws.Message.json({"id": -1 - n, "silent": True}, timeout=3600) for n in numbers])


def _timed(connection: evtws.Connection, numbers: itertools.count[int], count: int) -> float:
    calls = Calls(connection)
    gc.collect()
    began = time.perf_counter()
    for number in itertools.islice(numbers, count):
        calls.request(request_of(number))
    return time.perf_counter() - began
