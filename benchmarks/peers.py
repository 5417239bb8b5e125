"""The clients that a user would pick instead, each as their users write it.

All have TCP_NODELAY set by their own defaults, no compression, no pings, and no timeout but that of the wait.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import websocket
import websockets.sync.client

from .workloads import TIMEOUT, Countdown, Json


class Bare:
    """websocket-client with nothing around it: one thread, one call at a time."""

    def __init__(self, url: str) -> None:
        self.socket = websocket.create_connection(url)

    def request(self, obj: Json) -> Json:
        """`send(); recv()`."""
        self.socket.send(json.dumps(obj))
        reply: Json = json.loads(self.socket.recv())
        return reply

    def take(self, count: int) -> None:
        """`recv()`, again and again."""
        self.socket.send(f"push {count}")
        for _ in range(count):
            self.socket.recv()


class Recipe:
    """The usual recipe: a dict of Futures and one reader thread, nothing else."""

    def __init__(self, send: Callable[[str], object], recv: Callable[[], str | bytes]) -> None:
        self._send = send
        self._recv = recv
        self._futures: dict[int, Future[Json]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def submit(self, obj: Json) -> Future[Json]:
        """Register the Future, then write."""
        future: Future[Json] = Future()
        self._futures[obj["id"]] = future
        self._send(json.dumps(obj))
        return future

    def request(self, obj: Json) -> Json:
        """Submit and wait."""
        return self.submit(obj).result(TIMEOUT)

    def close(self) -> None:
        """Have the server close, which ends the reader."""
        self._send("bye")
        self._reader.join(TIMEOUT)

    def _read(self) -> None:
        # websocket-client returns an empty text for a close frame; websockets raises.
        try:
            while text := self._recv():
                reply = json.loads(text)
                self._futures.pop(reply["id"]).set_result(reply)
        except websockets.ConnectionClosed:
            pass


class App:
    """`websocket.WebSocketApp` in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._countdown = Countdown()
        opened = threading.Event()
        self._app = websocket.WebSocketApp(url, on_open=lambda app: opened.set(), on_message=self._countdown)
        self._thread = threading.Thread(target=self._app.run_forever, daemon=True)
        self._thread.start()
        if not opened.wait(TIMEOUT):
            raise TimeoutError("WebSocketApp did not open")

    def take(self, count: int) -> None:
        """Count the events in `on_message`."""
        self._countdown.start(count)
        self._app.send(f"push {count}")
        self._countdown.wait()

    def close(self) -> None:
        """Have the server close, which ends `run_forever`."""
        socket = self._app.sock
        self._app.send("bye")
        self._thread.join(TIMEOUT)
        # WebSocketApp leaves its socket open when it is the server that closes.
        if socket is not None:
            socket.shutdown()  # type: ignore[no-untyped-call]


class Iteration:
    """`for message in connection` of websockets.sync."""

    def __init__(self, connection: websockets.sync.client.ClientConnection) -> None:
        self._connection = connection

    def take(self, count: int) -> None:
        """Iterate over the events."""
        self._connection.send(f"push {count}")
        for _ in itertools.islice(self._connection, count):
            pass


@contextmanager
def bare(url: str) -> Iterator[Bare]:
    """websocket-client: `send(); recv()`."""
    client = Bare(url)
    try:
        yield client
    finally:
        client.socket.close()


@contextmanager
def recipe(url: str) -> Iterator[Recipe]:
    """The recipe on websocket-client."""
    socket = websocket.create_connection(url)
    client = Recipe(socket.send, socket.recv)
    try:
        yield client
    finally:
        client.close()
        socket.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def recipe_on_websockets(url: str) -> Iterator[Recipe]:
    """The recipe on websockets.sync."""
    with _websockets(url) as connection:
        client = Recipe(connection.send, connection.recv)
        yield client
        client.close()


@contextmanager
def websocket_app(url: str) -> Iterator[App]:
    """websocket-client's `WebSocketApp`."""
    client = App(url)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def iteration(url: str) -> Iterator[Iteration]:
    """Iteration over websockets.sync."""
    with _websockets(url) as connection:
        yield Iteration(connection)


def _websockets(url: str) -> Any:
    return websockets.sync.client.connect(url, compression=None, ping_interval=None)
