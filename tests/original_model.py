"""A model of evtWebsocketClient with its ten faults, to show that a test for each of them can fail."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import websocket

from evtws import Message

from .timing import MS


class Original:
    """What the original does, in evtws's spelling and on websocket-client; an option that was not given is None."""

    pending: list[Message]  # 5: read and changed by all threads, without a lock

    def __init__(self, **options: Any) -> None:
        self.ws: Any = None
        self.is_connected = False
        self.pending = []
        self.__dict__.update(options)

    def __getattr__(self, name: str) -> Any:
        return None

    def dial(self, url: str) -> None:
        self.url, self.unanswered, self.ws = url, 0, websocket.create_connection(url)
        self.is_connected = True
        for message in list(self.pending):
            self.go(self.write, message.body)  # 6: all of them again, in no order
        if self.on_connected:
            self.go(self.on_connected, self)
        self.go(self.read)
        self.go(self.ping_on)

    def go(self, function: Callable[..., object], *arguments: object) -> None:
        def run() -> None:
            try:
                function(*arguments)
            except Exception:  # 8: a panic ends the process; here all that it has
                self.reconnect = False
                self.close()

        threading.Thread(target=run, name="original", daemon=True).start()

    def read(self) -> None:
        try:
            while True:
                opcode, body = self.ws.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    raise ConnectionError("closed")  # 10: no close code
                self.go(self.received, body.decode() if opcode == websocket.ABNF.OPCODE_TEXT else body)  # 4
        except (OSError, websocket.WebSocketException) as error:
            self.fail(error)

    def received(self, body: str | bytes) -> None:
        reply = Message(body)
        if self.msg_prep:
            self.msg_prep(reply)
        for index, request in enumerate(list(self.pending)):
            if self.match_msg and self.match_msg(reply, request):  # 2: the wrong way round
                self.go(request.callback, reply, self)  # type: ignore[arg-type]
                del self.pending[index]
                return
        if self.on_message:
            self.go(self.on_message, reply, self)

    def fail(self, error: Exception) -> None:
        if self.on_error and self.is_connected:
            self.on_error(error)
        self.close()

    def close(self) -> None:
        if not self.is_connected:
            return
        self.is_connected = False
        with contextlib.suppress(OSError, AttributeError):
            self.ws.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        self.ws.shutdown()
        while self.reconnect:  # 1, 7: for ever, at one pace, whoever closed it and why
            try:
                self.dial(self.url)
            except (OSError, websocket.WebSocketException):
                time.sleep(10 * MS)
            else:
                return

    def send(self, message: Message) -> None:
        if not self.is_connected:
            raise ConnectionError("closed")
        if message.callback:
            self.pending.append(message)
        self.write(message.body)

    def write(self, body: str | bytes) -> None:
        try:
            self.ws.send(body)  # 10: without a timeout
        except (OSError, websocket.WebSocketException) as error:
            self.fail(error)  # 10: not told to whoever sends

    def remove_from_queue(self, message: Message) -> None:
        for index, other in enumerate(list(self.pending)):
            if self.match_msg(other, message):  # 3: whichever matches
                del self.pending[index]
                return

    def ping_on(self) -> None:
        while self.ping_interval and self.is_connected:  # 9: of an earlier connection too
            time.sleep(self.ping_interval)
            self.send(Message(self.ping_msg))
            self.ws.ping(b"")
            self.unanswered += bool(self.count_pongs and self.on_message)
            if self.unanswered > self.unreceived_ping_threshold + 1:
                self.fail(ConnectionError("too many pings"))
