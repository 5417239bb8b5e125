"""A server's script that answers late, twice, out of order or never, stops reading for a while, and cuts the line."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from functools import partial
from typing import Any

from evtws.testing import ClientConnection, Server
from tests.timing import MS


class Fickle:
    """The server's script, and what it saw and sent. All of it in the server's thread."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._trouble_at = 100
        self._client: ClientConnection
        self._index: dict[ClientConnection, int] = {}
        self._serial = 0
        #: On which connections each request came, by its number; the numbers in the order of their first arrival.
        self.seen: dict[int, list[int]] = defaultdict(list)
        #: What was sent on each connection, in order: serial number and request.
        self.sent: list[list[tuple[int, int | None]]] = []
        #: Replies that are to be sent later.
        self.owed = 0
        self.troubles: Counter[str] = Counter()
        #: No more trouble is made.
        self.calm = False
        self.server: Server

    def connected(self, client: ClientConnection) -> None:
        """A connection was opened."""
        self._client, self._index[client] = client, len(self.sent)
        self.sent.append([])

    def received(self, client: ClientConnection, body: str | bytes) -> None:
        """A request came: do with it what it says."""
        request = json.loads(body)
        self.seen[request["id"]].append(self._index[client])
        for place, delay in enumerate(request["after"]):
            reply = {"id": request["id"], "last": place + 1 >= request["items"]}
            if delay:
                self.owed += 1
                self.server.loop.later(delay * MS, partial(self._pay, client, request["keep"], reply))
            else:
                self._send(client, reply)
        if self.server.received_count >= self._trouble_at and not self.calm:
            self._trouble_at += self._random.randint(50, 1000)
            self._make_trouble(client)

    def _pay(self, client: ClientConnection, keep: bool, reply: dict[str, Any]) -> None:
        self.owed -= 1
        self._send(self._client if keep else client, reply)

    def _send(self, client: ClientConnection, reply: dict[str, Any]) -> None:
        if not client.is_open:
            return
        for number in (reply["id"], None) if self._random.random() < 0.02 else (reply["id"],):
            self._serial += 1
            self.sent[self._index[client]].append((self._serial, number))
            client.send(json.dumps({**reply, "id": number, "serial": self._serial}))

    def _make_trouble(self, client: ClientConnection) -> None:
        end, stall = self._random.choice(["fin", "reset", "close", "nothing"]), self._random.random() < 0.5
        self.troubles[f"stall, then {end}" if stall else end] += 1
        if stall:
            client.pause_reading()
        self.server.loop.later(self._random.randint(1, 60) * MS * stall, lambda: self._end(client, end))

    def _end(self, client: ClientConnection, how: str) -> None:
        if how == "close":
            client.close(1012)
        elif how != "nothing":
            client.drop(reset=how == "reset")
        client.resume_reading()
