"""Websocket clients that others wrote, each as a function that visits an echo server of tests.real.polled."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import websocket
import websockets.sync.client
from websockets import ConnectionClosed, Subprotocol

from tests.timing import SOON

from .devtools import DevTools, value_of


@dataclass(frozen=True)
class Visit:
    """What a client says, each time waiting for the echo, and the code and reason to part with.

    It closes itself, or with `by_server` asks the server to, by "close CODE REASON".
    """

    says: Sequence[str | bytes] = ()
    offers: Sequence[str] = ()
    code: int = 1000
    reason: str = ""
    by_server: bool = False

    @property
    def request_to_close(self) -> str:
        """The message that asks the server to close."""
        return f"close {self.code} {self.reason}"


@dataclass(frozen=True)
class Seen:
    """What the client saw: the subprotocol that was chosen, the echoes, code and reason of the server's close frame."""

    protocol: str
    heard: list[str | bytes]
    code: int
    reason: str


@dataclass(frozen=True)
class Visitor:
    """A client: `visit(url, plan)`.

    `context` is what its server needs, None: no TLS. `echoes_codes` is whether it answers a close frame by its code.
    """

    visit: Callable[[str, Visit], Seen]
    context: ssl.SSLContext | None = None
    echoes_codes: bool = True


def visit_by_websockets(url: str, plan: Visit) -> Seen:
    """websockets, its threaded client."""
    heard: list[str | bytes] = []
    offers = [Subprotocol(name) for name in plan.offers] or None
    with websockets.sync.client.connect(url, subprotocols=offers, max_size=None) as connection:
        for message in plan.says:
            connection.send(message)
            heard.append(connection.recv(SOON))
        if plan.by_server:
            connection.send(plan.request_to_close)
            try:
                connection.recv(SOON)
            except ConnectionClosed:
                pass
        connection.close(plan.code, plan.reason)
    assert connection.close_code is not None
    return Seen(connection.subprotocol or "", heard, connection.close_code, connection.close_reason or "")


def visit_by_websocket_client(url: str, plan: Visit, context: ssl.SSLContext | None = None) -> Seen:
    """websocket-client, as it is below its WebSocketApp. It answers any close frame with 1000."""
    options = {"context": context} if context else None
    connection: Any = websocket.create_connection(url, SOON, subprotocols=plan.offers or None, sslopt=options)
    try:
        heard: list[str | bytes] = []
        for message in plan.says:
            (connection.send if isinstance(message, str) else connection.send_binary)(message)
            heard.append(connection.recv())
        if plan.by_server:
            connection.send(plan.request_to_close)
        else:
            connection.send_close(plan.code, plan.reason)
        opcode, payload = connection.recv_data()
        assert opcode == websocket.ABNF.OPCODE_CLOSE
        if context:
            connection.sock.suppress_ragged_eofs = False  # a TLS stream that just breaks off is an error
        assert connection.sock.recv(1) == b""  # the server is the first to end the stream
    finally:
        connection.shutdown()  # its close() leaves the socket open after a close frame from the server
    return Seen(connection.subprotocol or "", heard, int.from_bytes(payload[:2], "big"), payload[2:].decode())


PAGE = """
(url, plan) => new Promise(done => {
  const socket = new WebSocket(url, plan.offers), heard = [];
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const text = bytes => btoa(Array.from(new Uint8Array(bytes), byte => String.fromCharCode(byte)).join(''));
  const proceed = () => {
    const message = plan.says[heard.length];
    if (message !== undefined) socket.send(typeof message === 'string' ? message : bytes(message.base64));
    else if (plan.asks) socket.send(plan.asks);
    else socket.close(plan.code, plan.reason);
  };
  socket.binaryType = 'arraybuffer';
  socket.onopen = proceed;
  socket.onmessage = ({data}) => {
    heard.push(typeof data === 'string' ? data : {base64: text(data)});
    proceed();
  };
  socket.onclose = ({code, reason, wasClean}) => done({protocol: socket.protocol, heard, code, reason, wasClean});
})
"""


def visit_by_page(url: str, plan: Visit, devtools: DevTools) -> Seen:
    """The WebSocket of a page in Chromium, which accepts any certificate."""
    page, session = devtools.open_page()
    devtools.ask("Security.setIgnoreCertificateErrors", session, ignore=True)
    argument = {
        "offers": plan.offers,
        "says": [message if isinstance(message, str) else _packed(message) for message in plan.says],
        "asks": plan.request_to_close if plan.by_server else None,
        "code": plan.code,
        "reason": plan.reason,
    }
    call = f"({PAGE})({json.dumps(url)}, {json.dumps(argument)})"
    seen = value_of(devtools.connection.request(devtools.evaluate(call, session)))
    devtools.ask("Target.closeTarget", targetId=page)
    assert seen["wasClean"]
    return Seen(seen["protocol"], [_unpacked(message) for message in seen["heard"]], seen["code"], seen["reason"])


def _packed(message: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(message).decode()}


def _unpacked(message: Any) -> str | bytes:
    return message if isinstance(message, str) else base64.b64decode(message["base64"])
