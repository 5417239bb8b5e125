"""Measures the clients in turn, round after round, and says what came out.

Every measurement opens a connection, warms it up, collects the garbage and only then looks at the clock. All
clients run in this one process: a fresh interpreter for each would add half a second to each measurement, and
nothing of one client is left to disturb the next, because its connection and its threads are closed before.
Within a round all clients run within seconds of each other, so a ratio of that round is fair on a machine of
which the speed drifts; the median of those ratios is what counts. The order rotates: nobody is always first.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

#: The client that all others are compared with.
OURS = "evtws"

C = TypeVar("C")


@dataclass(frozen=True)
class Workload(Generic[C]):
    """One loop and the clients that run it."""

    name: str
    count: int
    loop: Callable[[C, int], None]
    clients: Mapping[str, Callable[[str], AbstractContextManager[C]]]
    #: The greatest allowed ratio of our time to that of a peer; peers without one are there for information.
    targets: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What came out for one workload and one client; the times are seconds, one for each round."""

    workload: str
    client: str
    seconds: list[float]
    ratios: list[float]
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the ratio is within the target; None without a ratio or without a target."""
        if self.target is None or not self.ratios:
            return None
        return median(self.ratios) <= self.target

    def __str__(self) -> str:
        line = f"{self.workload:<20} {self.client:<27} {median(self.seconds):8.3f} s"
        if not self.ratios:
            return line
        line += f"   {median(self.ratios):6.3f}  ({min(self.ratios):.3f} .. {max(self.ratios):.3f})"
        if self.met is None:
            return line
        return f"{line:<84} <= {self.target:.3f}  {'met' if self.met else 'MISSED'}"


def timed(workload: Workload[Any], client: str, url: str) -> float:
    """The seconds that one client takes for one workload."""
    with workload.clients[client](url) as opened:
        workload.loop(opened, max(workload.count // 50, 10))
        gc.collect()
        began = time.perf_counter()
        workload.loop(opened, workload.count)
        return time.perf_counter() - began


def measure(workload: Workload[Any], url: str, rounds: int, only: set[str]) -> list[Row]:
    """One row for each client of the workload; `only` names those to run, none of them means all."""
    names = [name for name in workload.clients if not only or name in only]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(workload, name, url))
    ours = seconds.get(OURS, [])
    return [
        Row(workload.name, name, seconds[name], ratios(ours, seconds[name], name), workload.targets.get(name))
        for name in names
    ]


def ratios(ours: list[float], theirs: list[float], name: str) -> list[float]:
    """Our time over theirs, round by round; none for ourselves, or when we did not run."""
    if name == OURS or not ours:
        return []
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]
