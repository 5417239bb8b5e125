"""A server that accepts and drops: how often is it dialled, and what does a process have left of that?

    python -m tests.load.reconnects [--seconds 10] [--reconnects 10000]

First the default policy for so many seconds: the dials must be no more than its waits allow (websockets' documented
loop made 2,131 in 2 s). Then so many reconnects without any wait, with a request in flight that is sent again each
time: threads and descriptors must not grow at all, nor memory beyond a bound. Prints the figures; ends 0 if all holds,
else 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import resource
import sys
import threading
import time
import tracemalloc
from itertools import accumulate
from typing import NamedTuple

import tenacity

import evtws
from evtws.testing import ClientConnection, Server
from tests.timing import MS, SOON

#: How many reconnects pass before it is looked at what the process has: allocators and caches are warm then.
WARM_UP = 300

#: Bytes by which Python's objects and the process's memory may grow from then on, however many reconnects follow.
#: Objects: on Python 3.10 it is about 100 KB after 3,000 and after 9,000 alike, on others less.
OBJECTS_MAY_GROW, MEMORY_MAY_GROW = 200_000, 8_000_000

#: How long a reconnect may take.
PATIENCE = 100 * MS


# -- dials


class Dials(NamedTuple):
    """How often a server was dialled, and how often the policy allowed it."""

    made: int
    allowed: int


def count_dials(policy: evtws.ReconnectPolicy, seconds: float) -> Dials:
    """Have a server that accepts and drops dialled for so many seconds."""
    waits: list[float] = []

    def wait(state: tenacity.RetryCallState) -> float:
        waits.append(policy.wait(state))
        return waits[-1]

    counted = dataclasses.replace(policy, wait=wait)
    connection = evtws.Connection(reconnect=counted, on_error=_expected)
    with Server(on_connect=ClientConnection.drop) as server, connection:
        connection.dial(server.url, retry=True)
        server.wait_for(lambda: False, seconds)
        check_errors(connection)
        return Dials(server.dials, 1 + sum(begins < seconds for begins in accumulate(waits)))


def _expected(error: evtws.EvtwsError) -> None:
    """An `on_error`, which fails for what no drop explains; a reset can overtake the answer to the handshake."""
    assert isinstance(error, (evtws.ConnectionLost, evtws.DialError)), error


def check_errors(connection: evtws.Connection) -> None:
    """Raise AssertionError if something else than a loss was reported."""
    assert not connection.stats().callbacks_failed, "an error that is no loss; the log says which"


# -- what is left


class Held(NamedTuple):
    """What this process has: threads, descriptors, bytes of Python's objects, bytes of memory."""

    threads: int
    descriptors: int
    objects: int
    memory: int


def held() -> Held:
    """What this process has now; what Linux alone tells is 0 elsewhere."""
    gc.collect()
    descriptors, memory = 0, 0
    if os.path.isdir("/proc/self/fd"):
        descriptors = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm") as file:
            memory = int(file.read().split()[1]) * resource.getpagesize()
    return Held(threading.active_count(), descriptors, tracemalloc.get_traced_memory()[0], memory)


class Dropper:
    """A server that drops each client, by turns: at once, by a FIN or a reset, and when its request has come."""

    def __init__(self) -> None:
        self._dropping = True
        self.server = Server(self._received, on_connect=self._connected, record=False)

    def _connected(self, client: ClientConnection) -> None:
        if self._dropping and self.server.dials % 3:
            client.drop(reset=self.server.dials % 3 == 1)

    def _received(self, client: ClientConnection, body: str | bytes) -> None:
        if self._dropping:
            client.drop()
        elif body != "first":
            client.send(body)

    def rest(self, connection: evtws.Connection) -> Held:
        """What the process has while nobody is dropped."""
        self._dropping = False
        # Longer than the server waits for the FIN of a client that it has dropped.
        self.server.wait_for(lambda: False, 1.2)
        # Not by `request`: a caller that reads has two descriptors to wait with, or has not if it came too late.
        answered = threading.Event()
        connection.submit("ping").add_done_callback(lambda _: answered.set())
        assert answered.wait(SOON)
        now = held()
        self._dropping = True
        self.server.drop_all()
        return now


def reconnect_often(reconnects: int) -> tuple[Held, Held, float]:
    """What the process has after the warm-up, and after so many more reconnects; seconds for each of these."""
    tracemalloc.start()
    dropper = Dropper()
    policy = evtws.ReconnectPolicy(wait=tenacity.wait_none())
    with (
        dropper.server as server,
        evtws.Connection(
            reconnect=policy, outbox=10, in_flight="resend", match_key=lambda message: message.body, on_error=_expected
        ) as connection,
    ):
        connection.dial(server.url, retry=True)
        first = connection.submit("first", timeout=None)
        server.wait_for(lambda: server.dials > WARM_UP, WARM_UP * PATIENCE)
        before, dials, begin = dropper.rest(connection), server.dials, time.perf_counter()
        if not server.wait_for(lambda: server.dials >= dials + reconnects, reconnects * PATIENCE):
            raise TimeoutError(f"{server.dials - dials} reconnects only")
        seconds = (time.perf_counter() - begin) / reconnects
        after = dropper.rest(connection)
        assert not first.done()
        check_errors(connection)
    tracemalloc.stop()
    return before, after, seconds


def grown(before: Held, after: Held) -> list[str]:
    """What has grown that must not, in words."""
    wrong = [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in ("threads", "descriptors")
        if getattr(before, name) != getattr(after, name)
    ]
    for name, limit in (("objects", OBJECTS_MAY_GROW), ("memory", MEMORY_MAY_GROW)):
        growth = getattr(after, name) - getattr(before, name)
        if growth > limit:
            wrong.append(f"{name}: {growth:,} bytes more")
    return wrong


def main() -> int:
    """What the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="reconnects", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--reconnects", type=int, default=10_000)
    options = parser.parse_args()
    dials = count_dials(evtws.ReconnectPolicy(), options.seconds)
    print(f"Python {platform.python_version()}: {dials.made} dials in {options.seconds} s, {dials.allowed} allowed")
    before, after, seconds = reconnect_often(options.reconnects)
    print(f"{options.reconnects:,} reconnects of {seconds * 1000:.2f} ms: {before}, then {after}")
    wrong = grown(before, after)
    print(*wrong, sep="\n", end="")
    return int(bool(wrong) or dials.made > dials.allowed)


if __name__ == "__main__":
    sys.exit(main())
