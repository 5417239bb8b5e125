"""Requests from several threads to a server that cannot be relied on: does every one end once, and with the truth?

    python -m tests.load.exactly_once [--requests 100000] [--threads 8] [--seed 1] [--tls] [--early]

The server answers late, twice, out of order or never, says things that nobody asked for, stops reading for a while,
and cuts the line: by a close frame, a FIN or a reset. Each request tells it what it is to do with it, so that a seed
fixes what is asked and answered; when the line is cut is fixed by the number of messages that came. The threads use
everything that a Connection has for sending. Prints what became of the requests, and what does not hold; ends 0 if
all holds, else 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import tenacity
import trustme

import evtws
from evtws.message import InFlight
from evtws.testing import Server
from tests.load.fickle import Fickle
from tests.load.ledger import Ledger, check, check_stats
from tests.timing import MS, SOON

#: How long a reply is awaited: by the many, and by those who are in a hurry.
PATIENT, HURRIED = 250 * MS, 15 * MS

#: How many Futures and callbacks a thread leaves open.
WINDOW = 32

#: What may become of a request in flight when the line is cut.
IN_FLIGHT: tuple[InFlight, ...] = ("fail", "resend", "keep")

#: A body that no single write takes once the server has stopped reading.
LARGE = 60_000


#: A server's and a client's.
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


class Asker:
    """One thread that asks, in every way there is."""

    def __init__(self, connection: evtws.Connection, ledger: Ledger, numbers: range, seed: int) -> None:
        self._connection = connection
        self._ledger = ledger
        self._numbers = iter(numbers)
        self._random = random.Random(seed)
        # So that a thread has only so many requests open.
        self._room = threading.Semaphore(WINDOW)
        self.futures: list[Future[evtws.Message]] = []

    def run(self) -> None:
        """Ask until there are no numbers left."""
        ways = [self._request, self._submit, self._call_back, self._submit_many, self._stream]
        for number in self._numbers:
            way = self._random.choices(ways, [8, 40, 40, 10, 3])[0]
            try:
                way(number)
                if self._random.random() < 0.05:
                    self._remove()
            except Exception as exc:
                self._ledger.wrong.append(f"{number}: {way.__name__} raised {exc!r}")
        self._take_room(WINDOW)  # until all have ended

    def _message(self, number: int, items: int = 1, **handlers: Any) -> evtws.Message:
        chance = self._random
        after = [0 if chance.random() < 0.7 else chance.randint(1, 30) for _ in range(items)]
        if chance.random() < 0.03:
            after.append(chance.randint(0, 5))  # one too many
        elif chance.random() < 0.02:
            after = []
        in_flight = chance.choice(IN_FLIGHT)
        self._ledger.in_flight[number] = in_flight
        params = {"id": number, "items": items, "after": sorted(after), "keep": in_flight == "keep"}
        if chance.random() < 0.1:
            params["much"] = "x" * chance.randint(LARGE // 3, LARGE)
        timeout = HURRIED if chance.random() < 0.05 or not after else PATIENT
        message = evtws.Message.json(params, timeout=timeout, in_flight=in_flight, **handlers)
        self._ledger.recent.append((number, message, self._room.release))
        return message

    # -- the ways to ask

    def _request(self, number: int) -> None:
        try:
            self._ledger.replied(number, self._connection.request(self._message(number)))
        except evtws.EvtwsError as exc:
            self._ledger.ended(number, exc)
        else:
            self._ledger.ended(number, "reply")

    def _submit(self, number: int) -> None:
        self._submit_all([number])
        if self.futures and self._random.random() < 0.05:
            self._random.choice(self.futures[-WINDOW:]).cancel()

    def _submit_many(self, number: int) -> None:
        self._submit_all([number, *(next(self._numbers, None) for _ in range(self._random.randint(0, 7)))])

    def _submit_all(self, asked: list[Any]) -> None:
        numbers: list[int] = [number for number in asked if number is not None]
        messages = [self._message(number) for number in numbers]
        self._take_room(len(numbers))
        try:
            futures = self._connection.submit_many(messages)
        except evtws.EvtwsError as exc:
            for number in numbers:
                # The first of several that are not written is what is raised; nothing is kept of any.
                self._ledger.ended(number, exc)
                self._room.release()
            return
        for number, future in zip(numbers, futures, strict=True):
            self.futures.append(future)
            future.add_done_callback(lambda future, number=number: self._done(number, future))  # type: ignore[misc]

    def _done(self, number: int, future: Future[evtws.Message]) -> None:
        if future.cancelled():
            self._ledger.ended(number, "cancelled")
        elif (error := future.exception()) is not None:
            self._ledger.ended(number, error)
        else:
            self._ledger.replied(number, future.result())
            self._ledger.ended(number, "reply")
        self._room.release()

    def _call_back(self, number: int) -> None:
        def answered(reply: evtws.Message, _: evtws.Connection) -> None:
            self._ledger.replied(number, reply)
            self._ledger.ended(number, "reply")
            self._room.release()

        def failed(error: evtws.EvtwsError, _: evtws.Connection) -> None:
            self._ledger.ended(number, error)
            self._room.release()

        self._take_room(1)
        try:
            self._connection.send(self._message(number, callback=answered, on_failure=failed))
        except evtws.EvtwsError as exc:
            failed(exc, self._connection)

    def _stream(self, number: int) -> None:
        message = self._message(number, items=self._random.randint(1, 5))
        try:
            with self._connection.stream(
                message, until=lambda reply: bool(reply.params["last"]), timeout=message.timeout
            ) as stream:
                for reply in stream:
                    self._ledger.replied(number, reply)
        except evtws.EvtwsError as exc:
            self._ledger.ended(number, exc)
        else:
            self._ledger.ended(number, "end of stream")

    def _take_room(self, count: int) -> None:
        for _ in range(count):
            if not self._room.acquire(timeout=SOON):
                raise TimeoutError("requests do not end")

    def _remove(self) -> None:
        number, message, release = self._random.choice(self._ledger.recent)
        if self._connection.remove_from_queue(message) and message.callback is not None:
            self._ledger.ended(number, "removed")  # of which a callback hears nothing
            release()


def narrow(connection: evtws.Connection) -> None:
    """A `prepare`: have the system buffer little of what is sent; left to itself it takes megabytes."""
    assert connection._engine is not None
    transport = connection._engine.life.transport
    if transport is not None:  # it may be gone already
        transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)


class Run:
    """One run: `requests` from `threads` threads, as `seed` has it; over TLS where contexts are given.

    With `early` the connection is closed when half of the requests have come.
    """

    def __init__(
        self, requests: int, threads: int, seed: int, tls: Contexts | None = None, *, early: bool = False
    ) -> None:
        self.ledger, self.fickle = Ledger(requests), Fickle(seed)
        self.wrong: list[str] = []
        self.stats: evtws.Stats
        self._threads, self._seed = threads, seed
        before = _held()
        script = {"on_connect": self.fickle.connected, "ssl": tls and tls[0], "record": False}
        with Server(self.fickle.received, **script) as self.fickle.server:  # type: ignore[arg-type]
            # With this and with `narrow` little goes out while the server does not read, and the write queue fills.
            self.fickle.server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            with self._connection(tls and tls[1]) as connection:
                connection.dial(self.fickle.server.url)
                self._ask(connection, early=early)
                if not early:
                    self._settle(connection)
                if connection.pending:
                    self.wrong.append(f"{len(connection.pending)} are pending")
            self.stats = connection.stats()
        if (after := _held()) != before:
            self.wrong.append(f"threads and descriptors: {before} before, {after} after")
        self.wrong += check(self.ledger, self.fickle, threads) + check_stats(self.stats, self.ledger)

    def _connection(self, context: ssl.SSLContext | None) -> evtws.Connection:
        return evtws.Connection(
            ssl=context,
            prepare=narrow,
            msg_prep=evtws.json_params,
            match_key=evtws.keyed("id"),
            on_message=lambda message, _: self.ledger.extras.append(message.params["serial"]),
            on_error=self._note,
            callback_queue=1_000_000,
            reconnect=evtws.ReconnectPolicy(wait=tenacity.wait_random(0, 10 * MS)),
            outbox=6 * WINDOW,
            ping_interval=100 * MS,
            write_buffer=1 << 16,
            write_timeout=40 * MS,
            request_timeout=PATIENT,
        )

    def _note(self, error: evtws.EvtwsError) -> None:
        if isinstance(error, evtws.UserCodeError):
            self.wrong.append(repr(error))

    def _ask(self, connection: evtws.Connection, *, early: bool) -> None:
        requests = len(self.ledger.endings)
        share = requests // self._threads
        ranges = [range(first, min(first + share, requests)) for first in range(0, requests, share)]
        askers = [Asker(connection, self.ledger, numbers, self._seed + numbers.start) for numbers in ranges]
        threads = [threading.Thread(target=asker.run) for asker in askers]
        for thread in threads:
            thread.start()
        if early:
            self._close_early(connection, requests // 2)
        for thread in threads:
            thread.join()

    def _close_early(self, connection: evtws.Connection, requests: int) -> None:
        """Close once so many have come, while the server does not read but for the last of the time."""
        server = self.fickle.server
        server.wait_for(requests, SOON)
        for client in server.connections:
            client.pause_reading()
            server.loop.call(server.loop.later, 60 * MS, client.resume_reading)
        server.wait_for(lambda: False, 20 * MS)
        connection.close(timeout=200 * MS)

    def _settle(self, connection: evtws.Connection) -> None:
        """Have the server make no more trouble, and wait until all that it owes has come."""
        self.fickle.calm = True
        self.fickle.server.wait_for(lambda: not self.fickle.owed, SOON)
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            try:
                last = {"id": -1, "items": 1, "after": [100], "keep": False}
                self.ledger.replied(-1, connection.request(evtws.Message.json(last)))
                return
            except (evtws.ConnectionLost, evtws.ReplyTimeout):
                pass  # the last trouble is not over
        self.wrong.append("it does not settle")

    def row(self) -> str:
        """What became of the requests, to be read by a person."""
        kinds = Counter(ending for endings in self.ledger.endings for ending in endings)
        lost = Counter(
            written
            for written, endings in zip(self.ledger.written, self.ledger.endings, strict=True)
            if written is not None and endings not in (["ReplyTimeout"], ["OutboxFull"])
        )
        again = sum(len(seen) > 1 for seen in self.fickle.seen.values())
        return (
            f"{dict(kinds.most_common())}; lost with written = {dict(lost)}; {again} came again; troubles "
            f"{dict(self.fickle.troubles)}, {len(self.fickle.sent)} connections; late {self.stats.late}, duplicate "
            f"{self.stats.duplicate}, unmatched {self.stats.unmatched}"
        )


def _held() -> tuple[int, int]:
    """How many threads and descriptors this process has."""
    descriptors = "/proc/self/fd"
    return threading.active_count(), len(os.listdir(descriptors)) if os.path.isdir(descriptors) else 0


def tls_contexts() -> Contexts:
    """Two contexts that go together."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def main() -> int:
    """What the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="exactly_once", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tls", action="store_true", help="over wss")
    parser.add_argument("--early", action="store_true", help="close the connection half way")
    parser.add_argument("--switch", type=float, default=sys.getswitchinterval(), help="sys.setswitchinterval, seconds")
    options = parser.parse_args()
    sys.setswitchinterval(options.switch)
    begin = time.perf_counter()
    tls = tls_contexts() if options.tls else None
    run = Run(options.requests, options.threads, options.seed, tls, early=options.early)
    print(f"Python {platform.python_version()}, seed {options.seed}: {time.perf_counter() - begin:.1f} s; {run.row()}")
    print(*run.wrong[:20], f"{len(run.wrong)} things do not hold", sep="\n")
    return int(bool(run.wrong))


if __name__ == "__main__":
    sys.exit(main())
